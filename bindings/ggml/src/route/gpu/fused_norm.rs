//! Finds the RMSNorm after a block output that one launch can include with the block's caps.
//!
//! ```text
//! l_out-N -> RMS_NORM -> MUL(., weight) -> the next block, or the output
//! ```
//!
//! The two nodes can be left out of the graph if they follow the block output directly, if only the MUL reads the
//! RMS_NORM, and if the launch writes no memory that is still to be read. The match is by structure. Names play no part.

use std::ops::Range;

use axiscap::Epsilon;

use crate::graph::find::Output;
use crate::host::{Graph, Tensor, ops};
use crate::report::NotFused;

/// An RMSNorm right after a block output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct FollowingNorm {
    /// Index of its last node, the MUL.
    pub(super) last: usize,
    /// The weight: f32, one per channel.
    pub(super) weight: Tensor,
    /// The MUL, whose memory takes the normed rows.
    pub(super) normed: Tensor,
    /// Added to the mean of squares.
    pub(super) epsilon: Epsilon,
}

/// Returns the RMSNorm after a block output, or why one launch cannot do both. `next` is the node of the next capped or
/// tapped block output of the graph.
pub(super) fn match_rms_norm(
    graph: &Graph,
    output: &Output,
    next: Option<usize>,
) -> Result<FollowingNorm, NotFused> {
    let (nodes, residual) = (graph.nodes(), output.tensor);
    let Some(&norm) = nodes.get(output.node + 1) else { return Err(NotFused::GraphEnds) };
    if norm.op() != ops().rms_norm || norm.source(0) != Some(residual) {
        return Err(NotFused::NoNorm);
    }
    let Some(&scaled) = nodes.get(output.node + 2) else { return Err(NotFused::GraphEnds) };
    let Some(weight) =
        scaled.source(1).filter(|_| scaled.op() == ops().mul && scaled.source(0) == Some(norm))
    else {
        return Err(NotFused::NoWeight);
    };
    let last = output.node + 2;
    if next.is_some_and(|next| next <= last) {
        return Err(NotFused::BlockOutput);
    }
    if ![norm, scaled].into_iter().all(Tensor::is_computed) {
        return Err(NotFused::NotComputed);
    }
    if [norm, scaled].iter().any(|node| node.view_source().is_some()) {
        return Err(NotFused::View);
    }
    match graph.uses_of(norm) {
        None => return Err(NotFused::UsesUnknown),
        // The caller of a graph reads its outputs. The MUL may be one, because its rows are written.
        Some(1) if !norm.is_output() => {}
        Some(_) => return Err(NotFused::ReadElsewhere),
    }
    if ![norm, scaled].into_iter().all(|node| node.ne() == residual.ne() && has_f32_rows(node)) {
        return Err(NotFused::Shape);
    }
    let width = residual.ne()[0];
    if !weight.is_f32() || weight.ne() != [width, 1, 1, 1] || weight.nb()[0] != F32 {
        return Err(NotFused::Weight);
    }
    // The first parameter of the operation. ggml stores parameters as words.
    let epsilon = f32::from_bits(norm.op_params()[0].cast_unsigned());
    let epsilon = Epsilon::new(epsilon).map_err(|_| NotFused::Epsilon)?;
    let [residual, normed, weighted] = [residual, scaled, weight].map(memory);
    let (Some(residual), Some(normed), Some(weighted)) = (residual, normed, weighted) else {
        return Err(NotFused::OtherMemory);
    };
    // ggml's allocator gives the memory of a block output to its norm, if only the norm reads it.
    if overlap(&normed, &residual) || overlap(&normed, &weighted) || overlap(&residual, &weighted) {
        return Err(NotFused::Overlap);
    }
    Ok(FollowingNorm { last, weight, normed: scaled, epsilon })
}

const F32: usize = size_of::<f32>();

/// Whether a tensor has contiguous f32 rows, as the block output was checked to have.
fn has_f32_rows(tensor: Tensor) -> bool {
    let nb = tensor.nb();
    tensor.is_f32()
        && nb[0] == F32
        && nb[1].is_multiple_of(F32)
        && usize::try_from(tensor.ne()[0]).is_ok_and(|width| nb[1] / F32 >= width)
}

/// Returns the addresses from the first element of a matrix to one past its last, or `None` where it has no memory.
fn memory(tensor: Tensor) -> Option<Range<usize>> {
    let start = tensor.data();
    let [width, rows] = [0, 1].map(|i| usize::try_from(tensor.ne()[i]).unwrap_or(0));
    let bytes = rows.checked_sub(1)?.checked_mul(tensor.nb()[1])?.checked_add(width.checked_mul(F32)?)?;
    (start != 0).then_some(start..start.checked_add(bytes)?)
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(all(test, feature = "linked"))]
mod tests {
    use llama_cpp_sys_2 as sys;

