//! Where this build of ggml keeps the slots and fields that the hook replaces.
//!
//! `ggml_backend`, `ggml_backend_device` and `ggml_cgraph` are private to ggml and change between versions, so
//! their offsets are measured, not assumed: a fake object whose every word is the address of a different function
//! goes through ggml's public calls, and the function that runs names the slot that ggml read. Fields of a graph
//! are found by what ggml's public getters say of graphs made for the purpose.

use std::cell::Cell;
use std::ffi::{CStr, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

use llama_cpp_sys_2 as sys;

use crate::error::HookError;
use crate::uid::measure_uid;
use crate::uses::UseCounts;

/// Byte offsets within ggml's private structures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// `ggml_backend_device.iface.init_backend`.
    pub(crate) device_init_backend: usize,
    /// `ggml_backend.iface.free`.
    pub(crate) backend_free: usize,
    /// `ggml_backend.iface.graph_compute`.
    pub(crate) backend_graph_compute: usize,
    /// `ggml_cgraph.n_nodes`.
    pub(crate) graph_n_nodes: usize,
    /// `ggml_cgraph.n_leafs`.
    pub(crate) graph_n_leafs: usize,
    /// `ggml_cgraph.nodes`.
    pub(crate) graph_nodes: usize,
    /// `ggml_cgraph.uid`.
    pub(crate) graph_uid: usize,
    /// Where the uses of a graph's tensors are counted. Only the fused norm needs it, and says so where it is missing.
    pub(crate) graph_uses: Option<UseCounts>,
}

impl Layout {
    /// Measured once per process.
    pub(crate) fn probe() -> Result<Self, HookError> {
        static LAYOUT: OnceLock<Result<Layout, HookError>> = OnceLock::new();
        LAYOUT.get_or_init(measure).clone()
    }
}

/// Version and commit of the ggml that is linked in.
pub(crate) fn ggml_version() -> String {
    // SAFETY: both return pointers to static, NUL-terminated strings.
    let (version, commit) =
        unsafe { (CStr::from_ptr(sys::ggml_version()), CStr::from_ptr(sys::ggml_commit())) };
    format!("{} ({})", version.to_string_lossy(), commit.to_string_lossy())
}

pub(crate) fn mismatch(what: impl Into<String>) -> HookError {
    HookError::Layout { version: ggml_version(), what: what.into() }
}

fn measure() -> Result<Layout, HookError> {
    check_tensor()?;
    let device_init_backend = slot("ggml_backend_device.iface.init_backend", |fake| {
        // SAFETY: ggml_backend_dev_init only calls the device's init_backend, and every word of the fake device is
        // a function that ignores its arguments.
        unsafe { sys::ggml_backend_dev_init(fake.cast(), std::ptr::null()) };
    })?;
    let backend_graph_compute = slot("ggml_backend.iface.graph_compute", |fake| {
        // SAFETY: ggml_backend_graph_compute_async only calls the backend's graph_compute.
        unsafe { sys::ggml_backend_graph_compute_async(fake.cast(), null_mut()) };
    })?;
    let backend_free = slot("ggml_backend.iface.free", |fake| {
        // SAFETY: ggml_backend_free only calls the backend's free for a backend that is not null.
        unsafe { sys::ggml_backend_free(fake.cast()) };
    })?;
    if backend_free == backend_graph_compute {
        return Err(mismatch("ggml_backend's free and graph_compute are one slot"));
    }
    let graph = measure_graph()?;
    Ok(Layout {
        device_init_backend,
        backend_free,
        backend_graph_compute,
        graph_uid: measure_uid()?,
        graph_uses: UseCounts::measure(),
        ..graph
    })
}

/// Words of a fake object: more than any of the structures has.
const WORDS: usize = 64;

thread_local! {
    static HIT: Cell<Option<usize>> = const { Cell::new(None) };
}

type Sentinel = unsafe extern "C" fn(*mut c_void, *mut c_void) -> *mut c_void;

/// Notes which slot was called. It ignores its arguments and returns zero, which every probed caller accepts.
unsafe extern "C" fn sentinel<const SLOT: usize>(_: *mut c_void, _: *mut c_void) -> *mut c_void {
    HIT.with(|hit| hit.set(Some(SLOT)));
    null_mut()
}

macro_rules! sentinels {
    ($($slot:literal)*) => { [$(sentinel::<$slot> as Sentinel),*] };
}

#[rustfmt::skip]
static SENTINELS: [Sentinel; WORDS] = sentinels![
     0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
    32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63
];

/// Byte offset of the slot that `call` goes through.
fn slot(what: &str, call: impl FnOnce(*mut c_void)) -> Result<usize, HookError> {
    let mut fake = SENTINELS;
    HIT.with(|hit| hit.set(None));
    call(fake.as_mut_ptr().cast());
    let slot = HIT.with(Cell::take).ok_or_else(|| mismatch(format!("no slot is called for {what}")))?;
    Ok(slot * size_of::<Sentinel>())
}

