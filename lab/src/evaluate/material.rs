//! What a model is asked in an evaluation: conversations, facts, probes, choices, and prompts for the dose.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::Error;

/// The built-in material, a part per file.
const BUILTIN: [&str; 5] = [
    include_str!("../../assets/evaluation/conversations.json"),
    include_str!("../../assets/evaluation/facts.json"),
    include_str!("../../assets/evaluation/probes.json"),
    include_str!("../../assets/evaluation/choices.json"),
    include_str!("../../assets/evaluation/dose.json"),
];

/// What a model is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Material {
    /// Scripted conversations.
    pub conversations: Vec<Script>,
    /// What a sad user says before the question.
    pub sad: Vec<String>,
    /// System prompts of a warm persona.
    pub warm: Vec<String>,
    /// Factual questions.
    pub facts: Vec<Fact>,
    /// Questions that are asked early and late in a conversation.
    pub probes: Vec<Probe>,
    /// Multiple-choice questions.
    pub choices: Vec<Choice>,
    /// What the dose is measured on.
    pub dose: DosePrompts,
}

/// The user's messages of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Its name, which is unique.
    pub id: String,
    /// The kind of conversation, e.g. `therapy`.
    pub domain: String,
    /// What it is about.
    pub subject: String,
    /// System prompt. `None` is no system message.
    pub system: Option<String>,
    /// The user's messages.
    pub turns: Vec<String>,
}

/// A question with a right and a wrong answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    /// Its name, which is unique.
    pub id: String,
    /// What it is about.
    pub topic: String,
    /// The question.
    pub question: String,
    /// A sentence that answers it rightly.
    pub right: String,
    /// A sentence of the same form that answers it wrongly.
    pub wrong: String,
    /// What a user says who believes the wrong answer.
    pub belief: String,
}

/// A question without a right answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Its name, which is unique.
    pub id: String,
    /// What it is about, e.g. `self`.
    pub subject: String,
    /// The question.
    pub question: String,
    /// Answers of one form.
    pub options: Vec<String>,
}

/// A multiple-choice question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// Its name, which is unique.
    pub id: String,
    /// What it is about.
    pub topic: String,
    /// The question.
    pub question: String,
    /// Answers of one form.
    pub options: Vec<String>,
    /// Index of the right one.
    pub right: usize,
}

/// Questions under system prompts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DosePrompts {
    /// System prompts.
    pub prompts: Vec<NamedPrompt>,
    /// Questions that are asked under each of them.
    pub questions: Vec<String>,
}

/// A system prompt with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedPrompt {
    /// Its name, which is unique.
    pub name: String,
    /// Its text. `None` is no system message.
    pub text: Option<String>,
}

/// A file of material. What it leaves out is built in.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parts {
    conversations: Option<Vec<Script>>,
    sad: Option<Vec<String>>,
    warm: Option<Vec<String>>,
    facts: Option<Vec<Fact>>,
    probes: Option<Vec<Probe>>,
    choices: Option<Vec<Choice>>,
    dose: Option<DosePrompts>,
}

impl Parts {
    fn parse(json: &str) -> Result<Self, Error> {
        serde_json::from_str(json).map_err(|error| Error::Material { error })
    }

    fn or(self, other: Self) -> Self {
        Self {
            conversations: self.conversations.or(other.conversations),
            sad: self.sad.or(other.sad),
            warm: self.warm.or(other.warm),
            facts: self.facts.or(other.facts),
            probes: self.probes.or(other.probes),
            choices: self.choices.or(other.choices),
            dose: self.dose.or(other.dose),
        }
    }
}

impl Material {
    /// Returns the built-in material (`lab/assets/evaluation/`).
    #[must_use]
    pub fn builtin() -> Self {
        Self::complete(Parts::default()).expect("the built-in material is checked by a test")
    }

    /// Reads material (JSON). What it leaves out is built in.
    ///
    /// # Errors
    /// [`Error::Material`], [`Error::Empty`], [`Error::Duplicate`].
    pub fn parse(json: &str) -> Result<Self, Error> {
        Self::complete(Parts::parse(json)?)
    }

    fn complete(own: Parts) -> Result<Self, Error> {
        let parts =
            BUILTIN.iter().try_fold(own, |parts, json| Ok::<_, Error>(parts.or(Parts::parse(json)?)))?;
        let Parts { conversations, sad, warm, facts, probes, choices, dose } = parts;
        let missing = |key: &str| empty(format!("the key {key:?}"));
        let material = Self {
            conversations: conversations.ok_or_else(|| missing("conversations"))?,
            sad: sad.ok_or_else(|| missing("sad"))?,
            warm: warm.ok_or_else(|| missing("warm"))?,
            facts: facts.ok_or_else(|| missing("facts"))?,
            probes: probes.ok_or_else(|| missing("probes"))?,
            choices: choices.ok_or_else(|| missing("choices"))?,
            dose: dose.ok_or_else(|| missing("dose"))?,
        };
        material.check()?;
        Ok(material)
    }

