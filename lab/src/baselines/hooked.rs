//! Contexts of `axiscap-llama`: capped by the hook, or untouched.

use axiscap::CapSet;
use axiscap_llama::{BatchRow, Context, ContextOptions, Model, Settings, Token};

use super::{Outcome, Subject};
use crate::error::Error;

/// Makes a context that the hook never touches.
pub(super) fn baseline<'m>(model: &'m Model, options: &ContextOptions) -> Result<Context<'m>, Error> {
    Ok(Context::uncapped(model, options)?)
}

/// Makes a context that runs under `caps`.
pub(super) fn hooked<'m>(
    model: &'m Model,
    options: &ContextOptions,
    caps: &CapSet,
    settings: Settings,
) -> Result<Context<'m>, Error> {
    let mut context = Context::new(model, options)?;
    context.update(|session| {
        session.update(|current| *current = settings);
        session.set_caps(Some(caps))
    })?;
    Ok(context)
}

impl Subject for Context<'_> {
    fn clear(&mut self) {
        Context::clear(self);
    }

    fn prefill(&mut self, tokens: &[Token], position: usize, ends: bool) -> Result<(), Error> {
        self.prefill_part(tokens, position, 0, ends)?;
        self.llama().synchronize();
        Ok(())
    }

    fn spread(&mut self, count: u32) -> Result<(), Error> {
        for sequence in 1..count.cast_signed() {
            self.copy_sequence(0, sequence)?;
        }
        Ok(())
    }

    fn step(&mut self, tokens: &[Token], position: usize) -> Result<(), Error> {
        let position = i32::try_from(position).unwrap_or(i32::MAX);
        let row = |(sequence, &token)| BatchRow { token, position, sequence, logits: true };
        self.decode(&(0..).zip(tokens).map(row).collect::<Vec<_>>())?;
        self.llama().synchronize();
        Ok(())
    }

    fn outcome(&self) -> Outcome {
        let Ok(session) = self.session() else { return Outcome::default() };
        let stats = session.stats();
        Outcome {
            rows: stats.iter().map(|stats| stats.rows).sum(),
            engaged: stats.iter().map(|stats| stats.engaged).sum(),
            routes: session.routes_used(),
            graphs: session.graph_counts(),
            fused_norms: session.fused_norms(),
        }
    }
}
