//! The dose: what caps do to text that they should leave as it is.
//!
//! A text is run through the model capped and uncapped side by side, and the distributions of its next tokens are
//! compared.

use std::ops::ControlFlow;

use axiscap::CapSet;
use axiscap_llama::{Context, Model, Token, TraceRow, log_probability};

use crate::compute::ComputeOptions;
use crate::error::Error;
use crate::pass::{Pass, Text, check_caps, text_of};
use crate::quantile::quantile;
use crate::rollout::Rollout;

mod given;
mod random;
mod reference;

pub use given::{GivenText, Piece};
pub use random::random_caps;
pub(crate) use random::{RandomDirections, random_caps_with};
pub(crate) use reference::Reference;

/// What caps do to texts, per token.
#[derive(Debug, Clone, PartialEq)]
pub struct Dose {
    /// Number of tokens whose distributions were compared.
    pub tokens: usize,
    /// KL(capped || uncapped) of the distributions of the next token, in nats.
    pub kl: KlSummary,
    /// Share of the tokens for which the most probable token is another with the caps.
    pub other_choice: f64,
    /// Perplexity of the texts, uncapped.
    pub perplexity_uncapped: f64,
    /// Perplexity of the texts, capped.
    pub perplexity_capped: f64,
    /// Share of the rows on which each cap engaged, in the order of the caps. Rows that the policy leaves alone are
    /// not counted.
    pub engaged: Vec<f64>,
}

impl Dose {
    /// Returns by how much the caps raise the perplexity: 0.03 for 3 %.
    #[must_use]
    pub fn perplexity_rise(&self) -> f64 {
        self.perplexity_capped / self.perplexity_uncapped - 1.0
    }

    /// Returns the largest share of rows on which a cap engaged.
    #[must_use]
    pub fn most_engaged(&self) -> f64 {
        self.engaged.iter().copied().fold(0.0, f64::max)
    }
}

/// Divergences per token, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KlSummary {
    /// Their mean.
    pub mean: f64,
    /// Their median.
    pub median: f64,
    /// Their 95th percentile.
    pub p95: f64,
    /// The largest.
    pub max: f64,
}

impl KlSummary {
    /// Summarises at least one divergence.
    fn of(mut all: Vec<f64>) -> Self {
        all.sort_by(f64::total_cmp);
        Self {
            mean: all.iter().sum::<f64>() / all.len() as f64,
            median: quantile(&all, 50.0),
            p95: quantile(&all, 95.0),
            max: quantile(&all, 100.0),
        }
    }
}

/// Text that caps should leave as it is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sample {
    /// Answers of the default Assistant that axes and floors were not made from.
    pub answers: Vec<Rollout>,
    /// Other texts.
    pub texts: Vec<GivenText>,
}

/// The doses of a [`Sample`].
#[derive(Debug, Clone, PartialEq)]
pub struct Doses {
    /// On the answers, each after its own prompt. `None` without answers.
    pub answers: Option<Dose>,
    /// On each text, with its name.
    pub texts: Vec<(String, Dose)>,
}

impl Sample {
    /// Returns the number of answers and of pieces of texts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.answers.len() + self.texts.iter().map(|text| text.pieces.len()).sum::<usize>()
    }

    /// Returns whether there is nothing to measure.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Measures the doses of caps. They act on all rows, those of prompts as well. `go_on` is called after every pass
    /// with the number of answers and pieces done. Returns `None` if it asked to stop.
    ///
    /// # Errors
    /// [`Error::Llama`]: those of [`Context::decode`], and the hook's for caps of another model. [`Error::Logits`]
    /// for distributions that are not finite, and [`Error::NonFinite`] for projections that are not.
    pub fn doses(
        &self,
        model: &Model,
        caps: &CapSet,
        compute: &ComputeOptions,
        mut go_on: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<Doses>, Error> {
        let answers: Vec<_> =
            self.answers.iter().filter(|answer| !answer.response.is_empty()).map(Text::of).collect();
        let mut doses = Doses { answers: None, texts: Vec::new() };
        if !answers.is_empty() {
            let dose = measure(model, &answers, caps, compute, &mut go_on)?;
            let Some(dose) = dose else { return Ok(None) };
            doses.answers = Some(dose);
        }
        let mut done = self.answers.len();
        for GivenText { name, pieces } in &self.texts {
            let texts: Vec<_> = pieces.iter().map(Piece::text).collect();
            let dose = measure(model, &texts, caps, compute, |piece| go_on(done + piece))?;
            let Some(dose) = dose else { return Ok(None) };
            doses.texts.push((name.clone(), dose));
            done += pieces.len();
        }
        Ok(Some(doses))
    }
}

