//! What is watched of answers: the options, and what was found in an answer.

use std::path::Path;

use anyhow::{Context as _, Result};
use axiscap::CapSet;
use axiscap::file::CapFile;
use axiscap_llama::{AlarmState, Level, Thresholds, Watch};
use clap::Args;
use clap::value_parser;
use serde::Serialize;

/// What is watched of the answers, and from where on there is an alarm.
#[derive(Debug, Clone, Args)]
pub(crate) struct WatchArgs {
    /// Block on whose axis the answers' projections are watched, before its first cap [default: the lowest capped
    /// one, where they are those of the uncapped model]
    #[arg(long, value_name = "BLOCK", requires = "caps")]
    watch_block: Option<usize>,
    /// Tokens that the watched average is over, more or less
    #[arg(long, value_name = "N", requires = "caps", default_value_t = Watch::TOKENS, value_parser = value_parser!(u32).range(1..=1_000_000))]
    watch_tokens: u32,
    /// Projections at which the alarm begins and ends, and the usual one, which ascend; `off` for no alarm [default:
    /// the 1st, 10th and 50th percentile of the calibration's default answers, from the cap file]
    #[arg(long, value_name = "ALARM,RELEASE,USUAL|off", requires = "caps", value_parser = thresholds, allow_hyphen_values = true)]
    watch_thresholds: Option<Given>,
}

/// Thresholds that were given.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Given {
    Off,
    At(Thresholds),
}

fn thresholds(text: &str) -> Result<Given, String> {
    const EXPECTED: &str = "expected three projections that ascend, e.g. -33,-19,1, or off";
    if text == "off" {
        return Ok(Given::Off);
    }
    let numbers: Result<Vec<f64>, _> = text.split(',').map(|number| number.trim().parse::<f64>()).collect();
    match numbers.as_deref() {
        Ok(&[alarm, release, usual])
            if alarm < release && release < usual && alarm.is_finite() && usual.is_finite() =>
        {
            Ok(Given::At(Thresholds { usual, alarm, release }))
        }
        _ => Err(EXPECTED.into()),
    }
}

impl WatchArgs {
    /// Returns the watch of a cap file's caps.
    pub(crate) fn watch(&self, file: &CapFile, path: &Path) -> Result<Watch> {
        let cap = self.watch_block.map(|block| first_cap(&file.caps, block)).transpose()?;
        let mut watch = Watch { cap, tokens: self.watch_tokens, thresholds: None };
        watch.thresholds = match self.watch_thresholds {
            Some(Given::Off) => None,
            Some(Given::At(thresholds)) => Some(thresholds),
            None => {
                let calibrated = Thresholds::calibrated(file, watch.watched(&file.caps));
                calibrated.map_err(|error| error.in_file(path))?
            }
        };
        Ok(watch)
    }

    /// Returns whether there is no alarm because nothing says where it would begin.
    pub(crate) fn lacks_thresholds(&self, watch: &Watch) -> bool {
        watch.thresholds.is_none() && self.watch_thresholds.is_none()
    }
}

/// What to do where [`WatchArgs::lacks_thresholds`].
pub(crate) const NO_THRESHOLDS: &str = "the cap file holds no quantiles of a calibration's default answers, so there is no alarm; `axiscap calibrate` stores them, --watch-thresholds sets thresholds";

/// Returns the first cap of a block.
fn first_cap(caps: &CapSet, block: usize) -> Result<usize> {
    let blocks = caps.blocks();
    let known = || blocks.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let found = blocks.get(&block).and_then(|caps| caps.first().copied());
    found.with_context(|| format!("--watch-block {block}: the block has no cap; watch one of {}", known()))
}

/// Returns the watched block.
pub(crate) fn block(watch: &Watch, caps: &CapSet) -> usize {
    caps.caps().get(watch.watched(caps)).map_or(0, |entry| entry.block)
}

/// The thresholds of a watch, as JSON.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ThresholdsReport {
    alarm: f32,
    release: f32,
    usual: f32,
    /// The sum at which the CUSUM's alarm begins.
    sum: Option<f32>,
    /// Tokens of the average.
    tokens: u32,
}

impl ThresholdsReport {
    /// Returns those of a watch, if it has any.
    pub(crate) fn of(watch: &Watch) -> Option<Self> {
        let Thresholds { usual, alarm, release } = watch.thresholds?;
        let [alarm, release, usual] = [alarm, release, usual].map(|projection| projection as f32);
        let sum = watch.most_sum().map(|sum| sum as f32);
        Some(Self { alarm, release, usual, sum, tokens: watch.tokens })
    }
}

/// What a watch found in an answer. Numbers are `null` without tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct AnswerLevels {
    /// Tokens that were read.
    tokens: usize,
    /// Mean of their projections.
    pub(crate) mean: Option<f32>,
    /// Standard deviation.
    deviation: Option<f32>,
    lowest: Option<f32>,
    /// The average after the last token.
    pub(crate) average: Option<f32>,
    /// The sum after it.
    sum: Option<f32>,
    /// Whether an alarm is on after it.
    alarm: bool,
    /// Alarms that began in this answer.
    pub(crate) began: Vec<Began>,
}

