//! The axis of each block: the mean of the model's default answers minus the mean of its role play.

use std::ops::RangeInclusive;

use axiscap::Axis;

use crate::activations::{BlockMeans, MeanActivations};
use crate::error::Error;
use crate::rollout::{Group, Rollout};
use crate::separation::Separation;

mod components;
mod contrast;
mod massive;
mod recommend;

pub use components::Components;
use contrast::Contrast;
pub use contrast::HeldOut;
pub use massive::MassiveChannel;

/// How axes are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtractOptions {
    /// Roles with fewer answers than this are left out.
    pub min_answers: usize,
    /// Whether channels with massive activations are taken out of the axes.
    pub drop_massive: bool,
    /// The trait whose axis is made instead of the Assistant's: its positive answers minus its negative ones.
    pub of_trait: Option<String>,
}

impl Default for ExtractOptions {
    /// Returns at least two answers per role, with all channels.
    fn default() -> Self {
        Self { min_answers: 2, drop_massive: false, of_trait: None }
    }
}

/// The axes of a model, and how good they are.
#[derive(Debug, Clone, PartialEq)]
pub struct Extraction {
    /// One axis per block.
    pub blocks: Vec<BlockAxis>,
    /// What the axes were tested on.
    pub held_out: HeldOut,
    /// The roles, in the order of the answers.
    pub roles: Vec<RoleSummary>,
    /// Channels with massive activations.
    pub massive: Vec<MassiveChannel>,
    /// The traits, in the order of the answers.
    pub traits: Vec<TraitSummary>,
    /// The blocks to cap ([`Extraction::best_block`] is one of them).
    pub recommended: RangeInclusive<usize>,
}

impl Extraction {
    /// Returns the recommended block where the two groups are farthest apart.
    ///
    /// # Panics
    /// If there are no blocks.
    #[must_use]
    pub fn best_block(&self) -> &BlockAxis {
        let blocks = &self.blocks[self.recommended.clone()];
        let best = blocks.iter().max_by(|a, b| a.held_out.d_prime.total_cmp(&b.held_out.d_prime));
        best.expect("a range has a block")
    }
}

/// The axis of one block and how well it tells the two groups apart.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockAxis {
    /// The block.
    pub block: usize,
    /// Positive means more Assistant (or more of the trait). Its norm is the distance between the two groups'
    /// means.
    pub axis: Axis,
    /// How far the two groups are apart on roles and questions that the axis was not made from.
    pub held_out: Separation,
    /// Cosine to the axis of the next block, `None` for the last.
    pub cosine_next: Option<f64>,
    /// Cosine of the axis from half of the roles to that from the other half. `None` without two roles.
    pub cosine_halves: Option<f64>,
    /// Principal components of the roles' means. `None` without three roles.
    pub components: Option<Components>,
    /// The channel with the largest share of the unit vector, and its value. Shares above about 0.7 are
    /// massive activations rather than character.
    pub peak: (usize, f32),
    /// Cosine of the axis from thoughts to that from answers, and how far thoughts are apart on the latter. `None`
    /// where a group does not think.
    pub thoughts: Option<(f64, Separation)>,
    /// Mean projection of the default answers, or of those that show the trait.
    pub default_mean: f64,
    /// Mean projection of each role of [`Extraction::roles`]. `None` for those left out.
    pub role_means: Vec<Option<f64>>,
    /// Per trait of [`Extraction::traits`]: cosine of its axis to this one, and how far its sides are apart on
    /// its own axis, made from the other questions.
    pub traits: Vec<(f64, Separation)>,
}

/// A role and its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleSummary {
    /// Its name.
    pub name: String,
    /// Its answers that are measured.
    pub answers: usize,
    /// Whether they are enough ([`ExtractOptions::min_answers`]).
    pub is_used: bool,
}

/// A trait and its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraitSummary {
    /// Its name.
    pub name: String,
    /// Answers that show it, and answers that show the opposite.
    pub answers: (usize, usize),
}

