//! Graphs that must not be captured, whatever else is known of them.

use std::ffi::CStr;

use llama_cpp_sys_2 as sys;

use crate::graph::Graph;

/// Remembers what it found for the last graph: looking at every node is not free.
#[derive(Debug, Default)]
pub(super) struct Obstacles {
    seen: Option<(u64, Option<&'static str>)>,
}

impl Obstacles {
    pub(super) fn of(&mut self, graph: &Graph) -> Option<&'static str> {
        let uid = graph.uid();
        match self.seen {
            Some((seen, obstacle)) if seen == uid => obstacle,
            _ => {
                // SAFETY: nodes of the graph being computed are valid.
                let obstacle = graph.nodes().iter().find_map(|&node| unsafe { obstacle(node) });
                self.seen = Some((uid, obstacle));
                obstacle
            }
        }
    }
}

/// # Safety
/// `node` must be a valid node of a graph.
unsafe fn obstacle(node: *const sys::ggml_tensor) -> Option<&'static str> {
    // SAFETY: the caller's promise; sources of valid nodes are valid.
    let (op, weights) =
        unsafe { ((*node).op, (&raw const (*node).src).cast::<*mut sys::ggml_tensor>().read()) };
    if op == sys::GGML_OP_MUL_MAT_ID {
        // One way that ggml computes it waits for the stream, which a capture forbids.
        return Some("the model is a mixture of experts");
    }
    if weights.is_null() {
        return None;
    }
    // SAFETY: as above; a buffer has a type, whose name is a NUL-terminated string that lives as long.
    let split = unsafe {
        let buffer = (*weights).buffer;
        !buffer.is_null() && {
            let name = sys::ggml_backend_buft_name(sys::ggml_backend_buffer_get_type(buffer));
            CStr::from_ptr(name).to_bytes().ends_with(b"_Split")
        }
    };
    split.then_some("its weights are split by rows over several GPUs")
}
