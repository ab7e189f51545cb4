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