/// Makes the axis of every block: the mean over all default answers minus the mean over the roles' means
/// (arXiv 2601.10387). Within a role each answer counts once, whatever its length. Thoughts and answers without a
/// token are left out.
///
/// # Errors
/// [`Error::Count`], [`Error::EmptyGroup`], [`Error::FewRoles`], [`Error::NoTrait`], [`Error::Axis`],
/// [`Error::Scratch`].
pub fn extract(
    rollouts: &[Rollout],
    activations: &MeanActivations,
    options: &ExtractOptions,
) -> Result<Extraction, Error> {
    if activations.answers() != rollouts.len() {
        return Err(Error::Count { found: activations.answers(), expected: rollouts.len() });
    }
    let (roles, used) = contrast::roles(rollouts, options.min_answers)?;
    let contrast = match &options.of_trait {
        Some(name) => Contrast::of_trait(rollouts, name)?,
        None => Contrast::of_roles(rollouts, &used),
    };
    let held_out = contrast.check()?;
    let traits = contrast::traits(rollouts);
    let of_traits: Vec<_> =
        traits.iter().map(|one| Contrast::of_trait(rollouts, &one.name)).collect::<Result<_, _>>()?;
    of_traits.iter().try_for_each(|contrast| contrast.check().map(drop))?;
    let massive = massive::channels(rollouts, activations)?;
    let dropped: Vec<usize> =
        massive.iter().filter(|_| options.drop_massive).map(|channel| channel.channel).collect();

    let answers_of = |role: &RoleSummary| {
        let is_own = |r: &Rollout| matches!(&r.group, Group::Role(name) if *name == role.name);
        role.is_used.then(|| contrast::places(rollouts, is_own))
    };
    let of_roles: Vec<_> = roles.iter().map(answers_of).collect();

    let mut blocks = Vec::new();
    for block in 0..activations.blocks() {
        let failed = |error| Error::Axis { block, error };
        let means = activations.block(block)?;
        let space = Space { means: &means, width: activations.width(), dropped: &dropped };
        let axis = space.axis(&contrast, &|_, _| true).map_err(failed)?;
        let project = |answer: usize| dot(axis.values(), means.answer(answer));
        let mean_of =
            |answers: &[usize]| answers.iter().map(|&a| project(a)).sum::<f64>() / answers.len() as f64;
        let trait_of = |contrast: &Contrast| {
            let own = space.axis(contrast, &|_, _| true).map_err(failed)?;
            let cosine = own.cosine(&axis).map_err(failed)?;
            Ok::<_, Error>((cosine, space.held_out(contrast, HeldOut::Questions).map_err(failed)?))
        };
        blocks.push(BlockAxis {
            block,
            held_out: space.held_out(&contrast, held_out).map_err(failed)?,
            cosine_next: None,
            cosine_halves: space.cosine_of_halves(&contrast).map_err(failed)?,
            components: components::of(&space.role_vectors(&contrast), &axis),
            peak: peak(&axis),
            thoughts: space.thoughts(&contrast, &axis).map_err(failed)?,
            default_mean: mean_of(&contrast.upper_answers()),
            role_means: of_roles.iter().map(|answers| answers.as_deref().map(mean_of)).collect(),
            traits: of_traits.iter().map(trait_of).collect::<Result<_, _>>()?,
            axis,
        });
    }
    for block in 1..blocks.len() {
        let cosine = blocks[block - 1].axis.cosine(&blocks[block].axis);
        blocks[block - 1].cosine_next = Some(cosine.map_err(|error| Error::Axis { block, error })?);
    }
    let recommended = recommend::blocks(&blocks);
    Ok(Extraction { blocks, held_out, roles, massive, traits, recommended })
}

/// The means of one block, without the channels that are dropped.
struct Space<'a> {
    means: &'a BlockMeans,
    width: usize,
    dropped: &'a [usize],
}

