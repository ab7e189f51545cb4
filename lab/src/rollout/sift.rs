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
    /// The faults that leave no answer out.
    pub keep: Vec<Fault>,
}

impl FaultCounts {
    /// Counts the faults of answers. Those with only faults of `keep` are not left out.
    pub fn of<'a>(rollouts: impl IntoIterator<Item = &'a Rollout>, keep: &[Fault]) -> Self {
        let mut counts = Self { keep: keep.to_vec(), ..Self::default() };
        for rollout in rollouts {
            counts.answers += 1;
            counts.left_out += usize::from(is_left_out(rollout, keep));
            for &fault in &rollout.faults {
                *counts.faults.entry(fault).or_default() += 1;
            }
        }
        counts
    }

    /// Returns the most frequent fault that leaves answers out.
    #[must_use]
    pub fn worst(&self) -> Option<Fault> {
        let left_out = self.faults.iter().filter(|(fault, _)| !self.keep.contains(fault));
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

fn is_left_out(rollout: &Rollout, keep: &[Fault]) -> bool {
    rollout.faults.iter().any(|fault| !keep.contains(fault))
}

/// Keeps the answers without a fault, or with faults of `keep` only.
///
/// # Errors
/// [`Error::MostAnswersLeftOut`] if those of the default Assistant, of the roles or of the traits are half of
/// their group or less.
pub fn sift(rollouts: Vec<Rollout>, keep: &[Fault]) -> Result<(Vec<Rollout>, FaultCounts), Error> {
    let counts = FaultCounts::of(&rollouts, keep);
    for kind in ["default", "role", "trait"] {
        let group = rollouts.iter().filter(|rollout| rollout.group.kind() == kind);
        let group_counts = FaultCounts::of(group, keep);
        let FaultCounts { answers, left_out, .. } = group_counts;
        if let Some(worst) = group_counts.worst().filter(|_| 2 * left_out >= answers) {
            let group = kind;
            return Err(Error::MostAnswersLeftOut { group, left_out, answers, counts: group_counts, worst });
        }
    }
    Ok((rollouts.into_iter().filter(|rollout| !is_left_out(rollout, keep)).collect(), counts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::file::tests::rollouts;
    use crate::rollout::plan::Group;

    #[test]
    fn answers_with_faults_are_left_out_unless_they_are_most() {
        let one = rollouts().rollouts.remove(0);
        let with = |role: Option<&str>, faults: &[Fault]| Rollout {
            group: role.map_or(Group::Default, |role| Group::Role(role.into())),
            faults: faults.to_vec(),
            ..one.clone()
        };
        let sound = [with(None, &[]), with(None, &[Fault::CutOff]), with(Some("a"), &[])];
        let mut all = sound.to_vec();
        all.insert(1, with(None, &[Fault::Markup, Fault::CutOff]));
        let keep = [Fault::CutOff];
        let (kept, counts) = sift(all.clone(), &keep).unwrap();
        assert_eq!(kept, sound);
        assert_eq!((counts.answers, counts.left_out), (4, 1));
        assert_eq!(counts.to_string(), "1 with markup of the template, 2 cut off");
        let error = sift(all.clone(), &[]).unwrap_err().to_string();
        assert!(error.contains("2 of 3 default answers") && error.contains("more tokens"), "{error}");
        all.push(with(Some("b"), &[Fault::Unfinished]));
        let error = sift(all.clone(), &keep).unwrap_err().to_string();
        assert!(error.contains("1 of 2 role answers") && error.contains("thinking off"), "{error}");
        assert_eq!(sift(all.clone(), &Fault::ALL).unwrap().0, all);
    }
}
