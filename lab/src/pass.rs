//! Given texts through a model, in full batches.

use std::collections::VecDeque;
use std::ops::{ControlFlow, Range};

use axiscap::CapSet;
use axiscap_llama::{BatchRow, Context, ContextOptions, Model, Token, TraceRow};

use crate::compute::ComputeOptions;
use crate::error::Error;
use crate::rollout::{PASS_ROWS, Rollout, slots};

/// Maximum sequences decoded side by side.
const MAX_SEQUENCES: usize = 64;

/// Rows that the KV cache holds for lanes of several texts, unless a single text is longer.
const MAX_HELD: usize = 4096;

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

    /// Returns how many rows of an earlier text's cache this one can go on with: its own response, and the row that
    /// predicts the beginning of it, are always decoded.
    fn shared(&self, earlier: &Self) -> usize {
        let most = self.prompt.len().saturating_sub(1).min(earlier.length());
        (0..most).take_while(|&position| self.token(position) == earlier.token(position)).count()
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
    pub(crate) sequence: i32,
    pub(crate) logits: bool,
}

/// Refuses what a context computed if a cap met a projection that is not finite. Such rows are left alone: they would
/// count as read under caps.
pub(crate) fn check_caps(context: &Context<'_>, caps: &CapSet) -> Result<(), Error> {
    let stats = context.session()?.stats();
    let damaged = caps.caps().iter().zip(&stats).find(|(_, stats)| stats.non_finite > 0);
    damaged.map_or(Ok(()), |(entry, _)| Err(Error::NonFinite { block: entry.block }))
}

/// Returns the text that a traced row of a batch belongs to.
pub(crate) fn text_of(rows: &[Row], traced: &TraceRow) -> Option<usize> {
    rows.iter().find(|row| row.sequence == traced.sequence).map(|row| row.text)
}

/// Texts that follow each other on one sequence. Each goes on with the rows that it shares with the one before.
struct Lane {
    /// The texts that are not decoded whole.
    texts: Range<usize>,
    sequence: i32,
    /// Rows of the first of them that are decoded. `None` if it has not begun.
    fed: Option<usize>,
    /// Rows in the KV cache.
    held: usize,
}

/// Texts and the context that they run through.
pub(crate) struct Pass<'t, 'm> {
    texts: &'t [Text<'t>],
    context: Context<'m>,
    /// Texts of the lanes that have not begun.
    waiting: VecDeque<Range<usize>>,
    /// Lanes that have, the oldest first.
    open: Vec<Lane>,
    /// Maximum of these.
    most_open: usize,
    /// Sequences without a lane.
    free: Vec<i32>,
    /// Sequences whose lanes the last batch ended.
    ended: Vec<i32>,
    done: usize,
}

