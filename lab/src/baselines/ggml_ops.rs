//! The same caps through ggml's own operations.
//!
//! The graph runs in views that end at the capped block outputs. Between two views the same backend computes
//! a small graph through its own `graph_compute`, in the order of its own stream. The host does not wait. Per
//! cap, with `H` the rows of the block output and `v` the axis:
//!
//! ```text
//! p = MUL_MAT(H, v)   c = CLAMP(p, lo, hi)   d = SUB(c, p)   d = SCALE(d, strength), unless that is 1
//! u = REPEAT(v), of one row v itself   u = MUL(u, d)   H = ADD(H, u), in place
//! ```
//!
//! It measures what capping costs without special kernels: five launches per cap where one row is decoded,
//! six where there are several. Its rows differ from axiscap's in the last bits, because ggml adds in another
//! order, and it has no statistics. With an odd width or rows that are not aligned to 8 bytes, ggml's CUDA
//! backend leaves the product to cuBLAS, which may round its factors to TF32.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, c_void};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use axiscap::CapTable;
use llama_cpp_sys_2 as sys;

use axiscap_ggml::{BlockOutput, ComputeError, ComputeHook, GraphCall, HookError, OwnedGraph};

/// Graphs kept at a time. They differ in block and number of rows. The oldest is evicted.
const MAX_GRAPHS: usize = 256;

/// Maximum of nodes, and of tensors beside the rows, that one cap adds to a graph.
const NODES: usize = 8;

type Result<T> = std::result::Result<T, String>;

/// A function that is given the block and its capped rows, `[rows][width]`.
type Observer = Arc<dyn Fn(usize, &[f32]) + Send + Sync>;

/// Caps through ggml's own operations
/// ([`Session::set_compute_hook`](axiscap_ggml::Session::set_compute_hook)). Statistics and tracing must be
/// off.
#[derive(Default)]
pub(super) struct GgmlOps {
    /// By the address of the backend.
    backends: Mutex<HashMap<usize, BackendOps>>,
    observer: Option<Observer>,
}

impl fmt::Debug for GgmlOps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GgmlOps").finish_non_exhaustive()
    }
}

impl GgmlOps {
    /// As the default, and shows each block's rows after its caps. The host waits for them.
    #[cfg(test)]
    pub(super) fn with_observer(observer: impl Fn(usize, &[f32]) + Send + Sync + 'static) -> Self {
        Self { observer: Some(Arc::new(observer)), ..Self::default() }
    }
}

impl ComputeHook for GgmlOps {
    fn describe(&self) -> &'static str {
        "the graph is cut at capped blocks, ggml's own operations cap between the views"
    }

    fn compute(&self, call: &mut GraphCall<'_>) -> std::result::Result<(), ComputeError> {
        let mut backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        let ops = backends.entry(call.backend() as usize).or_default();
        ops.follow(call);
        call.compute_in_views(|call, output| {
            ops.cap(call, output)?;
            if let Some(observer) = &self.observer {
                observer(output.block(), &rows(call, output));
            }
            Ok(())
        })
    }

    fn close(&self, backend: *mut c_void) {
        let mut backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ops) = backends.remove(&(backend as usize)) {
            // SAFETY: the backend is still alive. It may be computing with what is dropped next.
            unsafe { sys::ggml_backend_synchronize(backend.cast()) };
            drop(ops);
        }
    }
}

/// Reads the rows of a block output.
fn rows(call: &GraphCall<'_>, output: BlockOutput) -> Vec<f32> {
    // SAFETY: the backend and the block output are alive. Each row has `width` f32, `nb[1]` bytes from the
    // last.
    unsafe {
        sys::ggml_backend_synchronize(call.backend().cast());
        let tensor = output.tensor().cast::<sys::ggml_tensor>();
        let width = (*tensor).ne[0] as usize;
        let mut values = vec![0.0_f32; output.rows() * width];
        for (row, values) in values.chunks_mut(width).enumerate() {
            let offset = row * (*tensor).nb[1];
            sys::ggml_backend_tensor_get(tensor, values.as_mut_ptr().cast(), offset, size_of_val(values));
        }
        values
    }
}

