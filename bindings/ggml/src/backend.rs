//! One hooked backend: chooses the route of each graph, runs it, and records the outcome.

use std::borrow::Cow;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

use crate::decode::Given;
use crate::devices::is_rpc;
use crate::error::HookError;
use crate::graph::find::{Finder, Output};
use crate::graph::inputs::{InputFinder, Inputs, read_words, words_of};
use crate::host::{self, Arena, Device, FAILED, Graph, OwnGraphs, SUCCESS, Status};
use crate::record::{BlockStats, Order, Record, lock};
use crate::route::gpu::{BackendGpu, DriverFactory};
use crate::route::{
    BlockDone, Compute, ComputeError, ComputeHook, GraphCall, Outcome, Route, RouteChoice, compute_custom,
    compute_untouched, host as host_route, inserted,
};
use crate::rpc::{self, About, Asked};
use crate::session::SessionState;
use crate::stock::batch::{GivenRows, next_rows};

/// A hooked backend. ggml calls it the stream of a device in one llama_context.
#[derive(Debug)]
pub(crate) struct Backend {
    session: Arc<SessionState>,
    /// ggml's name of the device.
    device: String,
    is_cpu: bool,
    is_rpc: bool,
    own_graphs: OwnGraphs,
    tools: Mutex<Tools>,
}

/// What a backend computes graphs with. It computes one graph at a time.
#[derive(Debug)]
struct Tools {
    finder: Finder,
    inputs: InputFinder,
    arena: Arena,
    staging: Vec<f32>,
    gpu: BackendGpu,
    /// What the RPC server has answered.
    asked: Asked,
    /// The compute hook that was used last.
    hook: Option<Arc<dyn ComputeHook>>,
}

/// What the route of a graph depends on.
#[derive(Debug, Clone, Copy)]
struct Situation {
    choice: RouteChoice,
    /// Description of the session's compute hook.
    hook: Option<&'static str>,
    is_cpu: bool,
    /// Whether the backend has a GPU that caps can run on.
    gpu: bool,
    own_graphs: OwnGraphs,
    /// Whether the graph has capped or tapped block outputs.
    blocks: bool,
    /// Whether one of them has rows.
    rows: bool,
}

impl Situation {
    /// Whether the caller asks for one graph per token, or leaves the choice to the hook. The CPU backend runs
    /// no captured graphs.
    fn wants_capture(&self) -> bool {
        matches!(self.choice, RouteChoice::OneGraph | RouteChoice::Auto)
            && !self.is_cpu
            && self.hook.is_none()
    }

    /// Chooses the route. [`Route::GpuViews`] stands for both kinds of views on a GPU.
    fn route(&self) -> Route {
        let capture = self.wants_capture()
            && self.gpu
            && match self.own_graphs {
                // ggml does not capture a graph without rows to cap either.
                OwnGraphs::Off => true,
                OwnGraphs::NoneOfNewGraphs => self.rows,
                OwnGraphs::On => false,
            };
        match self.hook {
            _ if capture => Route::OneGraph,
            _ if !self.blocks => Route::Untouched,
            Some(text) => Route::Custom(text),
            None if self.is_cpu && self.choice != RouteChoice::Views => Route::Inserted,
            None if !self.rows => Route::Untouched,
            None if self.gpu => Route::GpuViews,
            None => Route::HostViews,
        }
    }

    /// Returns why the route is not the fastest one, if it is not. `no_gpu` is why a backend of a GPU caps on
    /// the host.
    fn slow_reason(&self, no_gpu: Option<&str>) -> Option<String> {
        let reason = match self.route() {
            Route::GpuViews if self.wants_capture() => Some(NEEDS_GRAPHS_OFF),
            Route::HostViews => no_gpu.or((!self.is_cpu).then_some(NO_KERNELS)),
            _ => None,
        };
        reason.map(str::to_owned)
    }
}

impl Backend {
    /// Creates the hook's side of a backend that `device` has just made.
    ///
    /// # Errors
    /// [`HookError::Layout`] when ggml refuses memory for nodes.
    pub(crate) fn new(
        session: Arc<SessionState>,
        device: Device,
        name: String,
        is_cpu: bool,
        own_graphs: OwnGraphs,
        drivers: &Arc<dyn DriverFactory>,
    ) -> Result<Self, HookError> {
        let tools = Tools {
            finder: Finder::default(),
            inputs: InputFinder::default(),
            arena: Arena::new(64)?,
            staging: Vec::new(),
            gpu: BackendGpu::new(device, drivers),
            asked: Asked::default(),
            hook: None,
        };
        let is_rpc = !is_cpu && is_rpc(device);
        Ok(Self { session, device: name, is_cpu, is_rpc, own_graphs, tools: Mutex::new(tools) })
    }

