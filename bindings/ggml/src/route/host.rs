//! The route for any backend: views that end at the block outputs, with caps on the host between them.
//!
//! Rows are capped in their own memory where the host can reach it, else in a copy that is read and written back.

use super::block_work::BlockWork;
use super::{BlockDone, Cut, GraphCall, Outcome, Result, Route, compute_in_views};
use crate::graph::find::Output;
use crate::host::api;
use crate::report::NotFused;

/// Computes the graph in views, and caps on the host between them.
pub(crate) fn compute(call: &mut GraphCall<'_>) -> Outcome {
    Outcome::of(|outcome| {
        outcome.took(Route::HostViews);
        outcome.leave_norms(call, NotFused::NoGpu);
        let outputs = call.outputs;
        let cuts = outputs.iter().enumerate().map(|(i, output)| (Cut::after(output), (i, *output)));
        compute_in_views(call, cuts, |call, (index, output)| {
            call.synchronize();
            outcome.blocks.push(cap_computed(call, index, output)?);
            Ok(())
        })
    })
}

/// Shows a block output to its tap and caps it. The backend has computed it and is idle.
pub(super) fn cap_computed(call: &mut GraphCall<'_>, index: usize, output: Output) -> Result<BlockDone> {
    run(BlockWork::new(call, index, output), call.staging)
}

/// Shows a block output to its tap without capping it. The backend has computed it and is idle.
pub(super) fn show_computed(call: &mut GraphCall<'_>, index: usize, output: Output) -> Result {
    let mut work = BlockWork::new(call, index, output);
    work.table = None;
    run(work, call.staging)?;
    Ok(())
}

fn run(work: BlockWork<'_>, staging: &mut Vec<f32>) -> Result<BlockDone> {
    let tensor = work.output.tensor;
    if work.output.rows() == 0 {
        return work.finish();
    }
    // SAFETY: the output has been computed and its backend is idle, so only this call uses its memory until the next
    // view. `staging` holds as many bytes as the tensor.
    unsafe {
        let buffer = tensor.owning_buffer();
        let on_host = !buffer.is_null() && (api().ggml_backend_buffer_is_host)(buffer);
        let bytes = tensor.bytes();
        let data = if on_host {
            tensor.data() as *mut f32
        } else {
            staging.resize(bytes.div_ceil(size_of::<f32>()), 0.0);
            (api().ggml_backend_tensor_get)(tensor.raw(), staging.as_mut_ptr().cast(), 0, bytes);
            staging.as_mut_ptr()
        };
        if let Some(tap) = work.tap {
            work.show(tap, data);
        }
        if let Some(table) = work.table {
            work.cap(table, data, 0, 1);
            if !on_host {
                (api().ggml_backend_tensor_set)(tensor.raw(), data.cast(), 0, bytes);
            }
        }
    }
    work.finish()
}
