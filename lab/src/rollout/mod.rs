//! Many answers at once, by continuous batching over one uncapped context; what they answer, and where they
//! are kept.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use axiscap_llama::{
    self as batcher, Batcher, BatcherOptions, ChatTemplate, Context, ContextOptions, Event, GenerateOptions,
    Generated, Message, Model, RequestId, Role, Sampling, Token,
};

use sha2::{Digest, Sha256};

use crate::compute::ComputeOptions;
use crate::error::Error;

mod fault;
mod file;
mod part;
mod plan;
mod sift;

pub use fault::{Fault, Inspector};
pub use file::{Judged, Rollout, RolloutHeader, Rollouts};
pub use part::RolloutPart;
pub use plan::{Group, Plan, PlanSize, Question, Request, RolePlay, Trait};
pub use sift::{FaultCounts, sift};

/// How to generate answers.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutOptions {
    /// Maximum tokens of an answer.
    pub max_tokens: usize,
    /// How tokens are chosen. The seed is that of each request.
    pub sampling: Sampling,
    /// Answers generated side by side.
    pub slots: usize,
    /// How llama.cpp computes.
    pub compute: ComputeOptions,
}

impl Default for RolloutOptions {
    /// Returns 160 tokens at temperature 0.7, 16 answers side by side.
    fn default() -> Self {
        let sampling = Sampling { temperature: 0.7, ..Sampling::default() };
        Self { max_tokens: 160, sampling, slots: 16, compute: ComputeOptions::default() }
    }
}

/// Rows of one pass: enough to keep the cores busy, few enough for their logits to fit into memory.
pub(crate) const PASS_ROWS: u32 = 512;

/// How often a group of answers fills every slot. The last answers of a group run with fewer and fewer
/// neighbours, which costs less the longer the group is. A run that is stopped loses less the shorter it is.
const ROUNDS: usize = 4;

/// Generates the answer to every request. `on_progress` is called with the number of answers done.
///
/// A slot whose answer has ended takes the next request of its group at once. Every answer has its own seed
/// and sampler. The same requests and options give the same answers. With another number of slots llama.cpp's
/// batched matrix products differ in their last bits, which may tip a draw and change the rest of the answer.
/// Recurrent and hybrid models are decoded one answer at a time, because their state cannot be batched with
/// prompts of other lengths.
///
/// # Errors
/// Those of [`ChatTemplate::render`], [`Error::AnswerTooLong`], and those of [`Context::decode`].
pub fn generate_rollouts(
    template: &ChatTemplate<'_>,
    requests: &[Request],
    options: &RolloutOptions,
    mut on_progress: impl FnMut(usize),
) -> Result<Vec<Rollout>, Error> {
    let mut generator = Generator::new(template, requests, options)?;
    let (mut rollouts, mut reported) = (Vec::new(), 0);
    while rollouts.len() < requests.len() {
        let group = generator.group(rollouts.len(), |done| {
            // Several answers may end at once.
            (reported + 1..=done).for_each(&mut on_progress);
            reported = done;
            ControlFlow::Continue(())
        })?;
        rollouts.extend(group.unwrap_or_default());
    }
    Ok(rollouts)
}

/// Generates answers group by group, for callers that keep finished groups and continue later.
///
/// A group is a number of consecutive requests. It begins with an empty context, so its answers are the same
/// to the bit whether or not the run was stopped between two groups. (Within a group an answer's neighbours
/// in the batch move its last bits.)
#[derive(Debug)]
pub struct Generator<'a> {
    requests: &'a [Request],
    prompts: Vec<Vec<Token>>,
    options: &'a RolloutOptions,
    slots: usize,
    inspector: Inspector,
    batcher: Batcher<'a>,
}

impl<'a> Generator<'a> {
    /// Makes a context for the answers to these requests.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`] and [`Context::uncapped`], [`Error::AnswerTooLong`].
    pub fn new(
        template: &ChatTemplate<'a>,
        requests: &'a [Request],
        options: &'a RolloutOptions,
    ) -> Result<Self, Error> {
        let model = template.model();
        let inspector = Inspector::new(template)?;
        let prompt = |request: &Request| prompt(template, request.system.as_deref(), &request.text);
        let prompts = requests.iter().map(prompt).collect::<Result<Vec<_>, _>>()?;
        let longest_prompt = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let longest = longest_prompt.saturating_add(options.max_tokens);
        let trained = model.trained_context();
        if longest > trained as usize {
            return Err(Error::AnswerTooLong { prompt: longest_prompt, answer: options.max_tokens, trained });
        }
        let max_ctx = model.rope_limit(longest).unwrap_or(usize::MAX);
        let slots = slots(model, options.slots.min(requests.len())).min(max_ctx / longest.max(1)).max(1);
        let context_options = ContextOptions {
            ctx: Some(u32::try_from(slots * longest).unwrap_or(u32::MAX)),
            batch: PASS_ROWS,
            ubatch: PASS_ROWS,
            sequences: u32::try_from(slots).unwrap_or(u32::MAX),
            ..options.compute.context()
        };
        let context = Context::uncapped(model, &context_options)?;
        // The rows of an answer that has ended would only be in the way.
        let queue = ROUNDS * slots;
        let batcher = Batcher::new(context, BatcherOptions { queue, reuse: false, statistics: false })?;
        Ok(Self { requests, prompts, options, slots, inspector, batcher })
    }

