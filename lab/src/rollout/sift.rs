//! Which answers axes and floors are made of.

use std::collections::BTreeMap;
use std::fmt;

use super::fault::Fault;
use super::file::Rollout;
use crate::error::Error;

/// How many answers have each fault.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FaultCounts {
    /// Number of all answers.
    pub answers: usize,
    /// Number of answers that are left out.
    pub left_out: usize,
    /// Number of answers with each fault. An answer may have several.
    pub faults: BTreeMap<Fault, usize>,
}

impl FaultCounts {
    /// Counts the faults of answers.
    pub fn of<'a>(rollouts: impl IntoIterator<Item = &'a Rollout>) -> Self {
        let mut counts = Self::default();
        for rollout in rollouts {
            counts.answers += 1;
            counts.left_out += usize::from(rollout.is_left_out());
            for &fault in &rollout.faults {
                *counts.faults.entry(fault).or_default() += 1;
            }
        }
        counts
    }

    /// Returns the most frequent fault that leaves answers out.
    #[must_use]
    pub fn worst(&self) -> Option<Fault> {
        let left_out = self.faults.iter().filter(|(fault, _)| fault.is_left_out());
        left_out.max_by_key(|&(_, count)| count).map(|(&fault, _)| fault)
    }
}

impl fmt::Display for FaultCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (fault, count) in &self.faults {
            write!(f, "{comma}{count} {fault}")?;
            comma = ", ";
        }
        Ok(())
    }
}

/// Keeps the answers without a fault that leaves them out.
///
/// # Errors
/// [`Error::MostAnswersLeftOut`] if they are half of the default answers, or half of those in roles, or less.
pub fn sift(rollouts: Vec<Rollout>) -> Result<(Vec<Rollout>, FaultCounts), Error> {
    let counts = FaultCounts::of(&rollouts);
    for (group, is_default) in [("default", true), ("role", false)] {
        let group_counts = FaultCounts::of(rollouts.iter().filter(|r| r.role.is_none() == is_default));
        let FaultCounts { answers, left_out, .. } = group_counts;
        if let Some(worst) = group_counts.worst().filter(|_| 2 * left_out >= answers) {
            let remedy = worst.remedy();
            return Err(Error::MostAnswersLeftOut { group, left_out, answers, counts: group_counts, remedy });
        }
    }
    Ok((rollouts.into_iter().filter(|rollout| !rollout.is_left_out()).collect(), counts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::file::tests::rollouts;

    #[test]
    fn answers_with_faults_are_left_out_unless_they_are_most() {
        let one = rollouts().rollouts.remove(0);
        let with = |role: Option<&str>, faults: &[Fault]| Rollout {
            role: role.map(Into::into),
            faults: faults.to_vec(),
            ..one.clone()
        };
        let sound = [with(None, &[]), with(None, &[Fault::CutOff]), with(Some("a"), &[])];
        let mut all = sound.to_vec();
        all.insert(1, with(None, &[Fault::Markup, Fault::CutOff]));
        let (kept, counts) = sift(all.clone()).unwrap();
        assert_eq!(kept, sound);
        assert_eq!((counts.answers, counts.left_out), (4, 1));
        assert_eq!(counts.to_string(), "1 with markup of the template, 2 cut off");
        all.push(with(Some("b"), &[Fault::Unfinished]));
        let error = sift(all).unwrap_err().to_string();
        assert!(error.contains("1 of 2 role answers") && error.contains("thinking off"), "{error}");
    }
}
