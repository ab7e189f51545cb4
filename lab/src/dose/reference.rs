//! Uncapped distributions that are kept, to compare several caps with.

use std::ops::ControlFlow;

use axiscap::CapSet;
use axiscap_llama::{Context, Model};

use super::divergence;
use crate::compute::ComputeOptions;
use crate::error::Error;
use crate::pass::{Pass, Row, Text, check_caps};

/// The uncapped distributions of the next token for every token of some responses. They are in memory: a vocabulary
/// of numbers per token.
pub(crate) struct Reference<'t, 'm> {
    model: &'m Model,
    texts: &'t [Text<'t>],
    compute: &'t ComputeOptions,
    /// In the order in which a pass has the rows.
    logits: Vec<Vec<f32>>,
}

impl<'t, 'm> Reference<'t, 'm> {
    /// Computes the distributions. `go_on` is called after every batch with the number of texts done. Returns `None`
    /// if it asked to stop.
    pub(crate) fn of(
        model: &'m Model,
        texts: &'t [Text<'t>],
        compute: &'t ComputeOptions,
        go_on: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<Self>, Error> {
        let mut logits = Vec::new();
        let keep = |context: &mut Context<'_>, rows: &[Row]| {
            let rows = (0..rows.len()).filter(|&row| rows[row].logits);
            logits.extend(rows.map(|row| context.logits(row).unwrap_or_default().to_vec()));
            Ok(())
        };
        let predicts = |text: &Text<'_>, position: usize| text.predicts(position);
        let is_done = Pass::new(model, texts, compute, false)?.run(predicts, |_| {}, keep, go_on)?;
        Ok(is_done.then_some(Self { model, texts, compute, logits }))
    }

    /// Returns the number of tokens.
    pub(crate) fn tokens(&self) -> usize {
        self.logits.len()
    }

    /// Returns the mean of KL(capped || uncapped) over the tokens, in nats. `go_on` as for [`Reference::of`].
    ///
    /// # Errors
    /// [`Error::Logits`], [`Error::NonFinite`].
    pub(crate) fn mean_kl(
        &self,
        caps: &CapSet,
        go_on: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<f64>, Error> {
        let mut pass = Pass::new(self.model, self.texts, self.compute, true)?;
        pass.context_mut().set_caps(Some(caps))?;
        let (mut sum, mut next) = (0.0, 0);
        let compare = |context: &mut Context<'_>, rows: &[Row]| {
            for (index, row) in rows.iter().enumerate().filter(|(_, row)| row.logits) {
                let kl = divergence(context.logits(index).unwrap_or_default(), &self.logits[next]);
                if !kl.is_finite() {
                    return Err(Error::Logits { text: row.text, position: row.position });
                }
                sum += kl;
                next += 1;
            }
            Ok(())
        };
        let predicts = |text: &Text<'_>, position: usize| text.predicts(position);
        if !pass.run(predicts, |_| {}, compare, go_on)? {
            return Ok(None);
        }
        check_caps(pass.context(), caps)?;
        Ok(Some(sum / self.tokens().max(1) as f64))
    }
}
