//! The two groups of answers whose difference an axis is, and their halves.

use std::fmt;

use super::{RoleSummary, TraitSummary};
use crate::error::Error;
use crate::rollout::{Group, Rollout};

/// Whether an answer is chosen: by the half that its role is in (`None` in the upper group, which has no roles),
/// and by the half of its question.
pub(super) type Chosen<'a> = &'a dyn Fn(Option<usize>, usize) -> bool;

/// As [`Chosen`], owned.
type BoxedChosen = Box<dyn Fn(Option<usize>, usize) -> bool>;

/// What axes are tested on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldOut {
    /// On the other half of the roles, with the other half of the questions.
    RolesAndQuestions,
    /// On the other half of the questions: there are too few roles for halves of them.
    Questions,
}

impl fmt::Display for HeldOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl HeldOut {
    /// Returns `roles and questions` or `questions`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RolesAndQuestions => "roles and questions",
            Self::Questions => "questions",
        }
    }

    /// Returns what axes are made from, and what each is tested on.
    pub(super) fn folds(self) -> Vec<(BoxedChosen, BoxedChosen)> {
        let fold = |role: usize, question: usize| -> BoxedChosen {
            Box::new(move |r, q| q == question && (self == Self::Questions || r.is_none_or(|r| r == role)))
        };
        let pair = |role: usize, question| (fold(role, question), fold(1 - role, 1 - question));
        match self {
            Self::RolesAndQuestions => [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(r, q)| pair(r, q)).into(),
            Self::Questions => [0, 1].map(|question| pair(0, question)).into(),
        }
    }
}

/// An answer with at least one token.
#[derive(Debug, Clone, Copy)]
struct Member {
    answer: usize,
    /// Half of the questions.
    half: usize,
}

/// The two groups: one that has the property, and some that lack it.
#[derive(Debug)]
pub(super) struct Contrast {
    upper: Vec<Member>,
    lower: Vec<Vec<Member>>,
    names: [&'static str; 2],
}

impl Contrast {
    /// Default answers against these roles.
    pub(super) fn of_roles(rollouts: &[Rollout], roles: &[String]) -> Self {
        let upper = members(rollouts, &|group| *group == Group::Default);
        let role = |role: &String| members(rollouts, &|group| matches!(group, Group::Role(r) if r == role));
        Self { upper, lower: roles.iter().map(role).collect(), names: ["default", "role"] }
    }

    /// Answers that show a trait against those that show its opposite.
    pub(super) fn of_trait(rollouts: &[Rollout], name: &str) -> Result<Self, Error> {
        let upper = members(rollouts, &|group| matches!(group, Group::Positive(n) if n == name));
        let lower = members(rollouts, &|group| matches!(group, Group::Negative(n) if n == name));
        if upper.is_empty() && lower.is_empty() {
            let known = traits(rollouts).into_iter().map(|one| one.name).collect::<Vec<_>>();
            return Err(Error::NoTrait { name: name.into(), known });
        }
        Ok(Self { upper, lower: vec![lower], names: ["positive", "negative"] })
    }

    /// Returns what an axis of it can be tested on. The error names what is empty.
    pub(super) fn check(&self) -> Result<HeldOut, Error> {
        let all_tested = |how: HeldOut| {
            how.folds().iter().all(|(made, tested)| {
                [made, tested].iter().all(|chosen| {
                    self.upper(&***chosen).next().is_some()
                        && self.lower(&***chosen).flatten().next().is_some()
                })
            })
        };
        if self.lower.len() > 1 && all_tested(HeldOut::RolesAndQuestions) {
            return Ok(HeldOut::RolesAndQuestions);
        }
        for (half, name) in ["even-numbered", "odd-numbered"].into_iter().enumerate() {
            let of_half: Chosen<'_> = &move |_, question| question == half;
            if self.upper(of_half).next().is_none() {
                return Err(Error::EmptyGroup { group: self.names[0], half: name });
            }
            if self.lower(of_half).flatten().next().is_none() {
                return Err(Error::EmptyGroup { group: self.names[1], half: name });
            }
        }
        Ok(HeldOut::Questions)
    }

    pub(super) fn lower_groups(&self) -> usize {
        self.lower.len()
    }

    pub(super) fn upper_answers(&self) -> Vec<usize> {
        self.upper(&|_, _| true).collect()
    }

    /// Returns the chosen answers of the upper group.
    pub(super) fn upper(&self, chosen: Chosen<'_>) -> impl Iterator<Item = usize> {
        self.upper.iter().filter(move |member| chosen(None, member.half)).map(|member| member.answer)
    }

    /// Returns the chosen answers of each group of the lower ones that has some.
    pub(super) fn lower(&self, chosen: Chosen<'_>) -> impl Iterator<Item = Vec<usize>> {
        let answers = move |(index, group): (usize, &Vec<Member>)| -> Vec<usize> {
            let own = group.iter().filter(|member| chosen(Some(index % 2), member.half));
            own.map(|member| member.answer).collect()
        };
        self.lower.iter().enumerate().map(answers).filter(|answers| !answers.is_empty())
    }
}

/// Returns the roles, and the names of those with enough answers.
pub(super) fn roles(
    rollouts: &[Rollout],
    min_answers: usize,
) -> Result<(Vec<RoleSummary>, Vec<String>), Error> {
    let mut roles = Vec::<RoleSummary>::new();
    for rollout in rollouts {
        let Group::Role(name) = &rollout.group else { continue };
        let counts = usize::from(!rollout.answer().is_empty());
        match roles.iter_mut().find(|role| role.name == *name) {
            Some(role) => role.answers += counts,
            None => roles.push(RoleSummary { name: name.clone(), answers: counts, is_used: false }),
        }
    }
    roles.iter_mut().for_each(|role| role.is_used = role.answers >= min_answers.max(1));
    let used: Vec<_> = roles.iter().filter(|role| role.is_used).map(|role| role.name.clone()).collect();
    if 2 * used.len() < roles.len() {
        return Err(Error::FewRoles { used: used.len(), roles: roles.len(), min_answers });
    }
    Ok((roles, used))
}

/// Returns the traits.
pub(super) fn traits(rollouts: &[Rollout]) -> Vec<TraitSummary> {
    let mut traits = Vec::<TraitSummary>::new();
    for rollout in rollouts {
        let (name, counts) = match &rollout.group {
            Group::Positive(name) => (name, (1, 0)),
            Group::Negative(name) => (name, (0, 1)),
            Group::Default | Group::HeldOut | Group::Role(_) => continue,
        };
        match traits.iter_mut().find(|one| one.name == *name) {
            Some(one) => one.answers = (one.answers.0 + counts.0, one.answers.1 + counts.1),
            None => traits.push(TraitSummary { name: name.clone(), answers: counts }),
        }
    }
    traits
}

/// Returns the places of the answers with a token that `is_own` takes.
pub(super) fn places(rollouts: &[Rollout], is_own: impl Fn(&Rollout) -> bool) -> Vec<usize> {
    let own = |(_, rollout): &(usize, &Rollout)| !rollout.answer().is_empty() && is_own(rollout);
    rollouts.iter().enumerate().filter(own).map(|(place, _)| place).collect()
}

fn members(rollouts: &[Rollout], is_own: &dyn Fn(&Group) -> bool) -> Vec<Member> {
    let member = |answer: usize| Member { answer, half: rollouts[answer].question % 2 };
    places(rollouts, |rollout| is_own(&rollout.group)).into_iter().map(member).collect()
}
