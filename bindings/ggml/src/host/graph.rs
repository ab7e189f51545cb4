//! A graph as ggml hands it to a backend, read and for a moment rewritten through the measured layout.

use std::collections::HashSet;
use std::ops::Range;

use super::api::api;
use super::layout::layout;
use super::tensor::Tensor;
use super::types::{RawGraph, RawTensor};
use super::uid::{own_uid, view_uid};

/// A `ggml_cgraph` that a backend was asked to compute.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Graph {
    raw: *mut RawGraph,
}

impl Graph {
    /// # Safety
    /// `raw` must be a valid graph of this process's ggml, and the caller's alone while the value is used.
    pub(crate) unsafe fn new(raw: *mut RawGraph) -> Self {
        Self { raw }
    }

    pub(crate) fn raw(&self) -> *mut RawGraph {
        self.raw
    }

    /// Returns the nodes in the order of computation.
    pub(crate) fn nodes(&self) -> &[Tensor] {
        let (nodes, n) = self.array();
        // SAFETY: the array holds that many tensors, none of them null, which stay valid while the graph
        // does. A Tensor is a pointer by its representation.
        if n == 0 { &[] } else { unsafe { std::slice::from_raw_parts(nodes.cast::<Tensor>(), n) } }
    }

    /// Returns ggml's array of nodes and its length.
    fn array(&self) -> (*mut *mut RawTensor, usize) {
        let layout = layout();
        // SAFETY: by the contract of `new` the fields are where the layout says.
        unsafe {
            let n = self.raw.byte_add(layout.graph_n_nodes).cast::<i32>().read();
            let nodes = self.raw.byte_add(layout.graph_nodes).cast::<*mut *mut RawTensor>().read();
            (nodes, if nodes.is_null() { 0 } else { usize::try_from(n).unwrap_or(0) })
        }
    }

    /// Returns the number that ggml recognises the graph by; zero where it has none.
    pub(crate) fn uid(&self) -> u64 {
        // SAFETY: by the contract of `new` the field is there.
        self.uid_field().map_or(0, |field| unsafe { field.read() })
    }

    /// Returns how often nodes of the whole graph, of which this may be a part, read a tensor; `None` where
    /// that is unknown.
    pub(crate) fn uses_of(&self, tensor: Tensor) -> Option<i32> {
        // SAFETY: by the contract of `new` this is a valid graph of the ggml whose layout was measured.
        unsafe { layout().graph_uses?.of(self.raw, tensor.raw().cast()) }
    }

    /// Gives the graph this uid.
    ///
    /// # Safety
    /// The graph must be the caller's own, never handed to a scheduler.
    pub(crate) unsafe fn set_uid(&self, uid: u64) {
        if let Some(field) = self.uid_field() {
            // SAFETY: by the contract of `new` the field is there; the caller owns the graph.
            unsafe { field.write(uid) };
        }
    }

    fn uid_field(&self) -> Option<*mut u64> {
        Some(self.raw.wrapping_byte_add(layout().graph_uid?).cast())
    }

    /// Whether the graph was made in one `ggml_context` with all tensors that it names, weights included.
    ///
    /// RPC servers make the graphs that they are sent in this way (`rpc_server::graph_compute`). In a
    /// `llama_context` the weights are the model's.
    pub(crate) fn is_self_contained(&self) -> bool {
        /// More than any graph needs with its tensors.
        const FAR: usize = 1 << 26;
        let nodes = self.nodes();
        // SAFETY: the two functions only compute sizes.
        let (tensor, graph) = unsafe {
            ((api().ggml_tensor_overhead)(), (api().ggml_graph_overhead_custom)(nodes.len(), false))
        };
        let begin = self.raw as usize;
        let mut last = begin;
        let mut found = HashSet::new();
        let mut left: Vec<_> = nodes.iter().rev().copied().collect();
        // A part of a graph comes with all tensors that its nodes were computed from.
        while let Some(next) = left.pop() {
            let address = next.raw() as usize;
            if !(begin..begin + FAR).contains(&address) {
                return false;
            }
            if found.insert(next) {
                last = last.max(address);
                left.extend(Tensor::source_places().filter_map(|index| next.source(index)));
                left.extend(next.view_source());
            }
        }
        // Nothing else lies between them.
        !nodes.is_empty() && last - begin <= graph + found.len() * tensor
    }

    /// Runs `compute` while the graph is a view of these of its nodes, with a uid of its own.
    pub(crate) fn with_view<R>(&self, range: Range<usize>, compute: impl FnOnce() -> R) -> R {
        self.with(self.part(&range), range.len(), view_uid(self.uid(), &range), compute)
    }