/// `ggml_tensor` is public; its layout comes from the headers that the bindings were made from. Make sure that the
/// library was built from the same ones.
fn check_tensor() -> Result<(), HookError> {
    let arena = Arena::new(4)?;
    // SAFETY: the context is valid for as long as the arena.
    let tensor = unsafe { sys::ggml_new_tensor_2d(arena.context(), sys::GGML_TYPE_F32, 7, 3) };
    if tensor.is_null() {
        return Err(mismatch("ggml_new_tensor_2d returned null"));
    }
    // SAFETY: `tensor` is valid and the name is NUL-terminated; the getters only read the tensor.
    let (t, named, bytes, size) = unsafe {
        sys::ggml_set_name(tensor, c"probe".as_ptr());
        (&*tensor, sys::ggml_get_name(tensor), sys::ggml_nbytes(tensor), sys::ggml_tensor_overhead())
    };
    let as_expected = t.type_ == sys::GGML_TYPE_F32
        && t.ne == [7, 3, 1, 1]
        && t.nb == [4, 28, 84, 84]
        && named == t.name.as_ptr()
        && bytes == 84
        && size >= size_of::<sys::ggml_tensor>();
    if as_expected { Ok(()) } else { Err(mismatch("ggml_tensor differs from the headers of the bindings")) }
}

/// A graph of `adds` additions, each of the last result and a new leaf: `adds` nodes and `adds + 1` leafs.
pub(crate) fn chain(arena: &Arena, adds: usize) -> *mut sys::ggml_cgraph {
    // SAFETY: all objects live in the arena's context, which has room for them.
    unsafe {
        let context = arena.context();
        let graph = sys::ggml_new_graph_custom(context, GRAPH_SIZE, false);
        let mut sum = sys::ggml_new_tensor_1d(context, sys::GGML_TYPE_F32, 1);
        for _ in 0..adds {
            let leaf = sys::ggml_new_tensor_1d(context, sys::GGML_TYPE_F32, 1);
            sum = sys::ggml_add(context, sum, leaf);
        }
        sys::ggml_build_forward_expand(graph, sum);
        graph
    }
}

/// A size no node or leaf count of the probed graphs equals.
pub(crate) const GRAPH_SIZE: usize = 61;

/// Words of `ggml_cgraph` that are searched. The arrays of the graph follow it in the same allocation, so this
/// many words can be read.
pub(crate) const GRAPH_WORDS: usize = 16;

fn measure_graph() -> Result<Layout, HookError> {
    let arena = Arena::new(64)?;
    let graphs = [(5, chain(&arena, 5)), (9, chain(&arena, 9))];
    for (adds, graph) in graphs {
        // SAFETY: the graphs live in the arena.
        let nodes = unsafe { sys::ggml_graph_n_nodes(graph) };
        if nodes != adds {
            return Err(mismatch(format!("a graph of {adds} additions has {nodes} nodes")));
        }
    }
    let field_i32 = |what: &str, value: fn(i32) -> i32| {
        let mut found = (0..GRAPH_WORDS * 2).map(|i| i * 4).filter(|&offset| {
            // SAFETY: within the first GRAPH_WORDS words of the graph's allocation; any bits are a valid i32.
            graphs
                .iter()
                .all(|&(adds, graph)| unsafe { graph.byte_add(offset).cast::<i32>().read() } == value(adds))
        });
        match (found.next(), found.next()) {
            (Some(offset), None) => Ok(offset),
            (None, _) => Err(mismatch(format!("ggml_cgraph has no field that holds {what}"))),
            (Some(_), Some(_)) => Err(mismatch(format!("two fields of ggml_cgraph could hold {what}"))),
        }
    };
    let graph_n_nodes = field_i32("the number of nodes", |adds| adds)?;
    let graph_n_leafs = field_i32("the number of leafs", |adds| adds + 1)?;
    let graph_nodes = (0..GRAPH_WORDS)
        .map(|i| i * size_of::<usize>())
        .find(|&offset| {
            graphs.iter().all(|&(_, graph)| {
                // SAFETY: as above; the value is compared as an address and not followed.
                unsafe {
                    graph.byte_add(offset).cast::<*mut *mut sys::ggml_tensor>().read()
                        == sys::ggml_graph_nodes(graph)
                }
            })
        })
        .ok_or_else(|| mismatch("ggml_cgraph has no field that holds its nodes"))?;

    // What was found must also be what ggml reads: write through it and ask the getters.
    let (_, graph) = graphs[0];
    // SAFETY: the offsets name fields of these types; the graph is ours and restored before it is used again.
    let agreed = unsafe {
        let n_nodes = graph.byte_add(graph_n_nodes).cast::<i32>();
        let nodes = graph.byte_add(graph_nodes).cast::<*mut *mut sys::ggml_tensor>();
        let (old_n, old_nodes) = (n_nodes.read(), nodes.read());
        let second = sys::ggml_graph_node(graph, 1);
        n_nodes.write(2);
        nodes.write(old_nodes.add(1));
        let agreed = sys::ggml_graph_n_nodes(graph) == 2 && sys::ggml_graph_node(graph, 0) == second;
        n_nodes.write(old_n);
        nodes.write(old_nodes);
        agreed
    };
    if !agreed {
        return Err(mismatch("ggml does not read the fields of ggml_cgraph that were found"));
    }
    Ok(Layout {
        device_init_backend: 0,
        backend_free: 0,
        backend_graph_compute: 0,
        graph_n_nodes,
        graph_n_leafs,
        graph_nodes,
        graph_uid: 0,
        graph_uses: None,
    })
}

