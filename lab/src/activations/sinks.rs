//! Attention sinks: rows whose residual stream is many times larger than that of the others.
//!
//! Heads that have nothing to attend to attend to such a row, mostly the first one. Its projection on any axis is
//! large too, and a bound that was made for other rows would move it far.

use std::ops::ControlFlow;

use axiscap::Axis;
use axiscap_llama::Model;

use super::{Observer, Rows, observe};
use crate::compute::ComputeOptions;
use crate::error::Error;
use crate::quantile::median;
use crate::rollout::Rollout;

/// Texts that are looked at. Sinks are where they are in every text.
const TEXTS: usize = 16;

/// A row is far out if its norm is so many times the median norm of the block's rows.
const TIMES_MEDIAN: f64 = 10.0;

/// A position is one of sinks if its row is far out in this share of the texts.
const SHARE: f64 = 0.5;

/// A position whose rows are far out.
#[derive(Debug, Clone, PartialEq)]
pub struct Sink {
    /// The position, from 0.
    pub position: usize,
    /// Per axis, the mean norm of its rows, as a multiple of the median norm of the block's rows.
    pub norms: Vec<f64>,
    /// Per axis, the mean projection of its rows.
    pub projections: Vec<f64>,
}

/// What rows of prompts and answers show.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sinks {
    /// Positions whose rows are far out, ascending.
    pub sinks: Vec<Sink>,
    /// Per axis, the mean projection of the other rows.
    pub other_projections: Vec<f64>,
    /// Share of rows at other positions that are far out on some block.
    pub elsewhere: f64,
}

impl Sinks {
    /// Returns how many positions at the beginning of a sequence have sinks.
    #[must_use]
    pub fn leading(&self) -> u32 {
        let leading = self.sinks.iter().enumerate().take_while(|(place, sink)| sink.position == *place);
        u32::try_from(leading.count()).unwrap_or(u32::MAX)
    }
}

/// Looks for sinks in some of the texts, prompts included, on the blocks of these axes. `go_on` is called after every
/// pass with the number of texts done. Returns `None` if it asked to stop.
///
/// # Errors
/// As [`project`](super::project).
pub fn sinks(
    model: &Model,
    rollouts: &[Rollout],
    axes: &[(usize, Axis)],
    compute: &ComputeOptions,
    go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Sinks>, Error> {
    super::check_widths(model, axes)?;
    let step = rollouts.len().div_ceil(TEXTS).max(1);
    let texts: Vec<Rollout> = rollouts.iter().step_by(step).cloned().collect();
    let watcher = Watcher { axes: axes.to_vec(), rows: vec![Vec::new(); axes.len()] };
    let blocks: Vec<usize> = axes.iter().map(|(block, _)| *block).collect();
    let watcher = observe(model, &texts, &blocks, compute, Rows::All, watcher, go_on)?;
    Ok(watcher.map(|watcher| found(&watcher.rows, texts.len())))
}

/// A row of one block.
#[derive(Debug, Clone, Copy)]
struct Seen {
    text: usize,
    position: usize,
    norm: f64,
    projection: f64,
}

struct Watcher {
    axes: Vec<(usize, Axis)>,
    /// `[axes][rows]`
    rows: Vec<Vec<Seen>>,
}

impl Observer for Watcher {
    fn row(&mut self, text: usize, position: usize, block: usize, row: &[f32]) {
        for (index, (_, axis)) in self.axes.iter().enumerate().filter(|(_, (b, _))| *b == block) {
            let dot = |other: &[f32]| -> f64 {
                row.iter().zip(other).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
            };
            let (norm, projection) = (dot(row).sqrt(), dot(axis.values()));
            self.rows[index].push(Seen { text, position, norm, projection });
        }
    }
}

/// Finds the positions of sinks in rows `[axes][rows]` of so many texts.
fn found(rows: &[Vec<Seen>], texts: usize) -> Sinks {
    let medians: Vec<f64> = rows.iter().map(|rows| median(rows.iter().map(|row| row.norm))).collect();
    // Which rows are far out on some block.
    let mut far: Vec<(usize, usize)> = Vec::new();
    for (rows, median) in rows.iter().zip(&medians) {
        far.extend(
            rows.iter().filter(|row| row.norm > TIMES_MEDIAN * median).map(|row| (row.position, row.text)),
        );
    }
    far.sort_unstable();
    far.dedup();
    let positions: Vec<usize> = far
        .chunk_by(|a, b| a.0 == b.0)
        .filter(|rows| rows.len() as f64 >= SHARE * texts as f64)
        .map(|rows| rows[0].0)
        .collect();
    let is_sink = |row: &&Seen| positions.contains(&row.position);
    let mean = |rows: &[Seen], keep: &dyn Fn(&Seen) -> bool, value: &dyn Fn(&Seen) -> f64| {
        let kept: Vec<f64> = rows.iter().filter(|row| keep(row)).map(value).collect();
        kept.iter().sum::<f64>() / kept.len().max(1) as f64
    };
    let sink = |&position: &usize| Sink {
        position,
        norms: rows
            .iter()
            .zip(&medians)
            .map(|(rows, median)| mean(rows, &|row| row.position == position, &|row| row.norm / median))
            .collect(),
        projections: rows
            .iter()
            .map(|rows| mean(rows, &|row| row.position == position, &|row| row.projection))
            .collect(),
    };
    let others = rows.first().map_or(0, |rows| rows.iter().filter(|row| !is_sink(row)).count());
    let elsewhere = far.iter().filter(|(position, _)| !positions.contains(position)).count();
    Sinks {
        sinks: positions.iter().map(sink).collect(),
        other_projections: rows
            .iter()
            .map(|rows| mean(rows, &|row| !is_sink(&row), &|row| row.projection))
            .collect(),
        elsewhere: elsewhere as f64 / others.max(1) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four texts of ten rows of norm 1, some larger.
    fn rows(norm: impl Fn(usize, usize) -> f64) -> Vec<Seen> {
        let row = |text, position| {
            let norm = norm(text, position);
            Seen { text, position, norm, projection: 2.0 * norm }
        };
        (0..4)
            .flat_map(|text| (0..10).map(move |position| (text, position)))
            .map(|(t, p)| row(t, p))
            .collect()
    }

    #[test]
    fn positions_that_are_far_out_in_most_texts_are_sinks() {
        let none = found(&[rows(|_, _| 1.0)], 4);
        assert_eq!((none.sinks.len(), none.leading(), none.elsewhere), (0, 0, 0.0));
        assert_eq!(none.other_projections, [2.0]);
        // Position 0 everywhere, position 1 on another block, position 5 in one text.
        let first = rows(|text, position| match (text, position) {
            (_, 0) => 300.0,
            (3, 5) => 40.0,
            _ => 1.0,
        });
        let second = rows(|text, position| if position == 1 && text > 0 { 20.0 } else { 1.0 });
        let both = found(&[first.clone(), second], 4);
        assert_eq!(both.sinks.iter().map(|sink| sink.position).collect::<Vec<_>>(), [0, 1]);
        assert_eq!((both.sinks[0].norms[0], both.sinks[0].projections[0]), (300.0, 600.0));
        assert_eq!((both.leading(), both.elsewhere), (2, 1.0 / 32.0));
        // A sink after a row that is none is not at the beginning.
        let late = found(&[rows(|_, position| if position == 2 { 99.0 } else { 1.0 })], 4);
        assert_eq!((late.sinks[0].position, late.leading()), (2, 0));
    }
}