/// The small graphs of one backend, and the tensors that they work on.
#[derive(Default)]
struct BackendOps {
    /// Revision of the caps that axes and graphs were made from.
    revision: u64,
    /// By block.
    axes: HashMap<usize, Axes>,
    temporaries: Option<Temporaries>,
    graphs: VecDeque<(Key, Chain)>,
}

/// The axes of a block, one tensor each.
struct Axes {
    table: CapTable,
    tensors: Tensors,
}

/// The rows that a graph caps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    block: usize,
    rows: usize,
    stride: usize,
    address: usize,
    buffer: usize,
}

/// A small graph that caps the rows of one block output.
struct Chain {
    graph: OwnedGraph,
    /// Holds the graph and its tensors.
    _context: Context,
}

/// Results between two operations. Every graph uses them, because graphs run one after the other.
struct Temporaries {
    rows: usize,
    tensors: Tensors,
}

/// Indices of the temporaries.
const PROJECTED: usize = 0;
const CLAMPED: usize = 1;
const MOVED: usize = 2;
const UPDATE: usize = 3;

impl BackendOps {
    /// Drops what was made from caps that have changed.
    fn follow(&mut self, call: &GraphCall<'_>) {
        if std::mem::replace(&mut self.revision, call.caps_revision()) == call.caps_revision() {
            return;
        }
        let changed =
            |(block, axes): (&usize, &Axes)| (call.caps(*block) != Some(&axes.table)).then_some(*block);
        let stale: Vec<_> = self.axes.iter().filter_map(changed).collect();
        if !stale.is_empty() {
            synchronize(call);
            self.graphs.retain(|(key, _)| !stale.contains(&key.block));
            self.axes.retain(|block, _| !stale.contains(block));
        }
    }

    /// Caps the rows of a block output.
    fn cap(&mut self, call: &GraphCall<'_>, output: BlockOutput) -> std::result::Result<(), ComputeError> {
        let Some(table) = call.caps(output.block()) else { return Ok(()) };
        let device = || call.device().to_owned();
        let graph =
            self.graph(call, output, table).map_err(|what| HookError::Device { device: device(), what })?;
        // SAFETY: `build` has asked the backend for each operation. The tensors go only after a wait for the
        // backend.
        unsafe { call.compute_owned(graph) }
    }

    /// Returns the graph that caps these rows. Builds it the first time.
    fn graph(&mut self, call: &GraphCall<'_>, output: BlockOutput, table: &CapTable) -> Result<&OwnedGraph> {
        // SAFETY: the block output is a valid tensor, and so is the tensor that it is a view of.
        let key = unsafe {
            let tensor = output.tensor().cast::<sys::ggml_tensor>();
            let owner = if (*tensor).view_src.is_null() { tensor } else { (*tensor).view_src };
            Key {
                block: output.block(),
                rows: output.rows(),
                stride: (*tensor).nb[1],
                address: (*tensor).data as usize,
                buffer: (*owner).buffer as usize,
            }
        };
        if let Some(i) = self.graphs.iter().position(|(known, _)| *known == key) {
            return Ok(&self.graphs[i].1.graph);
        }
        let backend = call.backend().cast();
        let enough = self.temporaries.as_ref().is_some_and(|temporaries| temporaries.rows >= key.rows);
        if !enough || self.graphs.len() == MAX_GRAPHS {
            synchronize(call);
        }
        if self.graphs.len() == MAX_GRAPHS {
            self.graphs.pop_front();
        }
        if !enough {
            self.graphs.clear();
            self.temporaries = None;
            let rows = key.rows.next_power_of_two();
            let shapes = [(rows, 1), (rows, 1), (rows, 1), (table.width(), rows)];
            self.temporaries = Some(Temporaries { rows, tensors: Tensors::new(backend, &shapes)? });
        }
        let Some(temporaries) = &self.temporaries else { return Err("it has no memory".into()) };
        let axes = match self.axes.entry(key.block) {
            Entry::Occupied(axes) => axes.into_mut(),
            Entry::Vacant(place) => place.insert(Axes::upload(backend, table)?),
        };
        // SAFETY: axes and temporaries are tensors of this backend, and are dropped only after the graphs
        // made of them.
        let chain = unsafe { build(call, output, &key, axes, &temporaries.tensors)? };
        self.graphs.push_back((key, chain));
        self.graphs.back().map(|(_, chain)| &chain.graph).ok_or_else(|| "it has no graph".into())
    }
}

