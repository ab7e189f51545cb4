//! Where this process's ggml keeps the slots and fields that the hook reads and replaces.
//!
//! `ggml_backend`, `ggml_backend_device` and `ggml_cgraph` are private to ggml and change between versions.
//! Their offsets are therefore measured. A fake object, whose every word is the address of a different
//! function, goes through ggml's public calls; the function that runs names the slot that ggml read. Fields
//! of a graph are found by what ggml's public getters say of graphs made for the purpose.

use std::cell::Cell;
use std::ffi::{CStr, c_void};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use super::api::{api, mismatch};
use super::arena::{Arena, GRAPH_WORDS, chain};
use super::buffers::measure_free;
use super::tensor_layout::TensorLayout;
use super::types::{FAILED, RawTensor, SUCCESS};
use super::uid::measure_uid;
use super::use_counts::UseCounts;
use crate::error::HookError;

/// Byte offsets within ggml's structures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// `ggml_backend_device.iface.init_backend`.
    pub(crate) device_init_backend: usize,
    /// `ggml_backend_device.iface.get_type`.
    pub(crate) device_get_type: usize,
    /// `ggml_backend.iface.free`.
    pub(crate) backend_free: usize,
    /// `ggml_backend.iface.graph_compute`.
    pub(crate) backend_graph_compute: usize,
    /// `ggml_backend_buffer.iface.free_buffer`; `None` where it is not found. RPC servers then tell models apart
    /// more slowly.
    pub(crate) buffer_free: Option<usize>,
    /// `ggml_cgraph.n_nodes`.
    pub(crate) graph_n_nodes: usize,
    /// `ggml_cgraph.n_leafs`.
    pub(crate) graph_n_leafs: usize,
    /// `ggml_cgraph.nodes`.
    pub(crate) graph_nodes: usize,
    /// `ggml_cgraph.uid`; ggml 0.9 has none and compares graphs in full.
    pub(crate) graph_uid: Option<usize>,
    /// The use counts of a graph's tensors. Only the fused norm needs them, and reports where they are
    /// missing.
    pub(crate) graph_uses: Option<UseCounts>,
    /// `ggml_tensor`.
    pub(crate) tensor: TensorLayout,
}

static LAYOUT: OnceLock<Result<Layout, HookError>> = OnceLock::new();

/// Returns the layout of this process's ggml.
///
/// # Panics
/// Where it cannot be measured. [`Layout::probe`] reports that as an error, and the hook calls it first.
pub(crate) fn layout() -> &'static Layout {
    match LAYOUT.get_or_init(measure) {
        Ok(layout) => layout,
        Err(error) => panic!("ggml is used although its layout is unknown: {error}"),
    }
}

impl Layout {
    /// Measures the layout, once per process.
    ///
    /// # Errors
    /// [`HookError::Layout`] names what differs; [`HookError::NoDevice`] where ggml has no CPU device.
    pub(crate) fn probe() -> Result<&'static Self, HookError> {
        if LAYOUT.get().is_none() {
            let measured = measure();
            // Not kept: a process without devices may load some later.
            if measured == Err(HookError::NoDevice) {
                return Err(HookError::NoDevice);
            }
            // Another thread may have measured the same in the meantime.
            let _ = LAYOUT.set(measured);
        }
        LAYOUT.get_or_init(measure).as_ref().map_err(Clone::clone)
    }
}

