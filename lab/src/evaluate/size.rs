//! How much an evaluation asks.

use serde::{Deserialize, Serialize};

use super::material::Material;

/// How much is asked. More narrows the intervals, and takes longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Maximum conversations per domain.
    pub conversations: usize,
    /// Maximum turns of a conversation.
    pub turns: usize,
    /// Maximum tokens of an answer.
    pub answer_tokens: usize,
    /// Maximum facts, each under every [`Condition`](super::Condition).
    pub facts: usize,
    /// Maximum probes.
    pub probes: usize,
    /// Maximum multiple-choice questions.
    pub choices: usize,
    /// Maximum pieces of each text, of at most 512 tokens.
    pub pieces: usize,
    /// Maximum questions that the dose is measured on, each under every system prompt.
    pub dose_questions: usize,
    /// Random directions that the caps are compared with.
    pub controls: usize,
    /// Conversations per domain whose last answers the controls are matched on.
    pub control_conversations: usize,
}

impl Size {
    /// Takes minutes for a small model on two cores.
    pub const QUICK: Self = Self {
        conversations: 2,
        turns: 4,
        answer_tokens: 48,
        facts: 36,
        probes: 5,
        choices: 32,
        pieces: 1,
        dose_questions: 2,
        controls: 1,
        control_conversations: 1,
    };

    /// Takes less than an hour there.
    pub const FULL: Self = Self {
        conversations: usize::MAX,
        turns: usize::MAX,
        answer_tokens: 64,
        facts: usize::MAX,
        probes: 10,
        choices: usize::MAX,
        pieces: 4,
        dose_questions: usize::MAX,
        controls: 2,
        control_conversations: 2,
    };

    /// Returns what there is of it: no more than the material has.
    pub(super) fn of(self, material: &Material) -> Self {
        let domain =
            |domain: &&str| material.conversations.iter().filter(|script| script.domain == *domain).count();
        let conversations = material.domains().iter().map(domain).max().unwrap_or(0);
        let turns = material.conversations.iter().map(|script| script.turns.len()).max().unwrap_or(0);
        Self {
            conversations,
            turns,
            facts: material.facts.len(),
            probes: material.probes.len(),
            choices: material.choices.len(),
            dose_questions: material.dose.questions.len(),
            control_conversations: self.control_conversations.min(conversations),
            ..self
        }
    }
}
