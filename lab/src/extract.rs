//! The axis of each block: the mean of the model's default answers minus the mean of its role play.

use axiscap::Axis;

use crate::activations::MeanActivations;
use crate::error::Error;
use crate::rollout::Rollout;
use crate::separation::Separation;

/// The axis of one block and how well it tells the two groups apart.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockAxis {
    /// The block.
    pub block: usize,
    /// Positive means more Assistant. Its norm is the distance between the two groups' means.
    pub axis: Axis,
    /// How far default answers and role play are apart on questions that the axis was not made from.
    pub held_out: Separation,
    /// Cosine to the axis of the next block, `None` for the last.
    pub cosine_next: Option<f64>,
    /// The channel with the largest share of the unit vector, and its value. Shares above about 0.7 are
    /// massive activations rather than character.
    pub peak: (usize, f32),
}

/// Makes the axis of every block: the mean over all default answers minus the mean over all role-play answers
/// (arXiv 2601.10387). Each answer counts once, whatever its length. Answers without a token are left out.
///
/// # Errors
/// [`Error::Count`], [`Error::EmptyGroup`], [`Error::Axis`].
pub fn extract(rollouts: &[Rollout], activations: &MeanActivations) -> Result<Vec<BlockAxis>, Error> {
    if activations.answers() != rollouts.len() {
        return Err(Error::Count { found: activations.answers(), expected: rollouts.len() });
    }
    let members: Vec<Member> = rollouts
        .iter()
        .enumerate()
        .filter(|(_, rollout)| !rollout.response.is_empty())
        .map(|(answer, rollout)| Member {
            answer,
            default: rollout.role.is_none(),
            odd: rollout.question % 2 == 1,
        })
        .collect();
    for (default, group) in [(true, "default"), (false, "role")] {
        for (odd, half) in [(false, "even-numbered"), (true, "odd-numbered")] {
            if !members.iter().any(|m| m.default == default && m.odd == odd) {
                return Err(Error::EmptyGroup { group, half });
            }
        }
    }
    let mut axes = Vec::new();
    for block in 0..activations.blocks() {
        axes.push(block_axis(&members, activations, block)?);
    }
    for block in 1..axes.len() {
        let cosine = axes[block - 1].axis.cosine(&axes[block].axis);
        axes[block - 1].cosine_next = Some(cosine.map_err(|error| Error::Axis { block, error })?);
    }
    Ok(axes)
}

/// An answer with at least one token.
struct Member {
    answer: usize,
    default: bool,
    odd: bool,
}

fn block_axis(members: &[Member], activations: &MeanActivations, block: usize) -> Result<BlockAxis, Error> {
    let failed = |error| Error::Axis { block, error };
    let axis_from = |chosen: &dyn Fn(&Member) -> bool| {
        let mean = |default: bool| {
            let group = members.iter().filter(|m| m.default == default && chosen(m)).map(|m| m.answer);
            mean(group.map(|answer| activations.mean(answer, block)), activations.width())
        };
        let (default, role) = (mean(true), mean(false));
        let direction: Vec<f32> = default.iter().zip(&role).map(|(d, r)| (d - r) as f32).collect();
        Axis::from_direction(&direction).map_err(failed)
    };
    let axis = axis_from(&|_| true)?;
    let mut halves = Vec::new();
    for odd in [false, true] {
        let half = axis_from(&|m| m.odd == odd)?;
        let project = |default: bool| -> Vec<f64> {
            members
                .iter()
                .filter(|m| m.odd != odd && m.default == default)
                .map(|m| dot(half.values(), activations.mean(m.answer, block)))
                .collect()
        };
        halves.push(Separation::between(&project(true), &project(false)));
    }
    let peak = axis.values().iter().copied().enumerate().fold((0, 0f32), |best, (channel, value)| {
        if value.abs() > best.1.abs() { (channel, value) } else { best }
    });
    Ok(BlockAxis { block, axis, held_out: Separation::mean(&halves), cosine_next: None, peak })
}

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
mod tests {
    use super::*;

    /// Two blocks, width 3: default answers at `+offset`, roles at `-offset` on channel 1, a
    /// question-dependent nuisance on channel 0.
    fn planted(offset: f32) -> (Vec<Rollout>, MeanActivations) {
        let mut rollouts = Vec::new();
        let mut means = Vec::new();
        for (role, sign) in [(None, 1.0), (Some("pirate"), -1.0), (Some("tree"), -1.0)] {
            for question in 0..6 {
                rollouts.push(Rollout {
                    role: role.map(Into::into),
                    system: None,
                    question,
                    seed: 0,
                    prompt: vec![1],
                    response: vec![2],
                    text: String::new(),
                    faults: Vec::new(),
                });
                for _block in 0..2 {
                    means.extend([question as f32, sign * offset, 5.0]);
                }
            }
        }
        (rollouts, MeanActivations::new(2, 3, means))
    }

    #[test]
    fn a_planted_axis_is_found_with_its_sign_and_norm() {
        let (rollouts, activations) = planted(2.0);
        let axes = extract(&rollouts, &activations).unwrap();
        assert_eq!(axes.len(), 2);
        for axis in &axes {
            assert_eq!(axis.axis.values(), [0.0, 1.0, 0.0]);
            assert_eq!(axis.axis.norm(), Some(4.0));
            assert_eq!(axis.held_out.auc, 1.0);
            assert_eq!(axis.peak, (1, 1.0));
        }
        assert_eq!((axes[0].cosine_next, axes[1].cosine_next), (Some(1.0), None));
    }

    #[test]
    fn groups_that_do_not_differ_have_no_axis() {
        let (rollouts, activations) = planted(0.0);
        let error = extract(&rollouts, &activations).unwrap_err();
        assert!(matches!(error, Error::Axis { block: 0, error: axiscap::Error::ZeroAxis }), "{error}");
        // The message holds the cause, which as a source would be printed twice.
        assert!(error.to_string().contains(&axiscap::Error::ZeroAxis.to_string()));
        assert!(std::error::Error::source(&error).is_none());
    }

    #[test]
    fn answers_without_tokens_do_not_count_and_empty_groups_are_refused() {
        let (mut rollouts, activations) = planted(2.0);
        for rollout in rollouts.iter_mut().filter(|r| r.role.is_none() && r.question % 2 == 1) {
            rollout.response.clear();
        }
        let error = extract(&rollouts, &activations).unwrap_err();
        assert!(matches!(error, Error::EmptyGroup { group: "default", half: "odd-numbered" }));
        assert!(matches!(extract(&rollouts[1..], &activations), Err(Error::Count { .. })));
    }
}