fn measure() -> Result<Layout, HookError> {
    check_status()?;
    let tensor = TensorLayout::measure()?;
    let device_init_backend = slot("ggml_backend_device.iface.init_backend", |fake| {
        // SAFETY: ggml_backend_dev_init only calls the device's init_backend, and every word of the fake
        // device is a function that ignores its arguments.
        unsafe { (api().ggml_backend_dev_init)(fake.cast(), null()) };
    })?;
    let device_get_type = slot("ggml_backend_device.iface.get_type", |fake| {
        // SAFETY: ggml_backend_dev_type only calls the device's get_type. Zero is a type.
        unsafe { (api().ggml_backend_dev_type)(fake.cast()) };
    })?;
    let backend_graph_compute = slot("ggml_backend.iface.graph_compute", |fake| {
        // SAFETY: ggml_backend_graph_compute_async only calls the backend's graph_compute.
        unsafe { (api().ggml_backend_graph_compute_async)(fake.cast(), null_mut()) };
    })?;
    let backend_free = slot("ggml_backend.iface.free", |fake| {
        // SAFETY: ggml_backend_free only calls the backend's free for a backend that is not null.
        unsafe { (api().ggml_backend_free)(fake.cast()) };
    })?;
    if backend_free == backend_graph_compute {
        return Err(mismatch("ggml_backend's free and graph_compute are one slot"));
    }
    let graph = measure_graph()?;
    Ok(Layout {
        device_init_backend,
        device_get_type,
        backend_free,
        backend_graph_compute,
        buffer_free: measure_free()?,
        graph_n_nodes: graph.n_nodes,
        graph_n_leafs: graph.n_leafs,
        graph_nodes: graph.nodes,
        graph_uid: measure_uid()?,
        graph_uses: UseCounts::measure(),
        tensor,
    })
}

