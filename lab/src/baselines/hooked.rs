//! Contexts of `axiscap-llama`: capped by the hook, or untouched.

use axiscap::CapSet;
use axiscap_llama::{BatchRow, Context, ContextOptions, Model, ProfileId, Settings, Token};

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

/// Makes a context whose sequences are under `count` profiles in turn, `caps` the first of them. Every other
/// one holds the same caps on the opposite axes with mirrored bounds. A row gets the same bits under each of
/// them, and each has axes of its own in memory, so only the profiles differ from [`hooked`].
pub(super) fn mixed<'m>(
    model: &'m Model,
    options: &ContextOptions,
    caps: &CapSet,
    settings: Settings,
    count: usize,
) -> Result<Context<'m>, Error> {
    let opposite = caps.with_each(|cap| Ok(cap.negated()))?;
    let mut context = hooked(model, options, caps, settings)?;
    let profiles = context.update(|session| {
        let added = (1..count).map(|number| {
            let own = if number % 2 == 1 { &opposite } else { caps };
            session.add_profile(&format!("profile {number}"), own)
        });
        std::iter::once(Ok(ProfileId::DEFAULT)).chain(added).collect::<Result<Vec<_>, _>>()
    })?;
    for (sequence, &profile) in (0..options.sequences.cast_signed()).zip(profiles.iter().cycle()) {
        context.set_profile(sequence, Some(profile))?;
    }
    Ok(context)
}

/// Makes a context with one profile that is not the default one, so that each row has an index.
pub(super) fn indexed<'m>(
    model: &'m Model,
    options: &ContextOptions,
    caps: &CapSet,
    settings: Settings,
) -> Result<Context<'m>, Error> {
    let mut context = Context::new(model, options)?;
    let profile = context.update(|session| {
        session.update(|current| *current = settings);
        session.add_profile("every sequence", caps)
    })?;
    for sequence in 0..options.sequences.cast_signed() {
        context.set_profile(sequence, Some(profile))?;
    }
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
        let profiles = session.profiles();
        let stats: Vec<_> =
            profiles.iter().filter_map(|known| session.profile_stats(known.id)).flatten().collect();
        Outcome {
            rows: stats.iter().map(|stats| stats.rows).sum(),
            engaged: stats.iter().map(|stats| stats.engaged).sum(),
            routes: session.routes_used(),
            graphs: session.graph_counts(),
            fused_norms: session.fused_norms(),
        }
    }
}
