//! The built-in judge: does the system prompt show in the answer?

use std::ops::ControlFlow;

use axiscap_llama::ChatTemplate;

use crate::compute::ComputeOptions;
use crate::error::Error;
use crate::likelihood::log_likelihoods;
use crate::pass::{Pass, Text};
use crate::rollout::{Group, Question, Rollout, prompt};

/// From this score on an answer plays its role: the logarithm of 20.
///
/// Of the answers that a model gives without the system prompt, at most one in twenty is twenty times as likely with
/// it: the ratio of two probabilities has the mean 1 under the lower one, and Markov's inequality does the rest.
pub const LEAST_LIKELIHOOD: f32 = 2.995_732_3;

/// Compares how likely every answer in a role is under its system prompt and without one. An answer that ignores its
/// role is as likely without it. `go_on` is called after every pass with the number of answers done. Returns `None`
/// if it asked to stop.
///
/// A score is the natural logarithm of the ratio of both probabilities, of the response as a whole. It is `None` for
/// answers that are in no role or have no tokens.
///
/// # Errors
/// Those of [`ChatTemplate::render`] and [`Context::decode`](axiscap_llama::Context::decode).
///
/// # Panics
/// If an answer's question is not among `questions`.
pub fn likelihoods(
    template: &ChatTemplate<'_>,
    questions: &[Question],
    rollouts: &[Rollout],
    compute: &ComputeOptions,
    go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Vec<Option<f32>>>, Error> {
    let scored: Vec<(usize, f32)> = rollouts
        .iter()
        .enumerate()
        .filter(|(_, rollout)| matches!(rollout.group, Group::Role(_)) && !rollout.response.is_empty())
        .filter_map(|(index, rollout)| Some((index, rollout.log_likelihood?)))
        .collect();
    let mut prompts = Vec::new();
    for &(index, _) in &scored {
        let tokens = prompt(template, None, &questions[rollouts[index].question].text)?;
        prompts.push(tokens.into_iter().map(|token| token.0).collect::<Vec<_>>());
    }
    let texts: Vec<_> = scored
        .iter()
        .zip(&prompts)
        .map(|(&(index, _), prompt)| Text { prompt, response: &rollouts[index].response })
        .collect();
    let mut scores = vec![None; rollouts.len()];
    if texts.is_empty() {
        return Ok(Some(scores));
    }
    let mut pass = Pass::new(template.model(), &texts, compute, false)?;
    let Some(without) = log_likelihoods(&mut pass, &texts, go_on)? else { return Ok(None) };
    for (&(index, with), without) in scored.iter().zip(without) {
        scores[index] = Some((f64::from(with) - without) as f32);
    }
    Ok(Some(scores))
}