    /// Computes a graph with its caps.
    ///
    /// # Errors
    /// Those of [`Finder::find`] and [`Record::claim_blocks`]. An error of the route becomes the status.
    ///
    /// # Safety
    /// `backend` must be the live backend that this value belongs to, and `compute` its own `graph_compute`.
    pub(crate) unsafe fn compute(
        &self,
        backend: host::Backend,
        graph: &Graph,
        compute: Compute<'_>,
    ) -> Result<Status, HookError> {
        let (session, record) = (&self.session, &self.session.record);
        let mut config = session.config();
        let Some(wanted) = config.wanted(session.model.width) else { return Ok(compute(graph)) };
        let mut tools = lock(&self.tools);
        let Tools { finder, inputs, arena, staging, gpu, asked, hook } = &mut *tools;
        if record.has_order()
            && let found = inputs.find(graph)
            && let Some(tokens) = found.tokens.and_then(words_of)
        {
            record.identify(tokens, found.positions.and_then(words_of))?;
        }
        let mut outputs = finder.find(graph, wanted)?;
        let mut blocks = with_rows(&outputs);
        if record.repeats(backend as usize, &blocks) {
            session.begin_micro_batch();
            config = session.config();
            let Some(wanted) = config.wanted(session.model.width) else { return Ok(compute(graph)) };
            outputs = finder.find(graph, wanted)?;
            blocks = with_rows(&outputs);
        }
        if record.needs_given() {
            give(session, inputs.find(graph), &blocks)?;
        }
        let profiles = record.claim_blocks(backend as usize, &config, &blocks)?;
        let mut capped_there = false;
        if self.is_rpc && blocks.iter().any(|&(_, rows)| rows > 0) {
            let (device, model) = (&*self.device, &session.model);
            let about = About { device, model, config: &config, profiles: &profiles, graph };
            // SAFETY: as for this function.
            capped_there = unsafe { asked.is_capped_there(about, backend, compute)? };
        }
        switch_hook(hook, session.compute_hook(), backend);
        let mut situation = Situation {
            choice: config.settings.route,
            hook: hook.as_ref().map(|hook| hook.describe()),
            is_cpu: self.is_cpu,
            gpu: gpu.is_there(),
            own_graphs: self.own_graphs,
            blocks: !outputs.is_empty(),
            rows: outputs.iter().any(|output| output.rows() > 0),
        };
        if matches!(situation.route(), Route::GpuViews | Route::OneGraph) {
            // SAFETY: the caller promises the backend, and `close` is called before it is freed.
            situation.gpu = unsafe { self.open_gpu(gpu, backend, graph, &outputs) };
        }
        let route = situation.route();
        let mut call = GraphCall {
            graph,
            outputs: &outputs,
            backend,
            device: &self.device,
            number: record.next_graph(),
            width: session.model.width,
            config: &config,
            profiles: &profiles,
            staging,
            compute,
            own_graphs: self.own_graphs,
            capturing: false,
        };
        let mut outcome = match (route, gpu.route(), &hook) {
            _ if capped_there => rpc::compute(&call),
            (Route::Untouched, ..) => compute_untouched(&call),
            (Route::Inserted, ..) => inserted::compute(&call, arena),
            (Route::GpuViews, Some(gpu), _) => lock(&gpu).compute(&mut call, false),
            (Route::OneGraph, Some(gpu), _) => lock(&gpu).compute(&mut call, true),
            (Route::Custom(_), _, Some(hook)) => compute_custom(&mut call, &**hook),
            // The host can cap the blocks of any backend.
            _ => host_route::compute(&mut call),
        };
        let no_gpu = if self.is_rpc { Some(TRAVELS) } else { gpu.reason() };
        outcome.slow.extend(situation.slow_reason(no_gpu).filter(|_| !capped_there).map(Cow::Owned));
        Ok(record_outcome(record, &self.device, &call, outcome))
    }

