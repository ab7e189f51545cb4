//! The files of roles, traits and questions.

use serde::Deserialize;

use crate::error::Error;

pub(super) const BUILTIN_ROLES: &str = include_str!("../../../assets/roles.json");
pub(super) const BUILTIN_QUESTIONS: &str = include_str!("../../../assets/questions.txt");

/// One role to play and its system prompts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolePlay {
    /// Short name, for reports.
    pub name: String,
    /// System prompts, at least one.
    pub prompts: Vec<String>,
}

/// One trait and the system prompts that ask for it and for its opposite.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trait {
    /// Short name, for reports.
    pub name: String,
    /// System prompts that ask for the trait, at least one.
    pub positive: Vec<String>,
    /// System prompts that ask for its opposite, at least one.
    pub negative: Vec<String>,
}

/// A question and its style.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The heading above it in the file. Empty before the first one.
    pub style: String,
    /// The question.
    pub text: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RolesFile {
    default: Vec<Option<String>>,
    roles: Vec<RolePlay>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TraitsFile {
    traits: Vec<Trait>,
}

/// Reads neutral system prompts and roles.
pub(super) fn roles(text: &str) -> Result<(Vec<Option<String>>, Vec<RolePlay>), Error> {
    let RolesFile { default, roles } = serde_json::from_str(text).map_err(|error| Error::Roles { error })?;
    let remedy = "give at least one neutral system prompt, or null for none";
    if default.is_empty() {
        return Err(Error::Empty { place: "the list \"default\"".into(), remedy });
    }
    if let Some(index) = default.iter().position(|prompt| prompt.as_deref().is_some_and(is_blank)) {
        return Err(Error::Empty { place: format!("\"default\"[{index}]"), remedy });
    }
    if roles.is_empty() {
        return Err(Error::Empty {
            place: "the list \"roles\"".into(),
            remedy: "the axis is the difference to role play; give at least one role, better twenty or more",
        });
    }
    check_names("role", roles.iter().map(|role| &role.name))?;
    roles.iter().try_for_each(|role| check_prompts("role", &role.name, "prompts", &role.prompts))?;
    Ok((default, roles))
}

/// Reads traits.
pub(super) fn traits(text: &str) -> Result<Vec<Trait>, Error> {
    let TraitsFile { traits } = serde_json::from_str(text).map_err(|error| Error::Traits { error })?;
    if traits.is_empty() {
        let remedy = "give at least one trait, or leave out the file";
        return Err(Error::Empty { place: "the list \"traits\"".into(), remedy });
    }
    check_names("trait", traits.iter().map(|one| &one.name))?;
    for one in &traits {
        check_prompts("trait", &one.name, "positive", &one.positive)?;
        check_prompts("trait", &one.name, "negative", &one.negative)?;
    }
    Ok(traits)
}

/// The style of questions that only the default Assistant is asked. Axes and floors are not made from their answers.
const HELD_OUT: &str = "held-out";

/// Reads questions, one a line. Returns those of the style `held-out` apart: the built-in ones if there are none. A line in square brackets begins a style. Lines that start with `#` are comments.
pub(super) fn questions(text: &str) -> Result<(Vec<Question>, Vec<Question>), Error> {
    let mut questions = Vec::<Question>::new();
    let mut style = "";
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            style = name.trim();
            continue;
        }
        if questions.iter().any(|question| question.text == line) {
            return Err(Error::Duplicate { what: "question", text: line.into() });
        }
        questions.push(Question { style: style.into(), text: line.into() });
    }
    let (mut held_out, questions): (Vec<_>, Vec<_>) =
        questions.into_iter().partition(|question| question.style == HELD_OUT);
    if questions.len() < 2 {
        return Err(Error::FewQuestions { found: questions.len() });
    }
    if held_out.is_empty() && text != BUILTIN_QUESTIONS {
        held_out = self::questions(BUILTIN_QUESTIONS)?.1;
        held_out.retain(|question| questions.iter().all(|other| other.text != question.text));
    }
    Ok((questions, held_out))
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

