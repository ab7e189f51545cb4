//! A graph as ggml hands it to a backend, read and for a moment rewritten through the measured layout.

use std::ffi::CStr;
use std::ops::Range;

use llama_cpp_sys_2 as sys;

use crate::layout::Layout;
use crate::uid::{own_uid, view_uid};

/// A `ggml_cgraph` that a backend was asked to compute.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Graph {
    raw: *mut sys::ggml_cgraph,
    layout: Layout,
}

impl Graph {
    /// # Safety
    /// `raw` must be a valid graph that nobody else reads or writes until the `Graph` is gone, and `layout` must
    /// be that of the ggml it comes from.
    pub(crate) unsafe fn new(raw: *mut sys::ggml_cgraph, layout: Layout) -> Self {
        Self { raw, layout }
    }

    pub(crate) fn raw(&self) -> *mut sys::ggml_cgraph {
        self.raw
    }

    pub(crate) fn nodes(&self) -> &[*mut sys::ggml_tensor] {
        let (nodes, n) = self.array();
        // SAFETY: the array holds that many tensors, which stay valid while the graph does.
        if n == 0 { &[] } else { unsafe { std::slice::from_raw_parts(nodes, n) } }
    }

    /// The array of nodes as ggml has it, and how many there are.
    fn array(&self) -> (*mut *mut sys::ggml_tensor, usize) {
        // SAFETY: by the contract of `new` the fields are where the layout says.
        unsafe {
            let n = self.raw.byte_add(self.layout.graph_n_nodes).cast::<i32>().read();
            let nodes =
                self.raw.byte_add(self.layout.graph_nodes).cast::<*mut *mut sys::ggml_tensor>().read();
            (nodes, if nodes.is_null() { 0 } else { usize::try_from(n).unwrap_or(0) })
        }
    }

    /// What ggml recognises the graph by; zero where it has none.
    pub(crate) fn uid(&self) -> u64 {
        // SAFETY: by the contract of `new` the field is there.
        unsafe { self.uid_field().read() }
    }

    /// How often nodes of the whole graph, of which this may be a part, read a tensor; `None` where that is not known.
    pub(crate) fn uses_of(&self, tensor: *const sys::ggml_tensor) -> Option<i32> {
        // SAFETY: by the contract of `new` this is a valid graph of the ggml whose layout was measured.
        unsafe { self.layout.graph_uses?.of(self.raw, tensor.cast()) }
    }

    /// Another graph of the same ggml, with a new uid.
    ///
    /// # Safety
    /// As for [`Graph::new`].
    pub(crate) unsafe fn sibling(&self, raw: *mut sys::ggml_cgraph) -> Self {
        let graph = Self { raw, ..*self };
        // SAFETY: the caller's promise: the field is there, and the graph ours alone.
        unsafe { graph.uid_field().write(own_uid()) };
        graph
    }

    fn uid_field(&self) -> *mut u64 {
        self.raw.wrapping_byte_add(self.layout.graph_uid).cast()
    }

    /// Runs `compute` while the graph is a view of these of its nodes, with a uid of its own.
    pub(crate) fn with_view<R>(&self, range: Range<usize>, compute: impl FnOnce() -> R) -> R {
        let (nodes, n) = self.array();
        assert!(range.start <= range.end && range.end <= n, "nodes {range:?} of {n}");
        let view = nodes.wrapping_add(range.start);
        self.with(view, range.len(), view_uid(self.uid(), &range), compute)
    }

    /// Runs `compute` while the graph has exactly `nodes`, without leafs, and puts the old ones back, also when
    /// `compute` panics. The hash set and use counts that ggml's fusion checks read stay those of the whole graph.
    pub(crate) fn with_nodes<R>(
        &self,
        nodes: &mut [*mut sys::ggml_tensor],
        compute: impl FnOnce() -> R,
    ) -> R {
        self.with(nodes.as_mut_ptr(), nodes.len(), 0, compute)
    }

    /// By pointer and number, since ggml may write to the array: its CUDA backend puts nodes back in order.
    fn with<R>(
        &self,
        nodes: *mut *mut sys::ggml_tensor,
        count: usize,
        uid: u64,
        compute: impl FnOnce() -> R,
    ) -> R {
        struct Restore {
            n_nodes: (*mut i32, i32),
            n_leafs: (*mut i32, i32),
            nodes: (*mut *mut *mut sys::ggml_tensor, *mut *mut sys::ggml_tensor),
            uid: (*mut u64, u64),
        }
        impl Drop for Restore {
            fn drop(&mut self) {
                // SAFETY: the graph outlives the call that it was rewritten for.
                unsafe {
                    self.n_nodes.0.write(self.n_nodes.1);
                    self.n_leafs.0.write(self.n_leafs.1);
                    self.nodes.0.write(self.nodes.1);
                    self.uid.0.write(self.uid.1);
                }
            }
        }
        // SAFETY: by the contract of `new` the fields are there and ours alone. The new array outlives `compute`.
        let _restore = unsafe {
            let n_nodes = self.raw.byte_add(self.layout.graph_n_nodes).cast::<i32>();
            let n_leafs = self.raw.byte_add(self.layout.graph_n_leafs).cast::<i32>();
            let array = self.raw.byte_add(self.layout.graph_nodes).cast::<*mut *mut sys::ggml_tensor>();
            let restore = Restore {
                n_nodes: (n_nodes, n_nodes.read()),
                n_leafs: (n_leafs, n_leafs.read()),
                nodes: (array, array.read()),
                uid: (self.uid_field(), self.uid()),
            };
            n_nodes.write(count as i32);
            n_leafs.write(0);
            array.write(nodes);
            restore.uid.0.write(uid);
            restore
        };
        compute()
    }
}

/// The name of a tensor, without the terminating NUL.
///
/// # Safety
/// `tensor` must be valid for as long as the name is used.
pub(crate) unsafe fn name_of<'a>(tensor: *const sys::ggml_tensor) -> &'a [u8] {
    // SAFETY: the name is an array within the tensor, always NUL-terminated by ggml_set_name.
    unsafe { CStr::from_ptr((&raw const (*tensor).name).cast()).to_bytes() }
}
