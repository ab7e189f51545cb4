//! Block outputs of given token sequences: one pass over prompts and answers, all blocks at once.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axiscap::Axis;
use axiscap_ggml::{Tap, TapRows};
use axiscap_llama::Model;

use crate::compute::ComputeOptions;
use crate::error::Error;
use crate::pass::{Pass, Row, Text};
use crate::rollout::Rollout;

mod means;
mod projections;
mod sinks;

pub use means::{BlockMeans, MeanActivations};
pub use projections::{Projections, SystemPrompt, project};
pub use sinks::{Sink, Sinks, sinks};

/// Runs every answer through the uncapped model and averages each block's output over its tokens, in f64:
/// thoughts and the rest of the response apart. The token that ends the turn is not one of them. The means are
/// kept in a temporary file in `folder`. `go_on` is called after every pass with the number of answers done.
/// Returns `None` if it asked to stop.
///
/// # Errors
/// [`Error::Llama`]: those of [`Context::decode`](axiscap_llama::Context::decode), and the hook's for
/// architectures whose block outputs it cannot find. [`Error::Scratch`].
pub fn mean_activations(
    model: &Model,
    rollouts: &[Rollout],
    compute: &ComputeOptions,
    folder: &Path,
    go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<MeanActivations>, Error> {
    let (blocks, width) = (model.shape().blocks, model.shape().width);
    let has_thoughts: Vec<_> = rollouts.iter().map(|rollout| rollout.thoughts > 0).collect();
    let averager = Averager {
        lengths: rollouts.iter().map(|rollout| (rollout.thoughts, rollout.response.len())).collect(),
        open: HashMap::new(),
        means: MeanActivations::new(folder, blocks, width, &has_thoughts)?,
        failed: None,
    };
    let all: Vec<usize> = (0..blocks).collect();
    match observe(model, rollouts, &all, compute, Rows::Responses, averager, go_on)? {
        Some(Averager { failed: Some(error), .. }) => Err(error),
        averager => Ok(averager.map(|averager| averager.means)),
    }
}

fn check_widths(model: &Model, axes: &[(usize, Axis)]) -> Result<(), Error> {
    match axes.iter().find(|(_, axis)| axis.width() != model.shape().width) {
        Some((block, axis)) => {
            Err(Error::AxisWidth { block: *block, found: axis.width(), expected: model.shape().width })
        }
        None => Ok(()),
    }
}

/// Which rows are observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// Those of response tokens.
    Responses,
    /// Those of prompts too.
    All,
}

impl Rows {
    /// Returns the position of the first one.
    fn first(self, text: &Text<'_>) -> usize {
        if self == Self::Responses { text.prompt.len() } else { 0 }
    }
}

/// Takes the output of every observed block for every observed token.
trait Observer: Send + 'static {
    /// Takes the row of the token with this place among the observed ones of its answer.
    fn row(&mut self, answer: usize, place: usize, block: usize, row: &[f32]);
}

/// Averages rows. Only answers in progress have their sums in f64.
struct Averager {
    /// Per answer, the tokens of its thoughts and of the whole response.
    lengths: Vec<(usize, usize)>,
    /// Per answer in progress: rows still to come, and sums `[thoughts, answer][blocks][width]`.
    open: HashMap<usize, (usize, Vec<f64>)>,
    means: MeanActivations,
    failed: Option<Error>,
}

impl Observer for Averager {
    fn row(&mut self, answer: usize, place: usize, block: usize, row: &[f32]) {
        let (blocks, width) = (self.means.blocks(), self.means.width());
        let (thoughts, length) = self.lengths[answer];
        let size = 2 * blocks * width;
        let (left, sums) = self.open.entry(answer).or_insert_with(|| (length * blocks, vec![0.0; size]));
        let part = usize::from(place >= thoughts);
        let sum = &mut sums[(part * blocks + block) * width..][..width];
        sum.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
        *left -= 1;
        if *left == 0
            && let Some((_, sums)) = self.open.remove(&answer)
        {
            for (part, sums) in sums.chunks(blocks * width).enumerate() {
                let (is_thoughts, count) =
                    if part == 0 { (true, thoughts) } else { (false, length - thoughts) };
                for (block, sums) in sums.chunks(width).enumerate().filter(|_| count > 0) {
                    let mean: Vec<f32> = sums.iter().map(|sum| (sum / count as f64) as f32).collect();
                    let put = self.means.put(answer, is_thoughts, block, &mean);
                    self.failed = self.failed.take().or(put.err());
                }
            }
        }
    }
}

