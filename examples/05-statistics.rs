//! Statistics per row and in sum, written by the pass that caps.
//!
//!     cargo run --example 05-statistics

use axiscap::cpu::{Job, RowsMut};
use axiscap::{Axis, Bound, Cap, CapStats, CapTable, RowStat};

fn main() -> Result<(), axiscap::Error> {
    let table = CapTable::new(&[Cap::new(Axis::from_direction(&[1.0, 0.0])?, Bound::floor(0.0)?)])?;
    let mut h = [-2.0f32, 0.0, 1.0, 0.0, f32::NAN, 0.0, -0.5, 0.0];
    let mut rows = [RowStat::default(); 4];
    Job::cap(RowsMut::from_slice(&mut h, 2)?).stats(&mut rows).run(&table)?;

    let mut sum = CapStats::default();
    for (i, row) in rows.iter().enumerate() {
        println!(
            "row {i}: {} -> {}, engaged {}, finite {}",
            row.before,
            row.after,
            row.engaged(),
            !row.non_finite()
        );
        sum.add(row);
    }
    println!("{} of {} rows engaged, {} without a finite projection", sum.engaged, sum.rows, sum.non_finite);
    assert_eq!((sum.engaged, sum.non_finite), (2, 1));
    Ok(())
}
