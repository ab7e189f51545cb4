//! What a decoder block ends with and the next one begins with, in one launch on a GPU: the residual addition, the
//! cap, and RMSNorm times weight. Without a GPU it says what is missing.
//!
//!     cargo run --example 07-add-cap-and-norm

use axiscap::cuda::Device;
use axiscap::interop::cudarc::{SliceNorm, SliceOptions, add_cap_norm_slice};
use axiscap::{Axis, Bound, Cap, CapTable};

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

    // A profile per row, here on the host; where others write them on the GPU, ask for faults behind the launch.
    let profiles = stream.clone_htod(&[1u32, 0])?;
    let options = SliceOptions { profiles: Some(&profiles), ..SliceOptions::default() };
    let norm = SliceNorm { weight: &weight, eps: 1e-5 };
    add_cap_norm_slice(&stream, &table, &ffn_out, &mut residual, norm, &mut normed, options)?;
    if let Some(faults) = table.faults((&*stream).into())? {
        return Err(faults.to_string().into());
    }
    println!("residual {:?}", stream.clone_dtoh(&residual)?);
    println!("normed   {:?}", stream.clone_dtoh(&normed)?);
    Ok(())
}
