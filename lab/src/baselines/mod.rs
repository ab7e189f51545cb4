//! Ways to cap, and not to cap, that decode the same tokens: the hook, and what it is compared with.

mod cb_eval;
mod eval_callback;
mod ggml_ops;
mod hooked;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axiscap_llama::{ContextOptions, FusedNorms, GraphCounts, Model, RouteUse, Settings, Token};

use crate::error::Error;
use cb_eval::{EvalContext, EvalModel};
use ggml_ops::GgmlOps;
use hooked::{baseline, hooked, indexed, mixed};

/// A way to run the caps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// A context that the hook never touches.
    Uncapped,
    /// The hook, with its caps on.
    Capped,
    /// The hook, with its caps switched off.
    Idle,
    /// The hook, with its sequences under so many profiles in turn. Each changes a row to the same bits.
    Mixed { profiles: usize },
    /// The hook, with one profile that each row names by an index.
    Indexed,
    /// llama.cpp's `cb_eval`, with a host synchronisation per capped block.
    EvalCallback,
    /// ggml's own operations between views. Counts nothing and fuses no norm.
    GgmlOps,
}

/// What a subject's caps did, over all profiles.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// Rows times caps.
    pub(crate) rows: u64,
    /// Those of them on which a cap engaged.
    pub(crate) engaged: u64,
    /// Where capped blocks were computed, and how.
    pub(crate) routes: Vec<RouteUse>,
    /// How graphs were run on GPUs.
    pub(crate) graphs: GraphCounts,
    /// Which norms ran with the caps.
    pub(crate) fused_norms: FusedNorms,
}

/// A context that decodes tokens in one of the ways.
pub(crate) trait Subject {
    /// Removes all sequences.
    fn clear(&mut self);

    /// Decodes tokens of sequence 0 from a position on, with logits for the last one if the prompt ends
    /// there. Returns when they are computed.
    fn prefill(&mut self, tokens: &[Token], position: usize, ends: bool) -> Result<(), Error>;

    /// Makes the sequences below `count` copies of sequence 0.
    fn spread(&mut self, count: u32) -> Result<(), Error>;

    /// Decodes one more token of each sequence, with logits. Returns when they are computed.
    fn step(&mut self, tokens: &[Token], position: usize) -> Result<(), Error>;

    /// Returns what the caps did so far.
    fn outcome(&self) -> Outcome {
        Outcome::default()
    }
}

/// Makes subjects of one model and one set of caps.
#[derive(Debug)]
pub(crate) struct Subjects<'m> {
    model: &'m Model,
    /// The model once more, for the way that `llama-cpp-2` does not offer.
    copy: Option<EvalModel>,
    caps: &'m axiscap::CapSet,
    options: ContextOptions,
    settings: Settings,
}

impl<'m> Subjects<'m> {
    /// Prepares the ways. [`Way::EvalCallback`] loads the model a second time.
    pub(crate) fn new(
        model: &'m Model,
        caps: &'m axiscap::CapSet,
        ways: &[Way],
        options: ContextOptions,
        settings: Settings,
    ) -> Result<Self, Error> {
        let others = ways.iter().any(|way| matches!(way, Way::EvalCallback | Way::GgmlOps));
        if others && !caps.policy().is_default() {
            return Err(Error::BaselinePolicy);
        }
        let copy = ways.contains(&Way::EvalCallback).then(|| EvalModel::load(model)).transpose()?;
        Ok(Self { model, copy, caps, options, settings })
    }

    /// Makes a new context.
    pub(crate) fn make(&self, way: Way) -> Result<Box<dyn Subject + '_>, Error> {
        let Self { model, caps, options, settings, .. } = self;
        Ok(match way {
            Way::Uncapped => Box::new(baseline(model, options)?),
            Way::Capped => Box::new(hooked(model, options, caps, *settings)?),
            Way::Idle => {
                let mut context = hooked(model, options, caps, *settings)?;
                context.update(|session| {
                    session.update(|settings| settings.enabled = false);
                    Ok(())
                })?;
                Box::new(context)
            }
            Way::Mixed { profiles } => Box::new(mixed(model, options, caps, *settings, profiles)?),
            Way::Indexed => Box::new(indexed(model, options, caps, *settings)?),
            Way::GgmlOps => {
                let mut settings = *settings;
                (settings.statistics, settings.fused_norm) = (false, false);
                let context = hooked(model, options, caps, settings)?;
                context.session()?.set_compute_hook(Some(Arc::new(GgmlOps::default())));
                Box::new(context)
            }
            Way::EvalCallback => {
                let copy = self.copy.as_ref().expect("the way was prepared");
                Box::new(EvalContext::new(model, copy, caps, settings.statistics, options)?)
            }
        })
    }
}
