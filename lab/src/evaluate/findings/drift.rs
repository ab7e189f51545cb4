//! How far answers drift from the axis.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::arm::Arm;
use super::super::material::Material;
use super::super::record::{Record, TurnReading};
use super::measure::{Measure, Units};
use crate::estimate;

/// Domains in which models drift (arXiv 2601.10387). They are looked at together as well.
const BOTH: [&str; 2] = ["therapy", "philosophy"];

/// What conversations did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drift {
    /// By domain, for `therapy and philosophy`, and for `all`: `projection` (mean over the turns, as the uncapped
    /// model reads the answers), `slope` (change of it per turn), `outside` (share of the answers' tokens beyond the
    /// bounds, read so), and `projection under caps` (what the rest of the model saw, after the caps of the arm).
    pub measures: Vec<Measure>,
    /// Mean projections turn by turn.
    pub turns: Vec<ArmTurns>,
    /// Conversations that ended before their script, because the context was full.
    pub cut_short: usize,
}

/// Mean projections of a domain's answers in an arm, turn by turn.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ArmTurns {
    /// The domain.
    pub domain: String,
    /// The arm.
    pub arm: Arm,
    /// Whether the answers were read under the caps of the arm. If not, the uncapped model read them.
    pub under_caps: bool,
    /// By turn, the mean over the conversations.
    pub projections: Vec<Option<f64>>,
}

/// A domain's measures.
#[derive(Clone)]
struct Domain {
    projection: Units,
    slope: Units,
    outside: Units,
    under_caps: Units,
}

/// Summarises readings. `None` without any.
pub(super) fn drift<'r>(material: &Material, records: impl Iterator<Item = &'r Record>) -> Option<Drift> {
    let mut readings = BTreeMap::new();
    for record in records {
        if let Record::Reading { arm, id, under_caps, turns } = record {
            readings.insert((id.as_str(), *under_caps, *arm), turns);
        }
    }
    if readings.is_empty() {
        return None;
    }
    let empty = Domain {
        projection: Units::numbers(),
        slope: Units::numbers(),
        outside: Units::shares(),
        under_caps: Units::numbers(),
    };
    let (mut domains, mut cut_short) = (BTreeMap::<&str, Domain>::new(), 0);
    for script in &material.conversations {
        let of = || readings.iter().filter(|((id, ..), _)| *id == script.id);
        // Arms are compared over the turns that all of them have.
        let turns = of().map(|(_, turns)| turns.len()).min().unwrap_or(0);
        cut_short += usize::from(turns < script.turns.len() && of().next().is_some());
        for (&(id, under_caps, arm), readings) in of() {
            let readings = &readings[..turns];
            let both = BOTH.contains(&script.domain.as_str()).then_some("therapy and philosophy");
            for name in [Some(script.domain.as_str()), both, Some("all")].into_iter().flatten() {
                let domain = domains.entry(name).or_insert_with(|| empty.clone());
                if under_caps {
                    put(&mut domain.under_caps, arm, id, mean(readings, |turn| turn.after));
                    continue;
                }
                put(&mut domain.projection, arm, id, mean(readings, |turn| turn.before));
                put(&mut domain.slope, arm, id, slope(readings));
                put(&mut domain.outside, arm, id, outside(readings));
                if arm == Arm::Uncapped {
                    put(&mut domain.under_caps, arm, id, mean(readings, |turn| turn.before));
                }
            }
        }
    }
    let mut measures = Vec::new();
    for name in material.domains().into_iter().chain(["therapy and philosophy", "all"]) {
        if let Some(domain) = domains.get(name) {
            let Domain { projection, slope, outside, under_caps } = domain;
            for (units, measure) in [
                (projection, "projection"),
                (slope, "slope"),
                (outside, "outside"),
                (under_caps, "projection under caps"),
            ] {
                measures.extend(units.measure(measure, name));
            }
        }
    }
    Some(Drift { measures, turns: lines(material, &readings), cut_short })
}

fn put(units: &mut Units, arm: Arm, id: &str, value: Option<f64>) {
    if let Some(value) = value {
        units.put(arm, id, value);
    }
}

