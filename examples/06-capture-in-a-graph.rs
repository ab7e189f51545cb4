//! Captures a cap in a CUDA graph once, and changes its bound between two replays. Without a GPU it prints
//! what is missing.
//!
//!     cargo run --example 06-capture-in-a-graph

use axiscap::cuda::{Device, Overlap};
use axiscap::interop::cudarc::Job;
use axiscap::{Axis, Bound, Cap, CapTable};
use cudarc::driver::sys::{CUgraphInstantiate_flags_enum, CUstreamCaptureMode};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(error) => {
            println!("nothing to show: {error}");
            return Ok(());
        }
    };
    let mut table = CapTable::new(&[Cap::new(Axis::from_direction(&[1.0, 0.0])?, Bound::floor(1.0)?)])?;
    let on_gpu = device.upload(&table)?;
    // SAFETY: everything below is on one stream, so no events of cudarc are needed to order streams. A
    // capture would record them.
    unsafe { device.context().disable_event_tracking() };
    let stream = device.context().new_stream()?;
    let mut rows = stream.clone_htod(&[-1.0f32, 5.0])?;
    stream.synchronize()?;

    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    Job::cap(&mut rows).launch(&on_gpu, &stream, Overlap::None)?;
    let flags = CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags)?.ok_or("nothing was captured")?;

    for floor in [1.0, 2.0] {
        table.set_bound(0, Bound::floor(floor)?)?;
        on_gpu.update_params(table.params(), (&*stream).into())?;
        graph.launch()?;
        println!("floor {floor}: {:?}", stream.clone_dtoh(&rows)?);
    }
    Ok(())
}
