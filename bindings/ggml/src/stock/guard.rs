//! The guard of a process: which caps its contexts get, and what becomes of faults.

use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axiscap::CapStats;

use super::ledger::Ledger;
use super::living::{Contexts, Living};
use super::models::{Fit, Misfit, ModelCaps, known_norms, usual_names};
use super::replace::Generation;
use super::seen::{Look, SeenModel};
use super::slots::{SlotProfile, SlotProfiles, Slots};
use crate::config::Settings;
use crate::error::HookError;
use crate::hook::Hook;
use crate::record::lock;
use crate::session::Session;

/// Told by a [`Guard`] what it finds, on the threads that compute.
pub trait Watcher: Debug + Send + Sync {
    /// The model of a context was recognised, or is none that is capped.
    fn found(&self, found: &Found);

    /// Decides what happens after a fault. Without a decision for [`Reaction::Uncapped`] the graph fails.
    fn fault(&self, fault: &Fault) -> Reaction;
}

/// What a [`Guard`] found out about a context.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Found {
    /// The context is capped from this graph on.
    Capped {
        /// The model as the graph shows it.
        model: SeenModel,
        /// Name of the caps ([`ModelCaps::name`]).
        caps: String,
        /// Whether norm weights say that the caps are for this model. Else only its shape does.
        confirmed: bool,
    },
    /// The context is not capped.
    NotCapped {
        /// The model as the graph shows it.
        model: SeenModel,
        /// Why each of the caps is not for it, by their names.
        misfits: Vec<(String, Misfit)>,
    },
    /// The first micro-batch of a context was computed with all its caps.
    FirstMicroBatch {
        /// Name of the caps.
        caps: String,
        /// Rows of the micro-batch.
        rows: usize,
        /// The capped blocks, ascending.
        blocks: Vec<usize>,
    },
    /// A capped context was freed. Told once for the caps of its model, and once for each profile of its slots that
    /// had rows.
    Ended {
        /// Name of the caps.
        caps: String,
        /// What each cap did since the caps were last replaced, in the order of the set.
        stats: Vec<CapStats>,
    },
}

/// A fault: a graph that would be, or was, computed without all its caps.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Fault {
    /// Name of the caps, if the context has some.
    pub caps: Option<String>,
    /// What went wrong.
    pub error: HookError,
}

/// What happens after a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    /// The graph fails, and llama.cpp reports a decode that failed.
    Fail,
    /// The graph counts as computed, capped or not.
    Uncapped,
}

/// Numbers of micro-batches since the guard began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct GuardCounts {
    /// Micro-batches computed with all their caps.
    pub capped: u64,
    /// Micro-batches of models that are not capped.
    pub not_capped: u64,
    /// Faults.
    pub faults: u64,
    /// Micro-batches of capped models that were computed with caps switched off.
    pub off: u64,
}

/// Caps every context of the process whose model is recognised. A handle: clones are the same guard.
///
/// Made by [`Hook::guard`]. It guards contexts that are created under [`Guard::bind`], or all others after
/// [`Guard::bind_rest`].
#[derive(Debug, Clone)]
pub struct Guard {
    pub(crate) state: Arc<GuardState>,
    pub(crate) hook: Hook,
}

impl Guard {
    /// Puts slots under profiles, by the numbers of sequences, in contexts that are first capped from now on. All
    /// other slots are under the caps of their model, and the last entry that names a slot counts. To be called
    /// after [`Guard::keep_totals`] if totals are kept. The program has to announce each batch
    /// ([`StockBatch::begin`](crate::StockBatch::begin)).
    ///
    /// # Errors
    /// [`HookError::Architecture`] and [`HookError::Caps`] for caps that do not suit their own model.
    pub fn set_slots(&self, slots: Vec<(RangeInclusive<i32>, SlotProfile)>) -> Result<(), HookError> {
        let mut models: Vec<Arc<ModelCaps>> = Vec::new();
        for (_, profile) in &slots {
            if let SlotProfile::Caps(caps) = profile
                && !models.iter().any(|known| Arc::ptr_eq(known, caps))
            {
                caps.check()?;
                models.push(Arc::clone(caps));
            }
        }
        let number = self.state.current().number;
        let tallies = lock(&self.state.ledger).as_mut().map(|ledger| ledger.open(number, &models));
        let tallies = models.into_iter().zip(tallies.unwrap_or_default()).collect();
        *lock(&self.state.slots) = Some(Arc::new(SlotProfiles { list: slots, tallies }));
        Ok(())
    }

