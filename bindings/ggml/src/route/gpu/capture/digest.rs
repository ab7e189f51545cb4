//! Digests of graphs, by which a graph is recognised that llama.cpp has rebuilt.

use crate::by_uid::ByUid;
use crate::host::uid::mix;
use crate::host::{Graph, Tensor};

/// Digests of the last graphs, by uid. Digesting every node takes time, and while llama.cpp reuses a graph its uid stays.
#[derive(Debug, Default)]
pub(crate) struct GraphDigests {
    seen: ByUid<u64>,
}

impl GraphDigests {
    /// Returns the digest of a graph, or `None` for one without a uid, which may change at any time.
    pub(crate) fn of(&mut self, graph: &Graph) -> Option<u64> {
        let uid = graph.uid();
        if uid == 0 {
            return None;
        }
        if let Some(&digest) = self.seen.get(uid) {
            return Some(digest);
        }
        let digest = digest(graph);
        self.seen.insert(uid, digest);
        Some(digest)
    }
}

/// Digests everything that ggml's CUDA backend compares before it replays a CUDA graph of its own, and the use counts by
/// which it fuses nodes. All that a kernel is launched with follows from them: operations, parameters, shapes, strides
/// and addresses.
fn digest(graph: &Graph) -> u64 {
    let mut digest = Digest::default();
    for &node in graph.nodes() {
        let sources = || Tensor::source_places().filter_map(|i| Some((i, node.source(i)?)));
        digest.words(identity(node));
        // The set of sources says how many follow. Otherwise those of one node could be taken for the next node.
        digest.words([
            u64::from(node.op().0),
            u64::from(node.flags().cast_unsigned()),
            node.view_source().map_or(0, |source| source.raw() as u64),
            node.view_offset() as u64,
            graph.uses_of(node).map_or(u64::MAX, |uses| u64::from(uses.cast_unsigned())),
            sources().fold(0, |set, (i, _)| set | 1 << i),
        ]);
        for params in node.op_params().chunks(16) {
            digest.words(std::array::from_fn::<_, 16, _>(|i| {
                params.get(i).map_or(0, |param| u64::from(param.cast_unsigned()))
            }));
        }
        sources().for_each(|(_, source)| digest.words(identity(source)));
    }
    digest.finish()
}

/// The words that identify a tensor: its address, type, shape, strides and memory.
fn identity(t: Tensor) -> [u64; 13] {
    let ([a, b, c, d], [e, f, g, h]) = (t.ne().map(i64::cast_unsigned), t.nb().map(|stride| stride as u64));
    let (data, buffer, extra) = (t.data() as u64, t.buffer() as u64, t.extra() as u64);
    [t.raw() as u64, u64::from(t.dtype()), data, buffer, extra, a, b, c, d, e, f, g, h]
}

/// A hash of 64-bit words. Half a megabyte goes through it for each rebuilt graph, so it has four chains that a processor
/// computes in parallel. A chain's step is a bijection of its state and of the word, so a single difference never
/// vanishes.
#[derive(Default)]
struct Digest([u64; 4]);

impl Digest {
    fn words<const N: usize>(&mut self, words: [u64; N]) {
        for (i, word) in words.into_iter().enumerate() {
            let chain = &mut self.0[i % 4];
            *chain = (*chain ^ word).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(29);
        }
    }

    fn finish(self) -> u64 {
        self.0.into_iter().fold(0, |digest, chain| mix(digest ^ chain))
    }
}

#[cfg(all(test, feature = "linked"))]
mod tests {
    use llama_cpp_sys_2 as sys;

    use super::*;
    use crate::host::Arena;

    type Raw = *mut sys::ggml_tensor;

