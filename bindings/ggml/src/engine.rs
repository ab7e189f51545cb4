//! Runs a graph with its caps: nodes inserted into the graph, or views with caps between them.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use axiscap::cpu::{self, RowsMut};
use axiscap::{CapTable, RowStat};
use llama_cpp_sys_2 as sys;

use crate::error::HookError;
use crate::find::Output;
use crate::graph::Graph;
use crate::layout::Arena;
use crate::session::{Config, Inner};
use crate::tap::{Tap, TapRows};

/// What computes a graph in the backend's own, unhooked way.
pub(crate) type Compute<'a> = &'a dyn Fn(&Graph) -> sys::ggml_status;

/// Work on one block output: first the tap, then the caps.
struct BlockWork<'a> {
    output: Output,
    width: usize,
    tap: Option<&'a Tap>,
    table: Option<&'a CapTable>,
    /// `[rows][caps]`, written by whichever threads cap the rows; empty when nothing is recorded.
    stats: Vec<UnsafeCell<RowStat>>,
    error: Mutex<Option<HookError>>,
}

impl<'a> BlockWork<'a> {
    fn new(output: Output, config: &'a Config, width: usize) -> Self {
        let caps = config.caps_of(output.block);
        let stats = caps.filter(|_| config.records()).map_or(0, |c| c.indices.len() * output.rows());
        Self {
            output,
            width,
            tap: config.tap_of(output.block),
            table: caps.map(|c| &c.table),
            stats: (0..stats).map(|_| UnsafeCell::default()).collect(),
            error: Mutex::new(None),
        }
    }

    fn fail(&self, error: HookError) {
        let mut slot = self.error.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        slot.get_or_insert(error);
    }

    /// Runs `work`, and turns an error or a panic into the error of this block.
    fn guarded(&self, work: impl FnOnce() -> Result<(), HookError>) {
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.fail(error),
            Err(panic) => self.fail(panicked(panic.as_ref())),
        }
    }

    /// # Safety
    /// `data` must hold the output's rows, and nobody may write them during the call.
    unsafe fn show(&self, tap: &Tap, data: *const f32) {
        let (rows, stride) = (self.output.rows(), self.output.stride());
        let values = match rows {
            0 => &[],
            // SAFETY: the caller's contract; the last row need not be followed by a whole stride.
            _ => unsafe { std::slice::from_raw_parts(data, (rows - 1) * stride + self.width) },
        };
        self.guarded(|| {
            (tap.see)(self.output.block, TapRows { values, rows, width: self.width, stride });
            Ok(())
        });
    }

    /// Caps the share of the rows that belongs to worker `ith` of `nth`, and writes their statistics.
    ///
    /// # Safety
    /// `data` must hold the output's rows. No two calls may run at once with the same `ith`, nor with different
    /// `nth`, and nobody else may touch the rows or `stats`.
    unsafe fn cap(&self, table: &CapTable, data: *mut f32, ith: usize, nth: usize) {
        let (rows, stride) = (self.output.rows(), self.output.stride());
        let share = rows.div_ceil(nth);
        let first = (ith * share).min(rows);
        let count = share.min(rows - first);
        if count == 0 {
            return;
        }
        let depth = if self.stats.is_empty() { 0 } else { table.caps() };
        self.guarded(|| {
            let stats = &self.stats[first * depth..][..count * depth];
            // SAFETY: rows first..first + count exist and are this worker's alone, and so are their statistics; a
            // slice of cells may be written through its pointer.
            let (rows, stats) = unsafe {
                let stats = UnsafeCell::raw_get(stats.as_ptr());
                (
                    RowsMut::from_raw(data.add(first * stride), count, self.width, stride)?,
                    std::slice::from_raw_parts_mut(stats, count * depth),
                )
            };
            let options = cpu::Options::new();
            let options = if depth == 0 { options } else { options.stats(stats) };
            Ok(cpu::cap_rows(table, rows, options)?)
        });
    }
}

/// The text of a caught panic.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> HookError {
    let text = panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".into());
    HookError::Panic(text)
}

