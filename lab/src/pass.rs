//! Given texts through a model, in full batches.

use std::ops::ControlFlow;

use axiscap_llama::{BatchRow, Context, ContextOptions, Model, Token};

use crate::error::Error;
use crate::rollout::{PASS_ROWS, Rollout, slots};

/// Maximum sequences decoded side by side.
const MAX_SEQUENCES: usize = 64;

/// A prompt and its response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text<'a> {
    pub(crate) prompt: &'a [i32],
    pub(crate) response: &'a [i32],
}

impl<'a> Text<'a> {
    /// Returns an answer after its own prompt.
    pub(crate) fn of(rollout: &'a Rollout) -> Self {
        Self { prompt: &rollout.prompt, response: &rollout.response }
    }

    pub(crate) fn length(&self) -> usize {
        self.prompt.len() + self.response.len()
    }

    pub(crate) fn token(&self, position: usize) -> Token {
        let response = || self.response[position - self.prompt.len()];
        Token(self.prompt.get(position).copied().unwrap_or_else(response))
    }
}

/// A row of a batch: which text it is of, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) text: usize,
    pub(crate) position: usize,
    pub(crate) logits: bool,
}

/// Texts and the context that they run through.
pub(crate) struct Pass<'t, 'm> {
    texts: &'t [Text<'t>],
    sequences: usize,
    context: Context<'m>,
}

impl<'t, 'm> Pass<'t, 'm> {
    /// Makes a context with room for these texts, with or without the hook.
    pub(crate) fn new(
        model: &'m Model,
        texts: &'t [Text<'t>],
        threads: Option<usize>,
        is_hooked: bool,
    ) -> Result<Self, Error> {
        let longest = texts.iter().map(Text::length).max().unwrap_or(0);
        let sequences = slots(model, MAX_SEQUENCES.min(texts.len()));
        // Complete texts are removed after each batch, so at most one spans several batches.
        let room = longest.saturating_add(PASS_ROWS as usize);
        let ctx = room.min(model.rope_limit(longest).unwrap_or(usize::MAX));
        let options = ContextOptions {
            ctx: Some(u32::try_from(ctx).unwrap_or(u32::MAX)),
            batch: PASS_ROWS,
            ubatch: PASS_ROWS,
            threads,
            sequences: u32::try_from(sequences).unwrap_or(u32::MAX),
            ..ContextOptions::default()
        };
        let context =
            if is_hooked { Context::new(model, &options)? } else { Context::uncapped(model, &options)? };
        Ok(Self { texts, sequences, context })
    }

    /// Returns the context.
    pub(crate) fn context(&self) -> &Context<'m> {
        &self.context
    }

    /// Runs every text. `logits` says which positions of a text have logits. `before` and `after` see the rows
    /// of each batch. `go_on` is called after every batch with the number of texts done. Returns `false` if it
    /// asked to stop before the last one.
    pub(crate) fn run(
        &mut self,
        logits: impl Fn(&Text<'_>, usize) -> bool,
        mut before: impl FnMut(&[Row]),
        mut after: impl FnMut(&Context<'m>, &[Row]) -> Result<(), Error>,
        mut go_on: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<bool, Error> {
        let Self { texts, sequences, context } = self;
        let (mut next, mut fed) = (0, 0);
        while next < texts.len() {
            let (mut batch, mut rows, mut ended) = (Vec::new(), Vec::new(), Vec::new());
            // The rest of a text longer than a batch shares the context with its beginning.
            let room = context.batch().min(context.ctx().saturating_sub(fed)).max(1);
            // A sequence may be used once per batch: it must not hold rows of two texts.
            for _ in 0..*sequences {
                let Some(text) = texts.get(next) else { break };
                let sequence = id(next % *sequences);
                let take = (text.length() - fed).min(room - rows.len());
                for position in fed..fed + take {
                    let logits = logits(text, position);
                    let token = text.token(position);
                    batch.push(BatchRow { token, position: id(position), sequence, logits });
                    rows.push(Row { text: next, position, logits });
                }
                fed += take;
                if fed < text.length() {
                    break;
                }
                ended.push(sequence);
                (next, fed) = (next + 1, 0);
            }
            before(&rows);
            if !batch.is_empty() {
                context.decode(&batch)?;
            }
            after(context, &rows)?;
            for sequence in ended {
                context.truncate(sequence, 0)?;
            }
            if go_on(next).is_break() && next < texts.len() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Converts positions and sequences, which are below the context's size and therefore fit.
fn id(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}
