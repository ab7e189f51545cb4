//! The option about when caps act.

use anyhow::{Context as _, Result};
use axiscap::CapSet;
use axiscap_llama::{Alarm, AlarmRule, Engagement, Schedule, Watch};
use serde::Serialize;

use crate::output;

/// When caps act.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum When {
    Scheduled(Schedule),
    /// From an alarm of the watch until its end.
    OnWatchedAlarm,
}

impl When {
    /// Returns the schedule of caps that are watched.
    pub(crate) fn schedule(self, watch: Option<&Watch>, caps: &CapSet) -> Result<Schedule> {
        match self {
            Self::Scheduled(schedule) => Ok(schedule),
            Self::OnWatchedAlarm => watch.and_then(|watch| watch.alarm(caps)).map(Schedule::OnAlarm).context(
                "--when alarm: there are no thresholds, or the watched cap has no floor; the cap file holds those of a calibration by `axiscap calibrate`, --watch-thresholds sets others, alarm=WEIGHT,ENGAGE,RELEASE sets an alarm without them",
            ),
        }
    }
}

/// Parses when caps act.
pub(crate) fn when(text: &str) -> Result<When, String> {
    if text == "alarm" { Ok(When::OnWatchedAlarm) } else { schedule(text).map(When::Scheduled) }
}

fn schedule(text: &str) -> Result<Schedule, String> {
    let (name, numbers) = text.split_once('=').map_or((text, None), |(name, numbers)| (name, Some(numbers)));
    match (name, numbers) {
        ("always", None) => Ok(Schedule::Always),
        ("generated", None) => Ok(Schedule::Generated),
        ("assistant", None) => Ok(Schedule::AssistantTurns),
        ("ramp", Some(range)) => {
            let ends =
                range.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
            match ends {
                Some((from, to)) if from < to => Ok(Schedule::Ramp { from, to }),
                _ => Err("a ramp goes from one position to a later one, e.g. ramp=16..80".into()),
            }
        }
        ("alarm", Some(rule)) => Ok(Schedule::OnAlarm(Alarm { cap: None, rule: alarm_rule(rule)? })),
        _ => Err(
            "it must be always, generated, assistant, ramp=FROM..TO, alarm or alarm=WEIGHT,ENGAGE,RELEASE"
                .into(),
        ),
    }
}

/// Parses the rule of an alarm.
pub(crate) fn alarm_rule(text: &str) -> Result<AlarmRule, String> {
    const EXPECTED: &str = "an alarm has three numbers: weight,engage,release, e.g. 0.1,0,-0.5";
    let numbers: Result<Vec<f64>, _> = text.split(',').map(|number| number.trim().parse::<f64>()).collect();
    let numbers = numbers.map_err(|_| EXPECTED)?;
    let &[weight, engage, release] = numbers.as_slice() else { return Err(EXPECTED.into()) };
    if !(weight > 0.0 && weight <= 1.0) {
        return Err("the weight of an alarm must be above 0 and at most 1".into());
    }
    if !(engage.is_finite() && release.is_finite() && release < engage) {
        return Err("the average at which caps let go must be below that at which they engage".into());
    }
    Ok(AlarmRule::Ewma { weight, start: None, engage, release })
}

/// An alarm that began or ended, as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct EngagementReport {
    position: usize,
    engaged: bool,
    value: f64,
    threshold: f64,
    late: usize,
}

impl From<&Engagement> for EngagementReport {
    fn from(engagement: &Engagement) -> Self {
        let &Engagement { position, engaged, value, threshold, late, .. } = engagement;
        Self { position, engaged, value, threshold, late }
    }
}

/// Says on stderr what an alarm did.
pub(crate) fn note(engagements: &[Engagement]) {
    for Engagement { position, engaged, value, threshold, late, .. } in engagements {
        let what = if *engaged { "alarm: the caps act" } else { "the alarm is over: the caps let go" };
        let late = if *late > 0 { format!("; {late} rows late") } else { String::new() };
        output::note(&format!(
            "[{what} from position {position} on: average {value:.3}, threshold {threshold:.3}{late}]"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_parsed_and_wrong_ones_refused() {
        assert_eq!(schedule("always"), Ok(Schedule::Always));
        assert_eq!(schedule("assistant"), Ok(Schedule::AssistantTurns));
        assert_eq!(schedule("ramp=3..9"), Ok(Schedule::Ramp { from: 3, to: 9 }));
        let rule = AlarmRule::Ewma { weight: 0.1, start: None, engage: 0.0, release: -0.5 };
        assert_eq!(schedule("alarm=0.1, 0,-0.5"), Ok(Schedule::OnAlarm(Alarm { cap: None, rule })));
        assert_eq!(when("alarm"), Ok(When::OnWatchedAlarm));
        assert_eq!(when("generated"), Ok(When::Scheduled(Schedule::Generated)));
        for wrong in [
            "",
            "alway",
            "always=1",
            "ramp",
            "ramp=9..3",
            "ramp=-1..3",
            "ramp=1",
            "alarm",
            "alarm=1",
            "alarm=2,0,-1",
            "alarm=0.1,0,0",
            "alarm=NaN,0,-1",
            "alarm=0.1,inf,0",
            "alarm=0.1,0,-1,2",
        ] {
            assert!(schedule(wrong).is_err(), "{wrong}");
        }
    }
}
