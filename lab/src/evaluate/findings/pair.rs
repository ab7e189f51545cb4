//! Pairs of lines for outside judges of consistency.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::arm::Arm;
use super::super::material::Material;
use super::super::record::Record;

/// What is asked about a pair: whether the second text contradicts the first (arXiv 2511.00222).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairKind {
    /// An answer after what the model was told to be.
    PromptToLine,
    /// An answer after an earlier one of the same conversation: the first, or the one before.
    LineToLine,
}

impl PairKind {
    /// Returns its name in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PromptToLine => "prompt-to-line",
            Self::LineToLine => "line-to-line",
        }
    }
}

/// Two texts that should not contradict each other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pair<'a> {
    /// What they are.
    pub kind: PairKind,
    /// Under which caps the answers were given.
    pub arm: Arm,
    /// The conversation.
    pub conversation: &'a str,
    /// Its domain.
    pub domain: &'a str,
    /// Turn of the first text, from 1 on. 0 is the system prompt.
    pub first_turn: usize,
    /// The first text.
    pub first: &'a str,
    /// Mean projection of its tokens on the watched axis, as the uncapped model reads them. `None` for a system prompt,
    /// and without the readings of the drift suite.
    pub first_projection: Option<f32>,
    /// Turn of the second text.
    pub second_turn: usize,
    /// The second text.
    pub second: &'a str,
    /// Its mean projection.
    pub second_projection: Option<f32>,
}

/// What a model without a system prompt is taken to be.
const ASSISTANT: &str = "You are an AI assistant: helpful, honest, and a computer program.";

/// Returns the pairs of all conversations.
#[must_use]
pub fn pairs<'a>(material: &'a Material, records: impl Iterator<Item = &'a Record>) -> Vec<Pair<'a>> {
    let (mut talks, mut readings) = (Vec::new(), BTreeMap::new());
    for record in records {
        match record {
            Record::Conversation { arm, id, answers } => talks.push((*arm, id, answers)),
            Record::Reading { arm, id, under_caps: false, turns } => {
                readings.insert((*arm, id), turns);
            }
            _ => {}
        }
    }
    let mut pairs = Vec::new();
    for (arm, id, answers) in talks {
        let Some(script) = material.conversations.iter().find(|script| script.id == *id) else { continue };
        let projection = |turn: usize| readings.get(&(arm, id))?.get(turn.checked_sub(1)?)?.before;
        let mut add = |kind, first_turn: usize, first, second_turn: usize| {
            pairs.push(Pair {
                kind,
                arm,
                conversation: &script.id,
                domain: &script.domain,
                first_turn,
                first,
                first_projection: projection(first_turn),
                second_turn,
                second: &answers[second_turn - 1].text,
                second_projection: projection(second_turn),
            });
        };
        for turn in 1..=answers.len() {
            add(PairKind::PromptToLine, 0, script.system.as_deref().unwrap_or(ASSISTANT), turn);
            if turn > 1 {
                add(PairKind::LineToLine, 1, &answers[0].text, turn);
            }
            if turn > 2 {
                add(PairKind::LineToLine, turn - 1, &answers[turn - 2].text, turn);
            }
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::super::super::record::{Answer, TurnReading};
    use super::*;
    use crate::evaluate::Size;

    #[test]
    fn every_answer_is_paired_with_the_prompt_the_first_and_the_one_before() {
        let material = Material::builtin().cut(&Size::QUICK);
        let id = material.conversations[0].id.clone();
        let answer = |text: &str| Answer { text: text.into(), tokens: Vec::new() };
        let answers = ["a", "b", "c"].map(answer).into();
        let turn = |before| TurnReading { tokens: 1, before: Some(before), after: None, outside: 0 };
        let turns = [1.0, 2.0, 3.0].map(turn).into();
        let records = [
            Record::Conversation { arm: Arm::Capped, id: id.clone(), answers },
            Record::Reading { arm: Arm::Capped, id, under_caps: false, turns },
        ];
        let found = pairs(&material, records.iter());
        let shown: Vec<_> = found.iter().map(|pair| (pair.first_turn, pair.second_turn)).collect();
        assert_eq!(shown, [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]);
        assert_eq!((found[5].first, found[5].second), ("b", "c"));
        assert_eq!((found[5].first_projection, found[5].second_projection), (Some(2.0), Some(3.0)));
        assert_eq!(found[0].first_projection, None);
    }
}
