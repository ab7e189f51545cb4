//! Several caps on one row, one after the other, in one pass. Runs on the GPU if there is one, else on the CPU, with
//! the same bits.
//!
//!     cargo run --example 03-several-caps

use axiscap::backend::{Backend, Best, Call};
use axiscap::cpu::{Options, RowsMut};
use axiscap::{Axis, Bound, Cap, CapTable};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let assistant =
        Cap::new(Axis::from_direction(&[1.0, 0.0, 0.0, 0.0])?, Bound::floor(2.0)?).with_name("assistant");
    // A band, half way only: strength 0.5 moves the projection half the way to the bound.
    let calm = Cap::new(Axis::from_direction(&[0.0, 0.0, 1.0, 0.0])?, Bound::band(-1.0, 1.0)?)
        .with_name("calm")
        .with_strength(0.5)?;
    let table = CapTable::new(&[assistant, calm])?;

    let backend = Best::find();
    println!("on the {}", backend.describe());
    if let Some(reason) = backend.why_no_gpu() {
        println!("because: {reason}");
    }
    let mut h = [0.5f32, 7.0, 3.0, 7.0];
    backend.run(Call::cap(&table, RowsMut::from_slice(&mut h, 4)?), Options::new())?;
    println!("{h:?}");
    assert_eq!(h, [2.0, 7.0, 2.0, 7.0]);
    Ok(())
}
