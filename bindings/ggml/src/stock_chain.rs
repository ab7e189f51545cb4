//! The same caps through ggml's own operations, to compare with.
//!
//! The graph runs in views, as under [`Engine::Views`](crate::Engine::Views). Between two of them the same backend
//! computes a small graph through its own `graph_compute`, in the order of its own stream, and no host waits. Per cap,
//! with `H` the rows of the block output and `v` the axis:
//!
//! ```text
//! p = MUL_MAT(H, v)   c = CLAMP(p, lo, hi)   d = SUB(c, p)   d = SCALE(d, strength), unless that is 1
//! u = REPEAT(v), of one row v itself   u = MUL(u, d)   H = ADD(H, u), in place
//! ```
//!
//! It says what capping costs without kernels of one's own: five launches per cap where one row is decoded, six where
//! there are several. It gives neither axiscap's bits, because ggml adds up in another order, nor figures.
//! With an odd width or rows that are not aligned to 8 bytes, ggml's CUDA backend leaves the product to cuBLAS, which
//! may round its factors to TF32.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use axiscap::CapTable;
use llama_cpp_sys_2 as sys;

use crate::device::Pass;
use crate::engine::show_computed;
use crate::error::HookError;
use crate::find::Output;
use crate::graph::Graph;
use crate::layout::Arena;
use crate::session::Config;

/// How blocks are capped here, as reports say it.
pub(crate) const STOCK_CHAIN: &str =
    "the graph is cut at capped blocks, ggml's own operations cap between the views";

/// Graphs kept at a time. They differ in block and number of rows; the oldest goes.
const MOST: usize = 256;

/// Most nodes, and most tensors beside the rows, that one cap adds to a graph.
const NODES: usize = 8;

type Result<T> = std::result::Result<T, String>;

/// One backend's chains and what they work on.
#[derive(Debug, Default)]
pub(crate) struct StockChain {
    /// What axes and graphs were made from.
    config: Option<Arc<Config>>,
    /// By block: its axes, one tensor per cap.
    axes: HashMap<usize, Tensors>,
    temporaries: Option<Temporaries>,
    graphs: VecDeque<(Key, Chain)>,
}

/// What a graph is good for: these rows at this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    block: usize,
    rows: usize,
    stride: usize,
    /// Address of the rows, and of their buffer.
    place: (usize, usize),
}

/// A small graph that caps the rows of one block output.
#[derive(Debug)]
struct Chain {
    graph: Graph,
    /// Holds the graph and its tensors.
    _arena: Arena,
}

// SAFETY: the graph lies in the arena, which is this value's own; it is used by whoever holds the value.
unsafe impl Send for Chain {}

/// Results between two operations, which every chain uses: they run one after the other.
#[derive(Debug)]
struct Temporaries {
    rows: usize,
    tensors: Tensors,
}

/// Places among the temporaries.
const PROJECTED: usize = 0;
const CLAMPED: usize = 1;
const MOVED: usize = 2;
const UPDATE: usize = 3;

impl StockChain {
    /// Computes the graph with its caps.
    pub(crate) fn compute(&mut self, pass: &mut Pass<'_>, device: &str) -> sys::ggml_status {
        let capped = pass.outputs.iter().any(|output| pass.config.caps_of(output.block).is_some());
        if capped && pass.config.records() {
            pass.session.fail(HookError::StockChainFigures);
            return sys::GGML_STATUS_FAILED;
        }
        self.run(pass).unwrap_or_else(|what| {
            pass.session.fail(HookError::Device { device: device.into(), what });
            sys::GGML_STATUS_FAILED
        })
    }

    fn run(&mut self, pass: &mut Pass<'_>) -> Result<sys::ggml_status> {
        self.follow(pass);
        let nodes = pass.graph.nodes().len();
        let mut next = 0;
        for &output in pass.outputs {
            let table = pass.config.caps_of(output.block).map(|caps| &caps.table);
            let shown = pass.config.tap_of(output.block).is_some();
            if output.rows() > 0 && (shown || table.is_some()) {
                let status = pass.graph.with_view(next..output.node + 1, || (pass.compute)(pass.graph));
                if status != sys::GGML_STATUS_SUCCESS {
                    return Ok(status);
                }
                next = output.node + 1;
                if shown {
                    // SAFETY: the backend is computing this graph and waits for us.
                    unsafe { sys::ggml_backend_synchronize(pass.backend) };
                    if !show_computed(output, pass.staging, pass.config, pass.session) {
                        return Ok(sys::GGML_STATUS_FAILED);
                    }
                }
                if let Some(table) = table {
                    let chain = self.chain(pass.backend, pass.graph, &output, table)?;
                    let status = (pass.compute)(&chain);
                    if status != sys::GGML_STATUS_SUCCESS {
                        return Ok(status);
                    }
                    #[cfg(test)]
                    tests::note_rows(&output);
                }
            }
            pass.session.saw(output.block, output.rows());
        }
        // Where the scheduler splits a graph right behind a block output, nothing is left.
        if next < nodes {
            return Ok(pass.graph.with_view(next..nodes, || (pass.compute)(pass.graph)));
        }
        Ok(sys::GGML_STATUS_SUCCESS)
    }

