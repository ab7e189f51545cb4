//! The questions, and the roles in which the model answers them.

use axiscap_llama::Sampling;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::error::Error;

const BUILTIN_ROLES: &str = include_str!("../../assets/roles.json");
const BUILTIN_QUESTIONS: &str = include_str!("../../assets/questions.txt");

/// One role to play and its system prompts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolePlay {
    /// Short name, for reports.
    pub name: String,
    /// System prompts, at least one.
    pub prompts: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RolesFile {
    default: Vec<Option<String>>,
    roles: Vec<RolePlay>,
}

/// Roles, neutral system prompts and questions: the experiment without seed and length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// System prompts of the default Assistant. `None` is no system message.
    pub default: Vec<Option<String>>,
    /// Roles to play.
    pub roles: Vec<RolePlay>,
    /// Questions, asked under every system prompt.
    pub questions: Vec<String>,
    /// SHA-256 of the roles file, in hexadecimal.
    pub roles_sha256: String,
    /// SHA-256 of the questions file, in hexadecimal.
    pub questions_sha256: String,
}

/// One answer to be generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The role's name, `None` for the default Assistant.
    pub role: Option<String>,
    /// System prompt, if any.
    pub system: Option<String>,
    /// Index of the question in the plan.
    pub question: usize,
    /// The question itself.
    pub text: String,
    /// Seed of this answer. It depends on the place in the plan and not on the order of execution.
    pub seed: u32,
}

impl Plan {
    /// Returns the built-in roles and questions (`lab/assets/`).
    #[must_use]
    pub fn builtin() -> Self {
        Self::parse(BUILTIN_ROLES, BUILTIN_QUESTIONS).expect("the built-in plan is checked by a test")
    }

    /// Reads a roles file (JSON) and a questions file (one a line, `#` comments). `None` is the built-in one.
    ///
    /// # Errors
    /// [`Error::Roles`], [`Error::Empty`], [`Error::Duplicate`], [`Error::FewQuestions`].
    pub fn from_texts(roles: Option<&str>, questions: Option<&str>) -> Result<Self, Error> {
        Self::parse(roles.unwrap_or(BUILTIN_ROLES), questions.unwrap_or(BUILTIN_QUESTIONS))
    }

    fn parse(roles_text: &str, questions_text: &str) -> Result<Self, Error> {
        let file: RolesFile = serde_json::from_str(roles_text).map_err(|error| Error::Roles { error })?;
        check_default(&file.default)?;
        check_roles(&file.roles)?;
        Ok(Self {
            default: file.default,
            roles: file.roles,
            questions: questions(questions_text)?,
            roles_sha256: sha256(roles_text),
            questions_sha256: sha256(questions_text),
        })
    }

    /// Keeps only the first `roles` roles and `questions` questions, for a quick trial.
    #[must_use]
    pub fn limited(mut self, roles: Option<usize>, questions: Option<usize>) -> Self {
        self.roles.truncate(roles.unwrap_or(usize::MAX).max(1));
        self.questions.truncate(questions.unwrap_or(usize::MAX).max(2));
        self
    }