/// Asks ggml for the names of the two numbers that stand for success and failure.
fn check_status() -> Result<(), HookError> {
    for (status, name) in [(SUCCESS, "success"), (FAILED, "error")] {
        // SAFETY: a status that each ggml has a text for; the text is static and NUL-terminated.
        let found = unsafe { CStr::from_ptr((api().ggml_status_to_string)(status)) }.to_string_lossy();
        if !found.contains(name) {
            return Err(mismatch(format!("status {status} is \"{found}\" and not {name}")));
        }
    }
    Ok(())
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

/// Returns the byte offset of the slot that `call` goes through.
fn slot(what: &str, call: impl FnOnce(*mut c_void)) -> Result<usize, HookError> {
    let mut fake = SENTINELS;
    HIT.with(|hit| hit.set(None));
    call(fake.as_mut_ptr().cast());
    let slot = HIT.with(Cell::take).ok_or_else(|| mismatch(format!("no slot is called for {what}")))?;
    Ok(slot * size_of::<Sentinel>())
}

struct GraphFields {
    n_nodes: usize,
    n_leafs: usize,
    nodes: usize,
}

fn measure_graph() -> Result<GraphFields, HookError> {
    let api = api();
    let arena = Arena::new(64)?;
    let graphs = [(5, chain(&arena, 5)), (9, chain(&arena, 9))];
    for (adds, graph) in graphs {
        // SAFETY: the graphs live in the arena.
        let nodes = unsafe { (api.ggml_graph_n_nodes)(graph) };
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
    let n_nodes = field_i32("the number of nodes", |adds| adds)?;
    let n_leafs = field_i32("the number of leafs", |adds| adds + 1)?;
    let nodes = (0..GRAPH_WORDS)
        .map(|i| i * size_of::<usize>())
        .find(|&offset| {
            graphs.iter().all(|&(_, graph)| {
                // SAFETY: within the graph's allocation. The value is compared as an address and not
                // followed.
                unsafe {
                    graph.byte_add(offset).cast::<*mut *mut RawTensor>().read()
                        == (api.ggml_graph_nodes)(graph)
                }
            })
        })
        .ok_or_else(|| mismatch("ggml_cgraph has no field that holds its nodes"))?;

    // ggml must also read what was found: write through it and ask the getters.
    let (_, graph) = graphs[0];
    // SAFETY: the offsets name fields of these types. The graph is ours and restored before it is used again.
    let agreed = unsafe {
        let count = graph.byte_add(n_nodes).cast::<i32>();
        let array = graph.byte_add(nodes).cast::<*mut *mut RawTensor>();
        let (old_count, old_array) = (count.read(), array.read());
        let second = (api.ggml_graph_node)(graph, 1);
        count.write(2);
        array.write(old_array.add(1));
        let agreed = (api.ggml_graph_n_nodes)(graph) == 2 && (api.ggml_graph_node)(graph, 0) == second;
        count.write(old_count);
        array.write(old_array);
        agreed
    };
    if !agreed {
        return Err(mismatch("ggml does not read the fields of ggml_cgraph that were found"));
    }
    Ok(GraphFields { n_nodes, n_leafs, nodes })
}

/// Returns the offsets by name, for reports.
pub(crate) fn named_offsets(layout: &Layout) -> Vec<(&'static str, usize)> {
    let optional = [
        ("ggml_backend_buffer.iface.free_buffer", layout.buffer_free),
        ("ggml_cgraph.uid", layout.graph_uid),
        ("ggml_cgraph.use_counts", layout.graph_uses.map(|uses| uses.counts)),
    ];
    [
        ("ggml_backend_device.iface.init_backend", layout.device_init_backend),
        ("ggml_backend_device.iface.get_type", layout.device_get_type),
        ("ggml_backend.iface.free", layout.backend_free),
        ("ggml_backend.iface.graph_compute", layout.backend_graph_compute),
        ("ggml_cgraph.n_nodes", layout.graph_n_nodes),
        ("ggml_cgraph.n_leafs", layout.graph_n_leafs),
        ("ggml_cgraph.nodes", layout.graph_nodes),
    ]
    .into_iter()
    .chain(optional.into_iter().filter_map(|(name, offset)| Some((name, offset?))))
    .collect()
}

#[cfg(all(test, feature = "linked"))]
mod tests {
    use std::mem::offset_of;

    use llama_cpp_sys_2 as sys;

    use super::*;

    #[test]
    fn the_linked_ggml_is_laid_out_as_its_headers_say() {
        // ggml 0.26: ggml_backend = { guid, iface { get_name, free, .. }, .. } with graph_compute the 13th
        // function of the interface; get_type is a device's 4th, init_backend its 6th; free_buffer is a buffer's
        // 1st; ggml_cgraph = { size, n_nodes, n_leafs, nodes, .., uid }.
        let layout = Layout::probe().unwrap();
        let expected = Layout {
            device_init_backend: 5 * 8,
            device_get_type: 3 * 8,
            buffer_free: Some(0),
            backend_free: (1 + 1) * 8,
            backend_graph_compute: (1 + 12) * 8,
            graph_n_nodes: 4,
            graph_n_leafs: 8,
            graph_nodes: 16,
            graph_uid: Some(88),
            graph_uses: Some(UseCounts { counts: 48, size: 56, used: 64, keys: 72 }),
            tensor: layout.tensor,
        };
        assert_eq!(layout, &expected);
    }

    #[test]
    fn a_tensor_is_laid_out_as_its_headers_say() {
        let found = format!("{:?}", Layout::probe().unwrap().tensor);
        for (name, offset) in [
            ("dtype", offset_of!(sys::ggml_tensor, type_)),
            ("buffer", offset_of!(sys::ggml_tensor, buffer)),
            ("ne", offset_of!(sys::ggml_tensor, ne)),
            ("nb", offset_of!(sys::ggml_tensor, nb)),
            ("op", offset_of!(sys::ggml_tensor, op)),
            ("op_params", offset_of!(sys::ggml_tensor, op_params)),
            ("op_param_count", 16),
            ("flags", offset_of!(sys::ggml_tensor, flags)),
            ("src", offset_of!(sys::ggml_tensor, src)),
            ("src_count", 10),
            ("view_src", offset_of!(sys::ggml_tensor, view_src)),
            ("view_offs", offset_of!(sys::ggml_tensor, view_offs)),
            ("data", offset_of!(sys::ggml_tensor, data)),
            ("name", offset_of!(sys::ggml_tensor, name)),
            ("output_flag", sys::GGML_TENSOR_FLAG_OUTPUT as usize),
            ("compute_flag", sys::GGML_TENSOR_FLAG_COMPUTE as usize),
        ] {
            assert!(found.contains(&format!(" {name}: {offset},")), "{name}: {offset} in {found}");
        }
        let extra = offset_of!(sys::ggml_tensor, extra);
        assert!(found.contains(&format!("extra: Some({extra})")), "{found}");
        let padding = offset_of!(sys::ggml_tensor, padding);
        assert!(found.contains(&format!("padding: Some({padding})")), "{found}");
        let ops = Layout::probe().unwrap().tensor.ops;
        assert_eq!(
            [ops.mul.0, ops.mul_mat_id.0, ops.rms_norm.0],
            [sys::GGML_OP_MUL, sys::GGML_OP_MUL_MAT_ID, sys::GGML_OP_RMS_NORM]
        );
    }
}
