//! One context of the host: its backends, its model, and the account of its micro-batches.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::guard::{Counters, Decision, Found, GuardState, Reaction};
use super::living::{Living, Uncapped};
use super::models::Fit;
use super::seen::Look;
use crate::backend::Backend;
use crate::error::HookError;
use crate::graph::ends::{EndFinder, Ending};
use crate::graph::inputs::{InputFinder, Inputs};
use crate::host::{self, Device, FAILED, Graph, OwnGraphs, SUCCESS, Status};
use crate::record::lock;
use crate::route::Compute;
use crate::route::gpu::DriverFactory;
use crate::session::{Session, SessionState};

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
        let begun = made.take().filter(|context| context.is_open() && Arc::ptr_eq(&context.guard, guard));
        let context = begun.unwrap_or_else(|| Arc::new(StockContext::new(guard)));
        if !is_cpu {
            *made = Some(Arc::clone(&context));
        }
        context
    });
    StockBackend {
        context,
        made: Made { device: device as usize, name, is_cpu, own_graphs, drivers: Arc::clone(drivers) },
        finders: Mutex::default(),
        backend: OnceLock::new(),
    }
}

/// A backend of a context of the host.
#[derive(Debug)]
pub(crate) struct StockBackend {
    context: Arc<StockContext>,
    made: Made,
    finders: Mutex<Finders>,
    /// The hook's side of the backend, once the context is capped.
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
}

/// A context of the host.
#[derive(Debug)]
struct StockContext {
    guard: Arc<GuardState>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    model: Model,
    account: Account,
}

#[derive(Debug)]
enum Model {
    /// No graph has shown enough.
    Open,
    Capped(Box<Capped>),
    NotCapped {
        _listed: Arc<Uncapped>,
    },
    /// It generates, no caps are for it, and no capped context lives.
    Refused {
        error: HookError,
        _listed: Arc<Uncapped>,
    },
}

#[derive(Debug)]
struct Capped {
    living: Arc<Living>,
    /// Whether no later graph can say that it is another model.
    settled: bool,
}

/// The session that a graph is to be computed under, or a fault with the name of the caps.
type Adopted = Result<Option<Session>, (Option<String>, HookError)>;

/// What is known of the micro-batch in progress.
#[derive(Debug, Default)]
struct Account {
    /// Its number of rows, if an input told it.
    rows: Option<usize>,
    /// Whether the last graph computed its final norm. Logits may follow in a graph of their own.
    normed: bool,
    /// Whether a micro-batch was computed with all its caps.
    any: bool,
}

/// What a graph shows beside its block outputs.
#[derive(Debug, Clone, Copy)]
struct Shown {
    ending: Ending,
    inputs: Inputs,
}

impl StockContext {
    fn new(guard: &Arc<GuardState>) -> Self {
        let state = State { model: Model::Open, account: Account::default() };
        Self { guard: Arc::clone(guard), state: Mutex::new(state) }
    }

    /// Whether no graph has shown its model yet.
    fn is_open(&self) -> bool {
        matches!(lock(&self.state).model, Model::Open)
    }

    /// Returns the session that the graph is to be computed under, if its model is capped.
    ///
    /// # Errors
    /// A fault, with the name of the caps where there are some.
    fn session(&self, graph: &Graph, shown: Shown) -> Adopted {
        let mut state = lock(&self.state);
        match &mut state.model {
            Model::NotCapped { .. } => Ok(None),
            Model::Refused { .. } if self.guard.has_capped() || !self.guard.is_enabled() => Ok(None),
            Model::Refused { error, .. } => Err((None, error.clone())),
            Model::Capped(capped) => {
                if !capped.settled {
                    capped
                        .settle(graph, shown.ending)
                        .map_err(|error| (Some(capped.living.name()), error))?;
                }
                Ok(Some(capped.living.session.clone()))
            }
            Model::Open => {
                let look = Look::new(graph, shown.ending);
                loop {
                    let decided = self.guard.decide(&look);
                    if let Some(adopted) = self.adopt(&mut state.model, decided) {
                        return adopted;
                    }
                }
            }
        }
    }

