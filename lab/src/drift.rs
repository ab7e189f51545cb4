//! Drift: how the projection of the answers moves over the turns of a conversation, uncapped and capped.

use axiscap::{Bound, CapSet};
use serde::{Deserialize, Serialize};

use crate::chat::Chat;
use crate::context::Context;
use crate::error::Error;
use crate::generate::{GenerateOptions, Stop, Timings};
use crate::trace::{TraceRow, answer_means};

/// Why a script was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScriptError {
    /// Not JSON of the expected shape.
    #[error(
        "the script is not as expected: {0}; a script is JSON: {{\"name\": \"...\", \"system\": null, \"turns\": [\"first message\", ...]}}"
    )]
    Json(serde_json::Error),
    /// No turns, or an empty one.
    #[error("{0} is empty; a script needs at least one turn, and every turn a text")]
    Empty(String),
}

// The message holds the cause; as a source it would be told twice.
impl From<serde_json::Error> for ScriptError {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(error)
    }
}

/// What the user says, turn by turn.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Short name, for titles.
    pub name: String,
    /// What it is about.
    #[serde(default)]
    pub description: String,
    /// System prompt; `None` for no system message.
    #[serde(default)]
    pub system: Option<String>,
    /// The user's messages.
    pub turns: Vec<String>,
}

impl Script {
    /// The emotional, self-reflective conversation that axiscap comes with: `assets/emotional.json`.
    #[must_use]
    pub fn emotional() -> Self {
        Self::parse(include_str!("../../../assets/emotional.json"))
            .expect("the built-in script is checked by a test")
    }

    /// Reads a script.
    ///
    /// # Errors
    /// [`ScriptError`].
    pub fn parse(json: &str) -> Result<Self, ScriptError> {
        let script: Self = serde_json::from_str(json)?;
        if script.turns.is_empty() {
            return Err(ScriptError::Empty("the list \"turns\"".into()));
        }
        match script.turns.iter().position(|turn| turn.trim().is_empty()) {
            Some(index) => Err(ScriptError::Empty(format!("\"turns\"[{index}]"))),
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
    /// What the user said.
    pub user: String,
    /// What the model answered.
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
// The message holds the cause; as a source it would be told twice.
#[error("turn {turn} of {turns}: {error}")]
pub struct Unfinished {
    /// The turn that failed, counted from 1.
    pub turn: usize,
    /// Turns of the script.
    pub turns: usize,
    /// Why.
    pub error: Error,
}

/// Lets the model answer every turn of the script under `caps`; with `capped` false the caps only observe.
///
/// The mean of a turn is over the response tokens that were decoded: all of them, but for the last one of an answer
/// that was cut off. `template` names a chat template in place of the model's own. `on_turn` is told how many turns
/// are done. A turn that cannot be had, because the context is full, say, ends the conversation: the turns before it
/// are returned with the reason.
///
/// # Errors
/// Those of [`Context::set_caps`].
pub fn converse(
    context: &mut Context<'_>,
    script: &Script,
    template: Option<&str>,
    caps: &CapSet,
    capped: bool,
    options: &GenerateOptions,
    mut on_turn: impl FnMut(usize),
) -> Result<(Vec<DriftTurn>, Option<Unfinished>), Error> {
    let observing = caps.with_bounds(|_| Bound::NONE);
    context.set_caps(Some(if capped { caps } else { &observing }))?;
    context.set_tracing(true)?;
    let mut chat = Chat::new(script.system.as_deref(), template);
    let mut turns = Vec::new();
    let mut unfinished = None;
    for user in &script.turns {
        context.take_trace();
        let answered = match chat.say(context, user, options, |_| std::ops::ControlFlow::Continue(())) {
            Ok(answered) => answered,
            Err(error) => {
                let (turn, of) = (turns.len() + 1, script.turns.len());
                unfinished = Some(Unfinished { turn, turns: of, error });
                break;
            }
        };
        let trace = context.take_trace();
        turns.push(DriftTurn {
            user: user.clone(),
            tokens: answered.generated.tokens.len(),
            stop: answered.generated.stop,
            projections: projections(&trace, answered.prompt_tokens, caps),
            timings: answered.generated.timings,
            answer: answered.generated.text,
        });
        on_turn(turns.len());
    }
    context.set_tracing(false)?;
    Ok((turns, unfinished))
}

/// Per cap, the means over the rows from position `prompt` on.
fn projections(trace: &[TraceRow], prompt: usize, caps: &CapSet) -> Vec<TurnProjection> {
    let means = answer_means(trace, prompt, caps.caps().len());
    let figures = caps.caps().iter().zip(means).filter_map(|(entry, seen)| {
        let (before, after) = seen.means?;
        let engaged = seen.engaged as f64 / seen.rows as f64;
        Some(TurnProjection { block: entry.block, before, after, engaged })
    });
    figures.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Token;
    use axiscap::{Axis, BlockCap, Cap};

    #[test]
    fn the_builtin_script_has_eight_turns() {
        assert_eq!(Script::emotional().turns.len(), 8);
    }

    #[test]
    fn bad_scripts_are_refused() {
        let refuse = |json: &str| Script::parse(json).unwrap_err().to_string();
        assert!(refuse("[]").contains("not as expected"));
        assert!(refuse(r#"{"name": "x", "turns": []}"#).contains("\"turns\""));
        assert!(refuse(r#"{"name": "x", "turns": ["a", ""]}"#).contains("\"turns\"[1]"));
        assert!(refuse(r#"{"name": "x", "turns": ["a"], "turn": 1}"#).contains("unknown field"));
    }

    #[test]
    fn means_are_per_cap_over_response_rows_only() {
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
        };
        let trace = [row(1, 0, 99.0, true), row(2, 0, 1.0, true), row(3, 0, 3.0, false)];
        let means = projections(&trace, 2, &caps);
        assert_eq!(means, [TurnProjection { block: 3, before: 2.0, after: 3.0, engaged: 0.5 }]);
    }
}
