//! Signs that an answer is not what it is taken for: one speaker's answer to one question.
//!
//! A wrong template, a limit that is too low, or a model that thinks first gives text of another kind. Its
//! means would make an axis of script writing, or of reasoning, without a sign of it in the scores.

use std::fmt;

use axiscap_llama::{ChatTemplate, Message, Role, Stop};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// It has no text, or none after its thoughts.
    Empty,
    /// It never leaves its thoughts.
    Unfinished,
    /// It holds markup of the template.
    Markup,
    /// It goes on with somebody else's turn.
    OtherTurn,
    /// It was cut off at the maximum number of tokens.
    CutOff,
    /// It does not play its role, as a judge found.
    RoleIgnored,
}

impl Fault {
    /// All of them, the worst first.
    pub const ALL: [Self; 6] =
        [Self::Empty, Self::Unfinished, Self::Markup, Self::OtherTurn, Self::CutOff, Self::RoleIgnored];

    /// Returns the name in files and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Unfinished => "unfinished",
            Self::Markup => "markup",
            Self::OtherTurn => "other-turn",
            Self::CutOff => "cut-off",
            Self::RoleIgnored => "role-ignored",
        }
    }

    /// Returns what to do about it.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Empty => "let the model write more tokens per answer, or look at the prompts",
            Self::Unfinished => {
                "turn thinking off in the template, or let the model write more tokens per answer"
            }
            Self::Markup | Self::OtherTurn => "use the chat template that the model was trained with",
            Self::CutOff => {
                "let the model write more tokens per answer, ask for shorter ones, or measure their beginnings"
            }
            Self::RoleIgnored => "write system prompts that the model follows, or ask another judge",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "without text",
            Self::Unfinished => "never out of its thoughts",
            Self::Markup => "with markup of the template",
            Self::OtherTurn => "with somebody else's turn",
            Self::CutOff => "cut off",
            Self::RoleIgnored => "that ignore their role",
        })
    }
}

/// Markup around thoughts, as models write it.
const THOUGHTS: [(&str, &str); 9] = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel|>analysis", "<|channel|>final"),
];

/// How scripts of conversations begin a turn, whatever the template.
const SPEAKERS: [&str; 5] = ["user:", "human:", "### human:", "### user:", "### instruction:"];

/// Finds the faults of answers in the markup of one template.
#[derive(Debug, Clone, Default)]
pub struct Inspector {
    /// What opens an answer: it may open thoughts.
    opening: String,
    /// Markup between turns, in brackets of some kind.
    markup: Vec<String>,
    /// Words with a colon that begin a turn, in lower case.
    speakers: Vec<String>,
}

impl Inspector {
    /// Learns the markup of a template from a short conversation.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`].
    pub fn new(template: &ChatTemplate<'_>) -> Result<Self, Error> {
        const WORDS: [&str; 3] = ["axiscapfirst", "axiscapsecond", "axiscapthird"];
        let said = |role, word: &str| Message::new(role, word);
        let [first, second, third] = WORDS;
        let question = template.render(&[said(Role::User, first)], true)?.text();
        let opening = question.rsplit(first).next().unwrap_or_default().to_owned();
        let mut inspector = Self { opening, ..Self::default() };
        inspector.speakers.extend(SPEAKERS.map(str::to_owned));
        inspector.learn(&inspector.opening.clone());
        // A template may refuse further turns.
        let turns = [said(Role::User, first), said(Role::Assistant, second), said(Role::User, third)];
        if let Ok(conversation) = template.render(&turns, true) {
            let text = conversation.text();
            // After the first question: what is between it, the answer and the next question, and the opening.
            for piece in text.split(first).skip(1).flat_map(|rest| rest.split(second)) {
                piece.split(third).for_each(|piece| inspector.learn(piece));
            }
        }
        Ok(inspector)
    }

    /// Takes the markup in a piece of template between two contents.
    fn learn(&mut self, piece: &str) {
        for line in piece.lines().map(str::trim) {
            for part in bracketed(line) {
                let begins = |markup: &str| markup.starts_with(part);
                let is_thought = THOUGHTS.iter().any(|&(open, close)| begins(open) || begins(close));
                if part.len() >= 4 && !is_thought && !self.markup.iter().any(|known| known == part) {
                    self.markup.push(part.to_owned());
                }
            }
            let lower = line.to_lowercase();
            let is_speaker = line.ends_with(':') && line.chars().any(char::is_alphabetic);
            if is_speaker && bracketed(line).next().is_none() && !self.speakers.contains(&lower) {
                self.speakers.push(lower);
            }
        }
    }

    /// Returns how many bytes of an answer are thoughts: up to the end of their last markup, and of the markup
    /// that opens the answer proper. `written` is its text with its special tokens.
    #[must_use]
    pub fn thoughts(&self, written: &str) -> usize {
        let ends = THOUGHTS.iter().filter_map(|(_, close)| Some(written.rfind(close)? + close.len()));
        let Some(mut end) = ends.max() else { return 0 };
        while let Some(markup) = self.markup.iter().find(|markup| written[end..].starts_with(markup.as_str()))
        {
            end += markup.len();
        }
        end
    }

