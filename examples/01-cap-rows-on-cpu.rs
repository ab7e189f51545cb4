//! Caps a batch of rows on the CPU, and prints the effect on each row.
//!
//!     cargo run --example 01-cap-rows-on-cpu

use axiscap::cpu::{Isa, Job, RowsMut};
use axiscap::{Axis, Bound, Cap, CapStats, CapTable, RowStat};

fn main() -> Result<(), axiscap::Error> {
    // Eight tokens of a model with a residual stream of 64 channels.
    let (rows, width) = (8, 64);
    let mut h: Vec<f32> = (0..rows * width).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.05).collect();

    // The projection on the first axis, "more Assistant", is held at -1 or above. The second cap only
    // observes.
    let assistant = Axis::from_direction(&(0..width).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>())?;
    let other = Axis::from_direction(&(0..width).map(|i| (i as f32 * 0.3).cos()).collect::<Vec<_>>())?;
    let table = CapTable::new(&[
        Cap::new(assistant, Bound::floor(-1.0)?).with_name("assistant"),
        Cap::new(other, Bound::NONE).with_name("observed"),
    ])?;

    // Statistics: one entry per row and cap.
    let mut stats = vec![RowStat::default(); rows * table.max_caps_per_row()];
    let before = h.clone();
    Job::cap(RowsMut::from_slice(&mut h, width)?).stats(&mut stats).run(&table)?;

    println!("instructions: {}", Isa::best());
    println!("{:>3} {:>10} {:>10}  {:<9} {:>10}  row", "row", "before", "after", "", "observed");
    for (row, stat) in stats.chunks(2).enumerate() {
        let same = h[row * width..][..width] == before[row * width..][..width];
        println!(
            "{row:>3} {:>10.4} {:>10.4}  {:<9} {:>10.4}  {}",
            stat[0].before,
            stat[0].after,
            if stat[0].engaged() { "engaged" } else { "" },
            stat[1].before,
            if same { "unchanged" } else { "moved along the axis" }
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