fn check_names<'a>(what: &'static str, names: impl Iterator<Item = &'a String>) -> Result<(), Error> {
    let mut known = Vec::new();
    for (index, name) in names.enumerate() {
        if is_blank(name) {
            let place = format!("the name of \"{what}s\"[{index}]");
            return Err(Error::Empty { place, remedy: "give it a name" });
        }
        if known.contains(&name) {
            return Err(Error::Duplicate { what, text: name.clone() });
        }
        known.push(name);
    }
    Ok(())
}

fn check_prompts(what: &str, name: &str, list: &str, prompts: &[String]) -> Result<(), Error> {
    if prompts.is_empty() || prompts.iter().any(|prompt| is_blank(prompt)) {
        let place = format!("{list:?} of {what} {name:?}, or a prompt in it,");
        return Err(Error::Empty { place, remedy: "give at least one system prompt" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Plan;
    use super::*;

    #[test]
    fn a_bad_file_is_refused_and_the_place_named() {
        let roles = |text: &str| Plan::from_texts(Some(text), None, None).unwrap_err().to_string();
        assert!(roles("{").contains("not as expected"));
        assert!(roles(r#"{"default": [null], "roles": [], "x": 1}"#).contains("unknown field `x`"));
        assert!(roles(r#"{"default": [], "roles": []}"#).contains("\"default\""));
        assert!(roles(r#"{"default": [null, " "], "roles": []}"#).contains("\"default\"[1]"));
        assert!(roles(r#"{"default": [null], "roles": []}"#).contains("\"roles\""));
        let empty = r#"{"default": [null], "roles": [{"name": "a", "prompts": []}]}"#;
        assert!(roles(empty).contains("role \"a\""));
        let twice = r#"{"default": [null], "roles": [{"name": "a", "prompts": ["x"]}, {"name": "a", "prompts": ["y"]}]}"#;
        assert!(roles(twice).contains("appears twice"));

        let traits = |text: &str| Plan::from_texts(None, None, Some(text)).unwrap_err().to_string();
        assert!(traits("[]").contains("a traits file is JSON"));
        assert!(traits(r#"{"traits": []}"#).contains("\"traits\""));
        let half = r#"{"traits": [{"name": "warm", "positive": ["x"], "negative": [" "]}]}"#;
        assert!(traits(half).contains("\"negative\" of trait \"warm\""), "{}", traits(half));

        let questions = |text: &str| Plan::from_texts(None, Some(text), None);
        assert!(matches!(questions("# none\nOne?\n"), Err(Error::FewQuestions { found: 1 })));
        assert!(matches!(questions("One?\n[b]\nOne?\n"), Err(Error::Duplicate { .. })));
    }

    #[test]
    fn a_line_in_brackets_begins_a_style() {
        let text = "First?\n[ self ]\n# a comment\nSecond?\n\n[ideas]\nThird?\n";
        let (found, held_out) = questions(text).unwrap();
        let pairs: Vec<_> = found.iter().map(|q| (q.style.as_str(), q.text.as_str())).collect();
        assert_eq!(pairs, [("", "First?"), ("self", "Second?"), ("ideas", "Third?")]);
        assert_eq!(held_out, Plan::builtin().held_out);
        let (found, held_out) = questions(&format!("{text}[held-out]\nFourth?\n")).unwrap();
        assert_eq!((found.len(), held_out.len(), held_out[0].text.as_str()), (3, 1, "Fourth?"));
        // A question that axes are made from is not held out.
        let taken = &Plan::builtin().held_out[0];
        let (_, held_out) = questions(&format!("First?\n{}\n", taken.text)).unwrap();
        assert!(!held_out.is_empty() && held_out.iter().all(|question| question.text != taken.text));
    }
}