/// A `ggml_context` that holds tensors without data, reused from graph to graph.
#[derive(Debug)]
pub(crate) struct Arena {
    context: *mut sys::ggml_context,
    tensors: usize,
}

// SAFETY: a ggml_context is plain memory without ties to a thread; the arena is its only owner.
unsafe impl Send for Arena {}

impl Arena {
    /// Room for this many tensors and a few small graphs.
    pub(crate) fn new(tensors: usize) -> Result<Self, HookError> {
        // SAFETY: the two functions only compute sizes.
        let (tensor, graph) =
            unsafe { (sys::ggml_tensor_overhead(), sys::ggml_graph_overhead_custom(GRAPH_SIZE, false)) };
        // SAFETY: a null buffer asks ggml to allocate mem_size bytes itself.
        unsafe { Self::init(null_mut(), tensors * tensor + 2 * graph + 1024, tensors) }
    }

    /// Room for this many tensors and a graph of this size.
    pub(crate) fn with_graph(tensors: usize, size: usize) -> Result<Self, HookError> {
        // SAFETY: the two functions only compute sizes.
        let (tensor, graph) =
            unsafe { (sys::ggml_tensor_overhead(), sys::ggml_graph_overhead_custom(size, false)) };
        // SAFETY: as in `new`.
        unsafe { Self::init(null_mut(), tensors * tensor + graph + 1024, tensors) }
    }

    /// An arena in memory of the caller's, which has to outlive it.
    ///
    /// # Safety
    /// The memory must not be freed or moved, nor used through other pointers than ggml's for writing, while the
    /// arena lives.
    pub(crate) unsafe fn within(memory: &mut [u128]) -> Result<Self, HookError> {
        // SAFETY: memory of that many bytes, aligned as ggml asks for; the caller keeps it.
        unsafe { Self::init(memory.as_mut_ptr().cast(), size_of_val(memory), 0) }
    }

    /// # Safety
    /// `memory` must be null or hold `bytes` bytes for as long as the arena lives.
    unsafe fn init(memory: *mut c_void, bytes: usize, tensors: usize) -> Result<Self, HookError> {
        let params = sys::ggml_init_params { mem_size: bytes, mem_buffer: memory, no_alloc: true };
        // SAFETY: the caller's promise.
        let context = unsafe { sys::ggml_init(params) };
        if context.is_null() {
            Err(mismatch("ggml_init returned null"))
        } else {
            Ok(Self { context, tensors })
        }
    }

    pub(crate) fn context(&self) -> *mut sys::ggml_context {
        self.context
    }

    /// An empty arena with room for this many tensors: every tensor made before is gone.
    pub(crate) fn emptied(&mut self, tensors: usize) -> Result<*mut sys::ggml_context, HookError> {
        if self.tensors < tensors {
            *self = Self::new(tensors)?;
        } else {
            // SAFETY: the context is valid, and by contract nobody holds its tensors any more.
            unsafe { sys::ggml_reset(self.context) };
        }
        Ok(self.context)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: made by ggml_init and freed once.
        unsafe { sys::ggml_free(self.context) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_ggml_is_laid_out_as_its_headers_say() {
        // ggml 0.26: ggml_backend = { guid, iface { get_name, free, .. }, .. } with graph_compute the 13th function
        // of the interface; init_backend is a device's 6th; ggml_cgraph = { size, n_nodes, n_leafs, nodes, .., uid }.
        let expected = Layout {
            device_init_backend: 5 * 8,
            backend_free: (1 + 1) * 8,
            backend_graph_compute: (1 + 12) * 8,
            graph_n_nodes: 4,
            graph_n_leafs: 8,
            graph_nodes: 16,
            graph_uid: 88,
            graph_uses: Some(UseCounts { counts: 48, size: 56, used: 64, keys: 72 }),
        };
        assert_eq!(Layout::probe().unwrap(), expected);
    }
}