/// Hands what the blocks' work left behind to the session. Returns false if anything failed.
fn settle(work: Vec<BlockWork<'_>>, config: &Config, session: &Inner) -> bool {
    let mut fine = true;
    for block in work {
        if let Some(error) = block.error.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            session.fail(error);
            fine = false;
            continue;
        }
        let rows = block.output.rows();
        let order = session.saw(block.output.block, rows);
        if config.records() {
            let stats = block.stats.into_iter().map(UnsafeCell::into_inner).collect();
            session.did(order, config, block.output.block, rows, stats);
        }
    }
    fine
}

/// Computes the graph with a node after each block output that caps its rows in place.
///
/// The nodes run on ggml's own worker threads, between its own barriers: no thread is woken or awaited that ggml
/// would not wake or await anyway, and a cap costs one barrier and its own arithmetic. Nodes that read the block
/// output run later in the list and so read the capped rows.
pub(crate) fn run_inserted(
    graph: &Graph,
    outputs: &[Output],
    arena: &mut Arena,
    config: &Config,
    session: &Inner,
    compute: Compute<'_>,
) -> sys::ggml_status {
    let width = session.model.width;
    let work: Vec<_> = outputs.iter().map(|&output| BlockWork::new(output, config, width)).collect();
    let context = match arena.emptied(2 * work.len()) {
        Ok(context) => context,
        Err(error) => {
            session.fail(error);
            return sys::GGML_STATUS_FAILED;
        }
    };
    let old = graph.nodes();
    let mut nodes = Vec::with_capacity(old.len() + 2 * work.len());
    let mut next = 0;
    for block in &work {
        nodes.extend_from_slice(&old[next..=block.output.node]);
        next = block.output.node + 1;
        if block.tap.is_some() {
            // SAFETY: the arena has room; `work` outlives the computation.
            nodes.push(unsafe { insert(context, block, tap_node) });
        }
        if block.table.is_some() {
            // SAFETY: as above.
            nodes.push(unsafe { insert(context, block, cap_node) });
        }
    }
    nodes.extend_from_slice(&old[next..]);
    let status = graph.with_nodes(&mut nodes, || compute(graph));
    if status != sys::GGML_STATUS_SUCCESS {
        return status;
    }
    if settle(work, config, session) { status } else { sys::GGML_STATUS_FAILED }
}

type CustomOp =
    unsafe extern "C" fn(*mut sys::ggml_tensor, *const sys::ggml_tensor, c_int, c_int, *mut c_void);

/// A node that runs `op` on the block output in place.
///
/// # Safety
/// The context must have room for a tensor, and `block` must outlive the computation of the node.
unsafe fn insert(
    context: *mut sys::ggml_context,
    block: &BlockWork<'_>,
    op: CustomOp,
) -> *mut sys::ggml_tensor {
    let source = block.output.tensor;
    // SAFETY: `source` is a node of the graph; ggml_map_custom1_inplace makes a view of it. The only thing that
    // ggml_build_forward_expand would add is the flag that says "compute me", taken over from the source.
    unsafe {
        let user_data = std::ptr::from_ref(block).cast_mut().cast();
        let node = sys::ggml_map_custom1_inplace(context, source, Some(op), EVERY_THREAD, user_data);
        (*node).flags |= (*source).flags & sys::GGML_TENSOR_FLAG_COMPUTE as i32;
        node
    }
}

/// `GGML_N_TASKS_MAX`: the node uses as many threads as the graph has.
const EVERY_THREAD: c_int = -1;

unsafe extern "C" fn tap_node(
    _: *mut sys::ggml_tensor,
    source: *const sys::ggml_tensor,
    ith: c_int,
    _: c_int,
    block: *mut c_void,
) {
    if ith != 0 {
        return;
    }
    // SAFETY: `insert` stored a BlockWork that outlives the computation; only shared access happens to it. The
    // rows are complete, since ggml's barrier is before this node, and capped only after the barrier behind it.
    unsafe {
        let block = &*block.cast::<BlockWork<'_>>();
        if let Some(tap) = block.tap {
            block.show(tap, (*source).data.cast());
        }
    }
}

