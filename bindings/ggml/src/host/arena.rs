//! Memory for tensors and graphs that the hook makes itself.

use std::ffi::c_void;
use std::ptr::null_mut;

use super::api::{api, mismatch};
use super::types::{F32, InitParams, RawContext, RawGraph};
use crate::error::HookError;

/// Nodes of the graphs that an arena of [`Arena::new`] has room for. No count of nodes or leafs of a probed
/// graph equals it.
pub(crate) const GRAPH_SIZE: usize = 61;

/// Words of `ggml_cgraph` that are searched for a field. The arrays of a graph follow it in the same
/// allocation, so this many words can be read.
pub(super) const GRAPH_WORDS: usize = 16;

/// A `ggml_context` that holds tensors without data, reused from graph to graph.
#[derive(Debug)]
pub(crate) struct Arena {
    context: *mut RawContext,
    tensors: usize,
}

// SAFETY: a ggml_context is plain memory without ties to a thread. The arena is its only owner.
unsafe impl Send for Arena {}

impl Arena {
    /// Returns an arena with room for this many tensors and two small graphs.
    pub(crate) fn new(tensors: usize) -> Result<Self, HookError> {
        // SAFETY: the two functions only compute sizes.
        let (tensor, graph) = unsafe {
            ((api().ggml_tensor_overhead)(), (api().ggml_graph_overhead_custom)(GRAPH_SIZE, false))
        };
        // SAFETY: a null buffer asks ggml to allocate the bytes itself.
        unsafe { Self::init(null_mut(), tensors * tensor + 2 * graph + 1024, tensors) }
    }

    /// Returns an arena in memory of the caller's.
    ///
    /// # Safety
    /// While the arena lives, the memory must not be freed, moved, or written through other pointers than
    /// ggml's.
    pub(crate) unsafe fn within(memory: &mut [u128]) -> Result<Self, HookError> {
        // SAFETY: memory of that many bytes, aligned as ggml asks for. The caller keeps it.
        unsafe { Self::init(memory.as_mut_ptr().cast(), size_of_val(memory), 0) }
    }

    /// # Safety
    /// `memory` must be null or hold `bytes` bytes for as long as the arena lives.
    unsafe fn init(memory: *mut c_void, bytes: usize, tensors: usize) -> Result<Self, HookError> {
        let params = InitParams { mem_size: bytes, mem_buffer: memory, no_alloc: true };
        // SAFETY: by the caller's contract the buffer is null or large enough.
        let context = unsafe { (api().ggml_init)(params) };
        if context.is_null() {
            Err(mismatch("ggml_init returned null"))
        } else {
            Ok(Self { context, tensors })
        }
    }

    pub(crate) fn context(&self) -> *mut RawContext {
        self.context
    }

    /// Empties the arena, and enlarges it if it has no room for this many tensors. Every tensor made before
    /// is gone.
    pub(crate) fn emptied(&mut self, tensors: usize) -> Result<*mut RawContext, HookError> {
        if self.tensors < tensors {
            *self = Self::new(tensors)?;
        } else {
            // SAFETY: the context is valid, and by contract its tensors are not used any more.
            unsafe { (api().ggml_reset)(self.context) };
        }
        Ok(self.context)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: made by ggml_init and freed once.
        unsafe { (api().ggml_free)(self.context) };
    }
}

/// Builds a graph of `adds` additions, each of the last result and a new leaf: `adds` nodes and `adds + 1`
/// leafs. The arena must have room for twice as many tensors.
pub(crate) fn chain(arena: &Arena, adds: usize) -> *mut RawGraph {
    let api = api();
    // SAFETY: all objects live in the arena's context, which has room for them.
    unsafe {
        let context = arena.context();
        let graph = (api.ggml_new_graph_custom)(context, GRAPH_SIZE, false);
        let mut sum = (api.ggml_new_tensor_1d)(context, F32, 1);
        for _ in 0..adds {
            let leaf = (api.ggml_new_tensor_1d)(context, F32, 1);
            sum = (api.ggml_add)(context, sum, leaf);
        }
        (api.ggml_build_forward_expand)(graph, sum);
        graph
    }
}
