//! One context of the host: its model, and the account of its micro-batches.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::guard::{Counters, Decision, Found, GuardState};
use super::living::{Living, Uncapped};
use super::models::Fit;
use super::seen::Look;
use crate::error::HookError;
use crate::graph::ends::Ending;
use crate::graph::inputs::Inputs;
use crate::graph::weights::{norms_of, whole_blocks};
use crate::host::Graph;
use crate::profile::ProfileId;
use crate::record::lock;
use crate::session::{Session, SessionState};

/// A context of the host.
#[derive(Debug)]
pub(super) struct StockContext {
    guard: Arc<GuardState>,
    account: Account,
    /// Whether it has computed a graph.
    used: AtomicBool,
    state: Mutex<State>,
}

/// Micro-batches that a model without caps may compute before a context that may be capped computes its first. A
/// draft may run before its model: it reads the prompt and drafts some tokens.
const BEFORE_OTHERS: u32 = 32;

/// What the context has to account for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Account {
    /// Micro-batches of a `llama_context`, each of them computed by one or more graphs of its backends.
    OfContext,
    /// Graphs of a client of an RPC server, each of them a part of a micro-batch.
    OfPart,
}

#[derive(Debug)]
struct State {
    model: Model,
    progress: Progress,
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
        /// Micro-batches that were let pass, because a context that may be capped had not computed yet.
        passed: u32,
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
struct Progress {
    /// Its number of rows, if an input told it.
    rows: Option<usize>,
    /// Whether the last graph computed its final norm. Logits may follow in a graph of their own.
    normed: bool,
    /// Whether a micro-batch was computed with all its caps.
    any: bool,
}

/// What a graph shows beside its block outputs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown {
    pub(super) ending: Ending,
    pub(super) inputs: Inputs,
}

impl StockContext {
    pub(super) fn new(guard: &Arc<GuardState>, account: Account) -> Self {
        let state = State { model: Model::Open, progress: Progress::default() };
        // A part that a client sends is computed at once.
        let used = account == Account::OfPart;
        if !used {
            guard.unused.fetch_add(1, Ordering::Relaxed);
        }
        Self { guard: Arc::clone(guard), account, used: AtomicBool::new(used), state: Mutex::new(state) }
    }

    /// Whether the guard is this one.
    pub(super) fn is_of(&self, guard: &Arc<GuardState>) -> bool {
        Arc::ptr_eq(&self.guard, guard)
    }

    /// Returns the name of the caps, if the context is capped.
    pub(super) fn caps(&self) -> Option<String> {
        let state = lock(&self.state);
        if let Model::Capped(capped) = &state.model { Some(capped.living.name()) } else { None }
    }

    /// Whether no graph has shown its model yet.
    pub(super) fn is_open(&self) -> bool {
        matches!(lock(&self.state).model, Model::Open)
    }

