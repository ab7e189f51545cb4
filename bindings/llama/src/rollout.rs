//! Many answers at once: continuous batching over one uncapped context.

use std::collections::VecDeque;

use llama_cpp_2::sampling::LlamaSampler;

use crate::Token;
use crate::chat::{Message, Role};
use crate::context::{BatchRow, Context, ContextOptions};
use crate::error::Error;
use crate::generate::Sampling;
use crate::model::Model;
use crate::rollout_file::Rollout;
use crate::rollout_plan::Request;
use crate::utf8::Utf8;

/// How to generate answers.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutOptions {
    /// Most tokens of an answer.
    pub max_tokens: usize,
    /// How tokens are chosen. The seed is each request's own.
    pub sampling: Sampling,
    /// Answers generated side by side.
    pub slots: usize,
    /// Threads for the CPU; `None`: [`default_threads`](crate::default_threads).
    pub threads: Option<usize>,
    /// A chat template that llama.cpp knows, e.g. `chatml`; `None`: the model's own.
    pub chat_template: Option<String>,
}

impl Default for RolloutOptions {
    /// 48 tokens at temperature 0.7, 16 answers side by side.
    fn default() -> Self {
        let sampling = Sampling { temperature: 0.7, ..Sampling::default() };
        Self { max_tokens: 48, sampling, slots: 16, threads: None, chat_template: None }
    }
}

/// Rows of one pass: enough to keep the cores busy, few enough for the logits to stay in memory.
pub(crate) const PASS_ROWS: u32 = 512;

/// Generates the answer to every request. `on_progress` is told how many are done.
///
/// A slot whose answer has ended takes the next request at once. Every answer has a seed and a sampler of its own.
/// The same requests and options give the same answers; with another number of slots llama.cpp's batched matrix
/// products differ in their last bits, which can tip a draw, and the answer goes another way from there.
/// Recurrent and hybrid models are decoded one answer at a time: their state cannot be batched with prompts of
/// other lengths.
///
/// # Errors
/// Those of [`Model::render`], [`Error::PromptTooLong`], and those of [`Context::decode`].
pub fn generate_rollouts(
    model: &Model,
    requests: &[Request],
    options: &RolloutOptions,
    mut on_progress: impl FnMut(usize),
) -> Result<Vec<Rollout>, Error> {
    let mut queue = VecDeque::new();
    for (index, request) in requests.iter().enumerate() {
        let prompt = prompt(model, request, options.chat_template.as_deref())?;
        queue.push_back((index, prompt));
    }
    let longest = queue.iter().map(|(_, prompt)| prompt.len()).max().unwrap_or(0) + options.max_tokens;
    let trained = model.trained_context();
    if longest > trained as usize {
        return Err(Error::PromptTooLong { prompt: longest, context: trained as usize, trained });
    }
    let slots = slots(model, options.slots.min(requests.len()));
    let context_options = ContextOptions {
        ctx: Some(u32::try_from(slots * longest).unwrap_or(u32::MAX)),
        batch: PASS_ROWS,
        ubatch: PASS_ROWS,
        threads: options.threads,
        sequences: u32::try_from(slots).unwrap_or(u32::MAX),
        ..ContextOptions::default()
    };
    let mut context = Context::uncapped(model, &context_options)?;
    let mut done: Vec<Option<Rollout>> = requests.iter().map(|_| None).collect();
    let mut active: Vec<Option<Slot>> = (0..slots).map(|_| None).collect();
    let mut finished = 0;
    while finished < requests.len() {
        for slot in active.iter_mut().filter(|slot| slot.is_none()) {
            let Some((index, prompt)) = queue.pop_front() else { break };
            let sampling = Sampling { seed: requests[index].seed, ..options.sampling };
            *slot = Some(Slot { index, fed: 0, prompt, response: Vec::new(), sampler: sampling.sampler()? });
        }
        let (rows, ends) = next_batch(&mut active, context.batch());
        context.decode(&rows)?;
        for (row, sequence) in ends {
            let Some(slot) = &mut active[sequence] else { continue };
            let token = slot.sampler.sample(context.llama(), i32::try_from(row).unwrap_or(i32::MAX));
            let ended = model.ends_generation(token);
            if !ended {
                slot.response.push(token);
            }
            if ended || slot.response.len() >= options.max_tokens {
                context.truncate(i32::try_from(sequence).unwrap_or(i32::MAX), 0)?;
                if let Some(slot) = active[sequence].take() {
                    let index = slot.index;
                    done[index] = Some(slot.rollout(model, &requests[index]));
                    finished += 1;
                    on_progress(finished);
                }
            }
        }
    }
    Ok(done.into_iter().flatten().collect())
}

/// How many answers may run side by side.
pub(crate) fn slots(model: &Model, wanted: usize) -> usize {
    if model.llama().is_recurrent() || model.llama().is_hybrid() {
        tracing::info!("a recurrent or hybrid model: answers are decoded one at a time");
        return 1;
    }
    wanted.max(1)
}

/// The tokens of the templated prompt of a request.
fn prompt(model: &Model, request: &Request, template: Option<&str>) -> Result<Vec<Token>, Error> {
    let mut messages = Vec::new();
    if let Some(system) = &request.system {
        messages.push(Message::new(Role::System, system));
    }
    messages.push(Message::new(Role::User, &request.text));
    model.tokenize(&model.render(&messages, template, true)?, true)
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
    /// The token at a position of the sequence.
    fn token(&self, position: usize) -> Token {
        self.prompt.get(position).copied().unwrap_or_else(|| self.response[position - self.prompt.len()])
    }

    fn rollout(self, model: &Model, request: &Request) -> Rollout {
        let mut utf8 = Utf8::default();
        let mut text: String = self.response.iter().map(|&token| utf8.push(&model.piece(token))).collect();
        text.push_str(&utf8.finish());
        let ids = |tokens: &[Token]| tokens.iter().map(|token| token.0).collect();
        Rollout {
            role: request.role.clone(),
            system: request.system.clone(),
            question: request.question,
            seed: request.seed,
            prompt: ids(&self.prompt),
            response: ids(&self.response),
            text,
        }
    }
}

/// The next rows of all slots, at most `most`: one token of each answer under way, and as much of the prompts as
/// fits. With them, the rows to sample from and their sequences.
fn next_batch(active: &mut [Option<Slot>], most: usize) -> (Vec<BatchRow>, Vec<(usize, usize)>) {
    let (mut rows, mut ends) = (Vec::new(), Vec::new());
    for (sequence, slot) in active.iter_mut().enumerate() {
        let Some(slot) = slot else { continue };
        let length = slot.prompt.len() + slot.response.len();
        for position in slot.fed..length.min(slot.fed + most - rows.len()) {
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
    fn batches_mix_single_tokens_and_parts_of_prompts() {
        let mut active = [slot(3, 2, 4), None, slot(10, 0, 0), slot(4, 0, 0)];
        let (rows, ends) = next_batch(&mut active, 8);
        assert_eq!(rows.len(), 8);
        assert_eq!(ends, [(0, 0)]);
        assert_eq!((rows[0].position, rows[0].token, rows[0].logits), (4, Token(1), true));
        assert!(rows[1..].iter().all(|row| row.sequence == 2 && !row.logits));
        let (rows, ends) = next_batch(&mut active, 8);
        // Slot 0 waits for its next token; slot 2 goes on where it was, slot 3 starts.
        assert_eq!(rows.iter().map(|r| (r.sequence, r.position)).next(), Some((2, 7)));
        assert_eq!(ends, [(2, 2), (6, 3)]);
    }
}
