//! One backend of the host: computes its graphs under the caps of the context that they belong to.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::context::{Account, Shown, StockContext};
use super::guard::{Counters, GuardState, Reaction};
use super::models::usual_names;
use super::visits::Visits;
use crate::backend::Backend;
use crate::by_uid::ByUid;
use crate::error::HookError;
use crate::graph::ends::EndFinder;
use crate::graph::inputs::InputFinder;
use crate::host::{self, Device, FAILED, Graph, OwnGraphs, SUCCESS, Status};
use crate::record::lock;
use crate::route::Compute;
use crate::route::gpu::DriverFactory;
use crate::rpc;
use crate::session::SessionState;

thread_local! {
    /// The context whose backends are being made on this thread.
    static BEING_MADE: RefCell<Option<Arc<StockContext>>> = const { RefCell::new(None) };
}

/// Returns a hooked backend for one that `device` has just made.
///
/// A `llama_context` makes its backends one after the other on one thread, that of the CPU last
/// (`llama_context::llama_context`; `ggml_backend_sched_new` demands it). They belong together.
pub(crate) fn begin_backend(
    guard: &Arc<GuardState>,
    device: Device,
    name: String,
    is_cpu: bool,
    own_graphs: OwnGraphs,
    drivers: &Arc<dyn DriverFactory>,
) -> StockBackend {
    let context = BEING_MADE.with_borrow_mut(|made| {
        // A backend that computes before a CPU's follows is not part of a context that is being made.
        let begun = made.take().filter(|context| context.is_open() && context.is_of(guard));
        let context = begun.unwrap_or_else(|| Arc::new(StockContext::new(guard, Account::OfContext)));
        if !is_cpu {
            *made = Some(Arc::clone(&context));
        }
        context
    });
    StockBackend {
        guard: Arc::clone(guard),
        own: Served::new(context),
        visits: Mutex::default(),
        left: AtomicBool::new(false),
        made: Made { device: device as usize, name, is_cpu, own_graphs, drivers: Arc::clone(drivers) },
        finders: Mutex::default(),
    }
}

/// A backend of the host.
#[derive(Debug)]
pub(crate) struct StockBackend {
    guard: Arc<GuardState>,
    /// The context that it was made for.
    own: Served,
    /// The models that clients of an RPC server have it compute.
    visits: Mutex<Visits>,
    /// Whether the log was told of parts that are left to the client.
    left: AtomicBool,
    made: Made,
    finders: Mutex<Finders>,
}

/// A context, and the hook's side of the backend in it.
#[derive(Debug)]
pub(super) struct Served {
    context: Arc<StockContext>,
    /// There once the context is capped.
    backend: OnceLock<Backend>,
}

/// How the backend was made.
#[derive(Debug)]
struct Made {
    /// Address of the device.
    device: usize,
    name: String,
    is_cpu: bool,
    own_graphs: OwnGraphs,
    drivers: Arc<dyn DriverFactory>,
}

#[derive(Debug, Default)]
struct Finders {
    ends: EndFinder,
    inputs: InputFinder,
    /// Whether graphs are those of a client of an RPC server.
    visiting: ByUid<bool>,
}

impl Served {
    pub(super) fn new(context: Arc<StockContext>) -> Self {
        Self { context, backend: OnceLock::new() }
    }

    /// Frees what the hook has of the backend.
    pub(super) fn close(&self, backend: host::Backend) {
        if let Some(own) = self.backend.get() {
            own.close(backend);
        }
    }
}

impl StockBackend {
    /// Computes a graph of the host, with caps if its model has some.
    ///
    /// # Safety
    /// `backend` must be the live backend that this value belongs to, and `compute` its own `graph_compute`.
    pub(crate) unsafe fn compute(
        &self,
        backend: host::Backend,
        graph: &Graph,
        compute: Compute<'_>,
    ) -> Status {
        let guard = &self.guard;
        if !guard.has_caps() {
            return compute(graph);
        }
        let mut context = None;
        let run = || {
            if let Some(node) = rpc::is_question(graph) {
                return Ok(rpc::answer(graph, node, compute, |question| guard.answer(question)));
            }
            let (shown, visiting) = self.look(graph);
            if visiting {
                // It is no context of its own that may be capped later.
                self.own.context.begin_use();
            }
            let visited = if visiting { lock(&self.visits).find(graph, backend, guard) } else { None };
            if visiting && visited.is_none() {
                self.leave(graph);
                return Ok(compute(graph));
            }
            let served = visited.as_deref().unwrap_or(&self.own);
            context = Some(Arc::clone(&served.context));
            // SAFETY: as for this function.
            unsafe { self.compute_in(served, backend, graph, compute, shown) }
        };
        let computed = catch_unwind(AssertUnwindSafe(run));
        match computed.unwrap_or_else(|panic| Err(Stopped::before(None, HookError::panic(panic.as_ref())))) {
            Ok(status) => status,
            Err(Stopped { caps, error, status }) => {
                context.iter().for_each(|context| context.forget());
                match (guard.fault(caps.as_deref(), error), status) {
                    (Reaction::Fail, _) => FAILED,
                    (Reaction::Uncapped, Some(status)) => status,
                    (Reaction::Uncapped, None) => compute(graph),
                }
            }
        }
    }

