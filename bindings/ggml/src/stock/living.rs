//! The living capped contexts of a guard.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use axiscap::CapStats;

use super::guard::GuardState;
use super::models::{ModelCaps, choose, known_norms};
use super::promises::Promises;
use super::replace::Generation;
use super::seen::SeenModel;
use crate::error::HookError;
use crate::record::lock;
use crate::report::RouteUse;
use crate::route::Route;
use crate::session::Session;
use crate::tally::Tally;

/// A capped context of the host that lives.
#[derive(Debug, Clone)]
pub struct GuardedContext {
    /// Its number. Contexts are numbered in the order in which they were first capped.
    pub id: u64,
    /// Name of its caps ([`ModelCaps::name`]).
    pub caps: String,
    /// Its model, as the graph showed it that decided on the caps.
    pub model: SeenModel,
    /// Whether caps act. They do not after a [`Guard::replace`](crate::Guard::replace) that switched them off.
    pub enabled: bool,
    /// Micro-batches that were computed so far, capped or with caps switched off.
    pub micro_batches: u64,
    /// What each cap did since the caps were last replaced, as far as it has arrived from GPUs.
    pub stats: Vec<CapStats>,
    /// The routes that its graphs took.
    pub routes: Vec<RouteUse>,
}

/// The guard's side of a capped context.
#[derive(Debug)]
pub(super) struct Living {
    id: u64,
    pub(super) session: Session,
    seen: SeenModel,
    caps: Mutex<Arc<ModelCaps>>,
    micro_batches: AtomicU64,
}

/// The guard's side of a context that is not capped.
#[derive(Debug)]
pub(super) struct Uncapped(SeenModel);

/// The contexts that live, in the order in which they began.
#[derive(Debug, Default)]
pub(super) struct Contexts {
    list: Vec<Weak<Living>>,
    uncapped: Vec<Weak<Uncapped>>,
    pub(super) promises: Promises,
    /// Number of contexts so far.
    count: u64,
}

impl Contexts {
    /// Enters a context with its caps.
    pub(super) fn enter(&mut self, session: Session, seen: SeenModel, caps: Arc<ModelCaps>) -> Arc<Living> {
        self.count += 1;
        let (caps, micro_batches) = (Mutex::new(caps), AtomicU64::new(0));
        let living = Arc::new(Living { id: self.count, session, seen, caps, micro_batches });
        self.list.retain(|context| context.strong_count() > 0);
        self.list.push(Arc::downgrade(&living));
        living
    }

    pub(super) fn list(&self) -> Vec<Arc<Living>> {
        self.list.iter().filter_map(Weak::upgrade).collect()
    }

    /// Returns the model of a context that is not capped and that one of these caps are for, with them.
    pub(super) fn uncapped_with(&self, models: &[Arc<ModelCaps>]) -> Option<(SeenModel, Arc<ModelCaps>)> {
        let living: Vec<_> = self.uncapped.iter().filter_map(Weak::upgrade).collect();
        let pairs = living.iter().flat_map(|context| models.iter().map(move |caps| (&context.0, caps)));
        let mut fitting = pairs.filter(|(seen, caps)| caps.fit_seen(seen));
        fitting.next().map(|(seen, caps)| (seen.clone(), Arc::clone(caps)))
    }
}

impl GuardState {
    /// Notes that a context is not capped. Returns `None` if the caps were replaced since it was decided.
    pub(super) fn leave_out(&self, of: &Arc<Generation>, seen: SeenModel) -> Option<Arc<Uncapped>> {
        let mut contexts = lock(&self.contexts);
        if !Arc::ptr_eq(of, &self.current()) {
            return None;
        }
        let uncapped = Arc::new(Uncapped(seen));
        contexts.uncapped.retain(|context| context.strong_count() > 0);
        contexts.uncapped.push(Arc::downgrade(&uncapped));
        Some(uncapped)
    }
}

impl Living {
    pub(super) fn caps(&self) -> Arc<ModelCaps> {
        Arc::clone(&lock(&self.caps))
    }

    /// Returns the name of the caps.
    pub(super) fn name(&self) -> String {
        self.caps().name.clone()
    }

    /// Counts a micro-batch.
    pub(super) fn count(&self) {
        self.micro_batches.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns which of these caps are for the model of the context. The error is why each of them is not.
    pub(super) fn choose(&self, models: &[Arc<ModelCaps>]) -> Result<usize, String> {
        let own = self.caps();
        choose(models, &own.shape, &known_norms(&own, &self.seen))
    }

    /// Whether an RPC server caps blocks of the context.
    pub(super) fn is_capped_elsewhere(&self) -> bool {
        self.session.routes_used().iter().any(|used| used.route == Route::Remote)
    }

    /// Replaces the caps between two micro-batches of the context.
    ///
    /// # Errors
    /// Those of [`Session::set_caps`].
    pub(super) fn replace(
        &self,
        caps: &Arc<ModelCaps>,
        enabled: bool,
        tally: Option<Arc<Tally>>,
    ) -> Result<(), HookError> {
        self.session.replace_caps(&caps.caps, enabled, tally)?;
        *lock(&self.caps) = Arc::clone(caps);
        Ok(())
    }

    /// Adds what has arrived from GPUs to the statistics.
    pub(super) fn collect(&self) {
        self.session.0.record.add_all_arrived();
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn info(&self) -> GuardedContext {
        self.collect();
        GuardedContext {
            id: self.id,
            caps: self.name(),
            model: self.seen.clone(),
            enabled: self.session.settings().enabled,
            micro_batches: self.micro_batches.load(Ordering::Relaxed),
            stats: self.session.0.record.arrived_stats(),
            routes: self.session.routes_used(),
        }
    }
}