    /// Refuses what could not be asked or told apart.
    fn check(&self) -> Result<(), Error> {
        for script in &self.conversations {
            texts(&format!("conversation {:?}", script.id), 1, &script.turns)?;
            texts("\"domain\" of a conversation", 1, [&script.domain])?;
        }
        texts("\"sad\"", 1, &self.sad)?;
        texts("\"warm\"", 1, &self.warm)?;
        for Fact { id, question, right, wrong, belief, .. } in &self.facts {
            texts(&format!("fact {id:?}"), 1, [question, right, wrong, belief])?;
            different(&format!("fact {id:?}"), [right, wrong])?;
        }
        for Probe { id, question, options, .. } in &self.probes {
            let place = format!("probe {id:?}");
            texts(&place, 1, [question])?;
            texts(&place, 2, options)?;
            different(&place, options)?;
        }
        for Choice { id, question, options, right, .. } in &self.choices {
            let place = format!("choice {id:?}");
            texts(&place, 1, [question])?;
            texts(&place, 2, options)?;
            different(&place, options)?;
            if *right >= options.len() {
                return Err(Error::Option {
                    option: "the right option",
                    value: format!("{right} in {place}"),
                    expected: format!("an index below {}", options.len()),
                });
            }
        }
        texts("\"questions\" of \"dose\"", 1, &self.dose.questions)?;
        unique("conversation", self.conversations.iter().map(|script| &script.id))?;
        unique("fact", self.facts.iter().map(|fact| &fact.id))?;
        unique("probe", self.probes.iter().map(|probe| &probe.id))?;
        unique("choice", self.choices.iter().map(|choice| &choice.id))?;
        unique("system prompt", self.dose.prompts.iter().map(|prompt| &prompt.name))?;
        for (place, count) in [
            ("\"conversations\"", self.conversations.len()),
            ("\"facts\"", self.facts.len()),
            ("\"probes\"", self.probes.len()),
            ("\"choices\"", self.choices.len()),
            ("\"prompts\" of \"dose\"", self.dose.prompts.len()),
        ] {
            if count == 0 {
                return Err(empty(place.into()));
            }
        }
        Ok(())
    }

    /// Returns the SHA-256 of the material, in hexadecimal.
    #[must_use]
    pub fn sha256(&self) -> String {
        let json = serde_json::to_vec(self).expect("texts and numbers are valid JSON");
        format!("{:x}", Sha256::digest(json))
    }

    /// Returns the domains of the conversations, in the order in which they come first.
    #[must_use]
    pub fn domains(&self) -> Vec<&str> {
        let mut domains = Vec::new();
        for script in &self.conversations {
            if !domains.contains(&script.domain.as_str()) {
                domains.push(&script.domain);
            }
        }
        domains
    }

    /// Keeps as much of the material as a size asks for: the first conversations of each domain, and of other lists a
    /// part that is spread evenly, so that each topic has its share.
    #[must_use]
    pub(crate) fn cut(mut self, size: &super::Size) -> Self {
        let mut kept = Vec::new();
        for domain in self.domains() {
            let of_domain = self.conversations.iter().filter(|script| script.domain == domain);
            kept.extend(of_domain.take(size.conversations).cloned());
        }
        for script in &mut kept {
            script.turns.truncate(size.turns);
        }
        self.conversations = kept;
        self.facts = spread(self.facts, size.facts);
        self.probes = spread(self.probes, size.probes);
        self.choices = spread(self.choices, size.choices);
        self.dose.questions.truncate(size.dose_questions);
        self
    }
}

/// Keeps `count` of a list, evenly spread over it.
fn spread<T>(list: Vec<T>, count: usize) -> Vec<T> {
    let (all, count) = (list.len(), count.min(list.len()));
    let is_kept = |index: usize| (index + 1) * count / all > index * count / all;
    list.into_iter().enumerate().filter(|(index, _)| is_kept(*index)).map(|(_, item)| item).collect()
}

fn empty(place: String) -> Error {
    Error::Empty { place, remedy: "give it texts, or leave the key out to have what is built in" }
}

/// Refuses empty texts, and fewer than `least` of them.
fn texts<'a>(place: &str, least: usize, texts: impl IntoIterator<Item = &'a String>) -> Result<(), Error> {
    let mut count = 0;
    for text in texts {
        if text.trim().is_empty() {
            return Err(empty(format!("a text of {place}")));
        }
        count += 1;
    }
    if count < least { Err(empty(format!("a list of {place}"))) } else { Ok(()) }
}

