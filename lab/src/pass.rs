//! Given texts through a model, in full batches.

use std::ops::ControlFlow;

use axiscap_llama::{BatchRow, Context, ContextOptions, Model, Token};

use crate::compute::ComputeOptions;
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

    /// Returns whether the row at a position predicts a token of the response.
    pub(crate) fn predicts(&self, position: usize) -> bool {
        position + 1 >= self.prompt.len() && position + 1 < self.length()
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
    /// The first text that is not decoded whole.
    next: usize,
    /// How many of its rows are.
    fed: usize,
    /// Sequences whose texts the last batch ended.
    ended: Vec<i32>,
}

impl<'t, 'm> Pass<'t, 'm> {
    /// Makes a context with room for these texts, with or without the hook.
    pub(crate) fn new(
        model: &'m Model,
        texts: &'t [Text<'t>],
        compute: &ComputeOptions,
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
            sequences: u32::try_from(sequences).unwrap_or(u32::MAX),
            ..compute.context()
        };
        let context =
            if is_hooked { Context::new(model, &options)? } else { Context::uncapped(model, &options)? };
        Ok(Self { texts, sequences, context, next: 0, fed: 0, ended: Vec::new() })
    }

    /// Returns the context.
    pub(crate) fn context(&self) -> &Context<'m> {
        &self.context
    }

    /// Returns the context, to set its caps.
    pub(crate) fn context_mut(&mut self) -> &mut Context<'m> {
        &mut self.context
    }

    /// Returns the number of texts that are decoded whole.
    pub(crate) fn done(&self) -> usize {
        self.next
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
        while let Some(rows) = self.step(&logits, &mut before)? {
            after(&self.context, &rows)?;
            if go_on(self.next).is_break() && self.next < self.texts.len() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Decodes the next batch and returns its rows. `None` after the last text. Passes over the same texts have
    /// the same batches.
    pub(crate) fn step(
        &mut self,
        logits: impl Fn(&Text<'_>, usize) -> bool,
        before: impl FnOnce(&[Row]),
    ) -> Result<Option<Vec<Row>>, Error> {
        for sequence in std::mem::take(&mut self.ended) {
            self.context.truncate(sequence, 0)?;
        }
        if self.next == self.texts.len() {
            return Ok(None);
        }
        let (mut batch, mut rows) = (Vec::new(), Vec::new());
        // The rest of a text longer than a batch shares the context with its beginning.
        let room = self.context.batch().min(self.context.ctx().saturating_sub(self.fed)).max(1);
        // A sequence may be used once per batch: it must not hold rows of two texts.
        for _ in 0..self.sequences {
            let Some(text) = self.texts.get(self.next) else { break };
            let sequence = id(self.next % self.sequences);
            let take = (text.length() - self.fed).min(room - rows.len());
            for position in self.fed..self.fed + take {
                let logits = logits(text, position);
                let token = text.token(position);
                batch.push(BatchRow { token, position: id(position), sequence, logits });
                rows.push(Row { text: self.next, position, logits });
            }
            self.fed += take;
            if self.fed < text.length() {
                break;
            }
            self.ended.push(sequence);
            (self.next, self.fed) = (self.next + 1, 0);
        }
        before(&rows);
        if !batch.is_empty() {
            self.context.decode(&batch)?;
        }
        Ok(Some(rows))
    }
}

/// Converts positions and sequences, which are below the context's size and therefore fit.
fn id(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}
