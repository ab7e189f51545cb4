//! Which questions are asked under which system prompts.

use axiscap_llama::Sampling;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::Error;

mod choice;
mod files;

use choice::choose;
pub use files::{Question, RolePlay, Trait};

/// Roles, neutral system prompts, traits and questions: the experiment without size, seed and length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// System prompts of the default Assistant. `None` is no system message.
    pub default: Vec<Option<String>>,
    /// Roles to play.
    pub roles: Vec<RolePlay>,
    /// Traits to show and to avoid. Empty without a file of them.
    pub traits: Vec<Trait>,
    /// Questions, style by style.
    pub questions: Vec<Question>,
    /// Questions to the default Assistant whose answers are for measuring what caps do, and not for making them.
    pub held_out: Vec<Question>,
    /// SHA-256 of the roles file, in hexadecimal.
    pub roles_sha256: String,
    /// SHA-256 of the questions file, in hexadecimal.
    pub questions_sha256: String,
    /// SHA-256 of the traits file, in hexadecimal. `None` without one.
    pub traits_sha256: Option<String>,
}

/// How many answers a plan asks for. `None` is every question under every system prompt.
///
/// A part of the answers is spread evenly: over the system prompts, over the styles of questions, and, from role
/// to role, over the questions of a style.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanSize {
    /// Answers of the default Assistant, over all of its system prompts.
    pub default: Option<usize>,
    /// Answers per role, and per side of a trait, over all of its system prompts.
    pub role: Option<usize>,
    /// Answers to the held-out questions, over the default Assistant's system prompts.
    pub held_out: usize,
}

impl Default for PlanSize {
    /// Returns 48 default answers, 4 per role, and 16 that are held out.
    fn default() -> Self {
        Self { default: Some(48), role: Some(4), held_out: 16 }
    }
}

/// Whose answer it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// The default Assistant's.
    Default,
    /// The default Assistant's to a held-out question.
    HeldOut,
    /// A role's, by name.
    Role(String),
    /// That of a system prompt that asks for a trait, by name.
    Positive(String),
    /// That of a system prompt that asks for a trait's opposite.
    Negative(String),
}

impl Group {
    /// Returns `default`, `held-out`, `role` or `trait`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::HeldOut => "held-out",
            Self::Role(_) => "role",
            Self::Positive(_) | Self::Negative(_) => "trait",
        }
    }
}

/// One answer to be generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Whose answer it is.
    pub group: Group,
    /// System prompt, if any.
    pub system: Option<String>,
    /// Index of the question in [`Plan::questions`], or in [`Plan::held_out`].
    pub question: usize,
    /// The question itself.
    pub text: String,
    /// Seed of this answer. It depends on the place in the plan and not on the order of execution.
    pub seed: u32,
}

impl Plan {
    /// Returns the built-in roles and questions (`lab/assets/`), without traits.
    #[must_use]
    pub fn builtin() -> Self {
        Self::from_texts(None, None, None).expect("the built-in plan is checked by a test")
    }

    /// Reads a roles file (JSON), a questions file and a traits file (JSON), as docs/method.md describes them.
    /// `None` are the built-in roles and questions, and no traits.
    ///
    /// # Errors
    /// [`Error::Roles`], [`Error::Traits`], [`Error::Empty`], [`Error::Duplicate`], [`Error::FewQuestions`].
    pub fn from_texts(
        roles: Option<&str>,
        questions: Option<&str>,
        traits: Option<&str>,
    ) -> Result<Self, Error> {
        let roles = roles.unwrap_or(files::BUILTIN_ROLES);
        let questions = questions.unwrap_or(files::BUILTIN_QUESTIONS);
        let (default, role_plays) = files::roles(roles)?;
        let (questions_asked, held_out) = files::questions(questions)?;
        Ok(Self {
            default,
            roles: role_plays,
            traits: traits.map_or(Ok(Vec::new()), files::traits)?,
            questions: questions_asked,
            held_out,
            roles_sha256: sha256(roles),
            questions_sha256: sha256(questions),
            traits_sha256: traits.map(sha256),
        })
    }

    /// Keeps only the first `roles` roles and `questions` questions, for a quick trial.
    #[must_use]
    pub fn limited(mut self, roles: Option<usize>, questions: Option<usize>) -> Self {
        self.roles.truncate(roles.unwrap_or(usize::MAX).max(1));
        let questions = questions.unwrap_or(usize::MAX).max(2);
        self.questions.truncate(questions);
        self.held_out.truncate(questions);
        self
    }

    /// Returns the answers to generate: the default Assistant's, then role by role, then trait by trait, then those
    /// that are held out.
    #[must_use]
    pub fn requests(&self, size: PlanSize, seed: u32) -> Vec<Request> {
        let mut requests = Vec::new();
        self.ask(&mut requests, &Group::Default, &self.default, (0, size.default), seed);
        let some = |prompts: &[String]| prompts.iter().cloned().map(Some).collect::<Vec<_>>();
        for (turn, role) in self.roles.iter().enumerate() {
            let group = Group::Role(role.name.clone());
            self.ask(&mut requests, &group, &some(&role.prompts), (turn, size.role), seed);
        }
        for (turn, one) in self.traits.iter().enumerate() {
            let (positive, negative) = (Group::Positive(one.name.clone()), Group::Negative(one.name.clone()));
            // The same questions on both sides.
            self.ask(&mut requests, &positive, &some(&one.positive), (turn, size.role), seed);
            self.ask(&mut requests, &negative, &some(&one.negative), (turn, size.role), seed);
        }
        self.ask(&mut requests, &Group::HeldOut, &self.default, (0, Some(size.held_out)), seed);
        requests
    }