    /// `a + b`, scaled; the nodes' and the leafs' tensors.
    fn graph(arena: &Arena) -> (Graph, [Raw; 2], [Raw; 2]) {
        // SAFETY: tensors and graph live in the arena, which has room for them.
        unsafe {
            let c = arena.context();
            let leaf = || sys::ggml_new_tensor_2d(c, sys::GGML_TYPE_F32, 4, 2);
            let leafs = [leaf(), leaf()];
            let sum = sys::ggml_add(c, leafs[0], leafs[1]);
            let scaled = sys::ggml_scale(c, sum, 2.0);
            let raw = sys::ggml_new_graph_custom(c, 16, false);
            sys::ggml_build_forward_expand(raw, scaled);
            (Graph::new(raw), [sum, scaled], leafs)
        }
    }

    fn set_uid(graph: &Graph, uid: u64) {
        // SAFETY: the graph is the test's alone.
        unsafe { graph.set_uid(uid) }
    }

    #[test]
    fn whatever_a_launch_depends_on_changes_the_digest() {
        let arena = Arena::new(16).unwrap();
        let (graph, [sum, scaled], [first, _]) = graph(&arena);
        let before = digest(&graph);
        assert_eq!(digest(&graph), before);
        type Change = fn(&mut sys::ggml_tensor);
        let changes: [(Raw, Change); 13] = [
            (scaled, |t| t.op_params[0] ^= 1),
            (scaled, |t| t.op_params[15] ^= 1 << 31),
            (scaled, |t| t.op = sys::GGML_OP_SQR),
            (scaled, |t| t.src[9] = t.src[0]),
            (scaled, |t| t.data = t.data.wrapping_byte_add(16)),
            (scaled, |t| t.ne[1] += 1),
            (scaled, |t| t.nb[1] += 4),
            (scaled, |t| t.flags ^= sys::GGML_TENSOR_FLAG_OUTPUT as i32),
            (sum, |t| t.src.swap(0, 1)),
            (sum, |t| t.src[1] = t.src[0]),
            (first, |t| t.data = t.data.wrapping_byte_add(16)),
            (first, |t| t.type_ = sys::GGML_TYPE_F16),
            (first, |t| t.ne[0] -= 1),
        ];
        for (i, (tensor, change)) in changes.into_iter().enumerate() {
            // SAFETY: a tensor of the arena; it is put back as it was.
            unsafe {
                let old = tensor.read();
                change(&mut *tensor);
                assert_ne!(digest(&graph), before, "change {i}");
                tensor.write(old);
            }
        }
        assert_eq!(digest(&graph), before);
        assert_ne!(graph.with_view(0..1, || digest(&graph)), before);
    }

    #[test]
    fn another_reader_elsewhere_changes_the_digest() {
        let arena = Arena::new(16).unwrap();
        let (graph, [sum, _], _) = graph(&arena);
        let first_two = || graph.with_view(0..2, || digest(&graph));
        let before = first_two();
        // SAFETY: a tensor of the arena.
        let sum_tensor = unsafe { Tensor::new(sum) }.unwrap();
        assert_eq!(graph.uses_of(sum_tensor), Some(1));
        // SAFETY: the graph and its arena have room for another reader of the sum.
        unsafe { sys::ggml_build_forward_expand(graph.raw(), sys::ggml_silu(arena.context(), sum)) };
        assert_eq!((graph.uses_of(sum_tensor), graph.nodes().len()), (Some(2), 3));
        assert_ne!(first_two(), before);
    }

    #[test]
    fn a_graph_is_digested_once_per_uid_and_not_recognised_without_one() {
        let arena = Arena::new(16).unwrap();
        let (graph, [_, scaled], _) = graph(&arena);
        let mut digests = GraphDigests::default();
        assert_eq!(digests.of(&graph), None);
        set_uid(&graph, 7);
        let first = digests.of(&graph);
        assert!(first.is_some());
        // SAFETY: a tensor of the arena.
        unsafe { (*scaled).op_params[0] ^= 1 };
        assert_eq!(digests.of(&graph), first, "ggml says that nothing has changed");
        set_uid(&graph, 8);
        assert_ne!(digests.of(&graph), first);
        // SAFETY: a tensor of the arena.
        unsafe { (*scaled).op_params[0] ^= 1 };
        set_uid(&graph, 9);
        assert_eq!(digests.of(&graph), first, "the same again");
    }
}