/// What a watch found in an answer, with its block and its thresholds.
#[derive(Debug, Serialize)]
pub(crate) struct WatchReport {
    block: usize,
    /// `null` without an alarm.
    thresholds: Option<ThresholdsReport>,
    #[serde(flatten)]
    answer: AnswerLevels,
}

impl WatchReport {
    pub(crate) fn new(watch: &Watch, caps: &CapSet, answer: AnswerLevels) -> Self {
        Self { block: block(watch, caps), thresholds: ThresholdsReport::of(watch), answer }
    }
}

/// An alarm that began.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Began {
    /// `ewma` or `cusum`.
    alarm: &'static str,
    /// Token of the answer, counted from 0.
    token: usize,
    /// The average or the sum that reached its threshold.
    value: Option<f32>,
}

impl AnswerLevels {
    /// Returns what the levels after the tokens of an answer say.
    pub(crate) fn of(levels: &[Level]) -> Self {
        let finite = |value: f64| value.is_finite().then_some(value as f32);
        let all: Vec<f64> = levels.iter().map(|level| f64::from(level.projection)).collect();
        let count = all.len() as f64;
        let mean = all.iter().sum::<f64>() / count;
        let variance = all.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        let last = levels.last();
        let mut began = Vec::new();
        for (token, level) in levels.iter().enumerate() {
            let states = [("ewma", level.ewma, level.average), ("cusum", level.cusum, level.sum)];
            for (alarm, _, value) in states.into_iter().filter(|(_, state, _)| *state == AlarmState::Begins) {
                began.push(Began { alarm, token, value: finite(value) });
            }
        }
        Self {
            tokens: levels.len(),
            mean: finite(mean),
            deviation: finite(variance.sqrt()),
            lowest: finite(all.iter().copied().fold(f64::INFINITY, f64::min)),
            average: last.and_then(|level| finite(level.average)),
            sum: last.and_then(|level| finite(level.sum)),
            alarm: last.is_some_and(Level::is_alarm),
            began,
        }
    }

    /// Returns a line about the answer, for people.
    pub(crate) fn summary(&self, watch: &Watch, caps: &CapSet) -> String {
        let number = |value: Option<f32>| value.map_or("-".into(), |value| format!("{value:.1}"));
        let mut line = format!(
            "[watched at block {}: mean {}, average {}",
            block(watch, caps),
            number(self.mean),
            number(self.average)
        );
        if let Some(thresholds) = watch.thresholds {
            line += &format!(", alarm from {:.1} down", thresholds.alarm);
        }
        line += "]";
        if let Some(note) = self.note(watch) {
            line += &format!("\n[{note}]");
        }
        line
    }

    /// Returns a line about the alarms that began. `None` without any.
    pub(crate) fn note(&self, watch: &Watch) -> Option<String> {
        let told = self.began.iter().map(|began| {
            let value = began.value.map_or("not finite".into(), |value| format!("{value:.1}"));
            match (began.alarm, watch.thresholds) {
                ("ewma", Some(thresholds)) => {
                    format!(
                        "token {}: the average is {value}, down to {:.1}",
                        began.token + 1,
                        thresholds.alarm
                    )
                }
                ("cusum", Some(_)) => {
                    let most = watch.most_sum().unwrap_or_default();
                    format!("token {}: the sum is {value}, up to {most:.1}", began.token + 1)
                }
                _ => format!("token {}: its projection is not finite", began.token + 1),
            }
        });
        let told: Vec<_> = told.collect();
        (!told.is_empty()).then(|| format!("drift alarm at {}", told.join("; at ")))
    }
}

#[cfg(test)]
mod tests {
    use axiscap_llama::Watcher;

    use super::*;

    fn watch() -> Watch {
        let thresholds = Thresholds { usual: 0.0, alarm: -10.0, release: -5.0 };
        Watch { cap: None, tokens: 1, thresholds: Some(thresholds) }
    }

    #[test]
    fn thresholds_are_three_that_ascend() {
        let expected = Thresholds { usual: 1.0, alarm: -33.0, release: -19.5 };
        assert_eq!(thresholds("-33, -19.5,1"), Ok(Given::At(expected)));
        assert_eq!(thresholds("off"), Ok(Given::Off));
        for wrong in ["", "1", "1,2", "3,2,1", "1,1,2", "NaN,1,2", "-inf,1,2", "1,2,inf", "1,2,3,4"] {
            assert!(thresholds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_answer_says_where_its_alarms_began() {
        let mut watcher = Watcher::new(&watch()).unwrap();
        let levels: Vec<Level> = [0.0, -12.0, -8.0, 0.0, -12.0].map(|p| watcher.see(p)).into();
        let found = AnswerLevels::of(&levels);
        let told: Vec<_> = found.began.iter().map(|began| (began.alarm, began.token)).collect();
        // The sum is 7, 10, 5 and 12, and begins at 10.
        assert_eq!(told, [("ewma", 1), ("cusum", 2), ("ewma", 4)]);
        assert_eq!((found.tokens, found.mean, found.lowest, found.alarm), (5, Some(-6.4), Some(-12.0), true));
        assert_eq!(found.average, Some(-12.0));
        let note = found.note(&watch()).unwrap();
        assert!(note.contains("at token 2: the average is -12.0, down to -10.0"), "{note}");
        let silent = AnswerLevels::of(&[]);
        assert_eq!((silent.mean, silent.average, silent.note(&watch())), (None, None, None));
    }
}