    /// Says once that block outputs in a part of a model without norms are left to the client.
    fn leave(&self, graph: &Graph) {
        let names = usual_names();
        let has_blocks = || graph.nodes().iter().any(|node| names.block_of(node.name()).is_some());
        if !self.left.load(Ordering::Relaxed) && has_blocks() && !self.left.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "{}: a client has a part of a model computed that has block outputs and no norms; such parts are not capped here, and axiscap in the client caps them",
                self.made.name
            );
        }
    }

    /// Returns what a graph shows, and whether it is that of a client of an RPC server.
    fn look(&self, graph: &Graph) -> (Shown, bool) {
        let mut finders = lock(&self.finders);
        let shown = Shown { ending: finders.ends.find(graph), inputs: finders.inputs.find(graph) };
        let uid = graph.uid();
        let visiting = finders.visiting.get(uid).copied().unwrap_or_else(|| graph.is_self_contained());
        finders.visiting.insert(uid, visiting);
        (shown, visiting)
    }

    /// # Safety
    /// As for [`StockBackend::compute`].
    unsafe fn compute_in(
        &self,
        served: &Served,
        backend: host::Backend,
        graph: &Graph,
        compute: Compute<'_>,
        shown: Shown,
    ) -> Result<Status, Stopped> {
        let context = &*served.context;
        let session = context.session(graph, shown).map_err(|(caps, error)| Stopped::before(caps, error))?;
        let Some(session) = session else {
            if shown.ending.end.is_some() {
                Counters::add(&self.guard.counters.not_capped);
            }
            return Ok(compute(graph));
        };
        let session = &session.0;
        let own = self.backend(served, session).map_err(|error| Stopped::before(context.caps(), error))?;
        context.begin(session);
        // SAFETY: as for this function.
        let status = match unsafe { own.compute(backend, graph, compute) } {
            Ok(SUCCESS) => SUCCESS,
            Ok(status) => {
                context.forget();
                return match session.record.end() {
                    Some(error) => Err(Stopped { caps: context.caps(), error, status: Some(status) }),
                    // ggml's own failure, or the host's wish to abort.
                    None => Ok(status),
                };
            }
            Err(error) => {
                session.record.end();
                return Err(Stopped::before(context.caps(), error));
            }
        };
        match context.account(session, graph, shown) {
            Ok(()) => Ok(status),
            Err(error) => Err(Stopped { caps: context.caps(), error, status: Some(status) }),
        }
    }

    /// Returns the hook's side of the backend.
    fn backend<'s>(&self, served: &'s Served, session: &Arc<SessionState>) -> Result<&'s Backend, HookError> {
        if let Some(backend) = served.backend.get() {
            return Ok(backend);
        }
        let Made { device, name, is_cpu, own_graphs, drivers } = &self.made;
        let (device, name) = (*device as Device, name.clone());
        let backend = Backend::new(Arc::clone(session), device, name, *is_cpu, *own_graphs, drivers)?;
        Ok(served.backend.get_or_init(|| backend))
    }

    /// Frees what the hook has of the backend, which is about to be freed.
    pub(crate) fn close(&self, backend: host::Backend) {
        self.own.close(backend);
        lock(&self.visits).close(backend);
    }
}

/// A graph that was not computed with all its caps.
#[derive(Debug)]
struct Stopped {
    /// Name of the caps.
    caps: Option<String>,
    error: HookError,
    /// The status of the graph, if it was computed.
    status: Option<Status>,
}

impl Stopped {
    /// A fault before the graph was computed.
    fn before(caps: Option<String>, error: HookError) -> Self {
        Self { caps, error, status: None }
    }
}