    use super::*;
    use crate::host::Arena;

    const WIDTH: i64 = 8;
    const ROWS: i64 = 3;
    const EPS: f32 = 1e-5;

    type Raw = *mut sys::ggml_tensor;

    /// `l_out`, its norm, and one reader of that; the tensors are at made-up addresses 4 KiB apart.
    struct Pattern {
        _arena: Arena,
        graph: Graph,
        residual: Raw,
        norm: Raw,
        weight: Raw,
        scaled: Raw,
    }

    struct Parts {
        c: *mut sys::ggml_context,
        residual: Raw,
        weight: Raw,
    }

    type Binary = unsafe extern "C" fn(*mut sys::ggml_context, Raw, Raw) -> Raw;
    type Unary = unsafe extern "C" fn(*mut sys::ggml_context, Raw) -> Raw;
    type Norming = unsafe extern "C" fn(*mut sys::ggml_context, Raw, f32) -> Raw;

    impl Parts {
        fn leaf(&self, width: i64, rows: i64) -> Raw {
            // SAFETY: the context has room.
            unsafe { sys::ggml_new_tensor_2d(self.c, sys::GGML_TYPE_F32, width, rows) }
        }

        fn rows(&self) -> Raw {
            self.leaf(WIDTH, ROWS)
        }

        fn of(&self, op: Unary, a: Raw) -> Raw {
            // SAFETY: a tensor of this context, which has room for one more.
            unsafe { op(self.c, a) }
        }

        fn both(&self, op: Binary, a: Raw, b: Raw) -> Raw {
            // SAFETY: tensors of this context, which has room for one more.
            unsafe { op(self.c, a, b) }
        }

        fn normed(&self, op: Norming, a: Raw) -> Raw {
            // SAFETY: a tensor of this context, which has room for one more.
            unsafe { op(self.c, a, EPS) }
        }

        fn view(&self, a: Raw) -> Raw {
            // SAFETY: a tensor of this context, which has room for one more. The view is all of the tensor.
            unsafe { sys::ggml_view_2d(self.c, a, WIDTH, ROWS, (*a).nb[1], 0) }
        }
    }

    /// A graph whose norm is made by `norm`, the product by `scale`, and its readers by `tail`.
    fn pattern(
        norm: impl FnOnce(&Parts) -> Raw,
        scale: impl FnOnce(&Parts, Raw) -> Raw,
        tail: impl FnOnce(&Parts, Raw, Raw) -> Raw,
    ) -> Pattern {
        let arena = Arena::new(32).unwrap();
        let c = arena.context();
        // SAFETY: everything lives in the arena, which has room for it.
        unsafe {
            let leaf = || sys::ggml_new_tensor_2d(c, sys::GGML_TYPE_F32, WIDTH, ROWS);
            let residual = sys::ggml_add(c, leaf(), leaf());
            let weight = sys::ggml_new_tensor_1d(c, sys::GGML_TYPE_F32, WIDTH);
            let parts = Parts { c, residual, weight };
            let norm = norm(&parts);
            let scaled = scale(&parts, norm);
            let end = tail(&parts, norm, scaled);
            let graph = sys::ggml_new_graph_custom(c, 32, false);
            sys::ggml_build_forward_expand(graph, end);
            for (i, tensor) in [residual, norm, weight, scaled].into_iter().enumerate() {
                (*tensor).data = std::ptr::without_provenance_mut(0x10000 + 0x1000 * i);
            }
            let graph = Graph::new(graph);
            Pattern { _arena: arena, graph, residual, norm, weight, scaled }
        }
    }

    fn norm(p: &Parts) -> Raw {
        p.normed(sys::ggml_rms_norm, p.residual)
    }

    fn scale(p: &Parts, norm: Raw) -> Raw {
        p.both(sys::ggml_mul, norm, p.weight)
    }

    /// As in a block, the residual stream is read again after the norm.
    fn block(p: &Parts, _: Raw, scaled: Raw) -> Raw {
        p.both(sys::ggml_add, p.of(sys::ggml_silu, scaled), p.residual)
    }

    impl Pattern {
        fn plain() -> Self {
            pattern(norm, scale, block)
        }

        fn find(&self) -> Result<FollowingNorm, NotFused> {
            self.find_before(None)
        }

        fn find_before(&self, next: Option<usize>) -> Result<FollowingNorm, NotFused> {
            let node = self.graph.nodes().iter().position(|node| node.raw() == self.residual).unwrap();
            match_rms_norm(&self.graph, &Output { node, block: 0, tensor: tensor(self.residual) }, next)
        }

        /// Returns why the plain pattern is refused after a change.
        fn changed(change: impl FnOnce(&Pattern)) -> NotFused {
            let pattern = Self::plain();
            change(&pattern);
            pattern.find().unwrap_err()
        }
    }

