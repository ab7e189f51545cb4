//! The control: caps on random directions that push as much.

use std::ops::ControlFlow;

use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use axiscap_llama::Model;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use rand_distr::{Distribution as _, StandardNormal};

use crate::activations::{self, Projections};
use crate::compute::ComputeOptions;
use crate::distribution::Distribution;
use crate::error::Error;
use crate::rollout::Rollout;

/// Makes caps that are the control of others: one floor on a random direction for each cap, on the same block, with
/// the same strength. The direction is uniformly distributed. On the tokens of these answers the pushes along it have
/// the same root of the mean square as those of the cap. Both are measured without caps on earlier blocks. `go_on` is
/// called after every pass with the number of answers done. Returns `None` if it asked to stop.
///
/// # Errors
/// Those of [`activations::project`], [`Error::NoAnswers`], [`Error::NonFinite`].
pub fn random_caps(
    model: &Model,
    answers: &[Rollout],
    caps: &CapSet,
    seed: u32,
    compute: &ComputeOptions,
    go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<CapSet>, Error> {
    let mut random = ChaCha8Rng::seed_from_u64(seed.into());
    let mut axes: Vec<_> = caps.caps().iter().map(|entry| (entry.block, entry.cap.axis().clone())).collect();
    for entry in caps.caps() {
        let width = entry.cap.axis().width();
        let direction: Vec<f32> = StandardNormal.sample_iter(&mut random).take(width).collect();
        axes.push((entry.block, Axis::from_direction(&direction)?));
    }
    let Some(projections) = activations::project(model, answers, &axes, compute, go_on)? else {
        return Ok(None);
    };
    let (own, other) = projections.split_at(caps.caps().len());
    let mut control = Vec::new();
    for (index, entry) in caps.caps().iter().enumerate() {
        let tokens = |projections: &Projections| projections.tokens_of(|_| true);
        let (own, other) = (tokens(&own[index]), tokens(&other[index]));
        if !(own.is_finite() && other.is_finite()) {
            return Err(Error::NonFinite { block: entry.block });
        }
        let (lo, hi) = (f64::from(entry.cap.bound().lo()), f64::from(entry.cap.bound().hi()));
        let wanted = root_mean_square(&own, |p| p.max(lo).min(hi) - p).ok_or(Error::NoAnswers)?;
        let floor = floor_with(&other, wanted).ok_or(Error::NoAnswers)?;
        let (_, axis) = &axes[caps.caps().len() + index];
        let cap = Cap::new(axis.clone(), Bound::floor(floor)?).with_strength(entry.cap.strength())?;
        control.push(BlockCap { block: entry.block, cap: cap.with_name("random") });
    }
    Ok(Some(CapSet::new(control)?.with_policy(caps.policy())))
}

fn root_mean_square(projections: &Distribution, push: impl Fn(f64) -> f64) -> Option<f64> {
    projections.mean_of(|p| push(p).powi(2)).map(f64::sqrt)
}

/// Returns the floor whose pushes have this root of the mean square. `None` without projections.
fn floor_with(projections: &Distribution, wanted: f64) -> Option<f32> {
    let [least, most] = projections.quantiles([0.0, 100.0])?;
    // At the lower end no row is pushed, at the upper end every row by as much as is wanted, or more.
    let (mut low, mut high) = (least, most + wanted);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if root_mean_square(projections, |p| (middle - p).max(0.0))? < wanted {
            low = middle;
        } else {
            high = middle;
        }
    }
    Some(low as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_pushes_as_much_as_is_wanted() {
        let projections: Distribution = (0..100).map(|i| (f64::from(i) * 0.7).sin() * 5.0).collect();
        for wanted in [0.0, 0.01, 1.0, 7.0, 100.0] {
            let floor = floor_with(&projections, wanted).unwrap();
            let found = root_mean_square(&projections, |p| (f64::from(floor) - p).max(0.0)).unwrap();
            assert!((found - wanted).abs() <= 1e-5 * (1.0 + wanted), "{wanted}: {floor} pushes {found}");
        }
        assert_eq!(floor_with(&Distribution::default(), 1.0), None);
    }
}