/// Waits for the backend, which may be computing an earlier graph.
fn synchronize(call: &GraphCall<'_>) {
    // SAFETY: the backend is computing the graph of this call, and so is alive.
    unsafe { sys::ggml_backend_synchronize(call.backend().cast()) };
}

impl Axes {
    fn upload(backend: sys::ggml_backend_t, table: &CapTable) -> Result<Self> {
        let tensors = Tensors::new(backend, &vec![(table.width(), 1); table.cap_count()])?;
        for (cap, &tensor) in tensors.all.iter().enumerate() {
            let axis = table.axis(cap);
            // SAFETY: an f32 tensor of as many values, in a buffer of this value.
            unsafe { sys::ggml_backend_tensor_set(tensor, axis.as_ptr().cast(), 0, size_of_val(axis)) };
        }
        Ok(Self { table: table.clone(), tensors })
    }
}

/// Builds the graph that caps the rows of a block output.
///
/// # Safety
/// `output` must be a block output of `call`, and `key` describe it. `axes` must hold one tensor per cap,
/// `temporaries` have space for the rows. Both must be of the call's backend and outlive the result.
unsafe fn build(
    call: &GraphCall<'_>,
    output: BlockOutput,
    key: &Key,
    axes: &Axes,
    temporaries: &Tensors,
) -> Result<Chain> {
    let table = &axes.table;
    let nodes = NODES * table.cap_count();
    let size = nodes + table.cap_count() + 1;
    let context = Context::new(nodes + 1, size)?;
    let c = context.0;
    let rows = key.rows as i64;
    // SAFETY: the context has space for a tensor of the rows, NODES tensors per cap, and a graph of as many.
    // Every tensor is placed before another is made of it, within the memory of a temporary that is large
    // enough.
    unsafe {
        let source = &*output.tensor().cast::<sys::ggml_tensor>();
        let mut state = sys::ggml_new_tensor_2d(c, sys::GGML_TYPE_F32, source.ne[0], rows);
        (*state).nb = source.nb;
        let buffer = key.buffer as sys::ggml_backend_buffer_t;
        if buffer.is_null() {
            return Err(format!("the output of block {} has no buffer", key.block));
        }
        check_status(sys::ggml_backend_tensor_alloc(buffer, state, key.address as *mut _))?;
        for (&axis, params) in axes.tensors.all.iter().zip(table.params()) {
            let place = |tensor, index: usize| temporaries.place(tensor, index);
            let projected = place(sys::ggml_mul_mat(c, state, axis), PROJECTED)?;
            let clamped = place(sys::ggml_clamp(c, projected, params.lo, params.hi), CLAMPED)?;
            let mut moved = place(sys::ggml_sub(c, clamped, projected), MOVED)?;
            if params.strength != 1.0 {
                moved = view(sys::ggml_scale_inplace(c, moved, params.strength))?;
            }
            let update = if rows == 1 {
                place(sys::ggml_mul(c, axis, moved), UPDATE)?
            } else {
                let moved = view(sys::ggml_reshape_2d(c, moved, 1, rows))?;
                let axis = place(sys::ggml_repeat(c, axis, state), UPDATE)?;
                view(sys::ggml_mul_inplace(c, axis, moved))?
            };
            state = view(sys::ggml_add_inplace(c, state, update))?;
        }
        let raw = sys::ggml_new_graph_custom(c, size, false);
        sys::ggml_build_forward_expand(raw, state);
        for i in 0..sys::ggml_graph_n_nodes(raw) {
            let node = sys::ggml_graph_node(raw, i);
            if !sys::ggml_backend_supports_op(call.backend().cast(), node) {
                let op = CStr::from_ptr(sys::ggml_op_desc(node)).to_string_lossy();
                return Err(format!("the backend cannot compute {op} of f32 rows"));
            }
        }
        Ok(Chain { graph: call.own_graph(raw.cast()), _context: context })
    }
}

