//! A line of the transcripts, and the field that is added to it.

use std::collections::BTreeMap;

use anyhow::Result;
use axiscap::CapSet;
use axiscap_lab::slope;
use axiscap_lab::transcript::{Fields, Transcript};
use axiscap_lab::watch::{self, Answer, Prepared};
use axiscap_llama::{ChatTemplate, Watch};
use serde::Serialize;
use serde_json::json;

use crate::levels::{self, AnswerLevels, ThresholdsReport};

/// A line.
pub(super) struct Line {
    number: usize,
    /// As it was read, if it is a JSON object that can take another field: without the closing brace.
    open: Option<String>,
    prepared: Result<Prepared, String>,
}

impl Line {
    /// Takes a line as it was read.
    pub(super) fn new(number: usize, bytes: Vec<u8>, field: &str, template: &ChatTemplate<'_>) -> Self {
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let fault = format!(
                    "it is not UTF-8: its byte {} begins no character",
                    error.utf8_error().valid_up_to() + 1
                );
                return Self { number, open: None, prepared: Err(fault) };
            }
        };
        // A mark of the byte order is no part of the text.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text).trim();
        let described = |error| format!("{:#}", anyhow::Error::from(error));
        let fields = match Fields::parse(text) {
            Ok(fields) => fields,
            Err(error) => return Self { number, open: None, prepared: Err(described(error)) },
        };
        if fields.has(field) {
            let fault = format!("it has a field {field:?} already; --field NAME names another one");
            return Self { number, open: None, prepared: Err(fault) };
        }
        // The line's own text, so that numbers and the order of fields stay as they are.
        let mut open = text.strip_suffix('}').unwrap_or(text).trim_end().to_owned();
        if !fields.is_empty() {
            open.push(',');
        }
        let prepared = Transcript::of(&fields).and_then(|transcript| Prepared::new(template, &transcript));
        let prepared = prepared.map_err(described);
        Self { number, open: Some(open), prepared }
    }

    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Returns the transcript, or why there is none.
    pub(super) fn prepared(&self) -> Result<&Prepared, &str> {
        self.prepared.as_ref().map_err(String::as_str)
    }

    /// Returns the line with a field more.
    pub(super) fn with(&self, name: &str, field: &impl Serialize) -> Result<String> {
        let open = self.open.as_deref().unwrap_or("{");
        Ok(format!("{open}{}:{}}}\n", serde_json::to_string(name)?, serde_json::to_string(field)?))
    }

    /// Returns the line with a fault in place of what was found, or only that for a line that is no JSON object.
    pub(super) fn with_fault(&self, name: &str, fault: &str) -> Result<String> {
        self.with(name, &json!({ "line": self.number, "error": fault }))
    }
}

/// What is added to a line.
#[derive(Debug, Serialize)]
pub(super) struct Found {
    line: usize,
    /// The watched block.
    block: usize,
    /// `null` without an alarm.
    thresholds: Option<ThresholdsReport>,
    turns: Vec<TurnFound>,
    /// Answers that end beyond the context of the model's training, and were not read.
    #[serde(skip_serializing_if = "is_zero")]
    beyond_context: usize,
    /// Mean over the tokens of all answers.
    mean: Option<f32>,
    /// Change of the turns' means per turn.
    slope: Option<f32>,
    /// The first answer with an alarm, as index of its message.
    alarm: Option<usize>,
}

/// An answer.
#[derive(Debug, Serialize)]
struct TurnFound {
    /// Index of its message.
    message: usize,
    #[serde(flatten)]
    levels: AnswerLevels,
    /// Mean projection on each capped block, `null` without tokens.
    blocks: BTreeMap<usize, Option<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ids: Option<Vec<i32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    projections: Option<Vec<f32>>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Found {
    pub(super) fn has_alarm(&self) -> bool {
        self.alarm.is_some()
    }
}

/// Returns what the watch found in the answers of a line.
pub(super) fn found(
    watch: &Watch,
    caps: &CapSet,
    line: &Line,
    answers: &[Answer],
    with_tokens: bool,
) -> Result<Found> {
    let levels = watch::watch(watch, answers.iter().map(|answer| answer.projections.as_slice()))?;
    let turns: Vec<TurnFound> = answers
        .iter()
        .zip(&levels)
        .map(|(answer, levels)| TurnFound {
            message: answer.message,
            levels: AnswerLevels::of(levels),
            blocks: blocks(caps, answer),
            ids: with_tokens.then(|| answer.tokens.iter().map(|token| token.0).collect()),
            projections: with_tokens.then(|| answer.projections.clone()),
        })
        .collect();
    let all: Vec<f64> = levels.iter().flatten().map(|level| f64::from(level.projection)).collect();
    let means =
        (0..).zip(&turns).filter_map(|(turn, found)| Some((f64::from(turn), f64::from(found.levels.mean?))));
    Ok(Found {
        line: line.number,
        block: levels::block(watch, caps),
        thresholds: ThresholdsReport::of(watch),
        beyond_context: line.prepared.as_ref().map_or(0, |prepared| prepared.beyond),
        mean: (!all.is_empty()).then(|| (all.iter().sum::<f64>() / all.len() as f64) as f32),
        slope: slope(means).map(|slope| slope as f32),
        alarm: turns.iter().find(|turn| !turn.levels.began.is_empty()).map(|turn| turn.message),
        turns,
    })
}

/// Returns the mean projection of an answer on each capped block, before its first cap.
fn blocks(caps: &CapSet, answer: &Answer) -> BTreeMap<usize, Option<f32>> {
    let first = caps.blocks().into_iter().filter_map(|(block, caps)| Some((block, *caps.first()?)));
    first.map(|(block, cap)| (block, answer.caps[cap].means().map(|(before, _)| before as f32))).collect()
}