impl<'t, 'm> Pass<'t, 'm> {
    /// Makes a context with room for these texts, each by itself, with or without the hook.
    pub(crate) fn new(
        model: &'m Model,
        texts: &'t [Text<'t>],
        compute: &ComputeOptions,
        is_hooked: bool,
    ) -> Result<Self, Error> {
        Self::in_lanes(model, texts, &vec![1; texts.len()], compute, is_hooked)
    }

    /// Makes a context for texts some of which begin alike. Each number is of consecutive texts that share a lane:
    /// rows that the next one has in common with the one before are not decoded again.
    pub(crate) fn in_lanes(
        model: &'m Model,
        texts: &'t [Text<'t>],
        lanes: &[usize],
        compute: &ComputeOptions,
        is_hooked: bool,
    ) -> Result<Self, Error> {
        let longest = texts.iter().map(Text::length).max().unwrap_or(0).max(1);
        let limit = model.rope_limit(longest).unwrap_or(usize::MAX);
        let sequences = slots(model, MAX_SEQUENCES.min(lanes.len()));
        let (most_open, held) = if lanes.iter().all(|&texts| texts <= 1) {
            // Complete texts are removed after each batch, so at most one spans several batches.
            (sequences, longest)
        } else {
            let lanes = (MAX_HELD.min(limit) / longest).clamp(1, sequences);
            (lanes, lanes.saturating_mul(longest))
        };
        let ctx = held.saturating_add(PASS_ROWS as usize).min(limit);
        let options = ContextOptions {
            ctx: Some(u32::try_from(ctx).unwrap_or(u32::MAX)),
            batch: PASS_ROWS,
            ubatch: PASS_ROWS,
            sequences: u32::try_from(sequences).unwrap_or(u32::MAX),
            ..compute.context()
        };
        let context =
            if is_hooked { Context::new(model, &options)? } else { Context::uncapped(model, &options)? };
        let mut first = 0;
        let waiting = lanes.iter().map(|&count| {
            first += count;
            first - count..first
        });
        Ok(Self {
            texts,
            context,
            waiting: waiting.collect(),
            open: Vec::new(),
            most_open,
            free: (0..id(sequences)).rev().collect(),
            ended: Vec::new(),
            done: 0,
        })
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
        self.done
    }

    /// Runs every text. `logits` says which positions of a text have logits. `before` and `after` see the rows
    /// of each batch. `go_on` is called after every batch with the number of texts done. Returns `false` if it
    /// asked to stop before the last one.
    pub(crate) fn run(
        &mut self,
        logits: impl Fn(&Text<'_>, usize) -> bool,
        mut before: impl FnMut(&[Row]),
        mut after: impl FnMut(&mut Context<'m>, &[Row]) -> Result<(), Error>,
        mut go_on: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<bool, Error> {
        while let Some(rows) = self.step(&logits, &mut before)? {
            after(&mut self.context, &rows)?;
            if go_on(self.done).is_break() && self.done < self.texts.len() {
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
            self.free.push(sequence);
        }
        self.free.sort_unstable_by(|a, b| b.cmp(a));
        if self.open.is_empty() && self.waiting.is_empty() {
            return Ok(None);
        }
        let (mut batch, mut rows) = (Vec::new(), Vec::new());
        let held: usize = self.open.iter().map(|lane| lane.held).sum();
        let room = self.context.batch().min(self.context.ctx().saturating_sub(held)).max(1);
        let mut index = 0;
        // A sequence may be used once per batch: it must not hold rows of two texts.
        while rows.len() < room {
            if index == self.open.len() && !self.begin_lane() {
                break;
            }
            index += usize::from(!self.feed(index, room, &logits, &mut batch, &mut rows)?);
        }
        before(&rows);
        if !batch.is_empty() {
            self.context.decode(&batch)?;
        }
        Ok(Some(rows))
    }

    /// Gives the next lane a sequence. Returns `false` if none waits, or there is no room for it.
    fn begin_lane(&mut self) -> bool {
        if self.open.len() == self.most_open || self.waiting.is_empty() {
            return false;
        }
        let Some(sequence) = self.free.pop() else { return false };
        let Some(texts) = self.waiting.pop_front() else { return false };
        self.open.push(Lane { texts, sequence, fed: None, held: 0 });
        true
    }

    /// Adds rows of the first text of a lane to a batch. Returns whether the lane ended, and was removed.
    fn feed(
        &mut self,
        index: usize,
        room: usize,
        logits: impl Fn(&Text<'_>, usize) -> bool,
        batch: &mut Vec<BatchRow>,
        rows: &mut Vec<Row>,
    ) -> Result<bool, Error> {
        let lane = &mut self.open[index];
        if lane.texts.is_empty() {
            // Its sequence held no row.
            self.free.push(self.open.remove(index).sequence);
            return Ok(true);
        }
        let (place, sequence) = (lane.texts.start, lane.sequence);
        let text = &self.texts[place];
        let fed = match lane.fed {
            Some(fed) => fed,
            None if lane.held == 0 => 0,
            None => {
                let shared = text.shared(&self.texts[place - 1]);
                // A model that keeps a state in place of rows begins again.
                if shared > 0 && self.context.truncate(sequence, shared).is_ok() {
                    shared
                } else {
                    self.context.truncate(sequence, 0)?;
                    0
                }
            }
        };
        let take = (text.length() - fed).min(room - rows.len());
        for position in fed..fed + take {
            let (logits, token) = (logits(text, position), text.token(position));
            batch.push(BatchRow { token, position: id(position), sequence, logits });
            rows.push(Row { text: place, position, sequence, logits });
        }
        lane.held = fed + take;
        lane.fed = Some(lane.held).filter(|&fed| fed < text.length());
        if lane.fed.is_none() {
            lane.texts.start += 1;
            self.done += 1;
        }
        let is_over = lane.texts.is_empty();
        if is_over {
            self.ended.push(self.open.remove(index).sequence);
        }
        Ok(is_over)
    }
}

/// Converts positions and sequences, which are below the context's size and therefore fit.
fn id(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}