    fn tensor(raw: Raw) -> crate::host::Tensor {
        // SAFETY: tests keep the tensors of their patterns alive.
        unsafe { crate::host::Tensor::new(raw) }.unwrap()
    }

    /// # Safety
    /// The tensor must be alive, and this must be its only reference.
    unsafe fn at(tensor: Raw) -> &'static mut sys::ggml_tensor {
        // SAFETY: the caller promises a live tensor without other references.
        unsafe { &mut *tensor }
    }

    #[test]
    fn the_norm_of_a_block_is_found() {
        let pattern = Pattern::plain();
        let expected = FollowingNorm {
            last: 2,
            weight: tensor(pattern.weight),
            normed: tensor(pattern.scaled),
            epsilon: Epsilon::new(EPS).unwrap(),
        };
        assert_eq!(pattern.find(), Ok(expected));
        assert_eq!(pattern.find_before(Some(3)), Ok(expected));
        // The product may be an output, as the final norm is where embeddings are asked for.
        // SAFETY: the tensor lives as long as the pattern.
        unsafe { at(pattern.scaled).flags |= sys::GGML_TENSOR_FLAG_OUTPUT as i32 };
        assert_eq!(pattern.find(), Ok(expected));
        // The final norm: nothing reads the block output but the norm.
        assert!(self::pattern(norm, scale, |_, _, scaled| scaled).find().is_ok());
    }

    #[test]
    fn a_graph_that_ends_before_the_norm() {
        for kept in [1, 2] {
            let pattern = Pattern::plain();
            let found = pattern.graph.with_view(0..kept, || pattern.find());
            assert_eq!(found, Err(NotFused::GraphEnds), "{kept} nodes");
        }
    }

    #[test]
    fn other_operations_after_the_block_output() {
        let layer_norm = |p: &Parts| p.normed(sys::ggml_norm, p.residual);
        assert_eq!(pattern(layer_norm, scale, block).find(), Err(NotFused::NoNorm));
        // The block output first, then the norm of something else.
        let of_another = |p: &Parts| p.normed(sys::ggml_rms_norm, p.rows());
        let beside = |p: &Parts, _, scaled| p.both(sys::ggml_add, p.residual, scaled);
        assert_eq!(pattern(of_another, scale, beside).find(), Err(NotFused::NoNorm));
        let after_more = |p: &Parts| p.normed(sys::ggml_rms_norm, p.of(sys::ggml_silu, p.residual));
        assert_eq!(pattern(after_more, scale, block).find(), Err(NotFused::NoNorm));

        let shifted = |p: &Parts, norm| p.both(sys::ggml_add, norm, p.weight);
        assert_eq!(pattern(norm, shifted, block).find(), Err(NotFused::NoWeight));
        let of_more = |p: &Parts, norm| p.both(sys::ggml_mul, p.of(sys::ggml_silu, norm), p.weight);
        assert_eq!(pattern(norm, of_more, block).find(), Err(NotFused::NoWeight));
        let the_other_way_round = |p: &Parts, norm| p.both(sys::ggml_mul, p.rows(), norm);
        assert_eq!(pattern(norm, the_other_way_round, block).find(), Err(NotFused::NoWeight));
    }

    #[test]
    fn another_reader_of_the_norm() {
        let twice = pattern(norm, scale, |p, norm, scaled| {
            p.both(sys::ggml_add, p.both(sys::ggml_add, scaled, norm), p.residual)
        });
        assert_eq!(twice.find(), Err(NotFused::ReadElsewhere));
        // Also where the other reader is in a part of the graph that another backend computes.
        let found = twice.graph.with_view(0..3, || twice.find());
        assert_eq!(found, Err(NotFused::ReadElsewhere));
        let through_a_view =
            pattern(norm, scale, |p, norm, scaled| p.both(sys::ggml_add, scaled, p.view(norm)));
        assert_eq!(through_a_view.find(), Err(NotFused::ReadElsewhere));
        let squared = pattern(norm, |p, norm| p.both(sys::ggml_mul, norm, norm), block);
        assert_eq!(squared.find(), Err(NotFused::ReadElsewhere));
        // SAFETY: the tensor lives as long as the pattern.
        let output = |p: &Pattern| unsafe { at(p.norm).flags |= sys::GGML_TENSOR_FLAG_OUTPUT as i32 };
        assert_eq!(Pattern::changed(output), NotFused::ReadElsewhere);
    }

    #[test]
    fn unknown_use_counts() {
        let (pattern, other) = (Pattern::plain(), Pattern::plain());
        let output = Output { node: 0, block: 0, tensor: tensor(pattern.residual) };
        // ggml counts uses for the tensors that a graph was built of.
        let mut nodes = pattern.graph.nodes().to_vec();
        let found = other.graph.with_nodes(&mut nodes, || match_rms_norm(&other.graph, &output, None));
        assert_eq!(found, Err(NotFused::UsesUnknown));
    }

    #[test]
    fn views_and_nodes_that_are_not_computed() {
        let in_place = |p: &Parts| p.normed(sys::ggml_rms_norm_inplace, p.residual);
        assert_eq!(pattern(in_place, scale, block).find(), Err(NotFused::View));
        let product = |p: &Parts, norm| p.both(sys::ggml_mul_inplace, norm, p.weight);
        assert_eq!(pattern(norm, product, block).find(), Err(NotFused::View));
        let skip = |tensor: Raw| {
            // SAFETY: a tensor of a pattern that lives.
            unsafe { at(tensor).flags &= !(sys::GGML_TENSOR_FLAG_COMPUTE as i32) }
        };
        assert_eq!(Pattern::changed(|p| skip(p.norm)), NotFused::NotComputed);
        assert_eq!(Pattern::changed(|p| skip(p.scaled)), NotFused::NotComputed);
    }

    #[test]
    fn the_product_is_a_block_output_itself() {
        for next in [1, 2] {
            assert_eq!(Pattern::plain().find_before(Some(next)), Err(NotFused::BlockOutput));
        }
    }

    #[test]
    fn other_shapes_types_and_parameters() {
        type Change = fn(&Pattern);
        // SAFETY: the tensors live as long as the pattern.
        let changes: [(Change, NotFused); 9] = unsafe {
            [
                (|p| at(p.scaled).ne[1] += 1, NotFused::Shape),
                (|p| at(p.scaled).ne[2] = 2, NotFused::Shape),
                (|p| at(p.norm).type_ = sys::GGML_TYPE_F16, NotFused::Shape),
                (|p| at(p.scaled).nb[1] = 2, NotFused::Shape),
                (|p| at(p.weight).type_ = sys::GGML_TYPE_F16, NotFused::Weight),
                (|p| at(p.weight).ne[1] = ROWS, NotFused::Weight),
                (|p| at(p.weight).nb[0] = 8, NotFused::Weight),
                (|p| at(p.norm).op_params[0] = f32::NAN.to_bits().cast_signed(), NotFused::Epsilon),
                (|p| at(p.norm).op_params[0] = (-EPS).to_bits().cast_signed(), NotFused::Epsilon),
            ]
        };
        for (i, (change, reason)) in changes.into_iter().enumerate() {
            assert_eq!(Pattern::changed(change), reason, "change {i}");
        }
        // One weight for all channels is spread by ggml.
        let scalar = pattern(norm, |p, norm| p.both(sys::ggml_mul, norm, p.leaf(1, 1)), block);
        assert_eq!(scalar.find(), Err(NotFused::Weight));
        let per_row = pattern(norm, |p, norm| p.both(sys::ggml_mul, norm, p.rows()), block);
        assert_eq!(per_row.find(), Err(NotFused::Weight));
    }

    #[test]
    fn memory_that_is_shared_or_missing() {
        let bytes = (WIDTH * ROWS) as usize * F32;
        // SAFETY: the tensors live as long as the pattern; addresses are only compared.
        unsafe {
            for offset in [0, 4, bytes - 4] {
                let above = |p: &Pattern| at(p.scaled).data = at(p.residual).data.wrapping_byte_add(offset);
                assert_eq!(Pattern::changed(above), NotFused::Overlap, "{offset} bytes above");
                let below = |p: &Pattern| at(p.scaled).data = at(p.residual).data.wrapping_byte_sub(offset);
                assert_eq!(Pattern::changed(below), NotFused::Overlap, "{offset} bytes below");
            }
            let weight = |p: &Pattern| at(p.scaled).data = at(p.weight).data.wrapping_byte_sub(bytes - 4);
            assert_eq!(Pattern::changed(weight), NotFused::Overlap);
            let missing = |p: &Pattern| at(p.weight).data = std::ptr::null_mut();
            assert_eq!(Pattern::changed(missing), NotFused::OtherMemory);

            let beside = Pattern::plain();
            at(beside.scaled).data = at(beside.residual).data.wrapping_byte_add(bytes);
            assert!(beside.find().is_ok(), "adjacent");
            // The norm's own memory is never written, so it may lie anywhere.
            let under = Pattern::plain();
            at(under.norm).data = at(under.residual).data;
            assert!(under.find().is_ok());
        }
    }

    #[test]
    fn rows_may_be_apart() {
        let pattern = Pattern::plain();
        // SAFETY: the tensor lives as long as the pattern.
        unsafe { at(pattern.scaled).nb[1] = 2 * WIDTH as usize * F32 };
        assert!(pattern.find().is_ok());
    }
}
