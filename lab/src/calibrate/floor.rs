//! The floor on one axis, from the projections of answers.

use axiscap::Bound;

use crate::activations::Projections;
use crate::distribution::Distribution;
use crate::error::Error;
use crate::quantile::quantile;
use crate::rollout::Group;
use crate::separation::Separation;

/// The percentile the paper's released caps use, counted from the role end.
pub const DEFAULT_PERCENTILE: f64 = 75.0;

/// The percentiles kept as a table in a cap file's origin.
pub const TABLE: [f64; 11] = [0.0, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 100.0];

/// Expected engagement outside this range usually means a wrong sign, norm or block.
const SANE_ENGAGEMENT: std::ops::RangeInclusive<f64> = 0.05..=0.95;

/// The floor of one block and what it was read from.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockFloor {
    /// The block.
    pub block: usize,
    /// The floor, for the unit axis.
    pub floor: f32,
    /// Mean projections of all answers at the percentiles of [`TABLE`].
    pub quantiles: [f64; TABLE.len()],
    /// Mean projections of the default answers at the percentiles of [`TABLE`], if there are any.
    pub default_quantiles: Option<[f64; TABLE.len()]>,
    /// Projections of the tokens of all answers at the percentiles of [`TABLE`].
    pub token_quantiles: [f64; TABLE.len()],
    /// Projections of the tokens of the default answers at the percentiles of [`TABLE`], if there are any.
    pub default_token_quantiles: Option<[f64; TABLE.len()]>,
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
    projections: &Projections,
    percentile: f64,
    floor: Option<f32>,
) -> Result<BlockFloor, Error> {
    if !(0.0..=100.0).contains(&percentile) {
        return Err(Error::Percentile(percentile));
    }
    if !projections.is_finite() {
        return Err(Error::NonFinite { block });
    }
    let tokens = projections.tokens_of(|_| true);
    let default_tokens = projections.tokens_of(|prompt| prompt.group == Group::Default);
    let (default, role) = (projections.means(true), projections.means(false));
    let mut all = [&default[..], &role].concat();
    all.sort_by(f64::total_cmp);
    let Some(token_quantiles) = tokens.quantiles(TABLE).filter(|_| !all.is_empty()) else {
        return Err(Error::NoAnswers);
    };
    let floor = floor.unwrap_or_else(|| quantile(&all, percentile) as f32);
    Bound::floor(floor)?;
    let below = |tokens: &Distribution| tokens.share_below(floor.into());
    let both = !default.is_empty() && !role.is_empty();
    Ok(BlockFloor {
        block,
        floor,
        quantiles: TABLE.map(|p| quantile(&all, p)),
        default_quantiles: (!default.is_empty()).then(|| TABLE.map(|p| quantile(&default, p))),
        token_quantiles,
        default_token_quantiles: default_tokens.quantiles(TABLE),
        default_mean: mean(&default),
        role_mean: mean(&role),
        answers_below: all.iter().filter(|&&mean| mean < f64::from(floor)).count() as f64 / all.len() as f64,
        tokens_below: below(&tokens).unwrap_or_default(),
        thoughts_below: below(&projections.thoughts),
        separation: both.then(|| Separation::between(&default, &role)),
    })
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activations::SystemPrompt;

    /// Answers and tokens in a role, and of the default Assistant.
    fn projections(role: &[f64], default: &[f64], thoughts: &[f64]) -> Projections {
        let prompt = |group, values: &[f64]| SystemPrompt { group, text: None, answers: values.len() };
        let prompts = [prompt(Group::Role("pirate".into()), role), prompt(Group::Default, default)];
        let of = |prompt: usize| move |&value: &f64| (prompt, value);
        Projections {
            prompts: prompts.into(),
            answers: role.iter().map(of(0)).chain(default.iter().map(of(1))).collect(),
            tokens: [role, default].map(|values| values.iter().copied().collect()).into(),
            thoughts: thoughts.iter().copied().collect(),
        }
    }

    /// 75 role answers at 0..75, 25 default answers at 75..100, times `sign`.
    fn hundred(sign: f64) -> Projections {
        let range = |range: std::ops::Range<u32>| range.map(|i| f64::from(i) * sign).collect::<Vec<_>>();
        projections(&range(0..75), &range(75..100), &[10.0, 90.0])
    }

    #[test]
    fn the_percentile_counts_from_the_role_end() {
        let floor = floor_of(3, &hundred(1.0), DEFAULT_PERCENTILE, None).unwrap();
        assert_eq!(floor.floor, 74.25);
        assert_eq!((floor.answers_below, floor.tokens_below), (0.75, 0.75));
        assert_eq!((floor.default_mean, floor.role_mean), (Some(87.0), Some(37.0)));
        assert_eq!((floor.separation.unwrap().auc, floor.thoughts_below), (1.0, Some(0.5)));
        assert_eq!(floor.quantiles[0], 0.0);
        assert_eq!(floor.quantiles[10], 99.0);
        assert_eq!((floor.token_quantiles[0], floor.token_quantiles[10]), (0.0, 99.0));
        assert_eq!(floor.default_quantiles.unwrap()[5], 87.0);
        assert_eq!(floor.default_token_quantiles.unwrap()[5], 87.0);
        assert!(floor.quantiles.is_sorted());
        // The literal reading of the released files' "p0.25" would be a far weaker cap.
        assert!(floor_of(3, &hundred(1.0), 25.0, None).unwrap().floor < floor.floor);
        assert_eq!(floor.warning(), None);
    }

    #[test]
    fn a_suspicious_floor_has_a_warning() {
        let all = floor_of(3, &hundred(1.0), 75.0, Some(200.0)).unwrap();
        assert!(all.warning().unwrap().contains("100.0 %"));
        let none = floor_of(3, &hundred(1.0), 75.0, Some(-1.0)).unwrap();
        assert!(none.warning().unwrap().contains("0.0 %"));
        let floor = floor_of(3, &hundred(-1.0), 75.0, None).unwrap();
        assert!(floor.warning().unwrap().contains("points away"));
    }

    #[test]
    fn bad_input_is_refused() {
        let p = hundred(1.0);
        for percentile in [-0.1, 100.1, f64::NAN] {
            assert!(matches!(floor_of(0, &p, percentile, None), Err(Error::Percentile(_))));
        }
        assert!(matches!(floor_of(0, &projections(&[], &[], &[]), 75.0, None), Err(Error::NoAnswers)));
        assert!(matches!(floor_of(0, &p, 75.0, Some(f32::NAN)), Err(Error::Caps(_))));
        let mut bad = p.clone();
        bad.tokens[1].push(f64::NAN);
        assert!(matches!(floor_of(4, &bad, 75.0, None), Err(Error::NonFinite { block: 4 })));
    }

    #[test]
    fn one_answer_is_every_quantile() {
        let floor = floor_of(0, &projections(&[], &[2.0], &[]), 75.0, None).unwrap();
        assert_eq!(floor.quantiles, [2.0; TABLE.len()]);
        assert_eq!(floor.role_mean, None);
    }
}
