//! Drift: the projection of the answers over the turns of a conversation, uncapped and capped.

use std::ops::ControlFlow;

use axiscap::{Bound, CapSet};
use axiscap_llama::{Chat, Context, GenerateOptions, Stop, Timings, TraceRow, answer_means};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The user's messages, turn by turn.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Short name, for titles.
    pub name: String,
    /// Its subject.
    #[serde(default)]
    pub description: String,
    /// System prompt, `None` for no system message.
    #[serde(default)]
    pub system: Option<String>,
    /// The user's messages.
    pub turns: Vec<String>,
}

impl Script {
    /// Returns the built-in emotional, self-reflective conversation (`lab/assets/emotional.json`).
    #[must_use]
    pub fn emotional() -> Self {
        Self::parse(include_str!("../assets/emotional.json"))
            .expect("the built-in script is checked by a test")
    }

    /// Reads a script.
    ///
    /// # Errors
    /// [`Error::Script`], [`Error::Empty`].
    pub fn parse(json: &str) -> Result<Self, Error> {
        let script: Self = serde_json::from_str(json).map_err(|error| Error::Script { error })?;
        let remedy = "a script needs at least one turn, and every turn a text";
        if script.turns.is_empty() {
            return Err(Error::Empty { place: "the list \"turns\"".into(), remedy });
        }
        match script.turns.iter().position(|turn| turn.trim().is_empty()) {
            Some(index) => Err(Error::Empty { place: format!("\"turns\"[{index}]"), remedy }),
            None => Ok(script),
        }
    }
}

/// What one cap saw of the answer of one turn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TurnProjection {
    /// The block.
    pub block: usize,
    /// Mean projection of the response tokens before this cap (but after the caps of earlier blocks).
    pub before: f64,
    /// Mean projection after it.
    pub after: f64,
    /// Share of the response tokens on which the projection was outside the bounds.
    pub engaged: f64,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct DriftTurn {
    /// The user's message.
    pub user: String,
    /// The model's answer.
    pub answer: String,
    /// Tokens of the answer.
    pub tokens: usize,
    /// Why it ended.
    pub stop: Stop,
    /// Per cap, in the order of the set. Empty for an answer without tokens.
    pub projections: Vec<TurnProjection>,
    /// How long the turn took.
    pub timings: Timings,
}

/// A conversation that ended before its script did.
#[derive(Debug, thiserror::Error)]
#[error("turn {turn} of {turns}")]
pub struct Unfinished {
    /// The turn that failed, counted from 1.
    pub turn: usize,
    /// Turns of the script.
    pub turns: usize,
    /// Why.
    #[source]
    pub error: axiscap_llama::Error,
}

/// Whether the caps of a conversation act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The caps only observe the projections.
    Observe,
    /// The caps hold the projections.
    Cap,
}

/// A scripted conversation with a model.
#[derive(Debug, Clone, Copy)]
pub struct Conversation<'a> {
    /// The user's messages.
    pub script: &'a Script,
    /// A chat template that llama.cpp knows. `None` means the model's own.
    pub template: Option<&'a str>,
    /// The caps.
    pub caps: &'a CapSet,
    /// Whether the caps act.
    pub mode: Mode,
    /// How the answers are generated.
    pub options: GenerateOptions,
}

impl Conversation<'_> {
    /// Has the model answer every turn. Returns the turns, and why the conversation ended early, if it did.
    ///
    /// The mean of a turn is over the response tokens that were decoded: of an answer that was cut off, all
    /// but the last. A turn that fails, for example because the context is full, ends the conversation.
    /// `go_on` is called with the number of turns done, between two passes of a prompt and after every token.
    /// If it asks to stop, the answer that it cut short is the last turn, unless it has no token.
    ///
    /// # Errors
    /// [`Error::Llama`]: those of [`Context::set_caps`].
    pub fn run(
        &self,
        context: &mut Context<'_>,
        mut go_on: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<(Vec<DriftTurn>, Option<Unfinished>), Error> {
        let observing = self.caps.with_bounds(|_| Bound::NONE);
        context.set_caps(Some(match self.mode {
            Mode::Cap => self.caps,
            Mode::Observe => &observing,
        }))?;
        context.set_tracing(true)?;
        let mut chat = Chat::new(self.script.system.as_deref(), self.template);
        let mut turns = Vec::new();
        let mut unfinished = None;
        for user in &self.script.turns {
            drop(context.take_trace());
            let done = turns.len();
            let answered = match chat.say(context, user, &self.options, |_| go_on(done)) {
                Ok(answered) => answered,
                Err(error) => {
                    let (turn, of) = (turns.len() + 1, self.script.turns.len());
                    unfinished = Some(Unfinished { turn, turns: of, error });
                    break;
                }
            };
            if answered.is_unanswered() {
                break;
            }
            let trace = context.take_trace();
            let stopped = answered.generated.stop == Stop::Caller;
            turns.push(DriftTurn {
                user: user.clone(),
                tokens: answered.generated.tokens.len(),
                stop: answered.generated.stop,
                projections: projections(&trace, answered.prompt_tokens, self.caps),
                timings: answered.generated.timings,
                answer: answered.generated.text,
            });
            if stopped || go_on(turns.len()).is_break() {
                break;
            }
        }
        context.set_tracing(false)?;
        Ok((turns, unfinished))
    }
}

/// Returns for each cap the means over the rows from position `prompt` on.
fn projections(trace: &[TraceRow], prompt: usize, caps: &CapSet) -> Vec<TurnProjection> {
    let means = answer_means(trace, prompt, caps.caps().len());
    let turns = caps.caps().iter().zip(means).filter_map(|(entry, seen)| {
        let (before, after) = seen.means?;
        let engaged = seen.engaged as f64 / seen.rows as f64;
        Some(TurnProjection { block: entry.block, before, after, engaged })
    });
    turns.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axiscap::{Axis, BlockCap, Cap};
    use axiscap_llama::{ProfileId, Token};

    #[test]
    fn the_builtin_script_has_eight_turns() {
        assert_eq!(Script::emotional().turns.len(), 8);
    }

    #[test]
    fn a_bad_script_is_refused() {
        let refuse = |json: &str| Script::parse(json).unwrap_err().to_string();
        assert!(refuse("[]").contains("not as expected"));
        assert!(refuse(r#"{"name": "x", "turns": []}"#).contains("\"turns\""));
        assert!(refuse(r#"{"name": "x", "turns": ["a", ""]}"#).contains("\"turns\"[1]"));
        assert!(refuse(r#"{"name": "x", "turns": ["a"], "turn": 1}"#).contains("unknown field"));
    }

    #[test]
    fn means_are_per_cap_and_over_response_rows_only() {
        let axis = Axis::from_direction(&[1.0]).unwrap();
        let cap = |block| BlockCap { block, cap: Cap::new(axis.clone(), Bound::NONE) };
        let caps = CapSet::new([cap(3), cap(4)]).unwrap();
        let row = |position, cap, before: f32, engaged| TraceRow {
            sequence: 0,
            position,
            token: Token(0),
            block: 3 + cap,
            cap,
            before,
            after: before + 1.0,
            engaged,
            non_finite: false,
            profile: ProfileId::DEFAULT,
            skipped: false,
        };
        let trace = [row(1, 0, 99.0, true), row(2, 0, 1.0, true), row(3, 0, 3.0, false)];
        let means = projections(&trace, 2, &caps);
        assert_eq!(means, [TurnProjection { block: 3, before: 2.0, after: 3.0, engaged: 0.5 }]);
    }
}