    /// Forgets what was made from caps that are others now.
    fn follow(&mut self, pass: &Pass<'_>) {
        let Some(old) = self.config.replace(Arc::clone(pass.config)) else { return };
        if Arc::ptr_eq(&old, pass.config) {
            return;
        }
        let changed = |block: &usize| {
            let [old, new] = [&old, pass.config].map(|config| config.caps_of(*block).map(|caps| &caps.table));
            old != new
        };
        let stale: Vec<_> = self.axes.keys().copied().filter(changed).collect();
        if !stale.is_empty() {
            // SAFETY: the backend is computing a graph and waits for us; it may still be at an earlier chain.
            unsafe { sys::ggml_backend_synchronize(pass.backend) };
            self.graphs.retain(|(key, _)| !stale.contains(&key.block));
            self.axes.retain(|block, _| !stale.contains(block));
        }
    }

    /// The graph that caps these rows, made the first time.
    fn chain(
        &mut self,
        backend: sys::ggml_backend_t,
        of: &Graph,
        output: &Output,
        table: &CapTable,
    ) -> Result<Graph> {
        let key =
            Key { block: output.block, rows: output.rows(), stride: output.stride(), place: output.place() };
        if let Some((_, chain)) = self.graphs.iter().find(|(known, _)| *known == key) {
            return Ok(chain.graph);
        }
        let enough = self.temporaries.as_ref().is_some_and(|temporaries| temporaries.rows >= key.rows);
        if !enough || self.graphs.len() == MOST {
            // SAFETY: as in `follow`.
            unsafe { sys::ggml_backend_synchronize(backend) };
        }
        if self.graphs.len() == MOST {
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
            std::collections::hash_map::Entry::Occupied(axes) => axes.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => place.insert(uploaded(backend, table)?),
        };
        // SAFETY: axes and temporaries are tensors of this backend, and go only after the graphs made of them.
        let chain = unsafe { build(backend, of, output, table, axes, &temporaries.tensors)? };
        let graph = chain.graph;
        self.graphs.push_back((key, chain));
        Ok(graph)
    }

    /// Gives everything back; the backend is about to go.
    pub(crate) fn close(&mut self, backend: sys::ggml_backend_t) {
        if self.temporaries.is_some() {
            // SAFETY: the backend is still alive.
            unsafe { sys::ggml_backend_synchronize(backend) };
        }
        *self = Self::default();
    }
}

/// The axes of a block, one tensor each.
fn uploaded(backend: sys::ggml_backend_t, table: &CapTable) -> Result<Tensors> {
    let axes = Tensors::new(backend, &vec![(table.width(), 1); table.caps()])?;
    for (cap, &tensor) in axes.all.iter().enumerate() {
        let axis = table.axis(cap);
        // SAFETY: an f32 tensor of as many values, in a buffer of its own.
        unsafe { sys::ggml_backend_tensor_set(tensor, axis.as_ptr().cast(), 0, size_of_val(axis)) };
    }
    Ok(axes)
}