unsafe extern "C" fn cap_node(
    _: *mut sys::ggml_tensor,
    source: *const sys::ggml_tensor,
    ith: c_int,
    nth: c_int,
    block: *mut c_void,
) {
    // SAFETY: as in tap_node; ggml calls a node once per worker, with distinct ith below one nth.
    unsafe {
        let block = &*block.cast::<BlockWork<'_>>();
        if let Some(table) = block.table {
            block.cap(table, (*source).data.cast(), ith as usize, nth as usize);
        }
    }
}

/// Computes the graph in views that end at the block outputs, and caps between them: on the output's own memory
/// where the host can reach it, else on a copy that is read and written back.
///
/// A view's end guarantees that the block output is materialised: no fusion crosses it.
pub(crate) fn run_views(
    graph: &Graph,
    outputs: &[Output],
    backend: sys::ggml_backend_t,
    staging: &mut Vec<f32>,
    config: &Config,
    session: &Inner,
    compute: Compute<'_>,
) -> sys::ggml_status {
    let width = session.model.width;
    let nodes = graph.nodes().len();
    let mut next = 0;
    let mut done = Vec::with_capacity(outputs.len());
    for &output in outputs {
        let status = graph.with_view(next..output.node + 1, || compute(graph));
        if status != sys::GGML_STATUS_SUCCESS {
            return status;
        }
        next = output.node + 1;
        let work = BlockWork::new(output, config, width);
        // SAFETY: the backend is computing this graph and waits for us.
        unsafe { sys::ggml_backend_synchronize(backend) };
        cap_on_host(&work, staging);
        done.push(work);
    }
    // Where the scheduler splits a graph right behind a block output, nothing is left; a graph without nodes is
    // nothing that backends expect.
    if next < nodes {
        let status = graph.with_view(next..nodes, || compute(graph));
        if status != sys::GGML_STATUS_SUCCESS {
            return status;
        }
    }
    if settle(done, config, session) { sys::GGML_STATUS_SUCCESS } else { sys::GGML_STATUS_FAILED }
}

/// Caps a block output that has been computed, for the comparison through llama.cpp's evaluation callback.
/// Returns false if anything failed.
pub(crate) fn cap_computed(output: Output, staging: &mut Vec<f32>, config: &Config, session: &Inner) -> bool {
    let work = BlockWork::new(output, config, session.model.width);
    cap_on_host(&work, staging);
    settle(vec![work], config, session)
}

/// Shows a block output that has been computed to its tap, without capping it. Returns false if anything failed.
pub(crate) fn show_computed(
    output: Output,
    staging: &mut Vec<f32>,
    config: &Config,
    session: &Inner,
) -> bool {
    let mut work = BlockWork::new(output, config, session.model.width);
    work.table = None;
    cap_on_host(&work, staging);
    match work.error.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        None => true,
        Some(error) => {
            session.fail(error);
            false
        }
    }
}

/// Taps and caps a block output that has been computed.
fn cap_on_host(block: &BlockWork<'_>, staging: &mut Vec<f32>) {
    let tensor = block.output.tensor;
    if block.output.rows() == 0 {
        return;
    }
    // SAFETY: the output has been computed and its backend is idle, so its memory is ours until the next view.
    // `staging` holds as many bytes as the tensor.
    unsafe {
        let buffer =
            if (*tensor).view_src.is_null() { (*tensor).buffer } else { (*(*tensor).view_src).buffer };
        let on_host = !buffer.is_null() && sys::ggml_backend_buffer_is_host(buffer);
        let bytes = sys::ggml_nbytes(tensor);
        let data = if on_host {
            (*tensor).data.cast::<f32>()
        } else {
            staging.resize(bytes.div_ceil(size_of::<f32>()), 0.0);
            sys::ggml_backend_tensor_get(tensor, staging.as_mut_ptr().cast(), 0, bytes);
            staging.as_mut_ptr()
        };
        if let Some(tap) = block.tap {
            block.show(tap, data);
        }
        if let Some(table) = block.table {
            block.cap(table, data, 0, 1);
            if !on_host {
                sys::ggml_backend_tensor_set(tensor, data.cast(), 0, bytes);
            }
        }
    }
}
