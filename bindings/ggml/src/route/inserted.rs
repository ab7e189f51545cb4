//! The route on ggml's CPU backend: a cap node after each block output, in ggml's own graph.
//!
//! The nodes run on ggml's worker threads, between its barriers. A cap costs one barrier and its own arithmetic. Nodes
//! that read the block output come later in the list, so they read the capped rows.

use std::ffi::{c_int, c_void};

use super::block_work::BlockWork;
use super::{GraphCall, Outcome, Result, Route, check};
use crate::error::HookError;
use crate::host::{Arena, RawContext, RawTensor, Tensor, api, ggml_version};
use crate::report::NotFused;

/// Computes the graph with cap nodes inserted. The arena holds the nodes.
pub(crate) fn compute(call: &GraphCall<'_>, arena: &mut Arena) -> Outcome {
    Outcome::of(|outcome| {
        outcome.took(Route::Inserted);
        outcome.leave_norms(call, NotFused::NoGpu);
        let blocks = call.outputs.iter().enumerate();
        let work: Vec<_> = blocks.map(|(i, &output)| BlockWork::new(call, i, output)).collect();
        let context = arena.emptied(2 * work.len())?;
        let old = call.graph.nodes();
        let mut nodes = Vec::with_capacity(old.len() + 2 * work.len());
        let mut next = 0;
        for block in &work {
            nodes.extend_from_slice(&old[next..=block.output.node]);
            next = block.output.node + 1;
            if block.tap.is_some() {
                // SAFETY: the arena has room for two tensors per block, and `work` outlives the computation.
                nodes.push(unsafe { insert(context, block, tap_node)? });
            }
            if block.table.is_some() {
                // SAFETY: the arena has room for two tensors per block, and `work` outlives the computation.
                nodes.push(unsafe { insert(context, block, cap_node)? });
            }
        }
        nodes.extend_from_slice(&old[next..]);
        check(call.graph.with_nodes(&mut nodes, || (call.compute)(call.graph)))?;
        for block in work {
            outcome.blocks.push(block.finish()?);
        }
        Ok(())
    })
}

/// `GGML_N_TASKS_MAX`: the node runs on all threads of the graph.
const EVERY_THREAD: c_int = -1;

/// Creates a node that runs `op` on the block output in place.
///
/// # Safety
/// The context must have room for a tensor, and `block` must outlive the computation of the node.
unsafe fn insert(
    context: *mut RawContext,
    block: &BlockWork<'_>,
    op: unsafe extern "C" fn(*mut RawTensor, *const RawTensor, c_int, c_int, *mut c_void),
) -> Result<Tensor> {
    let source = block.output.tensor;
    // SAFETY: `source` is a node of the graph, and ggml_map_custom1_inplace makes a view of it. A node that
    // ggml_build_forward_expand adds has the flag "compute" as well, which is copied from the source.
    unsafe {
        let user_data = std::ptr::from_ref(block).cast_mut().cast();
        let node = (api().ggml_map_custom1_inplace)(context, source.raw(), Some(op), EVERY_THREAD, user_data);
        let node = Tensor::new(node).ok_or_else(|| HookError::Layout {
            version: ggml_version(),
            what: "ggml_map_custom1_inplace returned null".into(),
        })?;
        node.compute_like(source);
        Ok(node)
    }
}

unsafe extern "C" fn tap_node(
    _: *mut RawTensor,
    _: *const RawTensor,
    ith: c_int,
    _: c_int,
    block: *mut c_void,
) {
    if ith != 0 {
        return;
    }
    // SAFETY: `insert` stored a `BlockWork` that outlives the computation and is only shared. The rows are complete,
    // because a barrier comes before this node. They are capped only after the barrier that follows it.
    unsafe {
        let block = &*block.cast::<BlockWork<'_>>();
        if let Some(tap) = block.tap {
            block.show(tap, block.output.tensor.data() as *const f32);
        }
    }
}

unsafe extern "C" fn cap_node(
    _: *mut RawTensor,
    _: *const RawTensor,
    ith: c_int,
    nth: c_int,
    block: *mut c_void,
) {
    // SAFETY: `insert` stored a `BlockWork` that outlives the computation and is only shared. ggml calls a node once
    // per worker, with distinct `ith` below one `nth`, and barriers keep other nodes from the rows.
    unsafe {
        let block = &*block.cast::<BlockWork<'_>>();
        if let Some(table) = block.table {
            block.cap(table, block.output.tensor.data() as *mut f32, ith as usize, nth as usize);
        }
    }
}