/// Refuses answers that could not be told apart.
fn different<'a>(place: &str, texts: impl IntoIterator<Item = &'a String>) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    match texts.into_iter().find(|text| !seen.insert(text.trim())) {
        Some(text) => Err(Error::Duplicate { what: "answer", text: format!("{text} ({place})") }),
        None => Ok(()),
    }
}

fn unique<'a>(what: &'static str, names: impl IntoIterator<Item = &'a String>) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    match names.into_iter().find(|name| !seen.insert(*name)) {
        Some(name) => Err(Error::Duplicate { what, text: name.clone() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Size;
    use super::*;

    #[test]
    fn the_builtin_material_is_as_large_as_it_should_be() {
        let material = Material::builtin();
        assert_eq!(material.domains(), ["coding", "writing", "therapy", "philosophy"]);
        for domain in material.domains() {
            let count = material.conversations.iter().filter(|script| script.domain == domain).count();
            assert!(count >= 5, "{domain}: {count}");
        }
        assert!(material.facts.len() >= 150, "{}", material.facts.len());
        let (words, longer) = material.facts.iter().fold((0, 0), |(words, longer), fact| {
            let length = |text: &str| text.split_whitespace().count().cast_signed();
            (
                words + (length(&fact.right) - length(&fact.wrong)).abs(),
                longer + (length(&fact.right) - length(&fact.wrong)).signum(),
            )
        });
        let facts = material.facts.len().cast_signed();
        assert!(words < facts / 2 && longer.abs() < facts / 10, "a side is longer: {words}, {longer}");
        assert!(material.probes.iter().all(|probe| probe.options.len() == 3));
        let right = |place| material.choices.iter().filter(|choice| choice.right == place).count();
        assert_eq!([0, 1, 2, 3].map(right), [material.choices.len() / 4; 4]);
    }

    #[test]
    fn a_part_is_spread_over_the_whole() {
        assert_eq!(spread((0..10).collect(), 3), [3, 6, 9]);
        assert_eq!(spread((0..3).collect(), 10), [0, 1, 2]);
        assert!(spread(Vec::<u8>::new(), 3).is_empty());
        let all = Material::builtin();
        let quick = all.clone().cut(&Size::QUICK);
        assert_eq!(quick.domains(), all.domains());
        assert_eq!(quick.conversations.len(), 4 * Size::QUICK.conversations);
        let topics = |material: &Material| {
            material.facts.iter().map(|fact| fact.topic.clone()).collect::<BTreeSet<_>>()
        };
        assert_eq!(topics(&quick), topics(&all));
        assert_ne!(quick.sha256(), all.sha256());
        assert_eq!(all.clone().cut(&Size::FULL).facts.len(), all.facts.len());
    }

    #[test]
    fn material_of_ones_own_takes_the_place_of_what_is_built_in() {
        let own = Material::parse(r#"{"sad": ["I lost my dog."]}"#).unwrap();
        assert_eq!(own.sad, ["I lost my dog."]);
        assert_eq!(own.facts, Material::builtin().facts);
        let refuse = |json: &str| Material::parse(json).unwrap_err().to_string();
        assert!(refuse("[]").contains("not as expected"));
        assert!(refuse(r#"{"happy": []}"#).contains("happy"));
        assert!(refuse(r#"{"sad": []}"#).contains("sad"));
        assert!(refuse(r#"{"probes": []}"#).contains("probes"));
        let fact = |right: &str, wrong: &str| {
            format!(
                r#"{{"id": "a", "topic": "t", "question": "Q?", "right": {right:?}, "wrong": {wrong:?}, "belief": "B."}}"#
            )
        };
        let facts = |facts: &[String]| format!(r#"{{"facts": [{}]}}"#, facts.join(","));
        assert!(refuse(&facts(&[fact("X.", " ")])).contains("fact \"a\""));
        assert!(refuse(&facts(&[fact("X.", "X.")])).contains("twice"));
        assert!(refuse(&facts(&[fact("X.", "Y."), fact("X.", "Y.")])).contains("fact \"a\" appears twice"));
        let choice = r#"{"id": "c", "topic": "t", "question": "Q?", "options": ["A.", "B."], "right": 2}"#;
        assert!(refuse(&format!(r#"{{"choices": [{choice}]}}"#)).contains("index below 2"));
        assert!(refuse(r#"{"conversations": [{"id": "x", "domain": "d", "subject": "", "system": null, "turns": []}]}"#)
            .contains("conversation \"x\""));
    }
}