/// Runs texts through two contexts, one of them capped. At least one of them has a response.
fn measure(
    model: &Model,
    texts: &[Text<'_>],
    caps: &CapSet,
    compute: &ComputeOptions,
    go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Dose>, Error> {
    let mut comparison = Comparison::new(model, texts, caps, compute)?;
    let (mut divergences, mut others, mut likelihoods) = (Vec::new(), 0_usize, (0.0, 0.0));
    let see = |_, token: Compared| {
        divergences.push(token.kl);
        others += usize::from(token.is_other_choice);
        likelihoods.0 += token.log_probabilities.0;
        likelihoods.1 += token.log_probabilities.1;
    };
    if !comparison.run(see, |_, _| {}, go_on)? {
        return Ok(None);
    }
    let stats = comparison.capped.context().session()?.stats();
    let engaged = stats.iter().map(|stats| stats.engaged as f64 / stats.rows.max(1) as f64).collect();
    let tokens = divergences.len();
    let perplexity = |sum: f64| (-sum / tokens as f64).exp();
    Ok(Some(Dose {
        tokens,
        kl: KlSummary::of(divergences),
        other_choice: others as f64 / tokens as f64,
        perplexity_uncapped: perplexity(likelihoods.0),
        perplexity_capped: perplexity(likelihoods.1),
        engaged,
    }))
}

/// A token whose distribution was computed capped and uncapped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Compared {
    /// KL(capped || uncapped), in nats.
    pub(crate) kl: f64,
    is_other_choice: bool,
    /// Natural logarithms of the probability of the token that follows, uncapped and capped.
    log_probabilities: (f64, f64),
}

/// Texts in two contexts, one of them capped.
pub(crate) struct Comparison<'t, 'm> {
    texts: &'t [Text<'t>],
    caps: &'t CapSet,
    uncapped: Pass<'t, 'm>,
    capped: Pass<'t, 'm>,
}

impl<'t, 'm> Comparison<'t, 'm> {
    /// Makes the contexts.
    pub(crate) fn new(
        model: &'m Model,
        texts: &'t [Text<'t>],
        caps: &'t CapSet,
        compute: &ComputeOptions,
    ) -> Result<Self, Error> {
        let uncapped = Pass::new(model, texts, compute, false)?;
        let mut capped = Pass::new(model, texts, compute, true)?;
        capped.context_mut().set_caps(Some(caps))?;
        Ok(Self { texts, caps, uncapped, capped })
    }

    /// Has every row of the caps traced.
    pub(crate) fn trace(&mut self) -> Result<(), Error> {
        Ok(self.capped.context_mut().set_tracing(true)?)
    }

    /// Compares every token of the responses. `token` gets the index of the text, in the order of its tokens, and
    /// `traced` the index of the text with each traced row. Returns `false` if `go_on` asked to stop.
    pub(crate) fn run(
        &mut self,
        mut token: impl FnMut(usize, Compared),
        mut traced: impl FnMut(usize, &TraceRow),
        mut go_on: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<bool, Error> {
        let predicts = |text: &Text<'_>, position: usize| text.predicts(position);
        let texts = self.texts;
        while let Some(rows) = self.uncapped.step(predicts, |_| {})? {
            self.capped.step(predicts, |_| {})?;
            for (index, row) in rows.iter().enumerate().filter(|(_, row)| row.logits) {
                let next = texts[row.text].token(row.position + 1);
                let (plain, moved) =
                    (logits(self.uncapped.context(), index), logits(self.capped.context(), index));
                let kl = divergence(moved, plain);
                let [before, after] = [plain, moved].map(|logits| f64::from(log_probability(logits, next)));
                if !(kl.is_finite() && before.is_finite() && after.is_finite()) {
                    return Err(Error::Logits { text: row.text, position: row.position });
                }
                let is_other_choice = choice(plain) != choice(moved);
                token(row.text, Compared { kl, is_other_choice, log_probabilities: (before, after) });
            }
            let lines = self.capped.context_mut().take_trace();
            for (text, line) in lines.iter().filter_map(|line| Some((text_of(&rows, line)?, line))) {
                traced(text, line);
            }
            if go_on(self.uncapped.done()).is_break() && self.uncapped.done() < texts.len() {
                return Ok(false);
            }
        }
        check_caps(self.capped.context(), self.caps)?;
        Ok(true)
    }
}

fn logits<'c>(context: &'c Context<'_>, row: usize) -> &'c [f32] {
    context.logits(row).unwrap_or_default()
}

/// Returns KL(p || q) of two distributions given by their logits, in nats.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let most = |logits: &[f32]| logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (most_p, most_q) = (most(p), most(q));
    let (mut sum_p, mut sum_q, mut sum) = (0.0, 0.0, 0.0);
    for (&p, &q) in p.iter().zip(q) {
        let (p, q) = (f64::from(p) - f64::from(most_p), f64::from(q) - f64::from(most_q));
        let weight = p.exp();
        sum_p += weight;
        sum_q += q.exp();
        // A token that neither gives any probability has no part.
        if weight > 0.0 {
            sum += weight * (p - q);
        }
    }
    // Rounding may make the divergence of equal distributions slightly negative.
    (sum / sum_p - sum_p.ln() + sum_q.ln()).max(0.0)
}

/// Returns the most probable token.
fn choice(logits: &[f32]) -> Option<Token> {
    let most = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    most.map(|(token, _)| Token(i32::try_from(token).unwrap_or(i32::MAX)))
}