    /// Adopts what was decided. Returns `None` if the caps were replaced in the meantime.
    fn adopt(&self, model: &mut Model, decided: Decision) -> Option<Adopted> {
        let adopted = match decided {
            Decision::Open => Ok(None),
            Decision::Capped { caps, of, model: seen, confirmed, settled } => {
                let name = of.models[caps].name.clone();
                match self.guard.enter(caps, &of, seen.clone()) {
                    Ok(living) => {
                        let living = living?;
                        self.guard.found(&Found::Capped { model: seen, caps: name, confirmed });
                        let session = living.session.clone();
                        *model = Model::Capped(Box::new(Capped { living, settled }));
                        Ok(Some(session))
                    }
                    Err(error) => Err((Some(name), error)),
                }
            }
            Decision::NotCapped { of, model: seen, misfits } => {
                let listed = self.guard.leave_out(&of, seen.clone())?;
                let alone = self.guard.has_caps() && !self.guard.has_capped();
                let serves = seen.logits && !seen.drafts && alone;
                let reasons = describe(&misfits);
                self.guard.found(&Found::NotCapped { model: seen.clone(), misfits });
                if !serves {
                    *model = Model::NotCapped { _listed: listed };
                    return Some(Ok(None));
                }
                let error = HookError::NoCapsFit { model: seen.to_string(), reasons };
                *model = Model::Refused { error: error.clone(), _listed: listed };
                // Caps that are switched off are the wish of the operator.
                if self.guard.is_enabled() { Err((None, error)) } else { Ok(None) }
            }
        };
        Some(adopted)
    }

    /// Keeps account of a graph that was computed under caps.
    ///
    /// # Errors
    /// [`HookError::NotSeen`].
    fn account(&self, session: &SessionState, shown: Shown) -> Result<(), HookError> {
        let mut state = lock(&self.state);
        let State { model, account } = &mut *state;
        if let Some(rows) = shown.inputs.rows() {
            *account = Account { rows: Some(rows), any: account.any, normed: false };
        }
        let record = &session.record;
        let blocks = record.any_seen();
        let Some(end) = shown.ending.end else {
            account.normed &= !blocks;
            return Ok(());
        };
        // Where another backend computes the logits, the micro-batch was checked with the norm before them.
        if account.normed && !end.normed && !blocks {
            // The next micro-batch begins with the caps of its own time.
            return record.end().map_or(Ok(()), Err);
        }
        let rows = account.rows.take();
        account.normed = end.normed;
        let config = session.config();
        let acts = config.wanted(session.model.width).is_some();
        let checked = match acts {
            true => record.check_shown(config.wanted_blocks(), rows, end.rows),
            false => Ok(()),
        };
        let seen = record.most_seen();
        let error = record.end();
        checked?;
        if let Some(error) = error {
            return Err(error);
        }
        let counters = &self.guard.counters;
        Counters::add(if acts { &counters.capped } else { &counters.off });
        let Model::Capped(capped) = model else { return Ok(()) };
        capped.living.count();
        if acts && !std::mem::replace(&mut account.any, true) {
            let rows = rows.unwrap_or(seen);
            let wanted = config.wanted_blocks().iter().enumerate();
            let blocks = wanted.filter_map(|(block, &wanted)| wanted.then_some(block)).collect();
            self.guard.found(&Found::FirstMicroBatch { caps: capped.living.name(), rows, blocks });
        }
        Ok(())
    }

    /// Forgets the micro-batch in progress, which failed.
    fn forget(&self) {
        let mut state = lock(&self.state);
        state.account = Account { any: state.account.any, ..Account::default() };
    }
}

impl Drop for StockContext {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Model::Capped(capped) = &state.model {
            let (caps, stats) = (capped.living.name(), capped.living.session.stats());
            self.guard.found(&Found::Ended { caps, stats });
        }
    }
}

