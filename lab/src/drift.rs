//! Drift: the projection of the answers over the turns of a conversation, uncapped and capped.

use std::ops::ControlFlow;

use axiscap::{Bound, CapSet};
use axiscap_llama::{
    Alarm, AlarmRule, Chat, ChatTemplate, Context, Engagement, GenerateOptions, ProfileId, Schedule, Stop,
    Timings, TraceRow, answer_means,
};
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
    /// Standard deviation of the projections before this cap.
    pub deviation: f64,
    /// Share of the response tokens on which the projection was outside the bounds, and the cap acted.
    pub engaged: f64,
}

/// What caps moved, over all rows that were decoded: those of the prompt and those of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Moved {
    /// Rows times caps.
    pub rows: u64,
    /// Those of them whose projection a cap changed.
    pub moved: u64,
    /// Sum of the distances by which projections changed.
    pub distance: f64,
}

impl Moved {
    fn of(trace: &[TraceRow]) -> Self {
        trace.iter().fold(Self::default(), |sum, row| {
            let distance = f64::from(row.after) - f64::from(row.before);
            let moved = distance != 0.0 && distance.is_finite();
            Self {
                rows: sum.rows + 1,
                moved: sum.moved + u64::from(moved),
                distance: sum.distance + if moved { distance.abs() } else { 0.0 },
            }
        })
    }

    /// Returns the sum over the turns of a conversation.
    #[must_use]
    pub fn over(turns: &[DriftTurn]) -> Self {
        turns.iter().fold(Self::default(), |sum, DriftTurn { moved, .. }| Self {
            rows: sum.rows + moved.rows,
            moved: sum.moved + moved.moved,
            distance: sum.distance + moved.distance,
        })
    }

    /// Returns the share of rows and caps that were moved, and the mean distance over all of them. `None`
    /// without rows.
    #[must_use]
    pub fn means(&self) -> Option<(f64, f64)> {
        let rows = self.rows as f64;
        (self.rows > 0).then(|| (self.moved as f64 / rows, self.distance / rows))
    }
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
    /// What the caps moved in this turn.
    pub moved: Moved,
    /// When an alarm had the caps act and let go, under [`Mode::OnAlarm`].
    pub engagements: Vec<Engagement>,
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
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// The caps only observe the projections.
    Observe,
    /// The caps hold the projections.
    Cap,
    /// The caps hold the projections from an alarm until its end.
    OnAlarm(Alarm),
}

/// Weight of a new row in the average of [`default_alarm`]. The average is over the last ten or so.
const ALARM_WEIGHT: f64 = 0.1;

/// Returns an alarm on the first cap of the lowest capped block: it begins when the average of the projections
/// lies a standard deviation beyond the bound, and ends when it is back at the bound. The deviation is that of
/// the answers of an uncapped conversation. `None` if the cap has no bound, or the answers have no tokens.
#[must_use]
pub fn default_alarm(caps: &CapSet, uncapped: &[DriftTurn]) -> Option<Alarm> {
    let alarm = |engage| {
        let rule = AlarmRule::Ewma { weight: ALARM_WEIGHT, start: None, engage, release: 0.0 };
        Alarm { cap: None, rule }
    };
    let cap = alarm(1.0).watched(caps);
    let entry = caps.caps().get(cap)?;
    let seen = || uncapped.iter().filter_map(|turn| Some((turn.tokens as f64, turn.projections.get(cap)?)));
    let tokens: f64 = seen().map(|(tokens, _)| tokens).sum();
    if entry.cap.bound().is_none() || entry.cap.strength() == 0.0 || tokens == 0.0 {
        return None;
    }
    let variance = seen().map(|(tokens, seen)| tokens * seen.deviation.powi(2)).sum::<f64>() / tokens;
    Some(alarm(variance.sqrt().max(1e-6)))
}

/// A scripted conversation with a model.
#[derive(Debug, Clone, Copy)]
pub struct Conversation<'a> {
    /// The user's messages.
    pub script: &'a Script,
    /// The chat template.
    pub template: &'a ChatTemplate<'a>,
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
            Mode::Cap | Mode::OnAlarm(_) => self.caps,
            Mode::Observe => &observing,
        }))?;
        let schedule = match self.mode {
            Mode::OnAlarm(alarm) => Schedule::OnAlarm(alarm),
            Mode::Cap | Mode::Observe => Schedule::Always,
        };
        context.truncate(0, 0)?;
        context.schedule_profile(0, Some(ProfileId::DEFAULT), schedule)?;
        drop(context.take_engagements());
        context.set_tracing(true)?;
        let mut chat = Chat::new(self.template, self.script.system.as_deref());
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
                moved: Moved::of(&trace),
                engagements: context.take_engagements(),
                timings: answered.generated.timings,
                answer: answered.generated.text,
            });
            if stopped || go_on(turns.len()).is_break() {
                break;
            }
        }
        context.set_tracing(false)?;
        context.set_profile(0, Some(ProfileId::DEFAULT))?;
        Ok((turns, unfinished))
    }
}

/// Returns for each cap the means over the rows from position `prompt` on.
fn projections(trace: &[TraceRow], prompt: usize, caps: &CapSet) -> Vec<TurnProjection> {
    let means = answer_means(trace, prompt, caps.caps().len());
    let turns = caps.caps().iter().zip(means).filter_map(|(entry, seen)| {
        let (before, after) = seen.means?;
        let engaged = seen.engaged as f64 / seen.rows as f64;
        Some(TurnProjection { block: entry.block, before, after, deviation: seen.deviation, engaged })
    });
    turns.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axiscap::{Axis, BlockCap, Cap};
    use axiscap_llama::Token;

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
    fn the_default_alarm_lets_go_at_the_bound() {
        let axis = Axis::from_direction(&[1.0]).unwrap();
        let cap = |block, bound| BlockCap { block, cap: Cap::new(axis.clone(), bound) };
        let caps = |bound| CapSet::new([cap(5, Bound::floor(9.0).unwrap()), cap(3, bound)]).unwrap();
        let turn = |tokens, deviation| {
            let seen = |block| TurnProjection { block, before: 0.0, after: 0.0, deviation, engaged: 0.0 };
            DriftTurn {
                user: String::new(),
                answer: String::new(),
                tokens,
                stop: Stop::MaxTokens,
                projections: vec![seen(5), seen(3)],
                moved: Moved::default(),
                engagements: Vec::new(),
                timings: Timings::default(),
            }
        };
        let turns = [turn(30, 1.0), turn(10, 3.0)];
        let alarm = default_alarm(&caps(Bound::floor(2.0).unwrap()), &turns).unwrap();
        let rule = AlarmRule::Ewma { weight: 0.1, start: None, engage: 3.0_f64.sqrt(), release: 0.0 };
        assert_eq!(alarm, Alarm { cap: None, rule });
        assert_eq!(alarm.watched(&caps(Bound::NONE)), 1, "the deviation is that of the lower block");
        assert_eq!(default_alarm(&caps(Bound::NONE), &turns), None);
        assert_eq!(default_alarm(&caps(Bound::floor(2.0).unwrap()), &[]), None);
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
        let moved = Moved::of(&trace);
        assert_eq!((moved.rows, moved.moved, moved.distance), (3, 3, 3.0));
        assert_eq!((moved.means(), Moved::default().means()), (Some((1.0, 1.0)), None));
        let expected = TurnProjection { block: 3, before: 2.0, after: 3.0, deviation: 1.0, engaged: 0.5 };
        assert_eq!(means, [expected]);
    }
}