    /// Returns the number of answers of a group. The last group may be shorter.
    #[must_use]
    pub fn group_size(&self) -> usize {
        ROUNDS * self.slots
    }

    /// Returns the tokens of the prompt of every request.
    #[must_use]
    pub fn prompts(&self) -> &[Vec<Token>] {
        &self.prompts
    }

    /// Returns the SHA-256 of all prompts' tokens, in hexadecimal. Other prompts are another experiment.
    #[must_use]
    pub fn prompts_sha256(&self) -> String {
        let mut digest = Sha256::new();
        for prompt in &self.prompts {
            digest.update((prompt.len() as u64).to_le_bytes());
            prompt.iter().for_each(|token| digest.update(token.0.to_le_bytes()));
        }
        format!("{:x}", digest.finalize())
    }

    /// Generates the answers of the group that begins with request `first`, in order. Returns `None` if
    /// `go_on` asked to stop. `go_on` is called after every pass with the number of all answers done.
    ///
    /// # Errors
    /// Those of [`Context::decode`].
    pub fn group(
        &mut self,
        first: usize,
        mut go_on: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Rollout>>, Error> {
        let end = self.requests.len().min(first.saturating_add(self.group_size()));
        let mut done: Vec<Option<Rollout>> = (first..end).map(|_| None).collect();
        let mut finished = first;
        self.batcher.clear();
        let mut places = HashMap::new();
        for index in first..end {
            let sampling = Sampling { seed: self.requests[index].seed, ..self.options.sampling };
            let (max_tokens, margins) = (self.options.max_tokens, false);
            let options = GenerateOptions { max_tokens, sampling, margins, log_probabilities: true };
            let request = batcher::Request::new(self.prompts[index].clone(), options);
            places.insert(self.batcher.submit(request)?, index);
        }
        while finished < end {
            for (id, answer) in step(&mut self.batcher)? {
                let index = places[&id];
                done[index - first] = Some(self.rollout(index, &answer));
                finished += 1;
            }
            if go_on(finished).is_break() && finished < end {
                return Ok(None);
            }
        }
        Ok(Some(done.into_iter().flatten().collect()))
    }

    fn rollout(&self, index: usize, answer: &Generated) -> Rollout {
        let ids = |tokens: &[Token]| tokens.iter().map(|token| token.0).collect();
        let (request, response) = (&self.requests[index], &answer.tokens);
        let model = self.batcher.context().model();
        let written = model.written(response);
        // The last probability may be that of the token that ended the turn.
        let log_likelihood: f64 =
            answer.log_probabilities[..response.len()].iter().map(|&p| f64::from(p)).sum();
        Rollout {
            group: request.group.clone(),
            system: request.system.clone(),
            question: request.question,
            seed: request.seed,
            prompt: ids(&self.prompts[index]),
            response: ids(response),
            thoughts: tokens_of(model, response, self.inspector.thoughts(&written)),
            text: model.detokenize(response),
            log_likelihood: log_likelihood.is_finite().then_some(log_likelihood as f32),
            score: None,
            faults: self.inspector.faults(&written, answer.stop),
        }
    }
}

/// Decodes one batch, and returns the answers that ended in it.
pub(crate) fn step(batcher: &mut Batcher<'_>) -> Result<Vec<(RequestId, Generated)>, Error> {
    let (mut ended, mut failed) = (Vec::new(), None);
    batcher.step(|event| match event {
        Event::Done { request, result: Ok(answer) } => ended.push((request, answer.generated)),
        // All answers of a batch fail for one reason.
        Event::Done { result: Err(error), .. } => drop(failed.get_or_insert(error)),
        _ => {}
    });
    match failed {
        Some(error) => Err(Arc::into_inner(error).expect("the batcher keeps no errors").into()),
        None => Ok(ended),
    }
}

/// Returns how many of the first tokens have the first `bytes` of the text that they write.
fn tokens_of(model: &Model, tokens: &[Token], bytes: usize) -> usize {
    if bytes == 0 {
        return 0;
    }
    let counts: Vec<usize> = (0..=tokens.len()).collect();
    // A longer beginning never writes less.
    counts.partition_point(|&count| model.written(&tokens[..count]).len() < bytes).min(tokens.len())
}

/// Returns how many answers may run side by side.
pub(crate) fn slots(model: &Model, wanted: usize) -> usize {
    if model.keeps_state() || model.is_one_token_at_a_time() {
        tracing::info!("llama.cpp cannot batch this model's answers: they are decoded one at a time");
        return 1;
    }
    wanted.max(1)
}

/// Returns the tokens of the templated prompt of a question.
pub(crate) fn prompt(
    template: &ChatTemplate<'_>,
    system: Option<&str>,
    question: &str,
) -> Result<Vec<Token>, Error> {
    let mut messages = Vec::new();
    if let Some(system) = system {
        messages.push(Message::new(Role::System, system));
    }
    messages.push(Message::new(Role::User, question));
    Ok(template.prompt(&messages)?)
}