    /// Returns every system prompt with every question, first for the default Assistant, then role by role.
    #[must_use]
    pub fn requests(&self, seed: u32) -> Vec<Request> {
        let default = self.default.iter().map(|system| (None, system.as_ref()));
        let roles = self
            .roles
            .iter()
            .flat_map(|role| role.prompts.iter().map(move |prompt| (Some(&role.name), Some(prompt))));
        let mut requests = Vec::new();
        for (role, system) in default.chain(roles) {
            for (question, text) in self.questions.iter().enumerate() {
                requests.push(Request {
                    role: role.cloned(),
                    system: system.cloned(),
                    question,
                    text: text.clone(),
                    seed: mixed(seed, requests.len()),
                });
            }
        }
        requests
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

fn check_default(default: &[Option<String>]) -> Result<(), Error> {
    let remedy = "give at least one neutral system prompt, or null for none";
    if default.is_empty() {
        return Err(Error::Empty { place: "the list \"default\"".into(), remedy });
    }
    match default.iter().position(|p| p.as_ref().is_some_and(|p| p.trim().is_empty())) {
        Some(index) => Err(Error::Empty { place: format!("\"default\"[{index}]"), remedy }),
        None => Ok(()),
    }
}

fn check_roles(roles: &[RolePlay]) -> Result<(), Error> {
    if roles.is_empty() {
        return Err(Error::Empty {
            place: "the list \"roles\"".into(),
            remedy: "the axis is the difference to role play; give at least one role, better twenty or more",
        });
    }
    for (index, role) in roles.iter().enumerate() {
        if role.name.trim().is_empty() {
            let place = format!("the name of \"roles\"[{index}]");
            return Err(Error::Empty { place, remedy: "name the role" });
        }
        if role.prompts.is_empty() || role.prompts.iter().any(|p| p.trim().is_empty()) {
            let place = format!("\"prompts\" of role {:?}, or a prompt in it,", role.name);
            return Err(Error::Empty { place, remedy: "give at least one system prompt per role" });
        }
        if roles[..index].iter().any(|r| r.name == role.name) {
            return Err(Error::Duplicate { what: "role", text: role.name.clone() });
        }
    }
    Ok(())
}

fn questions(text: &str) -> Result<Vec<String>, Error> {
    let mut questions = Vec::<String>::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if questions.iter().any(|q| q == line) {
            return Err(Error::Duplicate { what: "question", text: line.into() });
        }
        questions.push(line.into());
    }
    if questions.len() < 2 {
        return Err(Error::FewQuestions { found: questions.len() });
    }
    Ok(questions)
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builtin_plan_is_large_and_varied_enough() {
        let plan = Plan::builtin();
        assert!(plan.roles.len() >= 24 && plan.roles.iter().all(|r| r.prompts.len() >= 2));
        assert!(plan.questions.len() >= 12);
        assert_eq!(plan.default.len(), 5);
        assert!(plan.default.contains(&None));
        let requests = plan.requests(1);
        let prompts: usize = plan.roles.iter().map(|r| r.prompts.len()).sum();
        assert_eq!(requests.len(), (5 + prompts) * plan.questions.len());
        assert!(requests[..5 * plan.questions.len()].iter().all(|r| r.role.is_none()));
        let seeds: std::collections::HashSet<_> = requests.iter().map(|r| r.seed).collect();
        assert_eq!(seeds.len(), requests.len());
    }

    #[test]
    fn a_bad_file_is_refused_and_the_place_named() {
        let roles = |text: &str| Plan::from_texts(Some(text), None).unwrap_err().to_string();
        assert!(roles("{").contains("not as expected"));
        assert!(roles(r#"{"default": [null], "roles": [], "x": 1}"#).contains("unknown field `x`"));
        assert!(roles(r#"{"default": [], "roles": []}"#).contains("\"default\""));
        assert!(roles(r#"{"default": [null, " "], "roles": []}"#).contains("\"default\"[1]"));
        assert!(roles(r#"{"default": [null], "roles": []}"#).contains("\"roles\""));
        let empty = r#"{"default": [null], "roles": [{"name": "a", "prompts": []}]}"#;
        assert!(roles(empty).contains("role \"a\""));
        let twice = r#"{"default": [null], "roles": [{"name": "a", "prompts": ["x"]}, {"name": "a", "prompts": ["y"]}]}"#;
        assert!(roles(twice).contains("appears twice"));
        assert!(matches!(
            Plan::from_texts(None, Some("# none\nOne?\n")),
            Err(Error::FewQuestions { found: 1 })
        ));
        assert!(matches!(Plan::from_texts(None, Some("One?\nOne?\n")), Err(Error::Duplicate { .. })));
    }

    #[test]
    fn limits_keep_at_least_one_role_and_two_questions() {
        let plan = Plan::builtin().limited(Some(2), Some(0));
        assert_eq!((plan.roles.len(), plan.questions.len()), (2, 2));
    }
}