impl Space<'_> {
    /// Returns upper minus lower mean of the members that `chosen` takes, by half of roles and of questions.
    fn axis(&self, contrast: &Contrast, chosen: contrast::Chosen<'_>) -> Result<Axis, axiscap::Error> {
        self.axis_of(contrast, chosen, &|answer| Some(self.means.answer(answer)))
    }

    fn axis_of<'m>(
        &'m self,
        contrast: &Contrast,
        chosen: contrast::Chosen<'_>,
        row: &dyn Fn(usize) -> Option<&'m [f32]>,
    ) -> Result<Axis, axiscap::Error> {
        let upper = mean(contrast.upper(chosen).filter_map(row), self.width);
        let lower: Vec<Vec<f64>> = contrast
            .lower(chosen)
            .map(|answers| mean(answers.into_iter().filter_map(row), self.width))
            .filter(|mean| mean.iter().all(|value| value.is_finite()))
            .collect();
        let mut direction: Vec<f32> = (0..self.width)
            .map(|channel| {
                let lower = lower.iter().map(|mean| mean[channel]).sum::<f64>() / lower.len() as f64;
                (upper[channel] - lower) as f32
            })
            .collect();
        self.dropped.iter().for_each(|&channel| direction[channel] = 0.0);
        Axis::from_direction(&direction)
    }

    /// Returns how far both groups are apart on what an axis was not made from: the mean over all halves.
    fn held_out(&self, contrast: &Contrast, how: HeldOut) -> Result<Separation, axiscap::Error> {
        let mut halves = Vec::new();
        for (made, tested) in how.folds() {
            let axis = self.axis(contrast, &*made)?;
            let project = |answer: usize| dot(axis.values(), self.means.answer(answer));
            let upper: Vec<f64> = contrast.upper(&*tested).map(project).collect();
            let lower: Vec<f64> = contrast.lower(&*tested).flatten().map(project).collect();
            halves.push(Separation::between(&upper, &lower));
        }
        Ok(Separation::mean(&halves))
    }

    fn cosine_of_halves(&self, contrast: &Contrast) -> Result<Option<f64>, axiscap::Error> {
        if contrast.lower_groups() < 2 {
            return Ok(None);
        }
        let half = |half: usize| self.axis(contrast, &move |role, _| role.is_none_or(|role| role == half));
        half(0)?.cosine(&half(1)?).map(Some)
    }

    /// Returns the mean of every role, `[roles][width]`.
    fn role_vectors(&self, contrast: &Contrast) -> Vec<Vec<f64>> {
        let vector = |answers: Vec<usize>| {
            let mut mean = mean(answers.into_iter().map(|answer| self.means.answer(answer)), self.width);
            self.dropped.iter().for_each(|&channel| mean[channel] = 0.0);
            mean
        };
        contrast.lower(&|_, _| true).map(vector).collect()
    }

    fn thoughts(
        &self,
        contrast: &Contrast,
        axis: &Axis,
    ) -> Result<Option<(f64, Separation)>, axiscap::Error> {
        let row = |answer| self.means.thoughts(answer);
        let all: contrast::Chosen<'_> = &|_, _| true;
        let project = |row: &[f32]| dot(axis.values(), row);
        let upper: Vec<f64> = contrast.upper(all).filter_map(row).map(project).collect();
        let lower: Vec<f64> = contrast.lower(all).flatten().filter_map(row).map(project).collect();
        if upper.is_empty() || lower.is_empty() {
            return Ok(None);
        }
        let own = self.axis_of(contrast, all, &row)?;
        Ok(Some((own.cosine(axis)?, Separation::between(&upper, &lower))))
    }
}

fn peak(axis: &Axis) -> (usize, f32) {
    let values = axis.values().iter().copied().enumerate();
    values.fold(
        (0, 0f32),
        |best, (channel, value)| {
            if value.abs() > best.1.abs() { (channel, value) } else { best }
        },
    )
}

/// Returns the mean of rows. NaN without rows.
fn mean<'a>(rows: impl Iterator<Item = &'a [f32]>, width: usize) -> Vec<f64> {
    let mut sum = vec![0f64; width];
    let mut count = 0usize;
    for row in rows {
        count += 1;
        sum.iter_mut().zip(row).for_each(|(s, &x)| *s += f64::from(x));
    }
    sum.iter_mut().for_each(|s| *s /= count as f64);
    sum
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

#[cfg(test)]
mod tests;