/// Places a view where the tensor lies that it is a view of.
///
/// # Safety
/// `tensor` must be a new view of a tensor that has been placed.
unsafe fn view(tensor: *mut sys::ggml_tensor) -> Result<*mut sys::ggml_tensor> {
    // SAFETY: the caller promises a new view of a placed tensor. ggml has placed some of them itself.
    unsafe {
        if (*tensor).buffer.is_null() {
            check_status(sys::ggml_backend_view_init(tensor))?;
        }
    }
    Ok(tensor)
}

fn check_status(status: sys::ggml_status) -> Result<()> {
    if status == sys::GGML_STATUS_SUCCESS {
        Ok(())
    } else {
        Err(format!("ggml could not place a tensor (status {status})"))
    }
}

/// A `ggml_context` of tensors and graphs without data.
struct Context(*mut sys::ggml_context);

// SAFETY: a ggml_context is plain memory, and this value is its only owner.
unsafe impl Send for Context {}

impl Context {
    /// Creates a context with space for tensors and for a graph of a size, which may be 0.
    fn new(tensors: usize, graph: usize) -> Result<Self> {
        // SAFETY: the two functions only compute sizes. A null buffer has ggml allocate the memory.
        let context = unsafe {
            let bytes = tensors * sys::ggml_tensor_overhead() + sys::ggml_graph_overhead_custom(graph, false);
            let params = sys::ggml_init_params {
                mem_size: bytes + 1024,
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            };
            sys::ggml_init(params)
        };
        if context.is_null() { Err("ggml_init returned null".into()) } else { Ok(Self(context)) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by ggml_init and freed once.
        unsafe { sys::ggml_free(self.0) };
    }
}

/// f32 tensors in one buffer of a backend's default type.
struct Tensors {
    all: Vec<*mut sys::ggml_tensor>,
    buffer: sys::ggml_backend_buffer_t,
    /// Holds the tensors.
    _context: Context,
}

// SAFETY: the tensors lie in the context and the buffer, which belong to this value.
unsafe impl Send for Tensors {}

impl Tensors {
    /// Creates tensors of these shapes, `(values, rows)`.
    fn new(backend: sys::ggml_backend_t, shapes: &[(usize, usize)]) -> Result<Self> {
        let context = Context::new(shapes.len(), 0)?;
        // SAFETY: the context has space for the tensors, and the backend is alive. The last call places all
        // of them, or returns null.
        unsafe {
            let tensor = |&(values, rows): &(usize, usize)| {
                sys::ggml_new_tensor_2d(context.0, sys::GGML_TYPE_F32, values as i64, rows as i64)
            };
            let all: Vec<_> = shapes.iter().map(tensor).collect();
            let buffer = sys::ggml_backend_alloc_ctx_tensors(context.0, backend);
            if buffer.is_null() {
                let bytes: usize = shapes.iter().map(|(values, rows)| 4 * values * rows).sum();
                return Err(format!("there is no memory for {bytes} bytes of axes or temporaries"));
            }
            Ok(Self { all, buffer, _context: context })
        }
    }

    /// Places a tensor of a graph where the tensor of this index lies.
    ///
    /// # Safety
    /// `tensor` must be new and need no more memory than the tensor of the index has.
    unsafe fn place(&self, tensor: *mut sys::ggml_tensor, index: usize) -> Result<*mut sys::ggml_tensor> {
        // SAFETY: the caller promises a new tensor that fits.
        unsafe {
            if !(*tensor).view_src.is_null() {
                let op = CStr::from_ptr(sys::ggml_op_desc(tensor)).to_string_lossy();
                return Err(format!("this ggml computes {op} in place"));
            }
            check_status(sys::ggml_backend_tensor_alloc(self.buffer, tensor, (*self.all[index]).data))?;
        }
        Ok(tensor)
    }
}

impl Drop for Tensors {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` and freed once. The owner has waited for the graphs that use it.
        unsafe { sys::ggml_backend_buffer_free(self.buffer) };
    }
}