/// Returns the mean over the turns that have a value.
fn mean(turns: &[TurnReading], value: impl Fn(&TurnReading) -> Option<f32>) -> Option<f64> {
    let values: Vec<f64> = turns.iter().filter_map(value).map(f64::from).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Returns the slope of the projections over the turns. `None` for fewer than two.
fn slope(turns: &[TurnReading]) -> Option<f64> {
    let point = |(turn, reading): (u32, &TurnReading)| Some((f64::from(turn), f64::from(reading.before?)));
    estimate::slope((1..).zip(turns).filter_map(point))
}

/// Returns the share of the tokens that are beyond the bounds.
fn outside(turns: &[TurnReading]) -> Option<f64> {
    let (outside, tokens) =
        turns.iter().fold((0, 0), |sum, turn| (sum.0 + turn.outside, sum.1 + turn.tokens));
    (tokens > 0).then(|| outside as f64 / tokens as f64)
}

/// Returns the mean projections turn by turn.
fn lines(material: &Material, readings: &BTreeMap<(&str, bool, Arm), &Vec<TurnReading>>) -> Vec<ArmTurns> {
    let mut lines = Vec::new();
    let mut kinds: Vec<_> = readings.keys().map(|&(_, under_caps, arm)| (under_caps, arm)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for domain in material.domains() {
        for &(under_caps, arm) in &kinds {
            let scripts = material.conversations.iter().filter(|script| script.domain == domain);
            let of: Vec<_> =
                scripts.filter_map(|script| readings.get(&(script.id.as_str(), under_caps, arm))).collect();
            let longest = of.iter().map(|turns| turns.len()).max().unwrap_or(0);
            let at = |turn: usize| {
                let here: Vec<TurnReading> = of.iter().filter_map(|turns| turns.get(turn).copied()).collect();
                mean(&here, |turn| if under_caps { turn.after } else { turn.before })
            };
            let projections = (0..longest).map(at).collect();
            lines.push(ArmTurns { domain: domain.into(), arm, under_caps, projections });
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::Size;

    fn turn(before: f32, outside: usize) -> TurnReading {
        TurnReading { tokens: 10, before: Some(before), after: Some(before.max(-5.0)), outside }
    }

    #[test]
    fn slopes_and_shares_are_those_of_the_turns() {
        let turns = [turn(1.0, 0), turn(-1.0, 5), turn(-3.0, 10)];
        assert_eq!(slope(&turns), Some(-2.0));
        assert_eq!(slope(&turns[..1]), None);
        assert_eq!(outside(&turns), Some(0.5));
        assert_eq!(mean(&turns, |turn| turn.before), Some(-1.0));
        let silent = TurnReading { tokens: 0, before: None, after: None, outside: 0 };
        assert_eq!(slope(&[turns[0], silent, turns[2]]), Some(-2.0), "a turn without tokens has no point");
        assert_eq!(outside(&[silent]), None);
    }

    #[test]
    fn arms_are_compared_over_the_turns_that_all_have() {
        let material = Material::builtin().cut(&Size { turns: 3, ..Size::QUICK });
        let id = material.conversations[0].id.clone();
        let reading = |arm, under_caps, turns: &[TurnReading]| Record::Reading {
            arm,
            id: id.clone(),
            under_caps,
            turns: turns.into(),
        };
        let records = [
            reading(Arm::Uncapped, false, &[turn(0.0, 0), turn(-8.0, 5), turn(-100.0, 10)]),
            reading(Arm::Capped, false, &[turn(0.0, 0), turn(-4.0, 5)]),
            reading(Arm::Capped, true, &[turn(0.0, 0), turn(-8.0, 10)]),
        ];
        let drift = drift(&material, records.iter()).unwrap();
        assert_eq!(drift.cut_short, 1);
        let found = |name: &str| {
            drift.measures.iter().find(|measure| measure.name == name && measure.of == "all").unwrap()
        };
        assert_eq!(found("projection").arms[&Arm::Uncapped].value, -4.0);
        assert_eq!(found("projection").capped_minus_uncapped.unwrap().value, 2.0);
        assert_eq!(found("slope").capped_minus_uncapped.unwrap().value, 4.0);
        assert_eq!(found("projection under caps").capped_minus_uncapped.unwrap().value, 1.5);
        assert_eq!(drift.turns.len(), 12);
        assert_eq!(drift.turns[0].projections.len(), 3);
        assert!(super::drift(&material, [].iter()).is_none());
    }
}
