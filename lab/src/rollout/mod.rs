//! Many answers at once, by continuous batching over one uncapped context; what they answer, and where they
//! are kept.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use axiscap_llama::{BatchRow, Context, ContextOptions, Message, Model, Role, Sampling, Token};
use llama_cpp_2::sampling::LlamaSampler;

use crate::error::Error;

mod file;
mod part;
mod plan;

pub use file::{Rollout, RolloutHeader, Rollouts};
pub use part::RolloutPart;
pub use plan::{Plan, Request, RolePlay};

/// How to generate answers.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutOptions {
    /// Maximum tokens of an answer.
    pub max_tokens: usize,
    /// How tokens are chosen. The seed is that of each request.
    pub sampling: Sampling,
    /// Answers generated side by side.
    pub slots: usize,
    /// Threads for the CPU. `None` means [`default_threads`](axiscap_llama::default_threads).
    pub threads: Option<usize>,
    /// A chat template that llama.cpp knows, e.g. `chatml`. `None` means the model's own.
    pub chat_template: Option<String>,
}

impl Default for RolloutOptions {
    /// Returns 48 tokens at temperature 0.7, 16 answers side by side.
    fn default() -> Self {
        let sampling = Sampling { temperature: 0.7, ..Sampling::default() };
        Self { max_tokens: 48, sampling, slots: 16, threads: None, chat_template: None }
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
/// Those of [`Model::render`], [`Error::AnswerTooLong`], and those of [`Context::decode`].
pub fn generate_rollouts(
    model: &Model,
    requests: &[Request],
    options: &RolloutOptions,
    mut on_progress: impl FnMut(usize),
) -> Result<Vec<Rollout>, Error> {
    let mut generator = Generator::new(model, requests, options)?;
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
    context: Context<'a>,
}

impl<'a> Generator<'a> {
    /// Makes a context for the answers to these requests.
    ///
    /// # Errors
    /// Those of [`Model::render`] and [`Context::uncapped`], [`Error::AnswerTooLong`].
    pub fn new(
        model: &'a Model,
        requests: &'a [Request],
        options: &'a RolloutOptions,
    ) -> Result<Self, Error> {
        let prompt = |request| prompt(model, request, options.chat_template.as_deref());
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
            threads: options.threads,
            sequences: u32::try_from(slots).unwrap_or(u32::MAX),
            ..ContextOptions::default()
        };
        let context = Context::uncapped(model, &context_options)?;
        Ok(Self { requests, prompts, options, slots, context })
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
        let model = self.context.model();
        let end = self.requests.len().min(first.saturating_add(self.group_size()));
        let mut queue: VecDeque<usize> = (first..end).collect();
        let mut done: Vec<Option<Rollout>> = queue.iter().map(|_| None).collect();
        let mut active: Vec<Option<Slot>> = (0..self.slots).map(|_| None).collect();
        let mut finished = first;
        self.context.clear();
        while finished < end {
            for slot in active.iter_mut().filter(|slot| slot.is_none()) {
                let Some(index) = queue.pop_front() else { break };
                let sampling = Sampling { seed: self.requests[index].seed, ..self.options.sampling };
                let (prompt, sampler) =
                    (self.prompts[index].clone(), sampling.sampler(model, &self.prompts[index])?);
                *slot = Some(Slot { index, fed: 0, prompt, response: Vec::new(), sampler });
            }
            let (rows, ends) = next_batch(&mut active, self.context.batch());
            self.context.decode(&rows)?;
            for (row, sequence) in ends {
                let Some(slot) = &mut active[sequence] else { continue };
                let token = slot.sampler.sample(self.context.llama(), i32::try_from(row).unwrap_or(i32::MAX));
                let ended = model.ends_generation(token);
                if !ended {
                    slot.response.push(token);
                }
                if ended || slot.response.len() >= self.options.max_tokens {
                    self.context.truncate(i32::try_from(sequence).unwrap_or(i32::MAX), 0)?;
                    if let Some(slot) = active[sequence].take() {
                        let index = slot.index;
                        done[index - first] = Some(slot.rollout(model, &self.requests[index]));
                        finished += 1;
                    }
                }
            }
            if go_on(finished).is_break() && finished < end {
                return Ok(None);
            }
        }
        Ok(Some(done.into_iter().flatten().collect()))
    }
}

/// Returns how many answers may run side by side.
pub(crate) fn slots(model: &Model, wanted: usize) -> usize {
    if model.llama().is_recurrent() || model.llama().is_hybrid() || model.is_one_token_at_a_time() {
        tracing::info!("llama.cpp cannot batch this model's answers: they are decoded one at a time");
        return 1;
    }
    wanted.max(1)
}

/// Returns the tokens of the templated prompt of a request.
fn prompt(model: &Model, request: &Request, template: Option<&str>) -> Result<Vec<Token>, Error> {
    let mut messages = Vec::new();
    if let Some(system) = &request.system {
        messages.push(Message::new(Role::System, system));
    }
    messages.push(Message::new(Role::User, &request.text));
    Ok(model.tokenize(&model.render(&messages, template, true)?, true)?)
}

/// One answer being generated.
struct Slot {
    /// Index of its request.
    index: usize,
    /// Tokens of prompt and response that are in the KV cache.
    fed: usize,
    prompt: Vec<Token>,
    response: Vec<Token>,
    sampler: LlamaSampler,
}

impl Slot {
    /// Returns the token at a position of the sequence.
    fn token(&self, position: usize) -> Token {
        self.prompt.get(position).copied().unwrap_or_else(|| self.response[position - self.prompt.len()])
    }

