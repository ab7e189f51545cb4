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

/// Makes the controls of caps, one for each seed, that push as far as they do: a floor on a random direction for
/// each cap, on the same block, with the same strength. Directions are uniformly distributed. `go_on` is called after every pass with the number of answers done. Returns `None` if it asked to stop.
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
    let seeds: Vec<u64> = seeds.into_iter().collect();
    let directions = RandomDirections::measure(model, answers, caps, &seeds, compute, go_on)?;
    let all = |directions: RandomDirections<'_>| {
        let control = |index| {
            let axes = directions.of(index).iter().map(|(axis, _)| axis.clone());
            with_floors(caps, axes, &directions.floors(index, 1.0)?)
        };
        (0..seeds.len()).map(control).collect::<Result<_, Error>>()
    };
    directions.map(all).transpose()
}

/// Random directions, and how answers project on them and on the axes of caps.
///
/// The caps of a seed are a floor on a random direction for each of the caps, on the same block, with the same
/// strength. Directions are uniformly distributed.
#[derive(Debug)]
pub(crate) struct RandomDirections<'a> {
    caps: &'a CapSet,
    /// By cap, the root of the mean square of its pushes.
    pushes: Vec<f64>,
    /// By seed and cap.
    directions: Vec<(Axis, Distribution)>,
}

impl<'a> RandomDirections<'a> {
    /// Measures the projections of the tokens of answers, without caps. `go_on` is called after every pass with the
    /// number of answers done. Returns `None` if it asked to stop.
    ///
    /// # Errors
    /// Those of [`activations::project`], [`Error::NoAnswers`], [`Error::NonFinite`].
    pub(crate) fn measure(
        model: &Model,
        answers: &[Rollout],
        caps: &'a CapSet,
        seeds: &[u64],
        compute: &ComputeOptions,
        go_on: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<Self>, Error> {
        let entries = caps.caps();
        let mut axes: Vec<_> = entries.iter().map(|entry| (entry.block, entry.cap.axis().clone())).collect();
        for &seed in seeds {
            axes.extend(entries.iter().map(|entry| entry.block).zip(directions(caps, seed)?));
        }
        let Some(projections) = activations::project(model, answers, &axes, compute, go_on)? else {
            return Ok(None);
        };
        let tokens: Vec<_> = projections.iter().map(|found| found.tokens_of(|_| true)).collect();
        if let Some(place) = tokens.iter().position(|tokens| !tokens.is_finite()) {
            return Err(Error::NonFinite { block: axes[place].0 });
        }
        let (own, random) = tokens.split_at(entries.len());
        let push = |(entry, tokens): (&BlockCap, &Distribution)| {
            let (lo, hi) = (f64::from(entry.cap.bound().lo()), f64::from(entry.cap.bound().hi()));
            root_mean_square(tokens, |p| p.max(lo).min(hi) - p).ok_or(Error::NoAnswers)
        };
        let pushes = entries.iter().zip(own).map(push).collect::<Result<_, _>>()?;
        let axes = axes.drain(entries.len()..).map(|(_, axis)| axis);
        Ok(Some(Self { caps, pushes, directions: axes.zip(random.iter().cloned()).collect() }))
    }

    /// Returns the floors of the seed with this index under which the pushes on the answers have `scale` times the root
    /// of the mean square of the caps' own pushes.
    ///
    /// # Errors
    /// [`Error::NoAnswers`] without tokens.
    ///
    /// # Panics
    /// If there is no such seed.
    pub(crate) fn floors(&self, index: usize, scale: f64) -> Result<Vec<f32>, Error> {
        let floor = |((_, tokens), push): (&(Axis, Distribution), &f64)| {
            floor_with(tokens, push * scale).ok_or(Error::NoAnswers)
        };
        self.of(index).iter().zip(&self.pushes).map(floor).collect()
    }

    /// Returns the directions of a seed.
    fn of(&self, index: usize) -> &[(Axis, Distribution)] {
        let count = self.caps.caps().len();
        &self.directions[index * count..][..count]
    }

    /// Returns whether the caps push a token of the answers.
    pub(crate) fn has_pushes(&self) -> bool {
        self.pushes.iter().any(|&push| push > 0.0)
    }
}

/// Makes the random caps of a seed with floors that are known. They leave rows at position 0 alone, whatever the caps
/// do there: the projection of an attention sink on a random direction is far from all others.
///
/// # Errors
/// [`Error::Caps`] for floors that are NaN or too few.
pub(crate) fn random_caps_with(caps: &CapSet, seed: u64, floors: &[f32]) -> Result<CapSet, Error> {
    let random = with_floors(caps, directions(caps, seed)?.into_iter(), floors)?;
    let policy = caps.policy();
    Ok(random.with_policy(policy.with_skip_positions(policy.skip_positions.max(1))))
}

/// Returns a random direction per cap.
fn directions(caps: &CapSet, seed: u64) -> Result<Vec<Axis>, Error> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut direction = |entry: &BlockCap| {
        let width = entry.cap.axis().width();
        let direction: Vec<f32> = StandardNormal.sample_iter(&mut random).take(width).collect();
        Ok(Axis::from_direction(&direction)?)
    };
    caps.caps().iter().map(&mut direction).collect()
}

fn with_floors(caps: &CapSet, axes: impl Iterator<Item = Axis>, floors: &[f32]) -> Result<CapSet, Error> {
    let mut random = Vec::new();
    for ((entry, axis), &floor) in caps.caps().iter().zip(axes).zip(floors) {
        let cap = Cap::new(axis, Bound::floor(floor)?);
        let cap = cap.with_strength(entry.cap.strength())?.with_name("random");
        random.push(BlockCap { block: entry.block, cap });
    }
    Ok(CapSet::new(random)?.with_policy(caps.policy()))
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
