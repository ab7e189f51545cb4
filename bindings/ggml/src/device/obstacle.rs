//! Graphs that must not be captured, whatever else is known of them.

use std::ffi::CStr;

use llama_cpp_sys_2 as sys;

use crate::by_uid::ByUid;
use crate::graph::Graph;
use crate::layout::ggml_version;

/// Why a graph must not be captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Obstacle {
    pub(super) reason: &'static str,
    /// Whether it stays, whatever batches llama.cpp makes: then somebody may want to know.
    pub(super) lasting: bool,
}

/// An obstacle of this graph, which the next may not have.
pub(super) const fn passing(reason: &'static str) -> Obstacle {
    Obstacle { reason, lasting: false }
}

/// Tokens that ggml's CUDA backend multiplies by quantised experts without waiting for its stream, on every NVIDIA GPU
/// and for every type: the least that `get_mmvq_mmid_max_batch` of ggml 0.26 returns (4 before Volta, 5 on Turing and
/// Ampere, 8 on the others). Whether it waits with more depends on GPU, type and shapes in ways that are ggml's own
/// business, and a wait in a capture ends the process.
const FEW_TOKENS: i64 = 4;

/// The version that this was read in. Others are only trusted with one token, which all have captured themselves.
const READ_IN: &str = "0.26.";

/// Remembers what it found for the last graphs: looking at every node is not free.
#[derive(Debug)]
pub(super) struct Obstacles {
    seen: ByUid<Option<Obstacle>>,
    few_tokens: i64,
}

impl Default for Obstacles {
    fn default() -> Self {
        let few_tokens = if ggml_version().starts_with(READ_IN) { FEW_TOKENS } else { 1 };
        Self { seen: ByUid::default(), few_tokens }
    }
}

impl Obstacles {
    pub(super) fn of(&mut self, graph: &Graph) -> Option<Obstacle> {
        let uid = graph.uid();
        if let Some(&obstacle) = self.seen.get(uid) {
            return obstacle;
        }
        // SAFETY: nodes of the graph being computed are valid.
        let found = graph.nodes().iter().filter_map(|&node| unsafe { obstacle(node, self.few_tokens) });
        // One that stays says more than one that passes.
        let obstacle = found.max_by_key(|obstacle| obstacle.lasting);
        self.seen.insert(uid, obstacle);
        obstacle
    }
}

/// # Safety
/// `node` must be a valid node of a graph.
unsafe fn obstacle(node: *const sys::ggml_tensor, few_tokens: i64) -> Option<Obstacle> {
    // SAFETY: the caller's promise.
    let node = unsafe { &*node };
    // SAFETY: sources of valid nodes are valid, or null.
    let (weights, rows) = unsafe { (node.src[0].as_ref(), node.src[1].as_ref()) };
    if node.op == sys::GGML_OP_MUL_MAT_ID {
        let f32s = [rows, Some(node)].into_iter().all(|t| t.is_some_and(|t| t.type_ == sys::GGML_TYPE_F32));
        // SAFETY: a query of a table by a type that ggml made.
        let quantised = weights.is_some_and(|weights| unsafe { sys::ggml_is_quantized(weights.type_) });
        if !(f32s && quantised) {
            return Some(Obstacle {
                reason: "ggml may wait for the GPU within it: its experts are not quantised",
                lasting: true,
            });
        }
        if node.ne[2] > few_tokens {
            return Some(passing("ggml may wait for the GPU within it: several tokens choose experts"));
        }
    }
    // SAFETY: a buffer has a type, whose name is a NUL-terminated string that lives as long.
    let split = weights.is_some_and(|weights| unsafe {
        !weights.buffer.is_null() && {
            let name = sys::ggml_backend_buft_name(sys::ggml_backend_buffer_get_type(weights.buffer));
            CStr::from_ptr(name).to_bytes().ends_with(b"_Split")
        }
    });
    // ggml's CUDA backend had such buffers before 0.26 (LLAMA_SPLIT_MODE_ROW): it computes on other GPUs' streams.
    split.then_some(Obstacle { reason: "its weights are split by rows over several GPUs", lasting: true })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Arena, Layout};

    /// The obstacle of one multiplication by experts.
    fn of(
        weights: sys::ggml_type,
        tokens: i64,
        change: impl FnOnce(&mut sys::ggml_tensor),
    ) -> Option<Obstacle> {
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
            Graph::new(raw, Layout::probe().unwrap())
        };
        Obstacles::default().of(&graph)
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
                let obstacle = of(quantised, tokens, unchanged).unwrap();
                assert!(!obstacle.lasting && obstacle.reason.contains("tokens"));
            }
        }
        for plain in [sys::GGML_TYPE_F16, sys::GGML_TYPE_BF16, sys::GGML_TYPE_F32] {
            for tokens in [1, 5] {
                assert!(of(plain, tokens, unchanged).unwrap().lasting);
            }
        }
        assert!(of(sys::GGML_TYPE_Q4_K, 1, |product| product.type_ = sys::GGML_TYPE_F16).unwrap().lasting);
    }

    #[test]
    fn the_few_tokens_were_read_in_this_version() {
        assert_eq!(Obstacles::default().few_tokens, FEW_TOKENS, "read get_mmvq_mmid_max_batch again");
    }
}