    /// As [`Graph::with_view`], for a view that looks like none that ggml computed before: it has another uid,
    /// and its first node has another mark. With [`OwnGraphs::NoneOfNewGraphs`](super::OwnGraphs) ggml's CUDA
    /// backend then runs it launch by launch.
    ///
    /// # Safety
    /// What follows `extra` in a tensor of this version of ggml must be padding.
    pub(crate) unsafe fn with_new_view<R>(&self, range: Range<usize>, compute: impl FnOnce() -> R) -> R {
        struct Unmark(Tensor, Option<u64>);
        impl Drop for Unmark {
            fn drop(&mut self) {
                if let Some(padding) = self.1 {
                    // SAFETY: as when it was marked.
                    unsafe { self.0.mark(padding) };
                }
            }
        }
        let view = self.part(&range);
        let uid = own_uid();
        let first = self.nodes()[range.start];
        // SAFETY: the graph is the caller's alone, and so are its nodes while it is computed. The caller
        // promises that there is padding.
        let _marked = Unmark(first, unsafe { first.mark(uid) });
        self.with(view, range.len(), uid, compute)
    }

    /// Returns the place of these nodes in ggml's array.
    fn part(&self, range: &Range<usize>) -> *mut *mut RawTensor {
        let (nodes, n) = self.array();
        assert!(range.start < range.end && range.end <= n, "nodes {range:?} of {n}");
        nodes.wrapping_add(range.start)
    }

    /// Runs `compute` while the graph has exactly `nodes`, without leafs. Puts the old ones back, also when
    /// `compute` panics. The hash set and use counts that ggml's fusion checks read stay those of the whole
    /// graph.
    pub(crate) fn with_nodes<R>(&self, nodes: &mut [Tensor], compute: impl FnOnce() -> R) -> R {
        self.with(nodes.as_mut_ptr().cast(), nodes.len(), 0, compute)
    }

    /// Takes a pointer and a number, since ggml may write to the array: its CUDA backend puts nodes back in
    /// order.
    fn with<R>(&self, nodes: *mut *mut RawTensor, count: usize, uid: u64, compute: impl FnOnce() -> R) -> R {
        struct Restore {
            n_nodes: (*mut i32, i32),
            n_leafs: (*mut i32, i32),
            nodes: (*mut *mut *mut RawTensor, *mut *mut RawTensor),
            uid: Option<(*mut u64, u64)>,
        }
        impl Drop for Restore {
            fn drop(&mut self) {
                // SAFETY: the graph outlives the call that it was rewritten for.
                unsafe {
                    self.n_nodes.0.write(self.n_nodes.1);
                    self.n_leafs.0.write(self.n_leafs.1);
                    self.nodes.0.write(self.nodes.1);
                    if let Some((field, uid)) = self.uid {
                        field.write(uid);
                    }
                }
            }
        }
        let layout = layout();
        // SAFETY: by the contract of `new` the fields are there and ours alone. The new array outlives
        // `compute`.
        let _restore = unsafe {
            let n_nodes = self.raw.byte_add(layout.graph_n_nodes).cast::<i32>();
            let n_leafs = self.raw.byte_add(layout.graph_n_leafs).cast::<i32>();
            let array = self.raw.byte_add(layout.graph_nodes).cast::<*mut *mut RawTensor>();
            let restore = Restore {
                n_nodes: (n_nodes, n_nodes.read()),
                n_leafs: (n_leafs, n_leafs.read()),
                nodes: (array, array.read()),
                uid: self.uid_field().map(|field| (field, field.read())),
            };
            n_nodes.write(count as i32);
            n_leafs.write(0);
            array.write(nodes);
            if let Some((field, _)) = restore.uid {
                field.write(uid);
            }
            restore
        };
        compute()
    }
}

#[cfg(all(test, feature = "linked"))]
mod tests {
    use llama_cpp_sys_2 as sys;

    use super::*;
    use crate::host::Arena;

    /// Whether the graph of the sum of two rows is self-contained, which is made as an RPC server makes one.
    fn is_sum_self_contained(arena: &Arena, unnamed: usize, second: Option<*mut sys::ggml_tensor>) -> bool {
        // SAFETY: the graph lives in the arena, which has room for it, and its node is valid.
        let (graph, sum) = unsafe {
            let row = || sys::ggml_new_tensor_1d(arena.context(), sys::GGML_TYPE_F32, 1);
            let graph = sys::ggml_new_graph_custom(arena.context(), 1, false);
            for _ in 0..unnamed {
                row();
            }
            let (first, second) = (row(), second.unwrap_or_else(row));
            let sum = sys::ggml_add(arena.context(), first, second);
            (Graph::new(graph), Tensor::new(sum).expect("a node"))
        };
        graph.with_nodes(&mut [sum], || graph.is_self_contained())
    }

    #[test]
    fn a_graph_made_with_all_its_tensors_is_self_contained() {
        crate::host::use_linked_host().unwrap();
        crate::host::Layout::probe().unwrap();
        let (arena, weights) = (Arena::new(64).unwrap(), Arena::new(64).unwrap());
        assert!(is_sum_self_contained(&arena, 0, None));
        // Other tensors in between.
        assert!(!is_sum_self_contained(&arena, 2, None));
        // A weight of a model lies elsewhere.
        // SAFETY: the arena has room for the tensor.
        let weight = unsafe { sys::ggml_new_tensor_1d(weights.context(), sys::GGML_TYPE_F32, 1) };
        assert!(!is_sum_self_contained(&arena, 0, Some(weight)));
    }
}