    /// Returns the faults of an answer. `written` is its text with its special tokens.
    #[must_use]
    pub fn faults(&self, written: &str, stop: Stop) -> Vec<Fault> {
        let whole = format!("{}{written}", self.opening);
        let is_open = THOUGHTS.iter().any(|&(open, close)| {
            let closed = whole.rfind(close);
            whole.rfind(open).is_some_and(|opened| closed.is_none_or(|closed| closed < opened))
        });
        let answer = &written[self.thoughts(written)..];
        let speaks = |line: &str| {
            let line = line.trim_start_matches(['*', '_', '>', ' ', '\t']).to_lowercase();
            self.speakers.iter().any(|speaker| line.starts_with(speaker.as_str()))
        };
        let found = |fault: &Fault| match fault {
            Fault::Unfinished => is_open,
            Fault::Empty => !is_open && answer.trim().is_empty(),
            Fault::Markup => !is_open && self.markup.iter().any(|markup| answer.contains(markup.as_str())),
            Fault::OtherTurn => !is_open && answer.lines().any(speaks),
            Fault::CutOff => matches!(stop, Stop::MaxTokens | Stop::ContextFull),
            Fault::RoleIgnored => false,
        };
        Fault::ALL.into_iter().filter(found).collect()
    }
}

/// Returns the parts of a line in angle or square brackets.
fn bracketed(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let start = rest.find(['<', '['])?;
        let closing = if rest[start..].starts_with('<') { '>' } else { ']' };
        let length = rest[start..].find(closing)? + 1;
        let (part, after) = rest[start..].split_at(length);
        rest = after;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspector(pieces: &[&str], opening: &str) -> Inspector {
        let mut inspector = Inspector { opening: opening.into(), ..Inspector::default() };
        inspector.speakers.extend(SPEAKERS.map(str::to_owned));
        pieces.iter().for_each(|piece| inspector.learn(piece));
        inspector
    }

    #[test]
    fn markup_and_turns_of_others_are_found() {
        let chatml =
            inspector(&["<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>user\n"], "");
        let vicuna = inspector(&["\nASSISTANT: ", "</s>\nUSER: "], "");
        let ended = Stop::Caller;
        for text in ["I am a <b>bold</b> pirate.", "The user: that is you.", "a: b", "Dear user,\nI am well."]
        {
            assert_eq!(chatml.faults(text, ended), [], "{text}");
            assert_eq!(vicuna.faults(text, ended), [], "{text}");
        }
        assert_eq!(chatml.faults("Yes.<|im_end|>\n<|im_start|>user\nNo?", ended), [Fault::Markup]);
        for text in ["You have no idea.\n\nUser: Maria, can you explain", "Yes.\n**Human:** no", "USER: x"] {
            assert_eq!(chatml.faults(text, ended), [Fault::OtherTurn], "{text}");
        }
        assert_eq!(vicuna.faults("Fine.\nAssistant: and more", ended), [Fault::OtherTurn]);
        assert_eq!(vicuna.faults("Fine.</s>", Stop::MaxTokens), [Fault::Markup, Fault::CutOff]);
        let instruct = inspector(&["</s>[INST] ", " [/INST]"], "");
        assert_eq!(instruct.faults("Yes [/INST] no", ended), [Fault::Markup]);
        assert_eq!(chatml.faults(" \n", ended), [Fault::Empty]);
    }

    #[test]
    fn thoughts_without_an_end_and_answers_without_text_are_found() {
        let ended = Stop::Caller;
        let opens =
            inspector(&["<|im_end|>\n<|im_start|>assistant\n<think>\n"], "<|im_start|>assistant\n<think>\n");
        assert_eq!(opens.faults("Hm, let me see.", Stop::MaxTokens), [Fault::Unfinished, Fault::CutOff]);
        assert_eq!(opens.faults("Hm.\n</think>\n\nYes.", ended), []);
        assert_eq!((opens.thoughts("Hm.\n</think>\n\nYes."), opens.thoughts("Hm.")), (12, 0));
        assert_eq!(opens.faults("Hm.\n</think>\n", ended), [Fault::Empty]);
        let plain = inspector(&[], "<|im_start|>assistant\n");
        assert_eq!(plain.faults("<think>\nHm", ended), [Fault::Unfinished]);
        assert_eq!(plain.faults("<think>\n\n</think>\n\nYes.", ended), []);
        // Thoughts may quote a conversation.
        assert_eq!(plain.faults("<think>\nUser: hello\n</think>\nYes.", ended), []);
        let closed = inspector(&[], "<|im_start|>assistant\n<think>\n\n</think>\n\n");
        assert_eq!(closed.faults("Yes.", ended), []);
        let harmony =
            inspector(&["<|end|><|start|>assistant<|channel|>final<|message|>"], "<|start|>assistant");
        let channels =
            "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>Yes.";
        assert_eq!(harmony.faults(channels, ended), []);
        assert_eq!(&channels[harmony.thoughts(channels)..], "Yes.");
        assert_eq!(harmony.faults("<|channel|>analysis<|message|>Hm", ended), [Fault::Unfinished]);
    }
}
