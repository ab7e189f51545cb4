//! What the interface controls: the guard, and the caps that it was given.

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axiscap_ggml::{CapTotals, Guard, GuardCounts, GuardedContext, ModelCaps, ReplaceError, Replaced};

/// A guard, as the interface sees it.
pub(crate) trait Capping: Debug + Send {
    fn counts(&self) -> GuardCounts;
    fn in_force(&self) -> InForce;
    fn contexts(&self) -> Vec<GuardedContext>;
    fn totals(&self) -> Vec<CapTotals>;
    fn replace(&self, models: Vec<ModelCaps>, enabled: bool) -> Result<Replaced, ReplaceError>;
}

/// The caps in force.
#[derive(Debug, Clone)]
pub(crate) struct InForce {
    pub(crate) generation: u64,
    pub(crate) enabled: bool,
    pub(crate) models: Vec<Arc<ModelCaps>>,
}

impl Capping for Guard {
    fn counts(&self) -> GuardCounts {
        Self::counts(self)
    }

    fn in_force(&self) -> InForce {
        let generation = self.generation();
        let models = generation.models.clone();
        InForce { generation: generation.number, enabled: generation.enabled, models }
    }

    fn contexts(&self) -> Vec<GuardedContext> {
        Self::contexts(self)
    }

    fn totals(&self) -> Vec<CapTotals> {
        Self::totals(self)
    }

    fn replace(&self, models: Vec<ModelCaps>, enabled: bool) -> Result<Replaced, ReplaceError> {
        Self::replace(self, models, enabled)
    }
}

/// Where the caps in force come from.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// Cap files, or folders of them.
    pub(crate) files: Vec<PathBuf>,
    /// Strength in the place of that of each cap.
    pub(crate) strength: Option<f32>,
    /// The caps as the files have them.
    pub(crate) models: Vec<ModelCaps>,
}

/// What the interface shows and changes.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) capping: Box<dyn Capping>,
    /// The host's ggml.
    pub(crate) ggml: String,
    origin: Mutex<Origin>,
}

impl Control {
    pub(crate) fn new(capping: impl Capping + 'static, ggml: &str, origin: Origin) -> Self {
        Self { capping: Box::new(capping), ggml: ggml.into(), origin: Mutex::new(origin) }
    }

    pub(crate) fn origin(&self) -> MutexGuard<'_, Origin> {
        self.origin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
