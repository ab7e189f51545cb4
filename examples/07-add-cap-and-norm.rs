//! The end of a decoder block and the start of the next one, in one launch on a GPU: the residual addition,
//! the cap, and RMSNorm times weight. Without a GPU it prints what is missing.
//!
//!     cargo run --example 07-add-cap-and-norm

use axiscap::cuda::{Device, Overlap};
use axiscap::interop::cudarc::Job;
use axiscap::{Axis, Bound, Cap, CapTable, Epsilon};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(error) => {
            println!("nothing to show: {error}");
            return Ok(());
        }
    };
    let axis = Axis::from_direction(&[1.0, 0.0, 0.0, 0.0])?;
    let table = device.upload(&CapTable::new(&[Cap::new(axis, Bound::floor(0.5)?)])?)?;

    let stream = device.context().default_stream();
    let ffn_out = stream.clone_htod(&[-1.0f32, 1.0, 1.0, 1.0, 2.0, 0.0, 0.0, 0.0])?;
    let mut residual = stream.clone_htod(&[-1.0f32, 0.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0])?;
    let mut normed = stream.alloc_zeros::<f32>(8)?;
    let weight = stream.clone_htod(&[1.0f32; 4])?;

    // The profile of each row. If other kernels write them on the GPU, ask for faults after the launch.
    let profiles = stream.clone_htod(&[1u32, 0])?;
    Job::add_cap(&ffn_out, &mut residual)
        .norm(&weight, Epsilon::new(1e-5)?, &mut normed)
        .row_profiles(&profiles)
        .launch(&table, &stream, Overlap::None)?;
    if let Some(faults) = table.faults((&*stream).into())? {
        return Err(faults.to_string().into());
    }
    println!("residual {:?}", stream.clone_dtoh(&residual)?);
    println!("normed   {:?}", stream.clone_dtoh(&normed)?);
    Ok(())
}
