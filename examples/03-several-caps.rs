//! Applies several caps to a row, one after the other, in one pass.
//!
//!     cargo run --example 03-several-caps

use axiscap::cpu::{Job, RowsMut};
use axiscap::{Axis, Bound, Cap, CapTable};

fn main() -> Result<(), axiscap::Error> {
    let assistant =
        Cap::new(Axis::from_direction(&[1.0, 0.0, 0.0, 0.0])?, Bound::floor(2.0)?).with_name("assistant");
    // Strength 0.5 moves the projection half the way to the bound.
    let calm = Cap::new(Axis::from_direction(&[0.0, 0.0, 1.0, 0.0])?, Bound::band(-1.0, 1.0)?)
        .with_name("calm")
        .with_strength(0.5)?;
    let table = CapTable::new(&[assistant, calm])?;

    let mut h = [0.5f32, 7.0, 3.0, 7.0];
    Job::cap(RowsMut::from_slice(&mut h, 4)?).run(&table)?;
    println!("{h:?}");
    assert_eq!(h, [2.0, 7.0, 2.0, 7.0]);
    Ok(())
}
