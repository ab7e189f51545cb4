//! Caps rows in GPU memory, in a `CudaSlice` of cudarc. Without a GPU it prints what is missing.
//!
//!     cargo run --example 02-cap-a-cuda-slice

use axiscap::cuda::{Device, Overlap};
use axiscap::interop::cudarc::Job;
use axiscap::{Axis, Bound, Cap, CapTable};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(error) => {
            println!("nothing to show: {error}");
            return Ok(());
        }
    };
    let axis = Axis::from_direction(&[0.0, 3.0, 0.0, 4.0])?;
    let table = device.upload(&CapTable::new(&[Cap::new(axis, Bound::floor(1.0)?)])?)?;

    let stream = device.context().default_stream();
    let mut rows = stream.clone_htod(&[1.0f32, 2.0, 3.0, 4.0, 1.0, -2.0, 3.0, -4.0])?;
    Job::cap(&mut rows).launch(&table, &stream, Overlap::None)?;
    for row in stream.clone_dtoh(&rows)?.chunks(4) {
        println!("{row:?}");
    }
    Ok(())
}