/// Builds the graph that caps the rows of a block output.
///
/// # Safety
/// `of` is a graph of the ggml that `backend` belongs to, `output` a node of it that the backend computed. `axes` holds
/// one tensor per cap, `temporaries` has room for the output's rows; both are of this backend and outlive the result.
unsafe fn build(
    backend: sys::ggml_backend_t,
    of: &Graph,
    output: &Output,
    table: &CapTable,
    axes: &Tensors,
    temporaries: &Tensors,
) -> Result<Chain> {
    let nodes = NODES * table.caps();
    let arena = Arena::with_graph(nodes + 1, nodes + table.caps() + 1).map_err(|error| error.to_string())?;
    let context = arena.context();
    let rows = output.rows() as i64;
    // SAFETY: the context has room for one tensor of the rows and NODES per cap, and for a graph of as many; every
    // tensor is placed before another is made of it, and within the memory of a temporary that is large enough.
    unsafe {
        let source = &*output.tensor;
        let mut state = sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_F32, source.ne[0], rows);
        (*state).nb = source.nb;
        let (address, buffer) = output.place();
        let buffer = buffer as sys::ggml_backend_buffer_t;
        if buffer.is_null() {
            return Err(format!("the output of block {} has no buffer", output.block));
        }
        fine(sys::ggml_backend_tensor_alloc(buffer, state, address as *mut _))?;
        for (&axis, params) in axes.all.iter().zip(table.params()) {
            let place = |tensor, index: usize| temporaries.place(tensor, index);
            let projected = place(sys::ggml_mul_mat(context, state, axis), PROJECTED)?;
            let clamped = place(sys::ggml_clamp(context, projected, params.lo, params.hi), CLAMPED)?;
            let mut moved = place(sys::ggml_sub(context, clamped, projected), MOVED)?;
            if params.strength != 1.0 {
                moved = view(sys::ggml_scale_inplace(context, moved, params.strength))?;
            }
            let update = if rows == 1 {
                place(sys::ggml_mul(context, axis, moved), UPDATE)?
            } else {
                let moved = view(sys::ggml_reshape_2d(context, moved, 1, rows))?;
                let axis = place(sys::ggml_repeat(context, axis, state), UPDATE)?;
                view(sys::ggml_mul_inplace(context, axis, moved))?
            };
            state = view(sys::ggml_add_inplace(context, state, update))?;
        }
        let raw = sys::ggml_new_graph_custom(context, nodes + table.caps() + 1, false);
        sys::ggml_build_forward_expand(raw, state);
        let graph = of.sibling(raw);
        for &node in graph.nodes() {
            if !sys::ggml_backend_supports_op(backend, node) {
                let op = std::ffi::CStr::from_ptr(sys::ggml_op_desc(node)).to_string_lossy();
                return Err(format!("the backend cannot compute {op} of f32 rows"));
            }
        }
        Ok(Chain { graph, _arena: arena })
    }
}

/// Places a view where what it is a view of lies.
///
/// # Safety
/// `tensor` must be a new view of a tensor that has been placed.
unsafe fn view(tensor: *mut sys::ggml_tensor) -> Result<*mut sys::ggml_tensor> {
    // SAFETY: the caller's promise; ggml has placed views of placed tensors itself where it could.
    unsafe {
        if (*tensor).buffer.is_null() {
            fine(sys::ggml_backend_view_init(tensor))?;
        }
    }
    Ok(tensor)
}

fn fine(status: sys::ggml_status) -> Result<()> {
    if status == sys::GGML_STATUS_SUCCESS {
        Ok(())
    } else {
        Err(format!("ggml could not place a tensor (status {status})"))
    }
}

/// Tensors of ours in one buffer of a backend's default type.
#[derive(Debug)]
struct Tensors {
    all: Vec<*mut sys::ggml_tensor>,
    buffer: sys::ggml_backend_buffer_t,
    /// Holds the tensors.
    _arena: Arena,
}

// SAFETY: the tensors lie in the arena and the buffer, which are this value's own.
unsafe impl Send for Tensors {}

impl Tensors {
    /// f32 tensors of these shapes, `(values, rows)`.
    fn new(backend: sys::ggml_backend_t, shapes: &[(usize, usize)]) -> Result<Self> {
        let arena = Arena::new(shapes.len()).map_err(|error| error.to_string())?;
        // SAFETY: the arena has room for the tensors; the backend is alive. All of them are placed by the last call,
        // or it returns null.
        unsafe {
            let tensor = |&(values, rows): &(usize, usize)| {
                sys::ggml_new_tensor_2d(arena.context(), sys::GGML_TYPE_F32, values as i64, rows as i64)
            };
            let all: Vec<_> = shapes.iter().map(tensor).collect();
            let buffer = sys::ggml_backend_alloc_ctx_tensors(arena.context(), backend);
            if buffer.is_null() {
                let bytes: usize = shapes.iter().map(|(values, rows)| 4 * values * rows).sum();
                return Err(format!("there is no memory for {bytes} bytes of axes or temporaries"));
            }
            Ok(Self { all, buffer, _arena: arena })
        }
    }

    /// Places a tensor of a graph where the tensor of this index lies.
    ///
    /// # Safety
    /// `tensor` must be new and need no more memory than that of the index has.
    unsafe fn place(&self, tensor: *mut sys::ggml_tensor, index: usize) -> Result<*mut sys::ggml_tensor> {
        // SAFETY: the caller's promise.
        unsafe {
            if !(*tensor).view_src.is_null() {
                let op = std::ffi::CStr::from_ptr(sys::ggml_op_desc(tensor)).to_string_lossy();
                return Err(format!("this ggml computes {op} in place"));
            }
            fine(sys::ggml_backend_tensor_alloc(self.buffer, tensor, (*self.all[index]).data))?;
        }
        Ok(tensor)
    }
}

impl Drop for Tensors {
    fn drop(&mut self) {
        // SAFETY: ours, freed once; whoever drops the value has made sure that no graph uses it any more.
        unsafe { sys::ggml_backend_buffer_free(self.buffer) };
    }
}

#[cfg(test)]
mod tests;
