//! The norm weights that a graph reads, by which its model is known.

use std::collections::HashMap;
use std::ops::Range;

use sha2::{Digest, Sha256};

use super::inputs::copied_name;
use crate::host::{Graph, Tensor, api};

/// How llama.cpp names the weights of the final norm.
pub(crate) const OUTPUT_NORM: &str = "output_norm.weight";

/// Returns the one-dimensional weights that a graph reads, with the names that they have in the model's file, in
/// the order of the nodes that read them.
fn weights<'a>(graph: &'a Graph) -> impl Iterator<Item = (&'a [u8], Tensor)> {
    let sources = |node: &'a Tensor| Tensor::source_places().filter_map(|index| node.source(index));
    let named = graph.nodes().iter().flat_map(sources).map(|source| (copied_name(source.name()), source));
    named.filter(|&(name, source)| name.ends_with(b".weight") && source.ne()[1..] == [1, 1, 1])
}

/// As [`weights`], by name.
pub(crate) fn weights_by_name(graph: &Graph) -> HashMap<&[u8], Tensor> {
    let mut found = HashMap::new();
    for (name, weight) in weights(graph) {
        found.entry(name).or_insert(weight);
    }
    found
}

fn is_norm(name: &[u8]) -> bool {
    name.windows(4).any(|part| part == b"norm")
}

/// Returns the SHA-256 of a weight; `None` if its bytes cannot be read.
pub(crate) fn digest(weight: Tensor) -> Option<[u8; 32]> {
    let plain = weight.is_f32() && weight.nb()[0] == size_of::<f32>();
    if !plain || weight.data() == 0 || weight.owning_buffer().is_null() {
        return None;
    }
    let mut bytes = vec![0_u8; weight.bytes()];
    // SAFETY: a weight that the graph is about to read, with memory of as many bytes.
    unsafe { (api().ggml_backend_tensor_get)(weight.raw(), bytes.as_mut_ptr().cast(), 0, bytes.len()) };
    Some(Sha256::digest(&bytes).into())
}

/// Returns the digests of the norm weights that a graph reads, by name.
pub(crate) fn norms_of(graph: &Graph) -> Vec<(String, [u8; 32])> {
    let norms = weights_by_name(graph).into_iter().filter(|(name, _)| is_norm(name));
    let mut norms: Vec<_> = norms
        .filter_map(|(name, weight)| Some((String::from_utf8(name.to_vec()).ok()?, digest(weight)?)))
        .collect();
    norms.sort_unstable();
    norms
}

/// Returns the norm weights that a graph reads and that are in memory, in the order of the nodes that read them.
pub(crate) fn norm_weights(graph: &Graph) -> impl Iterator<Item = Tensor> {
    let norms = weights(graph).filter(|(name, _)| is_norm(name)).map(|(_, weight)| weight);
    norms.filter(|weight| weight.data() != 0 && !weight.owning_buffer().is_null())
}

/// Returns the blocks of a model of so many whose outputs a part of its graph has to compute: those between two
/// norms that it reads.
///
/// The output of a block is computed after the block's own norms and before those of the next, and a scheduler
/// would have cut the graph there if another backend computed it.
pub(crate) fn whole_blocks(graph: &Graph, blocks: usize) -> Range<usize> {
    let number = |name: &[u8]| {
        if name == OUTPUT_NORM.as_bytes() {
            return Some(blocks);
        }
        let name = name.strip_prefix(b"blk.")?;
        let digits = &name[..name.iter().position(|&byte| byte == b'.')?];
        std::str::from_utf8(digits).ok()?.parse().ok().filter(|&block| block < blocks)
    };
    let norms = weights(graph).filter(|(name, _)| is_norm(name));
    let blocks: Vec<_> = norms.filter_map(|(name, _)| number(name)).collect();
    let ends = blocks.iter().min().zip(blocks.iter().max());
    ends.map_or(0..0, |(&first, &last)| first..last)
}

#[cfg(all(test, feature = "linked"))]
mod tests {
    use std::ffi::CString;

    use llama_cpp_sys_2 as sys;

    use super::*;
    use crate::host::{Arena, chain};

    /// Returns a graph whose nodes read weights of these names.
    fn reading(arena: &Arena, names: &[&str]) -> Graph {
        // SAFETY: the graph lives in the arena, and its nodes are valid.
        let graph = unsafe { Graph::new(chain(arena, names.len())) };
        for (node, &name) in graph.nodes().iter().zip(names) {
            let weight = node.source(1).expect("a leaf");
            // SAFETY: a tensor of the graph.
            unsafe { sys::ggml_set_name(weight.raw(), CString::new(name).unwrap().as_ptr()) };
        }
        graph
    }

    #[test]
    fn the_blocks_between_norms_have_their_outputs_in_the_graph() {
        crate::host::use_linked_host().unwrap();
        let arena = Arena::new(64).unwrap();
        let range = |names: &[&str]| whole_blocks(&reading(&arena, names), 6);
        assert_eq!(
            range(&["blk.2.attn_norm.weight", "blk.2.ffn_norm.weight", "blk.5.attn_norm.weight"]),
            2..5
        );
        assert_eq!(
            range(&["CUDA0#blk.0.attn_norm.weight#0", OUTPUT_NORM]),
            0..6,
            "a copy, and the last block"
        );
        assert_eq!(range(&["blk.3.attn_norm.weight", "blk.3.ffn_norm.weight"]), 3..3);
        let others =
            ["blk.7.attn_norm.weight", "blk.x.attn_norm.weight", "blk.2.attn_q.weight", "norm.weight"];
        assert_eq!(range(&others), 0..0);
    }

    #[test]
    fn a_weight_without_memory_has_no_digest() {
        crate::host::use_linked_host().unwrap();
        let arena = Arena::new(64).unwrap();
        let graph = reading(&arena, &["blk.0.attn_norm.weight", "blk.0.attn_q.weight"]);
        assert_eq!(weights_by_name(&graph).len(), 2);
        assert_eq!((norms_of(&graph), norm_weights(&graph).count()), (Vec::new(), 0));
    }
}
