//! Graphs that must not be captured.

use std::ffi::CStr;

use crate::by_uid::ByUid;
use crate::host::{Graph, Tensor, api, cuda_backend_was_read, ggml_version, ops};

/// Why a graph must not be captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CaptureBlocker {
    pub(super) reason: &'static str,
    /// True if no batch size can avoid it. Logged once as a warning.
    pub(super) permanent: bool,
}

/// Returns a blocker of this graph that the next graph may not have.
pub(super) const fn temporary(reason: &'static str) -> CaptureBlocker {
    CaptureBlocker { reason, permanent: false }
}

/// Tokens that ggml's CUDA backend multiplies by quantised experts without waiting for its stream, on every
/// NVIDIA GPU and for every type. It is the least that `get_mmvq_mmid_max_batch` of ggml 0.26 returns (4
/// before Volta, 5 on Turing and Ampere, 8 on the others). With more tokens it may wait, depending on GPU,
/// type and shapes, and a wait in a capture ends the process. With other versions of ggml one token is allowed, for
/// which every version makes CUDA graphs of its own.
const MAX_EXPERT_TOKENS: i64 = 4;

/// Blockers of the last graphs, by uid. Checking every node takes time.
#[derive(Debug)]
pub(super) struct CaptureBlockers {
    seen: ByUid<Option<CaptureBlocker>>,
    max_expert_tokens: i64,
}

impl Default for CaptureBlockers {
    fn default() -> Self {
        let known = cuda_backend_was_read(&ggml_version());
        Self { seen: ByUid::default(), max_expert_tokens: if known { MAX_EXPERT_TOKENS } else { 1 } }
    }
}

impl CaptureBlockers {
    /// Returns the blocker of a graph, a permanent one if there are several.
    pub(super) fn of(&mut self, graph: &Graph) -> Option<CaptureBlocker> {
        let uid = graph.uid();
        if let Some(&blocker) = self.seen.get(uid) {
            return blocker;
        }
        let found = graph.nodes().iter().filter_map(|&node| blocker(node, self.max_expert_tokens));
        let blocker = found.max_by_key(|blocker| blocker.permanent);
        self.seen.insert(uid, blocker);
        blocker
    }
}

fn blocker(node: Tensor, max_expert_tokens: i64) -> Option<CaptureBlocker> {
    let (weights, rows) = (node.source(0), node.source(1));
    if node.op() == ops().mul_mat_id {
        let f32s = [rows, Some(node)].into_iter().all(|t| t.is_some_and(Tensor::is_f32));
        // SAFETY: a query of a table by a type that ggml made.
        let quantised = weights.is_some_and(|weights| unsafe { (api().ggml_is_quantized)(weights.dtype()) });
        if !(f32s && quantised) {
            return Some(CaptureBlocker {
                reason: "ggml may wait for the GPU within it: its experts are not quantised",
                permanent: true,
            });
        }
        if node.ne()[2] > max_expert_tokens {
            return Some(temporary("ggml may wait for the GPU within it: several tokens choose experts"));
        }
    }
    let buffer = weights.map_or(std::ptr::null_mut(), Tensor::buffer);
    // SAFETY: a buffer has a type, whose name is a NUL-terminated string that lives as long.
    let split = !buffer.is_null()
        && unsafe {
            let name = (api().ggml_backend_buft_name)((api().ggml_backend_buffer_get_type)(buffer));
            CStr::from_ptr(name).to_bytes().ends_with(b"_Split")
        };
    // ggml's CUDA backend had such buffers before 0.26 (LLAMA_SPLIT_MODE_ROW). It computes on other GPUs'
    // streams then.
    split.then_some(CaptureBlocker {
        reason: "its weights are split by rows over several GPUs",
        permanent: true,
    })
}

#[cfg(all(test, feature = "linked"))]
mod tests {
    use llama_cpp_sys_2 as sys;

    use super::*;
    use crate::host::Arena;

    /// The blocker of one multiplication by experts.
    fn of(
        weights: sys::ggml_type,
        tokens: i64,
        change: impl FnOnce(&mut sys::ggml_tensor),
    ) -> Option<CaptureBlocker> {
        let arena = Arena::new(16).unwrap();
        // SAFETY: all tensors and the graph live in the arena, which has room for them.
        let graph = unsafe {
            let c = arena.context();
            let experts = sys::ggml_new_tensor_3d(c, weights, 256, 8, 4);
            let rows = sys::ggml_new_tensor_3d(c, sys::GGML_TYPE_F32, 256, 1, tokens);
            let chosen = sys::ggml_new_tensor_2d(c, sys::GGML_TYPE_I32, 2, tokens);
            let product = sys::ggml_mul_mat_id(c, experts, rows, chosen);
            change(&mut *product);
            let raw = sys::ggml_new_graph_custom(c, 16, false);
            sys::ggml_build_forward_expand(raw, product);
            Graph::new(raw)
        };
        CaptureBlockers::default().of(&graph)
    }

    #[test]
    fn experts_are_captured_where_ggml_never_waits() {
        let unchanged = |_: &mut sys::ggml_tensor| {};
        for quantised in
            [sys::GGML_TYPE_Q4_K, sys::GGML_TYPE_Q8_0, sys::GGML_TYPE_IQ2_S, sys::GGML_TYPE_MXFP4]
        {
            for tokens in 1..=4 {
                assert_eq!(of(quantised, tokens, unchanged), None, "{quantised} {tokens}");
            }
            for tokens in [5, 8, 64] {
                let blocker = of(quantised, tokens, unchanged).unwrap();
                assert!(!blocker.permanent && blocker.reason.contains("tokens"));
            }
        }
        for plain in [sys::GGML_TYPE_F16, sys::GGML_TYPE_BF16, sys::GGML_TYPE_F32] {
            for tokens in [1, 5] {
                assert!(of(plain, tokens, unchanged).unwrap().permanent);
            }
        }
        assert!(of(sys::GGML_TYPE_Q4_K, 1, |product| product.type_ = sys::GGML_TYPE_F16).unwrap().permanent);
    }

    #[test]
    fn the_number_of_expert_tokens_is_known_for_this_version() {
        let known = CaptureBlockers::default().max_expert_tokens;
        assert_eq!(known, MAX_EXPERT_TOKENS, "read get_mmvq_mmid_max_batch again");
    }
}
