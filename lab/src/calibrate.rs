//! Bounds: the floor on each axis, from the projections of answers of the model that will be capped.
//!
//! # Which percentile
//! Percentiles here are counted *from the role end*, on the axis whose positive side is "more Assistant": a
//! floor at percentile 75 lies above the mean projection of 75 % of all answers, and below that of 25 %. The
//! paper's released configurations write the same floor as "p0.25", because they count on the negated axis.
//! The mean projections of *all* answers enter, default and role play alike, one value per answer and not one
//! per token.

use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};

use crate::error::Error;
use crate::quantile::quantile;
use crate::separation::Separation;

/// The percentile the paper's released caps use, counted from the role end.
pub const DEFAULT_PERCENTILE: f64 = 75.0;

/// The percentiles kept as a table in a cap file's origin.
pub const TABLE: [f64; 11] = [0.0, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 100.0];

/// Expected engagement outside this range usually means a wrong sign, norm or block.
const SANE_ENGAGEMENT: std::ops::RangeInclusive<f64> = 0.05..=0.95;

/// Returns the blocks to cap by default in a model of `blocks` blocks: 70 % to 90 % of its depth. The paper
/// capped 72 % to 84 % (Qwen3-32B, 46 to 53 of 64) and 70 % to 90 % (Llama-3.3-70B, 56 to 71 of 80).
#[must_use]
pub fn default_blocks(blocks: usize) -> std::ops::RangeInclusive<usize> {
    let share = |tenths: usize| (blocks * tenths + 5) / 10;
    let first = share(7).min(blocks.saturating_sub(1));
    first..=share(9).saturating_sub(1).max(first)
}

/// Projections of the answers' response tokens on the axis of one block.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BlockProjections {
    /// For each answer that has a token, whether it is the default Assistant's, and its mean projection.
    pub answers: Vec<(bool, f64)>,
    /// Projection of every response token after the thoughts.
    pub tokens: Vec<f32>,
    /// Projection of every token of thoughts.
    pub thoughts: Vec<f32>,
}

/// The floor of one block and what it was read from.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockFloor {
    /// The block.
    pub block: usize,
    /// The floor, for the unit axis.
    pub floor: f32,
    /// Mean projections at the percentiles of [`TABLE`].
    pub quantiles: [f64; TABLE.len()],
    /// Mean projection of the default answers, if any.
    pub default_mean: Option<f64>,
    /// Mean projection of the role-play answers, if any.
    pub role_mean: Option<f64>,
    /// Share of the answers whose mean projection is below the floor.
    pub answers_below: f64,
    /// Share of the response tokens whose projection is below the floor. This is the engagement to expect on
    /// such text if no earlier block is capped.
    pub tokens_below: f64,
    /// Share of the tokens of thoughts whose projection is below the floor, if there are any.
    pub thoughts_below: Option<f64>,
    /// How far default answers and role play are apart on this axis.
    pub separation: Option<Separation>,
}

impl BlockFloor {
    /// Returns why the floor looks wrong, if it does.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        if !SANE_ENGAGEMENT.contains(&self.tokens_below) {
            return Some(format!(
                "block {}: the floor {} would engage on {:.1} % of the response tokens; near 0 or 100 % usually means a wrong sign, norm or block",
                self.block,
                self.floor,
                100.0 * self.tokens_below
            ));
        }
        let (Some(default), Some(role)) = (self.default_mean, self.role_mean) else { return None };
        (default <= role).then(|| {
            format!(
                "block {}: default answers project at {default:.3}, role play at {role:.3}: the axis points away from the Assistant; negate it, or extract it on this model",
                self.block
            )
        })
    }
}

/// Puts a floor on one block: at `percentile` (from the role end) of the answers' mean projections, or at
/// `floor` if given.
///
/// # Errors
/// [`Error::Percentile`], [`Error::NoAnswers`], [`Error::NonFinite`], [`Error::Caps`] for a floor that is
/// NaN.
pub fn floor_of(
    block: usize,
    projections: &BlockProjections,
    percentile: f64,
    floor: Option<f32>,
) -> Result<BlockFloor, Error> {
    if !(0.0..=100.0).contains(&percentile) {
        return Err(Error::Percentile(percentile));
    }
    if projections.answers.is_empty() || projections.tokens.is_empty() {
        return Err(Error::NoAnswers);
    }
    let finite = projections.answers.iter().all(|a| a.1.is_finite())
        && projections.tokens.iter().chain(&projections.thoughts).all(|t| t.is_finite());
    if !finite {
        return Err(Error::NonFinite { block });
    }
    let mut sorted: Vec<f64> = projections.answers.iter().map(|a| a.1).collect();
    sorted.sort_by(f64::total_cmp);
    let floor = floor.unwrap_or_else(|| quantile(&sorted, percentile) as f32);
    Bound::floor(floor)?;
    let group = |default: bool| -> Vec<f64> {
        projections.answers.iter().filter(|a| a.0 == default).map(|a| a.1).collect()
    };
    let (default, role) = (group(true), group(false));
    let below = |tokens: &[f32]| share_below(tokens.iter().map(|&t| f64::from(t)), f64::from(floor));
    let both = !default.is_empty() && !role.is_empty();
    Ok(BlockFloor {
        block,
        floor,
        quantiles: TABLE.map(|p| quantile(&sorted, p)),
        default_mean: mean(&default),
        role_mean: mean(&role),
        answers_below: share_below(sorted.iter().copied(), f64::from(floor)),
        tokens_below: below(&projections.tokens),
        thoughts_below: (!projections.thoughts.is_empty()).then(|| below(&projections.thoughts)),
        separation: both.then(|| Separation::between(&default, &role)),
    })
}

