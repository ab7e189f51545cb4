//! Conversations: many at once, by continuous batching.

use std::collections::HashMap;
use std::ops::ControlFlow;

use axiscap::CapSet;
use axiscap_llama::{
    Asked, Batcher, BatcherOptions, Chat, ChatTemplate, Context, ContextOptions, GenerateOptions, Generated,
    Request, Sampling, Token,
};

use super::material::Script;
use super::record::Answer;
use crate::compute::ComputeOptions;
use crate::error::Error;
use crate::pass::check_caps;
use crate::rollout::{PASS_ROWS, slots, step};

/// How answers are generated.
#[derive(Debug, Clone, Copy)]
pub(super) struct TalkOptions<'a> {
    pub(super) max_tokens: usize,
    pub(super) temperature: f32,
    pub(super) seed: u32,
    pub(super) compute: &'a ComputeOptions,
}

/// Tokens of a question that is asked after the last turn, and of its answer, more or less.
const AFTER: usize = 128;

/// A conversation in progress.
struct Talk<'a> {
    script: &'a Script,
    /// Index among all conversations of the evaluation: what an answer draws does not depend on its neighbours.
    number: usize,
    chat: Chat<'a>,
    asked: Option<Asked>,
    answers: Vec<Answer>,
}

/// Has conversations, each to the end of its script or until the context of the model's training is full. Scripts come
/// with their indices among all conversations. `go_on` is called after every batch with the number of answers. Returns
/// `None` if it asked to stop.
pub(super) fn talk(
    template: &ChatTemplate<'_>,
    scripts: &[(usize, &Script)],
    caps: Option<&CapSet>,
    options: TalkOptions<'_>,
    mut go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Vec<Vec<Answer>>>, Error> {
    let model = template.model();
    let trained = model.trained_context() as usize;
    let trained = if trained == 0 { usize::MAX } else { trained };
    let mut talks = Vec::new();
    let mut longest = 0;
    for &(number, script) in scripts {
        let chat = Chat::new(template, script.system.as_deref());
        // Markup and messages, each with those that come before every message, and the answers.
        let mut room = 0;
        for turn in &script.turns {
            room += chat.ask(turn)?.tokens().len() + options.max_tokens + 1;
        }
        longest = longest.max(room.min(trained));
        talks.push(Talk { script, number, chat, asked: None, answers: Vec::new() });
    }
    let most = slots(model, scripts.len());
    let limit = model.rope_limit(longest).unwrap_or(usize::MAX);
    let sequences = (limit / longest.max(1)).clamp(1, most.max(1));
    let context_options = ContextOptions {
        ctx: Some(u32::try_from(sequences * longest).unwrap_or(u32::MAX)),
        batch: PASS_ROWS,
        ubatch: PASS_ROWS,
        sequences: u32::try_from(sequences).unwrap_or(u32::MAX),
        ..options.compute.context()
    };
    let mut context = match caps {
        Some(_) => Context::new(model, &context_options)?,
        None => Context::uncapped(model, &context_options)?,
    };
    if caps.is_some() {
        context.set_caps(caps)?;
    }
    let queue = BatcherOptions { queue: scripts.len().max(1), reuse: true, statistics: false };
    let mut batcher = Batcher::new(context, queue)?;
    let (mut open, mut done) = (HashMap::new(), 0);
    for (index, talk) in talks.iter_mut().enumerate() {
        let Some(request) = talk.next(trained, options)? else { continue };
        open.insert(batcher.submit(request)?, index);
    }
    while !open.is_empty() {
        for (id, generated) in step(&mut batcher)? {
            let Some(index) = open.remove(&id) else { continue };
            talks[index].take(&generated);
            done += 1;
            if let Some(request) = talks[index].next(trained, options)? {
                open.insert(batcher.submit(request)?, index);
            }
        }
        if go_on(done).is_break() && !open.is_empty() {
            return Ok(None);
        }
    }
    if let Some(caps) = caps {
        check_caps(batcher.context(), caps)?;
    }
    Ok(Some(talks.into_iter().map(|talk| talk.answers).collect()))
}

impl Talk<'_> {
    /// Returns the next answer to be generated. `None` after the last turn, and where there is no room for another.
    fn next(&mut self, trained: usize, options: TalkOptions<'_>) -> Result<Option<Request>, Error> {
        let turn = self.answers.len();
        let Some(message) = self.script.turns.get(turn) else { return Ok(None) };
        let asked = self.chat.ask(message)?;
        let prompt = asked.tokens().len();
        // Room for the questions that are asked after the last turn.
        let more = AFTER.min(trained / 8);
        if prompt + options.max_tokens + more > trained {
            if turn == 0 {
                let (id, trained) = (self.script.id.clone(), u32::try_from(trained).unwrap_or(u32::MAX));
                return Err(Error::ConversationTooLong { id, prompt, trained });
            }
            return Ok(None);
        }
        let place = u32::try_from(self.number * 1000 + turn).unwrap_or(u32::MAX);
        let seed = options.seed.wrapping_add(place);
        let sampling = Sampling { temperature: options.temperature, seed, ..Sampling::default() };
        let (margins, log_probabilities) = (false, false);
        let generate =
            GenerateOptions { max_tokens: options.max_tokens, sampling, margins, log_probabilities };
        let request =
            Request { answers: asked.answers().to_vec(), ..Request::new(asked.tokens().to_vec(), generate) };
        self.asked = Some(asked);
        Ok(Some(request))
    }

    fn take(&mut self, generated: &Generated) {
        let Some(asked) = self.asked.take() else { return };
        self.chat.answer(asked, &generated.tokens, &generated.text);
        let tokens = generated.tokens.iter().map(|token| token.0).collect();
        self.answers.push(Answer { text: generated.text.clone(), tokens });
    }
}

/// Returns the prompt and the answer of every turn of a conversation, as tokens, and the conversation after its first
/// turn and after its last.
pub(super) fn turns<'a>(
    template: &'a ChatTemplate<'a>,
    script: &Script,
    answers: &[Answer],
) -> Result<Turns<'a>, Error> {
    let mut chat = Chat::new(template, script.system.as_deref());
    let mut first = Chat::new(template, script.system.as_deref());
    let mut texts = Vec::new();
    for (index, (message, answer)) in script.turns.iter().zip(answers).enumerate() {
        let asked = chat.ask(message)?;
        texts.push((ids(asked.tokens()), answer.tokens.clone()));
        let tokens: Vec<Token> = answer.tokens.iter().map(|&token| Token(token)).collect();
        if index == 0 {
            first.answer(asked.clone(), &tokens, &answer.text);
        }
        chat.answer(asked, &tokens, &answer.text);
    }
    Ok(Turns { texts, first, last: chat })
}

/// What was said in a conversation.
pub(super) struct Turns<'a> {
    /// Prompts and answers.
    pub(super) texts: Vec<(Vec<i32>, Vec<i32>)>,
    /// The conversation after its first turn.
    pub(super) first: Chat<'a>,
    /// The whole conversation.
    pub(super) last: Chat<'a>,
}

pub(super) fn ids(tokens: &[Token]) -> Vec<i32> {
    tokens.iter().map(|token| token.0).collect()
}
