//! One batch under several policies. Each row names its profile, and profile 0 leaves it unchanged.
//!
//!     cargo run --example 04-profiles-per-row

use axiscap::cpu::{Job, RowsMut};
use axiscap::{Axis, Bound, Cap, CapTable};

fn main() -> Result<(), axiscap::Error> {
    let axis = Axis::from_direction(&[1.0, 0.0])?;
    let mild = Cap::new(axis.clone(), Bound::floor(-1.0)?);
    let strict = Cap::new(axis, Bound::floor(3.0)?);
    let table = CapTable::with_profiles(&[&[&mild], &[&strict]])?;

    let mut h = [-5.0f32, 1.0, -5.0, 2.0, -5.0, 3.0];
    let profiles = [0, 1, 2];
    Job::cap(RowsMut::from_slice(&mut h, 2)?).row_profiles(&profiles).run(&table)?;
    for (row, profile) in h.chunks(2).zip(profiles) {
        println!("profile {profile}: {row:?}");
    }
    assert_eq!(h, [-5.0, 1.0, -1.0, 2.0, 3.0, 3.0]);
    Ok(())
}