/// Makes a set of caps, one floor per block, each named `assistant`.
///
/// # Errors
/// [`Error::Caps`].
pub fn caps<'a>(floors: impl IntoIterator<Item = (&'a BlockFloor, &'a Axis)>) -> Result<CapSet, Error> {
    let mut caps = Vec::new();
    for (floor, axis) in floors {
        let cap = Cap::new(axis.clone(), Bound::floor(floor.floor)?).with_name("assistant");
        caps.push(BlockCap { block: floor.block, cap });
    }
    Ok(CapSet::new(caps)?)
}

fn share_below(values: impl ExactSizeIterator<Item = f64>, floor: f64) -> f64 {
    let count = values.len() as f64;
    values.filter(|&v| v < floor).count() as f64 / count
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 75 role answers at 0..75, 25 default answers at 75..100.
    fn projections() -> BlockProjections {
        BlockProjections {
            answers: (0..100).map(|i| (i >= 75, f64::from(i))).collect(),
            tokens: (0..100).map(|i| i as f32).collect(),
            thoughts: vec![10.0, 90.0],
        }
    }

    #[test]
    fn the_percentile_counts_from_the_role_end() {
        let floor = floor_of(3, &projections(), DEFAULT_PERCENTILE, None).unwrap();
        assert_eq!(floor.floor, 74.25);
        assert_eq!((floor.answers_below, floor.tokens_below), (0.75, 0.75));
        assert_eq!((floor.default_mean, floor.role_mean), (Some(87.0), Some(37.0)));
        assert_eq!((floor.separation.unwrap().auc, floor.thoughts_below), (1.0, Some(0.5)));
        assert_eq!(floor.quantiles[0], 0.0);
        assert_eq!(floor.quantiles[10], 99.0);
        assert!(floor.quantiles.is_sorted());
        // The literal reading of the released files' "p0.25" would be a far weaker cap.
        assert!(floor_of(3, &projections(), 25.0, None).unwrap().floor < floor.floor);
        assert_eq!(floor.warning(), None);
    }

    #[test]
    fn a_suspicious_floor_has_a_warning() {
        let all = floor_of(3, &projections(), 75.0, Some(200.0)).unwrap();
        assert!(all.warning().unwrap().contains("100.0 %"));
        let none = floor_of(3, &projections(), 75.0, Some(-1.0)).unwrap();
        assert!(none.warning().unwrap().contains("0.0 %"));
        let mut upside_down = projections();
        upside_down.answers.iter_mut().for_each(|a| a.1 = -a.1);
        upside_down.tokens.iter_mut().for_each(|t| *t = -*t);
        let floor = floor_of(3, &upside_down, 75.0, None).unwrap();
        assert!(floor.warning().unwrap().contains("points away"));
    }

    #[test]
    fn bad_input_is_refused() {
        let p = projections();
        for percentile in [-0.1, 100.1, f64::NAN] {
            assert!(matches!(floor_of(0, &p, percentile, None), Err(Error::Percentile(_))));
        }
        assert!(matches!(floor_of(0, &BlockProjections::default(), 75.0, None), Err(Error::NoAnswers)));
        assert!(matches!(floor_of(0, &p, 75.0, Some(f32::NAN)), Err(Error::Caps(_))));
        let mut bad = p.clone();
        bad.tokens[5] = f32::NAN;
        assert!(matches!(floor_of(4, &bad, 75.0, None), Err(Error::NonFinite { block: 4 })));
    }

    #[test]
    fn default_blocks_follow_the_paper_at_any_depth() {
        assert_eq!(default_blocks(80), 56..=71);
        assert_eq!(default_blocks(30), 21..=26);
        for blocks in 1..100 {
            let range = default_blocks(blocks);
            assert!(!range.is_empty() && *range.end() < blocks, "{blocks}: {range:?}");
        }
    }

    #[test]
    fn one_answer_is_every_quantile() {
        let one = BlockProjections { answers: vec![(true, 2.0)], tokens: vec![2.0], thoughts: vec![] };
        let floor = floor_of(0, &one, 75.0, None).unwrap();
        assert_eq!(floor.quantiles, [2.0; TABLE.len()]);
        assert_eq!(floor.role_mean, None);
    }
}
