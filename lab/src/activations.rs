//! Block outputs of given token sequences: one pass over prompts and answers, all blocks at once.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axiscap::Axis;
use axiscap_ggml::{Tap, TapRows};
use axiscap_llama::{BatchRow, Context, ContextOptions, Model, Token};

use crate::calibrate::BlockProjections;
use crate::error::Error;
use crate::rollout::{PASS_ROWS, Rollout, slots};

/// Maximum sequences decoded side by side.
const MAX_SEQUENCES: usize = 64;

/// Mean block outputs of many answers over their response tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct MeanActivations {
    blocks: usize,
    width: usize,
    /// `[answers][blocks][width]`
    means: Vec<f32>,
}

impl MeanActivations {
    /// Takes means `[answers][blocks][width]`.
    ///
    /// # Panics
    /// If the length is no multiple of `blocks * width`.
    #[must_use]
    pub fn new(blocks: usize, width: usize, means: Vec<f32>) -> Self {
        assert_eq!(means.len() % (blocks * width).max(1), 0, "means are [answers][{blocks}][{width}]");
        Self { blocks, width, means }
    }

    /// Returns the number of answers.
    #[must_use]
    pub fn answers(&self) -> usize {
        self.means.len() / (self.blocks * self.width).max(1)
    }

    /// Returns the number of blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Returns the width of the residual stream.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Returns the mean output of a block over an answer's response tokens, `[width]`. Zeros for an answer
    /// without tokens.
    ///
    /// # Panics
    /// If there is no such answer or block.
    #[must_use]
    pub fn mean(&self, answer: usize, block: usize) -> &[f32] {
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        &self.means[(answer * self.blocks + block) * self.width..][..self.width]
    }
}