    /// Returns the questions that a group is asked.
    #[must_use]
    pub fn asked(&self, group: &Group) -> &[Question] {
        if *group == Group::HeldOut { &self.held_out } else { &self.questions }
    }

    /// Adds the requests of one group.
    fn ask(
        &self,
        requests: &mut Vec<Request>,
        group: &Group,
        prompts: &[Option<String>],
        (turn, count): (usize, Option<usize>),
        seed: u32,
    ) {
        let questions = self.asked(group);
        for (prompt, question) in choose(prompts.len(), questions, turn, count) {
            requests.push(Request {
                group: group.clone(),
                system: prompts[prompt].clone(),
                question,
                text: questions[question].text.clone(),
                seed: mixed(seed, requests.len()),
            });
        }
    }
}

/// Returns a seed per answer by splitmix64's finaliser: neighbouring counters must not give related random
/// numbers.
fn mixed(seed: u32, index: usize) -> u32 {
    let mut z = (u64::from(seed) << 32 | index as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) as u32).min(Sampling::MAX_SEED)
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    #[test]
    fn the_builtin_plan_is_large_and_varied_enough() {
        let plan = Plan::builtin();
        assert!(plan.roles.len() >= 60 && plan.roles.iter().all(|role| role.prompts.len() >= 3));
        let mut styles = HashMap::<_, usize>::new();
        plan.questions.iter().for_each(|question| *styles.entry(&question.style).or_default() += 1);
        assert!(styles.len() == 4 && styles.values().all(|&count| count >= 10), "{styles:?}");
        assert!(plan.default.len() >= 4 && plan.default.contains(&None));
        let requests = plan.requests(PlanSize { default: None, role: None, held_out: 0 }, 1);
        let prompts: usize = plan.roles.iter().map(|role| role.prompts.len()).sum();
        assert_eq!(requests.len(), (plan.default.len() + prompts) * plan.questions.len());
        let seeds: HashSet<_> = requests.iter().map(|r| r.seed).collect();
        assert_eq!(seeds.len(), requests.len());
    }

    #[test]
    fn a_part_of_the_plan_is_spread_evenly() {
        let plan = Plan::builtin();
        let requests = plan.requests(PlanSize::default(), 1);
        assert_eq!(requests.len(), 48 + 4 * plan.roles.len() + 16);
        let (held_out, requests) = (&requests[requests.len() - 16..], &requests[..requests.len() - 16]);
        assert!(held_out.iter().all(|request| request.group == Group::HeldOut));
        let systems: HashSet<_> = held_out.iter().map(|request| &request.system).collect();
        let texts: HashSet<_> = held_out.iter().map(|request| &request.text).collect();
        assert_eq!((systems.len(), texts.len()), (plan.default.len(), 16));
        assert!(plan.questions.iter().all(|question| !texts.contains(&question.text)));
        assert!(requests[..48].iter().all(|request| request.group == Group::Default));
        let mut asked = HashMap::<_, usize>::new();
        for role in requests[48..].chunks(4) {
            let of = |request: &Request| &plan.questions[request.question].style;
            assert_eq!(role.iter().map(of).collect::<HashSet<_>>().len(), 4, "one question of each style");
            assert_eq!(role.iter().map(|r| r.system.clone()).collect::<HashSet<_>>().len(), 3);
            assert_eq!(
                role.iter().filter(|r| r.question % 2 == 0).count(),
                2,
                "both halves of the questions"
            );
            role.iter().for_each(|request| *asked.entry(request.question).or_default() += 1);
        }
        let (least, most) = (asked.values().min().unwrap(), asked.values().max().unwrap());
        assert!(asked.len() == plan.questions.len() && most - least <= 1, "{asked:?}");
    }

    #[test]
    fn traits_ask_the_same_on_both_sides() {
        let traits = r#"{"traits": [{"name": "warm", "positive": ["Be warm."], "negative": ["Be cold."]}]}"#;
        let plan = Plan::from_texts(None, None, Some(traits)).unwrap().limited(Some(1), Some(3));
        let requests = plan.requests(PlanSize { default: Some(2), role: Some(2), held_out: 1 }, 1);
        assert_eq!(requests.len(), 2 + 2 + 2 + 2 + 1);
        let (positive, negative) = requests[4..8].split_at(2);
        assert_eq!(positive[0].group, Group::Positive("warm".into()));
        assert_eq!(negative[1].system.as_deref(), Some("Be cold."));
        let questions = |part: &[Request]| part.iter().map(|r| r.question).collect::<Vec<_>>();
        assert_eq!(questions(positive), questions(negative));
        assert_ne!(plan.traits_sha256, None);
    }

    #[test]
    fn limits_keep_at_least_one_role_and_two_questions() {
        let plan = Plan::builtin().limited(Some(2), Some(0));
        assert_eq!((plan.roles.len(), plan.questions.len(), plan.held_out.len()), (2, 2, 2));
    }
}