    /// Opens the GPU that computes a graph, and returns whether it is open.
    ///
    /// # Safety
    /// `backend` must be the live backend that this value belongs to.
    unsafe fn open_gpu(
        &self,
        gpu: &mut BackendGpu,
        backend: host::Backend,
        graph: &Graph,
        outputs: &[Output],
    ) -> bool {
        // Block outputs without rows may have no memory.
        let capped =
            outputs.iter().find(|output| output.rows() > 0).map(|output| output.tensor.data() as u64);
        let Some(address) = capped.or_else(|| own_address(graph)) else { return false };
        // SAFETY: the caller promises the backend, and `close` is called before it is freed.
        match unsafe { gpu.open(backend, &self.device, address) } {
            Ok(Some(opened)) => {
                let opened = Arc::downgrade(&opened);
                self.session.record.add_source(opened);
                true
            }
            Ok(None) => true,
            Err(reason) if capped.is_some() => {
                *gpu = BackendGpu::Host(Some(reason));
                false
            }
            Err(reason) => {
                // A block output of a later graph may lie elsewhere, and decides how blocks are capped.
                let reason = format!("graphs without capped blocks run launch by launch: {reason}");
                self.session.record.warn_slow_route(&self.device, &reason);
                false
            }
        }
    }

    /// Keeps an error for the session's caller, and returns the status of a failed graph.
    pub(crate) fn fail(&self, error: HookError) -> Status {
        self.session.record.fail(error);
        FAILED
    }

    /// Frees what is on the GPU, and records the last statistics. The backend is about to be freed.
    pub(crate) fn close(&self, backend: host::Backend) {
        let mut tools = lock(&self.tools);
        let arrived = tools.gpu.close();
        switch_hook(&mut tools.hook, None, backend);
        drop(tools);
        self.session.record.add_arrived(arrived);
    }
}

/// Notes what a graph is given for its rows, as far as it matters. Their tokens may be given to a graph before the
/// first block output.
///
/// # Errors
/// Those of [`next_rows`].
fn give(session: &SessionState, found: Inputs, blocks: &[(usize, usize)]) -> Result<(), HookError> {
    let record = &session.record;
    let slots = session.slots();
    if slots.is_some()
        && let Some(tokens) = found.tokens.and_then(read_words)
    {
        record.give_tokens(tokens);
    }
    if blocks.is_empty() {
        return Ok(());
    }
    let positions = found.positions.and_then(read_words);
    let output_ids = found.output_ids.and_then(read_words);
    let mut rows = found.rows();
    let profiles = match slots {
        None => None,
        Some(slots) => {
            let tokens = record.tokens();
            let known = rows.or(tokens.as_ref().map(Vec::len));
            let most = || blocks.iter().map(|&(_, rows)| rows).max().unwrap_or(0);
            let count = known.unwrap_or_else(most);
            rows = Some(count);
            let given = GivenRows { count, tokens: tokens.as_deref(), positions: positions.as_deref() };
            Some(next_rows(given, |sequence| slots.profile_of(sequence))?)
        }
    };
    if positions.is_some() || profiles.is_some() {
        record.give(Given { rows, positions, output_ids, profiles });
    }
    Ok(())
}

/// Returns the blocks of block outputs and their numbers of rows.
fn with_rows(outputs: &[Output]) -> Vec<(usize, usize)> {
    outputs.iter().map(|output| (output.block, output.rows())).collect()
}

/// Writes down what happened to a graph, and returns its status.
pub(crate) fn record_outcome(
    record: &Record,
    device: &str,
    call: &GraphCall<'_>,
    outcome: Outcome,
) -> Status {
    outcome.routes.iter().for_each(|&route| record.record_route(device, route));
    outcome.slow.iter().for_each(|reason| record.warn_slow_route(device, reason));
    outcome.norms.iter().for_each(|&(block, refused)| record.record_norm(device, block, refused));
    record.record_blocks(outcome.blocks.iter().map(|done| (done.block, done.rows)));
    for BlockDone { output, block, rows, stats } in outcome.blocks {
        if let Some(stats) = stats.filter(|_| call.config.records()) {
            let order = Order { graph: call.number, output };
            let (config, profiles) = (Arc::clone(call.config), call.profiles.clone());
            record.add_stats(BlockStats { order, config, block, rows, profiles, stats });
        }
    }
    let status = match outcome.ended {
        Ok(()) => SUCCESS,
        Err(ComputeError::Graph(status)) => status,
        Err(ComputeError::Hook(error)) => {
            record.fail(error);
            FAILED
        }
    };
    record.add_arrived(outcome.arrived);
    status
}