/// Runs every answer through the uncapped model and averages each block's output over its response tokens, in
/// f64. The token that ends the turn is not one of them. `go_on` is called after every pass with the number
/// of answers done. Returns `None` if it asked to stop.
///
/// # Errors
/// [`Error::Llama`]: those of [`Context::decode`], and the hook's for architectures whose block outputs it
/// cannot find.
pub fn mean_activations(
    model: &Model,
    rollouts: &[Rollout],
    threads: Option<usize>,
    go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<MeanActivations>, Error> {
    let (blocks, width) = (model.shape().blocks, model.shape().width);
    let averager = Averager {
        blocks,
        width,
        lengths: rollouts.iter().map(|rollout| rollout.response.len()).collect(),
        open: HashMap::new(),
        means: vec![0.0; rollouts.len() * blocks * width],
    };
    let all: Vec<usize> = (0..blocks).collect();
    let averager = observe(model, rollouts, &all, threads, averager, go_on)?;
    Ok(averager.map(|averager| MeanActivations::new(blocks, width, averager.means)))
}

/// Projects the block outputs of every answer's response tokens on one axis per block. `axes` names each
/// block once. `go_on` is called after every pass with the number of answers done. Returns `None` if it asked
/// to stop.
///
/// # Errors
/// [`Error::Llama`]: those of [`Context::decode`], and the hook's for blocks the model does not have and
/// architectures whose block outputs it cannot find. [`Error::AxisWidth`] for axes of another model.
pub fn project(
    model: &Model,
    rollouts: &[Rollout],
    axes: &[(usize, Axis)],
    threads: Option<usize>,
    go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Vec<BlockProjections>>, Error> {
    if let Some((block, axis)) = axes.iter().find(|(_, axis)| axis.width() != model.shape().width) {
        return Err(Error::AxisWidth { block: *block, found: axis.width(), expected: model.shape().width });
    }
    let projector = Projector {
        axes: axes.to_vec(),
        sums: vec![vec![0.0; rollouts.len()]; axes.len()],
        tokens: vec![Vec::new(); axes.len()],
    };
    let blocks: Vec<usize> = axes.iter().map(|(block, _)| *block).collect();
    let Some(projector) = observe(model, rollouts, &blocks, threads, projector, go_on)? else {
        return Ok(None);
    };
    let block = |(sums, tokens): (Vec<f64>, Vec<f32>)| BlockProjections {
        answers: rollouts
            .iter()
            .zip(sums)
            .filter(|(rollout, _)| !rollout.response.is_empty())
            .map(|(rollout, sum)| (rollout.role.is_none(), sum / rollout.response.len() as f64))
            .collect(),
        tokens,
    };
    Ok(Some(projector.sums.into_iter().zip(projector.tokens).map(block).collect()))
}

/// Takes the output of every observed block for every response token.
trait Observer: Send + 'static {
    fn row(&mut self, answer: usize, block: usize, row: &[f32]);
}

/// Averages rows. Only answers in progress have their sums in f64.
struct Averager {
    blocks: usize,
    width: usize,
    lengths: Vec<usize>,
    /// Per answer in progress: rows still to come, and sums `[blocks][width]`.
    open: HashMap<usize, (usize, Vec<f64>)>,
    /// `[answers][blocks][width]`
    means: Vec<f32>,
}

impl Observer for Averager {
    fn row(&mut self, answer: usize, block: usize, row: &[f32]) {
        let (size, length) = (self.blocks * self.width, self.lengths[answer]);
        let (left, sums) = self.open.entry(answer).or_insert_with(|| (length * self.blocks, vec![0.0; size]));
        let sum = &mut sums[block * self.width..][..self.width];
        sum.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
        *left -= 1;
        if *left == 0
            && let Some((_, sums)) = self.open.remove(&answer)
        {
            let means = &mut self.means[answer * size..][..size];
            means.iter_mut().zip(sums).for_each(|(mean, sum)| *mean = (sum / length as f64) as f32);
        }
    }
}

/// Projects rows, in f64.
struct Projector {
    axes: Vec<(usize, Axis)>,
    /// `[axes][answers]`
    sums: Vec<Vec<f64>>,
    /// `[axes][response tokens, in order of execution]`
    tokens: Vec<Vec<f32>>,
}

impl Observer for Projector {
    fn row(&mut self, answer: usize, block: usize, row: &[f32]) {
        for (index, (_, axis)) in self.axes.iter().enumerate().filter(|(_, (b, _))| *b == block) {
            let projection: f64 =
                axis.values().iter().zip(row).map(|(&v, &h)| f64::from(v) * f64::from(h)).sum();
            self.sums[index][answer] += projection;
            self.tokens[index].push(projection as f32);
        }
    }
}

/// What the tap needs to know of the current batch, and the observer of its rows.
struct Watched<O> {
    /// Per row of the batch, the answer it is a response token of. `None` for prompt tokens.
    answers: Vec<Option<usize>>,
    /// The rows with logits: the response tokens, if the last block is observed.
    outputs: Vec<usize>,
    observer: O,
    /// The first block whose number of rows did not match the batch, and that number.
    misfit: Option<(usize, usize)>,
}

impl<O: Observer> Watched<O> {
    /// Gives the rows of a block to the observer. A batch is one pass of llama.cpp, and a block has all of
    /// its rows or, the last block, those with logits.
    fn observe(&mut self, block: usize, rows: &TapRows<'_>) {
        let all = rows.rows() == self.answers.len();
        if !all && rows.rows() != self.outputs.len() {
            self.misfit.get_or_insert((block, rows.rows()));
            return;
        }
        for index in 0..rows.rows() {
            let row = if all { index } else { self.outputs[index] };
            if let Some(answer) = self.answers[row] {
                self.observer.row(answer, block, rows.row(index));
            }
        }
    }
}

/// Runs every prompt and answer through the uncapped model in full batches. Returns `None` if `go_on` asked
/// to stop before the last one.
fn observe<O: Observer>(
    model: &Model,
    rollouts: &[Rollout],
    blocks: &[usize],
    threads: Option<usize>,
    observer: O,
    mut go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<O>, Error> {
    let longest = rollouts.iter().map(length).max().unwrap_or(0);
    let sequences = slots(model, MAX_SEQUENCES.min(rollouts.len()));
    // Complete answers are removed after each batch, so at most one spans several batches.
    let ctx = longest.saturating_add(PASS_ROWS as usize).min(model.rope_limit(longest).unwrap_or(usize::MAX));
    // Logits cost a product with the whole vocabulary per row. Only the last block needs them, because it
    // computes no other rows.
    let last_block = blocks.contains(&(model.shape().blocks.saturating_sub(1)));
    let options = ContextOptions {
        ctx: Some(u32::try_from(ctx).unwrap_or(u32::MAX)),
        batch: PASS_ROWS,
        ubatch: PASS_ROWS,
        threads,
        sequences: u32::try_from(sequences).unwrap_or(u32::MAX),
        ..ContextOptions::default()
    };
    let mut context = Context::new(model, &options)?;
    let watched = Watched { answers: Vec::new(), outputs: Vec::new(), observer, misfit: None };
    let watched = Arc::new(Mutex::new(Some(watched)));
    let seen = Arc::clone(&watched);
    let see = move |block: usize, rows: TapRows<'_>| {
        if let Some(watched) = locked(&seen).as_mut() {
            watched.observe(block, &rows);
        }
    };
    let tap = Tap { blocks: blocks.to_vec(), see: Arc::new(see) };
    context.session()?.set_tap(Some(tap)).map_err(axiscap_llama::Error::from)?;
    let (mut next, mut fed) = (0, 0);
    while next < rollouts.len() {
        let (mut rows, mut answers, mut ended) = (Vec::new(), Vec::new(), Vec::new());
        // The rest of an answer longer than a batch shares the context with its beginning.
        let room = context.batch().min(context.ctx().saturating_sub(fed)).max(1);
        // A sequence may be used once per batch: it must not hold rows of two answers.
        for _ in 0..sequences {
            let Some(rollout) = rollouts.get(next) else { break };
            let sequence = id(next % sequences);
            let take = (length(rollout) - fed).min(room - rows.len());
            for position in fed..fed + take {
                let response = position >= rollout.prompt.len();
                let (token, position) = (token(rollout, position), id(position));
                rows.push(BatchRow { token, position, sequence, logits: response && last_block });
                answers.push(response.then_some(next));
            }
            fed += take;
            if fed < length(rollout) {
                break;
            }
            ended.push(sequence);
            (next, fed) = (next + 1, 0);
        }
        if let Some(watched) = locked(&watched).as_mut() {
            watched.outputs = (0..rows.len()).filter(|&row| rows[row].logits).collect();
            watched.answers = answers;
        }
        context.decode(&rows)?;
        if let Some(watched) = locked(&watched).as_ref()
            && let Some((block, found)) = watched.misfit
        {
            let outputs = watched.outputs.len();
            return Err(axiscap_llama::Error::Trace { block, found, rows: rows.len(), outputs }.into());
        }
        for sequence in ended {
            context.truncate(sequence, 0)?;
        }
        if go_on(next).is_break() && next < rollouts.len() {
            return Ok(None);
        }
    }
    context.session()?.set_tap(None).map_err(axiscap_llama::Error::from)?;
    let watched = locked(&watched).take();
    Ok(Some(watched.expect("only this function takes it").observer))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn length(rollout: &Rollout) -> usize {
    rollout.prompt.len() + rollout.response.len()
}

fn token(rollout: &Rollout, position: usize) -> Token {
    let response = || rollout.response[position - rollout.prompt.len()];
    Token(rollout.prompt.get(position).copied().unwrap_or_else(response))
}

/// Converts positions and sequences, which are below the context's size and therefore fit.
fn id(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_is_over_the_response_tokens_and_its_sum_is_dropped() {
        let mut averager =
            Averager { blocks: 2, width: 2, lengths: vec![0, 2], open: HashMap::new(), means: vec![0.0; 8] };
        for (block, row) in [(0, [1.0, 2.0]), (1, [10.0, 20.0]), (0, [3.0, 2.0]), (1, [10.0, 0.0])] {
            assert_eq!(averager.open.len(), usize::from(block != 0 || row[0] == 3.0));
            averager.row(1, block, &row);
        }
        assert!(averager.open.is_empty());
        let means = MeanActivations::new(2, 2, averager.means);
        assert_eq!(means.answers(), 2);
        assert_eq!(means.mean(0, 0), [0.0, 0.0]);
        assert_eq!((means.mean(1, 0), means.mean(1, 1)), ([2.0, 2.0].as_slice(), [10.0, 10.0].as_slice()));
    }
}