/// What the tap needs to know of the current batch, and the observer of its rows.
struct Watched<O> {
    /// Per row of the batch, its answer, and its place among the observed rows of it. `None` for the others.
    answers: Vec<Option<(usize, usize)>>,
    /// The rows with logits: the observed ones, if the last block is among the blocks.
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
            if let Some((answer, place)) = self.answers[row] {
                self.observer.row(answer, place, block, rows.row(index));
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
    compute: &ComputeOptions,
    observed: Rows,
    observer: O,
    go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<O>, Error> {
    let texts: Vec<_> = rollouts.iter().map(Text::of).collect();
    let mut pass = Pass::new(model, &texts, compute, true)?;
    let watched = Watched { answers: Vec::new(), outputs: Vec::new(), observer, misfit: None };
    let watched = Arc::new(Mutex::new(Some(watched)));
    let seen = Arc::clone(&watched);
    let see = move |block: usize, rows: TapRows<'_>| {
        if let Some(watched) = locked(&seen).as_mut() {
            watched.observe(block, &rows);
        }
    };
    let session = pass.context().session()?.clone();
    let tap = Tap { blocks: blocks.to_vec(), see: Arc::new(see) };
    session.set_tap(Some(tap)).map_err(axiscap_llama::Error::from)?;
    // Logits cost a product with the whole vocabulary per row. Only the last block needs them, because it
    // computes no other rows.
    let last_block = blocks.contains(&(model.shape().blocks.saturating_sub(1)));
    let expect = |rows: &[Row]| {
        if let Some(watched) = locked(&watched).as_mut() {
            let place =
                |row: &Row| Some((row.text, row.position.checked_sub(observed.first(&texts[row.text]))?));
            watched.outputs = (0..rows.len()).filter(|&row| rows[row].logits).collect();
            watched.answers = rows.iter().map(place).collect();
        }
    };
    let check = |rows: &[Row]| {
        let watched = locked(&watched);
        let Some((watched, (block, found))) = watched.as_ref().and_then(|w| Some((w, w.misfit?))) else {
            return Ok(());
        };
        let outputs = watched.outputs.len();
        Err(axiscap_llama::Error::Trace { block, found, rows: rows.len(), outputs }.into())
    };
    let logits = |text: &Text<'_>, position| last_block && position >= observed.first(text);
    let is_done = pass.run(logits, expect, |_, rows| check(rows), go_on)?;
    session.set_tap(None).map_err(axiscap_llama::Error::from)?;
    let watched = locked(&watched).take();
    Ok(is_done.then(|| watched.expect("only this function takes it").observer))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_is_over_the_response_tokens_and_its_sum_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let means = MeanActivations::new(folder.path(), 2, 2, &[false, true]).unwrap();
        let lengths = vec![(0, 0), (1, 3)];
        let mut averager = Averager { lengths, open: HashMap::new(), means, failed: None };
        let rows = [(0, 0, [9.0, 9.0]), (0, 1, [8.0, 7.0]), (1, 0, [1.0, 2.0])];
        let rows = rows.into_iter().chain([(1, 1, [10.0, 20.0]), (2, 0, [3.0, 2.0]), (2, 1, [10.0, 0.0])]);
        for (place, block, row) in rows {
            assert_eq!(averager.open.len(), usize::from((place, block) != (0, 0)));
            averager.row(1, place, block, &row);
        }
        assert!(averager.open.is_empty() && averager.failed.is_none());
        let (first, second) = (averager.means.block(0).unwrap(), averager.means.block(1).unwrap());
        assert_eq!((first.answer(0), first.thoughts(0)), ([0.0, 0.0].as_slice(), None));
        assert_eq!((first.answer(1), second.answer(1)), ([2.0, 2.0].as_slice(), [10.0, 10.0].as_slice()));
        assert_eq!((first.thoughts(1), second.thoughts(1)), (Some(&[9.0, 9.0][..]), Some(&[8.0, 7.0][..])));
    }
}