    /// Returns the session that the graph is to be computed under, if its model is capped.
    ///
    /// # Errors
    /// A fault, with the name of the caps where there are some.
    pub(super) fn session(&self, graph: &Graph, shown: Shown) -> Adopted {
        self.begin_use();
        let mut state = lock(&self.state);
        match &mut state.model {
            Model::NotCapped { .. } => Ok(None),
            Model::Refused { error, passed, .. } => self.refuse(error, passed, shown),
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
                // A client that was told that its model is not capped here caps it itself.
                let left = self.account == Account::OfPart && self.guard.is_left_to_client(&norms_of(graph));
                loop {
                    let decided = match left {
                        true => self.guard.leave_alone(&look),
                        false => self.guard.decide(&look),
                    };
                    if let Some(adopted) = self.adopt(&mut state.model, decided, left, shown) {
                        return adopted;
                    }
                }
            }
        }
    }

    /// Adopts what was decided. `left` says that a client caps the model. Returns `None` if the caps were replaced
    /// in the meantime.
    fn adopt(&self, model: &mut Model, decided: Decision, left: bool, shown: Shown) -> Option<Adopted> {
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
                let serves = seen.logits && !seen.drafts && alone && !left;
                let reasons = describe(&misfits);
                self.guard.found(&Found::NotCapped { model: seen.clone(), misfits });
                if !serves {
                    *model = Model::NotCapped { _listed: listed };
                    return Some(Ok(None));
                }
                let error = HookError::NoCapsFit { model: seen.to_string(), reasons };
                let mut passed = 0;
                let refused = self.refuse(&error, &mut passed, shown);
                *model = Model::Refused { error, passed, _listed: listed };
                refused
            }
        };
        Some(adopted)
    }

    /// Refuses a graph of a model that generates and has no caps, unless another one is capped, or may be.
    fn refuse(&self, error: &HookError, passed: &mut u32, shown: Shown) -> Adopted {
        // Caps that are switched off are the wish of the operator.
        if self.guard.has_capped() || !self.guard.is_enabled() {
            return Ok(None);
        }
        if self.guard.unused.load(Ordering::Relaxed) > 0 && *passed < BEFORE_OTHERS {
            *passed += u32::from(shown.ending.end.is_some());
            return Ok(None);
        }
        Err((None, error.clone()))
    }

    /// Notes that the context computes.
    pub(super) fn begin_use(&self) {
        if !self.used.swap(true, Ordering::Relaxed) {
            self.guard.unused.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Begins a micro-batch, if none is in progress. A part of one is a whole one here.
    pub(super) fn begin(&self, session: &SessionState) {
        if self.account == Account::OfPart || session.record.decoding().is_none() {
            session.begin_micro_batch();
        }
    }

    /// Keeps account of a graph that was computed under caps.
    ///
    /// # Errors
    /// [`HookError::NotSeen`].
    pub(super) fn account(
        &self,
        session: &SessionState,
        graph: &Graph,
        shown: Shown,
    ) -> Result<(), HookError> {
        match self.account {
            Account::OfContext => self.account_for_graph(session, shown),
            Account::OfPart => self.account_for_part(session, graph),
        }
    }

    fn account_for_graph(&self, session: &SessionState, shown: Shown) -> Result<(), HookError> {
        let mut state = lock(&self.state);
        let progress = &mut state.progress;
        if let Some(rows) = shown.inputs.rows() {
            *progress = Progress { rows: Some(rows), any: progress.any, normed: false };
        }
        let record = &session.record;
        let blocks = record.any_seen();
        let Some(end) = shown.ending.end else {
            progress.normed &= !blocks;
            return Ok(());
        };
        // Where another backend computes the logits, the micro-batch was checked with the norm before them.
        if progress.normed && !end.normed && !blocks {
            // The next micro-batch begins with the caps of its own time.
            return record.end().map_or(Ok(()), Err);
        }
        let rows = progress.rows.take();
        progress.normed = end.normed;
        let config = session.config();
        let acts = config.wanted(session.model.width).is_some();
        let checked = match acts {
            true => record.check_shown(config.wanted_blocks(), rows, end.rows),
            false => Ok(()),
        };
        let rows = rows.unwrap_or_else(|| record.most_seen());
        let error = record.end();
        checked?;
        error.map_or(Ok(()), Err)?;
        let wanted = config.wanted_blocks().iter().enumerate();
        let blocks = wanted.filter_map(|(block, &wanted)| wanted.then_some(block)).collect();
        self.count(&mut state, acts, rows, blocks);
        Ok(())
    }

    /// Checks that a part of a model's graph was computed with its caps. Where other parts are computed is for
    /// the client to know.
    fn account_for_part(&self, session: &SessionState, graph: &Graph) -> Result<(), HookError> {
        let record = &session.record;
        let config = session.config();
        let acts = config.wanted(session.model.width).is_some();
        let whole = whole_blocks(graph, session.model.blocks);
        let wanted = config.wanted_blocks().iter().enumerate();
        let must: Vec<_> = wanted.map(|(block, &wanted)| wanted && whole.contains(&block)).collect();
        let (rows, seen) = (record.most_seen(), record.seen_blocks());
        let checked = if acts { record.check_part(&must) } else { Ok(()) };
        let error = record.end();
        checked?;
        error.map_or(Ok(()), Err)?;
        if !seen.is_empty() || !acts && must.contains(&true) {
            self.count(&mut lock(&self.state), acts, rows, seen);
        }
        Ok(())
    }

    /// Counts a micro-batch that was computed as configured, or a part of one.
    fn count(&self, state: &mut State, acts: bool, rows: usize, blocks: Vec<usize>) {
        let counters = &self.guard.counters;
        Counters::add(if acts { &counters.capped } else { &counters.off });
        let Model::Capped(capped) = &state.model else { return };
        capped.living.count();
        if acts && !std::mem::replace(&mut state.progress.any, true) {
            self.guard.found(&Found::FirstMicroBatch { caps: capped.living.name(), rows, blocks });
        }
    }

    /// Forgets the micro-batch in progress, which failed.
    pub(super) fn forget(&self) {
        let mut state = lock(&self.state);
        state.progress = Progress { any: state.progress.any, ..Progress::default() };
    }
}

impl Drop for StockContext {
    fn drop(&mut self) {
        self.begin_use();
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Model::Capped(capped) = &state.model {
            let (caps, stats) = (capped.living.name(), capped.living.session.stats());
            self.guard.found(&Found::Ended { caps, stats });
            let session = &capped.living.session;
            for profile in session.profiles().into_iter().filter(|profile| profile.id != ProfileId::DEFAULT) {
                let stats = session.profile_stats(profile.id).unwrap_or_default();
                if stats.iter().any(|stats| stats.rows > 0) {
                    self.guard.found(&Found::Ended { caps: profile.name, stats });
                }
            }
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

fn describe(misfits: &[(String, super::Misfit)]) -> String {
    let lines: Vec<_> = misfits.iter().map(|(caps, misfit)| format!("{caps}: {misfit}")).collect();
    if lines.is_empty() { "there are none".into() } else { lines.join("; ") }
}
