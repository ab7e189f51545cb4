//! One batch, several policies: each row names its profile. 0 leaves it as it is.
//!
//!     cargo run --example 04-profiles-per-row

use axiscap::backend::{Backend, Best, Call};
use axiscap::cpu::{Options, RowsMut};
use axiscap::{Axis, Bound, Cap, CapTable};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let axis = Axis::from_direction(&[1.0, 0.0])?;
    let mild = Cap::new(axis.clone(), Bound::floor(-1.0)?);
    let strict = Cap::new(axis, Bound::floor(3.0)?);
    let table = CapTable::with_profiles(&[&[&mild], &[&strict]])?;

    let mut h = [-5.0f32, 1.0, -5.0, 2.0, -5.0, 3.0];
    let profiles = [0, 1, 2];
    let call = Call::cap(&table, RowsMut::from_slice(&mut h, 2)?);
    Best::find().run(call, Options::new().profiles(&profiles))?;
    for (row, profile) in h.chunks(2).zip(profiles) {
        println!("profile {profile}: {row:?}");
    }
    assert_eq!(h, [-5.0, 1.0, -1.0, 2.0, 3.0, 3.0]);
    Ok(())
}