    /// Returns what was counted so far.
    #[must_use]
    pub fn counts(&self) -> GuardCounts {
        let Counters { capped, not_capped, faults, off } = &self.state.counters;
        let [capped, not_capped, faults, off] =
            [capped, not_capped, faults, off].map(|counter| counter.load(Ordering::Relaxed));
        GuardCounts { capped, not_capped, faults, off }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) capped: AtomicU64,
    pub(super) not_capped: AtomicU64,
    faults: AtomicU64,
    pub(super) off: AtomicU64,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Checks that caps suit their own models, and that no two are for the same one.
///
/// # Errors
/// [`HookError::Architecture`], [`HookError::Caps`], [`HookError::CapsRival`].
pub(super) fn check_models(models: &[ModelCaps]) -> Result<(), HookError> {
    for (index, model) in models.iter().enumerate() {
        model.check()?;
        if let Some(rival) = models[..index].iter().find(|other| model.is_same_model(other)) {
            return Err(HookError::CapsRival { first: rival.name.clone(), second: model.name.clone() });
        }
    }
    Ok(())
}

/// The state that the clones of a guard and its contexts share.
#[derive(Debug)]
pub(crate) struct GuardState {
    pub(super) current: Mutex<Arc<Generation>>,
    /// Locked before `current` and `ledger`, and while the caps are replaced.
    pub(super) contexts: Mutex<Contexts>,
    /// Number of contexts that live and have not computed yet.
    pub(super) unused: AtomicUsize,
    /// What slots are capped with, if some are under profiles.
    pub(super) slots: Mutex<Option<Arc<SlotProfiles>>>,
    /// `None` if no totals are kept.
    pub(super) ledger: Mutex<Option<Ledger>>,
    pub(super) settings: Settings,
    watcher: Arc<dyn Watcher>,
    pub(super) counters: Counters,
}

/// What a graph decided about its context.
#[derive(Debug, Clone)]
pub(super) enum Decision {
    /// It gets these caps. `settled` if no later graph can say otherwise.
    Capped {
        /// The caps, as index in a generation.
        caps: usize,
        of: Arc<Generation>,
        model: SeenModel,
        confirmed: bool,
        settled: bool,
    },
    NotCapped {
        /// The caps that were compared.
        of: Arc<Generation>,
        model: SeenModel,
        misfits: Vec<(String, Misfit)>,
    },
    /// The graph does not show enough.
    Open,
}

impl GuardState {
    /// # Errors
    /// [`HookError::Architecture`] and [`HookError::Caps`] for caps that do not suit their own model,
    /// [`HookError::CapsRival`] for two of one model.
    pub(crate) fn new(
        models: Vec<ModelCaps>,
        settings: Settings,
        watcher: Arc<dyn Watcher>,
    ) -> Result<Self, HookError> {
        check_models(&models)?;
        let models = models.into_iter().map(Arc::new).collect();
        let first = Generation { number: 1, enabled: settings.enabled, models, tallies: Vec::new() };
        Ok(Self {
            current: Mutex::new(Arc::new(first)),
            contexts: Mutex::default(),
            unused: AtomicUsize::new(0),
            slots: Mutex::default(),
            ledger: Mutex::default(),
            settings,
            watcher,
            counters: Counters::default(),
        })
    }

    /// Compares a graph with the models that caps are for.
    pub(super) fn decide(&self, look: &Look<'_>) -> Decision {
        if look.ending.drafts {
            return self.leave_alone(look);
        }
        let current = self.current();
        let (mut misfits, mut by_shape, mut open) = (Vec::new(), None, false);
        for (index, caps) in current.models.iter().enumerate() {
            match caps.fit(look) {
                Fit::Confirmed => {
                    return self.capped(index, current, look, true, true);
                }
                Fit::Shape { settled } => _ = by_shape.get_or_insert((index, settled)),
                Fit::Unknown => open = true,
                Fit::Misfit(misfit) => misfits.push((caps.name.clone(), misfit)),
            }
        }
        match by_shape {
            Some((caps, settled)) => self.capped(caps, Arc::clone(&current), look, false, settled),
            None if open || current.models.is_empty() && look.ending.end.is_none() => Decision::Open,
            None => Decision::NotCapped { of: current, model: look.describe(usual_names()), misfits },
        }
    }

    /// Decides that a model is not capped.
    pub(super) fn leave_alone(&self, look: &Look<'_>) -> Decision {
        let model = look.describe(usual_names());
        Decision::NotCapped { of: self.current(), model, misfits: Vec::new() }
    }

    fn capped(
        &self,
        caps: usize,
        of: Arc<Generation>,
        look: &Look<'_>,
        confirmed: bool,
        settled: bool,
    ) -> Decision {
        let names = of.models[caps].shape.block_names().unwrap_or_default();
        Decision::Capped { caps, of, model: look.describe(names), confirmed, settled }
    }

    /// Enters a context that gets these caps. `None` if they were replaced since it was decided.
    ///
    /// # Errors
    /// Those of [`Session::set_caps`].
    pub(super) fn enter(
        &self,
        caps: usize,
        of: &Arc<Generation>,
        seen: SeenModel,
    ) -> Result<Option<Arc<Living>>, HookError> {
        let mut contexts = lock(&self.contexts);
        if !Arc::ptr_eq(of, &self.current()) {
            return Ok(None);
        }
        let model = &of.models[caps];
        let session = Session::new(model.shape.clone());
        session.update(|settings| *settings = self.settings);
        session.replace_caps(&model.caps, of.enabled, of.tally(caps))?;
        let profiles = lock(&self.slots).clone();
        if let Some(profiles) = profiles {
            let known = known_norms(model, &seen);
            session.0.set_slots(Slots::add_to(&session, &profiles, &known)?);
        }
        session.0.set_bound();
        Ok(Some(contexts.enter(session, seen, Arc::clone(model))))
    }

    /// Returns the caps that are in force.
    pub(super) fn current(&self) -> Arc<Generation> {
        Arc::clone(&lock(&self.current))
    }

    /// Whether the caps act.
    pub(super) fn is_enabled(&self) -> bool {
        lock(&self.current).enabled
    }

    /// Whether a capped context lives.
    pub(super) fn has_capped(&self) -> bool {
        !lock(&self.contexts).list().is_empty()
    }

    /// Whether there are caps for any model.
    pub(super) fn has_caps(&self) -> bool {
        !lock(&self.current).models.is_empty()
    }

    pub(super) fn found(&self, found: &Found) {
        self.watcher.found(found);
    }

    /// Counts a fault, and returns what is to happen.
    pub(crate) fn fault(&self, caps: Option<&str>, error: HookError) -> Reaction {
        Counters::add(&self.counters.faults);
        self.watcher.fault(&Fault { caps: caps.map(Into::into), error })
    }
}
