//! Cap a batch of rows on the CPU, and see what happened to each.
//!
//! `cargo run --example 01-cap-rows-on-cpu`

use axiscap::cpu::{self, Isa, Options, RowsMut};
use axiscap::{Axis, Bound, Cap, CapStats, CapTable, RowStat};

fn main() -> Result<(), axiscap::Error> {
    // Eight tokens of a model with a residual stream of 64 channels.
    let (rows, width) = (8, 64);
    let mut h: Vec<f32> = (0..rows * width).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.05).collect();

    // A direction that means "more Assistant", held at -1 or above; and one that only watches.
    let assistant = Axis::from_direction(&(0..width).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>())?;
    let other = Axis::from_direction(&(0..width).map(|i| (i as f32 * 0.3).cos()).collect::<Vec<_>>())?;
    let table = CapTable::new(&[
        Cap::new(assistant, Bound::floor(-1.0)?).with_name("assistant"),
        Cap::new(other, Bound::NONE).with_name("watched"),
    ])?;

    // Statistics: one entry per row and cap.
    let mut stats = vec![RowStat::default(); rows * table.deepest_profile()];
    let before = h.clone();
    cpu::cap_rows(&table, RowsMut::from_slice(&mut h, width)?, Options::new().stats(&mut stats))?;

    println!("instructions: {}", Isa::best());
    println!("{:>3} {:>10} {:>10}  {:<9} {:>10}  row", "row", "before", "after", "", "watched");
    for (row, stat) in stats.chunks(2).enumerate() {
        let same = h[row * width..][..width] == before[row * width..][..width];
        println!(
            "{row:>3} {:>10.4} {:>10.4}  {:<9} {:>10.4}  {}",
            stat[0].before,
            stat[0].after,
            if stat[0].engaged() { "engaged" } else { "" },
            stat[1].before,
            if same { "untouched" } else { "moved along the axis" }
        );
    }

    let mut all = CapStats::default();
    stats.iter().step_by(2).for_each(|stat| all.add(stat));
    println!(
        "{} of {} rows engaged; projections after: {:.4} to {:.4}",
        all.engaged, all.rows, all.min_after, all.max_after
    );
    Ok(())
}
