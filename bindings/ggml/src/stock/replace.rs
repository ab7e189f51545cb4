//! Replaces the caps of a process while it computes.

use std::sync::Arc;

use super::guard::{Guard, check_models};
use super::ledger::CapTotals;
use super::living::GuardedContext;
use super::models::ModelCaps;
use super::seen::SeenModel;
use crate::config::Config;
use crate::error::HookError;
use crate::record::lock;
use crate::tally::Tally;

/// The caps that are in force.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Generation {
    /// Its number: 1 for the caps that the guard was made with, and one more with each replacement.
    pub number: u64,
    /// Whether the caps act.
    pub enabled: bool,
    /// The caps, by model.
    pub models: Vec<Arc<ModelCaps>>,
    /// Where their rows are counted; empty if they are not.
    pub(super) tallies: Vec<Arc<Tally>>,
}

/// What a replacement of the caps did.
#[derive(Debug, Clone)]
pub struct Replaced {
    /// Number of the new generation.
    pub generation: u64,
    /// The living contexts that have caps.
    pub contexts: Vec<ReplacedContext>,
}

/// A living context whose caps were replaced. The rows that its KV cache holds stay as they were computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplacedContext {
    /// Its number ([`GuardedContext::id`]).
    pub id: u64,
    /// Name of its caps before.
    pub before: String,
    /// Name of its caps from now on. `None` if none of the new ones are for its model; it is not capped.
    pub after: Option<String>,
}

/// Reason why caps were not replaced. The old ones stay in force.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplaceError {
    /// The caps do not suit their own model, or two of them are for one model.
    #[error(transparent)]
    Caps(#[from] HookError),
    /// A context would be left without caps.
    #[error("context {context}, which is capped with {caps}, would be left without caps: {reasons}")]
    Missing {
        /// Its number.
        context: u64,
        /// Name of its caps.
        caps: String,
        /// Why none of the new ones is for its model.
        reasons: String,
    },
    /// An RPC server caps blocks of a context, and would go on with the old caps.
    #[error(
        "an RPC server caps blocks of context {context} with {caps}, and would go on with them; restart both programs with the new caps"
    )]
    CappedElsewhere {
        /// Its number.
        context: u64,
        /// Name of its caps.
        caps: String,
    },
    /// A client of this RPC server counts on caps that would change.
    #[error("a client of this RPC server counts on {caps}; restart both programs with the new caps")]
    CountedOn {
        /// Name of the caps.
        caps: String,
    },
    /// A context that began without caps would go on without those that are for its model.
    #[error(
        "a context of {model} began without caps, and would go on without {caps}, which are for it; restart the program with them"
    )]
    Late {
        /// The model, as its graph showed it.
        model: SeenModel,
        /// Name of the caps.
        caps: String,
    },
}

impl Generation {
    pub(super) fn tally(&self, index: usize) -> Option<Arc<Tally>> {
        self.tallies.get(index).cloned()
    }
}

impl Guard {
    /// Counts the rows of all contexts for [`Guard::totals`] from now on. To be called before the first
    /// context is created; rows before it are not part of the totals.
    pub fn keep_totals(&self) {
        let _contexts = lock(&self.state.contexts);
        let mut current = lock(&self.state.current);
        let mut next = Generation::clone(&current);
        if next.tallies.is_empty() {
            next.tallies = lock(&self.state.ledger).get_or_insert_default().open(next.number, &next.models);
        }
        *current = Arc::new(next);
    }

    /// Returns the caps that are in force.
    #[must_use]
    pub fn generation(&self) -> Arc<Generation> {
        self.state.current()
    }

    /// Lists the capped contexts that live, in the order in which they were first capped. Waits for no GPU.
    #[must_use]
    pub fn contexts(&self) -> Vec<GuardedContext> {
        let living = lock(&self.state.contexts).list();
        living.iter().map(|context| context.info()).collect()
    }

    /// Returns what each cap did since [`Guard::keep_totals`], by generation, in all contexts, also in those
    /// that have ended. Empty without it. Waits for no GPU: rows whose statistics are on their way are missing.
    #[must_use]
    pub fn totals(&self) -> Vec<CapTotals> {
        let living = lock(&self.state.contexts).list();
        living.iter().for_each(|context| context.collect());
        lock(&self.state.ledger).as_ref().map_or_else(Vec::new, |ledger| ledger.totals())
    }

    /// Replaces the caps, and says whether they act. All is checked before anything changes.
    ///
    /// Each living context changes between two of its micro-batches; one in progress keeps the caps that it
    /// began with. Rows that are in the KV cache stay as they were computed. Contexts that were recognised as
    /// not capped stay so, and caps for their models are refused. With `enabled` false nothing is capped from
    /// the next micro-batches on, which is no fault, and a context may be left without caps.
    ///
    /// # Errors
    /// [`ReplaceError`].
    pub fn replace(&self, models: Vec<ModelCaps>, enabled: bool) -> Result<Replaced, ReplaceError> {
        check_models(&models)?;
        let models: Vec<_> = models.into_iter().map(Arc::new).collect();
        // No context begins and no other replacement runs until the end of this one.
        let contexts = lock(&self.state.contexts);
        let living = contexts.list();
        if let Some(promised) = contexts.promises.broken_by(&models, enabled) {
            return Err(ReplaceError::CountedOn { caps: promised.name.clone() });
        }
        let mut chosen = Vec::with_capacity(living.len());
        for context in &living {
            let chosen_caps = context.choose(&models);
            let same = chosen_caps.as_ref().is_ok_and(|&index| models[index].acts_as(&context.caps()));
            if context.is_capped_elsewhere() && !(enabled && same) {
                let (context, caps) = (context.id(), context.name());
                return Err(ReplaceError::CappedElsewhere { context, caps });
            }
            match chosen_caps {
                Ok(index) => {
                    let model = context.session.model();
                    Config::new(model.blocks).set_caps(Some(&models[index].caps), model)?;
                    chosen.push(Some(index));
                }
                Err(_) if !enabled => chosen.push(None),
                Err(reasons) => {
                    let (context, caps) = (context.id(), context.name());
                    return Err(ReplaceError::Missing { context, caps, reasons });
                }
            }
        }
        if enabled && let Some((model, caps)) = contexts.uncapped_with(&models) {
            return Err(ReplaceError::Late { model, caps: caps.name.clone() });
        }
        let number = self.state.current().number + 1;
        let mut ledger = lock(&self.state.ledger);
        let tallies = ledger.as_mut().map_or_else(Vec::new, |ledger| ledger.open(number, &models));
        drop(ledger);
        let generation = Arc::new(Generation { number, enabled, models, tallies });
        *lock(&self.state.current) = Arc::clone(&generation);
        let mut replaced = Vec::with_capacity(living.len());
        for (context, index) in living.iter().zip(chosen) {
            context.collect();
            let before = context.name();
            match index {
                Some(index) => {
                    context.replace(&generation.models[index], enabled, generation.tally(index))?;
                }
                None => context.session.update(|settings| settings.enabled = false),
            }
            let after = index.map(|index| generation.models[index].name.clone());
            replaced.push(ReplacedContext { id: context.id(), before, after });
        }
        drop(contexts);
        if let Some(ledger) = &mut *lock(&self.state.ledger) {
            ledger.fold();
        }
        Ok(Replaced { generation: number, contexts: replaced })
    }
}