    fn rollout(self, model: &Model, request: &Request) -> Rollout {
        let ids = |tokens: &[Token]| tokens.iter().map(|token| token.0).collect();
        Rollout {
            role: request.role.clone(),
            system: request.system.clone(),
            question: request.question,
            seed: request.seed,
            prompt: ids(&self.prompt),
            response: ids(&self.response),
            text: model.detokenize(&self.response),
        }
    }
}

/// Returns the next rows of all slots, at most `max`, and with them the rows to sample from and their
/// sequences.
///
/// One token of each answer in progress comes first, then as much of the prompts as fits. A long prompt
/// therefore delays no answer.
fn next_batch(active: &mut [Option<Slot>], max: usize) -> (Vec<BatchRow>, Vec<(usize, usize)>) {
    let (mut rows, mut ends) = (Vec::new(), Vec::new());
    for answering in [true, false] {
        for (sequence, slot) in active.iter_mut().enumerate() {
            let Some(slot) = slot.as_mut().filter(|slot| slot.response.is_empty() != answering) else {
                continue;
            };
            let length = slot.prompt.len() + slot.response.len();
            for position in slot.fed..length.min(slot.fed + max - rows.len()) {
                let logits = position + 1 == length;
                if logits {
                    ends.push((rows.len(), sequence));
                }
                let id = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
                let row = BatchRow {
                    token: slot.token(position),
                    position: id(position),
                    sequence: id(sequence),
                    logits,
                };
                rows.push(row);
                slot.fed += 1;
            }
        }
    }
    (rows, ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(prompt: usize, response: usize, fed: usize) -> Option<Slot> {
        let tokens = |count: usize| (0..count).map(|i| Token(i as i32)).collect();
        let (prompt, response) = (tokens(prompt), tokens(response));
        Some(Slot { index: 0, fed, prompt, response, sampler: LlamaSampler::greedy() })
    }

    #[test]
    fn a_batch_mixes_single_tokens_and_parts_of_prompts() {
        let mut active = [slot(3, 2, 4), None, slot(10, 0, 0), slot(4, 0, 0)];
        let (rows, ends) = next_batch(&mut active, 8);
        assert_eq!(rows.len(), 8);
        assert_eq!(ends, [(0, 0)]);
        assert_eq!((rows[0].position, rows[0].token, rows[0].logits), (4, Token(1), true));
        assert!(rows[1..].iter().all(|row| row.sequence == 2 && !row.logits));
        let (rows, ends) = next_batch(&mut active, 8);
        // Slot 0 waits for its next token, slot 2 continues, slot 3 starts.
        assert_eq!(rows.iter().map(|r| (r.sequence, r.position)).next(), Some((2, 7)));
        assert_eq!(ends, [(2, 2), (6, 3)]);
    }

    #[test]
    fn a_long_prompt_delays_no_answer() {
        let mut active = [slot(50, 0, 3), slot(3, 2, 4), slot(9, 0, 0), slot(5, 1, 5)];
        let (rows, ends) = next_batch(&mut active, 6);
        assert_eq!(ends, [(0, 1), (1, 3)]);
        let prompt: Vec<_> = rows[2..].iter().map(|row| (row.sequence, row.position)).collect();
        assert_eq!(prompt, [(0, 3), (0, 4), (0, 5), (0, 6)]);
    }
}
