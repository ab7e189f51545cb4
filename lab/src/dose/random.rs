//! The control: caps on random directions that push as much.

use std::ops::ControlFlow;

use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use axiscap_llama::Model;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use rand_distr::{Distribution as _, StandardNormal};

use crate::activations;
use crate::compute::ComputeOptions;
use crate::distribution::Distribution;
use crate::error::Error;
use crate::rollout::Rollout;

/// Makes the controls of caps, one for each seed: a floor on a random direction for each cap, on the same block, with
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
    seeds: impl IntoIterator<Item = u64>,
    compute: &ComputeOptions,
    go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Vec<CapSet>>, Error> {
    let entries = caps.caps();
    let mut axes: Vec<_> = entries.iter().map(|entry| (entry.block, entry.cap.axis().clone())).collect();
    for seed in seeds {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        for entry in entries {
            let width = entry.cap.axis().width();
            let direction: Vec<f32> = StandardNormal.sample_iter(&mut random).take(width).collect();
            axes.push((entry.block, Axis::from_direction(&direction)?));
        }
    }
    let Some(projections) = activations::project(model, answers, &axes, compute, go_on)? else {
        return Ok(None);
    };
    let tokens: Vec<_> = projections.iter().map(|found| found.tokens_of(|_| true)).collect();
    if let Some(place) = tokens.iter().position(|tokens| !tokens.is_finite()) {
        return Err(Error::NonFinite { block: axes[place].0 });
    }
    let (own, random) = tokens.split_at(entries.len());
    let control = |(axes, tokens): (&[(usize, Axis)], &[Distribution])| {
        let mut control = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let (lo, hi) = (f64::from(entry.cap.bound().lo()), f64::from(entry.cap.bound().hi()));
            let push = root_mean_square(&own[index], |p| p.max(lo).min(hi) - p).ok_or(Error::NoAnswers)?;
            let floor = floor_with(&tokens[index], push).ok_or(Error::NoAnswers)?;
            let cap = Cap::new(axes[index].1.clone(), Bound::floor(floor)?);
            let cap = cap.with_strength(entry.cap.strength())?.with_name("random");
            control.push(BlockCap { block: entry.block, cap });
        }
        Ok(CapSet::new(control)?.with_policy(caps.policy()))
    };
    let size = entries.len().max(1);
    let controls = axes[entries.len()..].chunks(size).zip(random.chunks(size));
    Ok(Some(controls.map(control).collect::<Result<_, Error>>()?))
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
