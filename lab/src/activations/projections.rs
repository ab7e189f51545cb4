//! Projections of answers on axes: their means, and the distributions of their tokens.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use axiscap::Axis;
use axiscap_llama::Model;

use super::{Observer, Rows, check_widths, observe};
use crate::compute::ComputeOptions;
use crate::distribution::Distribution;
use crate::error::Error;
use crate::rollout::{Group, Rollout};

/// A system prompt, whose it is, and how many answers were given under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemPrompt {
    /// Whose answers they are.
    pub group: Group,
    /// Its text. `None` is no system message.
    pub text: Option<String>,
    /// Number of answers that have a token after their thoughts.
    pub answers: usize,
}

/// Projections of answers on one axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Projections {
    /// The system prompts, in the order in which answers have them first.
    pub prompts: Arc<[SystemPrompt]>,
    /// For each answer that has a token after its thoughts, the index of its system prompt and its mean projection.
    pub answers: Vec<(usize, f64)>,
    /// Projections of the tokens after the thoughts, `[prompts]`.
    pub tokens: Vec<Distribution>,
    /// Projections of the tokens of thoughts, of all answers.
    pub thoughts: Distribution,
}

impl Projections {
    /// Returns whether an answer or a token has a projection that is NaN or infinite.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.answers.iter().all(|answer| answer.1.is_finite())
            && self.tokens.iter().chain([&self.thoughts]).all(Distribution::is_finite)
    }

    /// Returns the mean projections of the default Assistant's answers (`true`) or of the others, ascending.
    #[must_use]
    pub fn means(&self, of_default: bool) -> Vec<f64> {
        let is_asked = |prompt: usize| (self.prompts[prompt].group == Group::Default) == of_default;
        let mut means: Vec<_> =
            self.answers.iter().filter(|answer| is_asked(answer.0)).map(|answer| answer.1).collect();
        means.sort_by(f64::total_cmp);
        means
    }

    /// Returns the distribution of the tokens after the thoughts under the system prompts that are chosen.
    #[must_use]
    pub fn tokens_of(&self, is_chosen: impl Fn(&SystemPrompt) -> bool) -> Distribution {
        let prompts = self.prompts.iter().zip(&self.tokens);
        Distribution::of_all(prompts.filter(|(prompt, _)| is_chosen(prompt)).map(|(_, tokens)| tokens))
    }
}

/// Projects the block outputs of every answer's response tokens on axes, each on its block. Returns one
/// [`Projections`] per axis. Its memory does not grow with the tokens. `go_on` is called after every pass with the
/// number of answers done. Returns `None` if it asked to stop.
///
/// # Errors
/// [`Error::Llama`]: those of [`Context::decode`](axiscap_llama::Context::decode), and the hook's for blocks
/// the model does not have and architectures whose block outputs it cannot find. [`Error::AxisWidth`] for axes
/// of another model.
pub fn project(
    model: &Model,
    rollouts: &[Rollout],
    axes: &[(usize, Axis)],
    compute: &ComputeOptions,
    go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Vec<Projections>>, Error> {
    check_widths(model, axes)?;
    let (prompts, prompt_of) = system_prompts(rollouts);
    let empty = OnAxis {
        sums: vec![0.0; rollouts.len()],
        tokens: vec![Distribution::default(); prompts.len()],
        thoughts: Distribution::default(),
    };
    let projector = Projector {
        axes: axes.to_vec(),
        answers: prompt_of.iter().copied().zip(rollouts.iter().map(|rollout| rollout.thoughts)).collect(),
        found: vec![empty; axes.len()],
    };
    let blocks: Vec<_> = axes.iter().map(|(block, _)| *block).collect::<BTreeSet<_>>().into_iter().collect();
    let projector = observe(model, rollouts, &blocks, compute, Rows::Responses, projector, go_on)?;
    let Some(Projector { found, .. }) = projector else { return Ok(None) };
    let prompts: Arc<[SystemPrompt]> = prompts.into();
    let projections = |OnAxis { sums, tokens, thoughts }: OnAxis| {
        let answers = rollouts.iter().zip(&prompt_of).zip(sums);
        let answers = answers.filter(|((rollout, _), _)| !rollout.answer().is_empty());
        let mean =
            |((rollout, &prompt), sum): ((&Rollout, _), f64)| (prompt, sum / rollout.answer().len() as f64);
        Projections { prompts: Arc::clone(&prompts), answers: answers.map(mean).collect(), tokens, thoughts }
    };
    Ok(Some(found.into_iter().map(projections).collect()))
}

/// Returns the system prompts of answers, and which of them each answer has.
fn system_prompts(rollouts: &[Rollout]) -> (Vec<SystemPrompt>, Vec<usize>) {
    let mut prompts = Vec::<SystemPrompt>::new();
    let mut prompt_of = Vec::new();
    for Rollout { group, system, .. } in rollouts {
        let found = prompts.iter().position(|prompt| prompt.group == *group && prompt.text == *system);
        let index = found.unwrap_or_else(|| {
            prompts.push(SystemPrompt { group: group.clone(), text: system.clone(), answers: 0 });
            prompts.len() - 1
        });
        prompt_of.push(index);
    }
    for (rollout, &prompt) in rollouts.iter().zip(&prompt_of) {
        prompts[prompt].answers += usize::from(!rollout.answer().is_empty());
    }
    (prompts, prompt_of)
}

/// What was projected on one axis.
#[derive(Clone)]
struct OnAxis {
    /// Sums over the tokens after the thoughts, `[answers]`.
    sums: Vec<f64>,
    tokens: Vec<Distribution>,
    thoughts: Distribution,
}

/// Projects rows, in f64.
struct Projector {
    axes: Vec<(usize, Axis)>,
    /// Per answer, its system prompt, and the number of tokens of its thoughts.
    answers: Vec<(usize, usize)>,
    /// `[axes]`
    found: Vec<OnAxis>,
}

impl Observer for Projector {
    fn row(&mut self, answer: usize, place: usize, block: usize, row: &[f32]) {
        let (prompt, thoughts) = self.answers[answer];
        let axes = self.axes.iter().zip(&mut self.found);
        for ((_, axis), found) in axes.filter(|((of_block, _), _)| *of_block == block) {
            let projection: f64 =
                axis.values().iter().zip(row).map(|(&v, &h)| f64::from(v) * f64::from(h)).sum();
            if place < thoughts {
                found.thoughts.push(projection);
            } else {
                found.sums[answer] += projection;
                found.tokens[prompt].push(projection);
            }
        }
    }
}