/// Replaces the compute hook of a backend. The old one releases what belongs to the backend.
fn switch_hook(
    used: &mut Option<Arc<dyn ComputeHook>>,
    next: Option<Arc<dyn ComputeHook>>,
    backend: host::Backend,
) {
    let same = match (&*used, &next) {
        (Some(used), Some(next)) => Arc::ptr_eq(used, next),
        (used, next) => used.is_none() && next.is_none(),
    };
    if !same && let Some(used) = std::mem::replace(used, next) {
        used.close(backend.cast::<c_void>());
    }
}

/// Returns an address in memory of the backend that computes a graph. A view may lie in memory of another
/// backend, the results of other nodes do not.
fn own_address(graph: &Graph) -> Option<u64> {
    let mut own = graph.nodes().iter().filter(|node| node.view_source().is_none());
    own.find_map(|node| (node.data() != 0).then_some(node.data() as u64))
}

const NEEDS_GRAPHS_OFF: &str = "a token is not one CUDA graph, because this version of ggml may make graphs of its \
    own; start the program with GGML_CUDA_DISABLE_GRAPHS=1";

const TRAVELS: &str = "the rows of each capped block travel to this process and back; load axiscap with the same \
    caps in the RPC server as well";

const NO_KERNELS: &str = "axiscap has no kernels for this backend";

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum On {
        Cpu,
        /// Neither the CPU nor a GPU that caps can run on.
        Other,
        Gpu(OwnGraphs),
    }

    #[derive(Debug, Clone, Copy)]
    enum Request {
        For(RouteChoice),
        Hook,
    }

    #[test]
    fn every_situation_has_its_route() {
        use On::{Cpu, Gpu, Other};
        use OwnGraphs::{NoneOfNewGraphs, Off, On as Unknown};
        use Request::{For, Hook};
        use RouteChoice::{Auto, Inserted, OneGraph, Views};
        let (custom, untouched) = (Route::Custom("test"), Route::Untouched);
        let views_in_a_process_with = |own_graphs| {
            [
                (Gpu(own_graphs), For(Inserted), [untouched, untouched, Route::GpuViews]),
                (Gpu(own_graphs), For(Views), [untouched, untouched, Route::GpuViews]),
                (Gpu(own_graphs), Hook, [untouched, custom, custom]),
            ]
        };
        // Routes of a graph without block outputs, with block outputs without rows, and with rows.
        let table = [
            (Cpu, For(Auto), [untouched, Route::Inserted, Route::Inserted]),
            (Cpu, For(Inserted), [untouched, Route::Inserted, Route::Inserted]),
            (Cpu, For(Views), [untouched, untouched, Route::HostViews]),
            (Cpu, For(OneGraph), [untouched, Route::Inserted, Route::Inserted]),
            (Cpu, Hook, [untouched, custom, custom]),
            (Other, For(Auto), [untouched, untouched, Route::HostViews]),
            (Other, For(Inserted), [untouched, untouched, Route::HostViews]),
            (Other, For(Views), [untouched, untouched, Route::HostViews]),
            (Other, For(OneGraph), [untouched, untouched, Route::HostViews]),
            (Other, Hook, [untouched, custom, custom]),
            (Gpu(Unknown), For(Auto), [untouched, untouched, Route::GpuViews]),
            (Gpu(Unknown), For(OneGraph), [untouched, untouched, Route::GpuViews]),
            (Gpu(NoneOfNewGraphs), For(Auto), [untouched, untouched, Route::OneGraph]),
            (Gpu(NoneOfNewGraphs), For(OneGraph), [untouched, untouched, Route::OneGraph]),
            (Gpu(Off), For(Auto), [Route::OneGraph; 3]),
            (Gpu(Off), For(OneGraph), [Route::OneGraph; 3]),
        ];
        let table = table
            .into_iter()
            .chain([Unknown, NoneOfNewGraphs, Off].into_iter().flat_map(views_in_a_process_with));
        for (device, asked, routes) in table {
            for (route, (blocks, rows)) in
                routes.into_iter().zip([(false, false), (true, false), (true, true)])
            {
                let (choice, hook) = match asked {
                    For(choice) => (choice, None),
                    Hook => (OneGraph, Some("test")),
                };
                let situation = Situation {
                    choice,
                    hook,
                    is_cpu: matches!(device, Cpu),
                    gpu: matches!(device, Gpu(_)),
                    own_graphs: if let Gpu(own_graphs) = device { own_graphs } else { Off },
                    blocks,
                    rows,
                };
                assert_eq!(situation.route(), route, "{device:?} {asked:?} {situation:?}");
            }
        }
    }
}