impl Capped {
    /// Compares another graph with the model that the caps are for.
    ///
    /// # Errors
    /// [`HookError::OtherModel`].
    fn settle(&mut self, graph: &Graph, ending: Ending) -> Result<(), HookError> {
        match self.living.caps().fit(&Look::new(graph, ending)) {
            Fit::Confirmed | Fit::Shape { settled: true } => self.settled = true,
            Fit::Shape { settled: false } | Fit::Unknown => {}
            // A part of a graph may compute no block.
            Fit::Misfit(super::Misfit::NoBlocks) => {}
            Fit::Misfit(misfit) => {
                let caps = self.living.name();
                return Err(HookError::OtherModel { caps, reason: misfit.to_string() });
            }
        }
        Ok(())
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
        let guard = &self.context.guard;
        if !guard.has_caps() {
            return compute(graph);
        }
        let run = || {
            let shown = self.look(graph);
            // SAFETY: as for this function.
            let computed = unsafe { self.compute_capped(backend, graph, compute, shown) };
            computed.map(|status| (status, shown))
        };
        let computed = catch_unwind(AssertUnwindSafe(run));
        match computed.unwrap_or_else(|panic| Err(Stopped::before(None, HookError::panic(panic.as_ref())))) {
            Ok((status, _)) => status,
            Err(Stopped { caps, error, status }) => {
                self.context.forget();
                match (guard.fault(caps.as_deref(), error), status) {
                    (Reaction::Fail, _) => FAILED,
                    (Reaction::Uncapped, Some(status)) => status,
                    (Reaction::Uncapped, None) => compute(graph),
                }
            }
        }
    }

    fn look(&self, graph: &Graph) -> Shown {
        let mut finders = lock(&self.finders);
        Shown { ending: finders.ends.find(graph), inputs: finders.inputs.find(graph) }
    }

    /// # Safety
    /// As for [`StockBackend::compute`].
    unsafe fn compute_capped(
        &self,
        backend: host::Backend,
        graph: &Graph,
        compute: Compute<'_>,
        shown: Shown,
    ) -> Result<Status, Stopped> {
        let context = &*self.context;
        let session = context.session(graph, shown).map_err(|(caps, error)| Stopped::before(caps, error))?;
        let Some(session) = session else {
            if shown.ending.end.is_some() {
                Counters::add(&context.guard.counters.not_capped);
            }
            return Ok(compute(graph));
        };
        let caps = || {
            let state = lock(&context.state);
            if let Model::Capped(capped) = &state.model { Some(capped.living.name()) } else { None }
        };
        let session = &session.0;
        let own = self.backend(session).map_err(|error| Stopped::before(caps(), error))?;
        if session.record.decoding().is_none() {
            session.begin_micro_batch();
        }
        // SAFETY: as for this function.
        let status = match unsafe { own.compute(backend, graph, compute) } {
            Ok(SUCCESS) => SUCCESS,
            Ok(status) => {
                context.forget();
                return match session.record.end() {
                    Some(error) => Err(Stopped { caps: caps(), error, status: Some(status) }),
                    // ggml's own failure, or the host's wish to abort.
                    None => Ok(status),
                };
            }
            Err(error) => {
                session.record.end();
                return Err(Stopped::before(caps(), error));
            }
        };
        match context.account(session, shown) {
            Ok(()) => Ok(status),
            Err(error) => Err(Stopped { caps: caps(), error, status: Some(status) }),
        }
    }

    /// Returns the hook's side of the backend.
    fn backend(&self, session: &Arc<SessionState>) -> Result<&Backend, HookError> {
        if let Some(backend) = self.backend.get() {
            return Ok(backend);
        }
        let Made { device, name, is_cpu, own_graphs, drivers } = &self.made;
        let (device, name) = (*device as Device, name.clone());
        let backend = Backend::new(Arc::clone(session), device, name, *is_cpu, *own_graphs, drivers)?;
        Ok(self.backend.get_or_init(|| backend))
    }

    /// Frees what the hook has of the backend, which is about to be freed.
    pub(crate) fn close(&self, backend: host::Backend) {
        if let Some(own) = self.backend.get() {
            own.close(backend);
        }
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

fn describe(misfits: &[(String, super::Misfit)]) -> String {
    let lines: Vec<_> = misfits.iter().map(|(caps, misfit)| format!("{caps}: {misfit}")).collect();
    if lines.is_empty() { "there are none".into() } else { lines.join("; ") }
}
