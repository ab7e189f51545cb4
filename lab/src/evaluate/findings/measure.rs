//! A measure: one number per unit and arm, and what it says about each arm and about two of them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::arm::Arm;
use crate::estimate::Estimate;

/// A number that was measured in every arm, and how the arms differ in it.
///
/// Differences are those of pairs: each unit (a conversation, an item, a piece of a text) with itself in another arm.
/// The value of a unit under random directions is the mean over the controls.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measure {
    /// Its name, e.g. `projection`.
    pub name: &'static str,
    /// What it is of, e.g. `therapy`.
    pub of: String,
    /// By arm.
    pub arms: BTreeMap<Arm, Estimate>,
    /// Capped minus uncapped.
    pub capped_minus_uncapped: Option<Estimate>,
    /// Capped minus random.
    pub capped_minus_random: Option<Estimate>,
    /// Random minus uncapped.
    pub random_minus_uncapped: Option<Estimate>,
}

/// The numbers of a measure.
#[derive(Debug, Clone)]
pub(super) struct Units {
    /// By arm and unit.
    values: BTreeMap<Arm, BTreeMap<String, f64>>,
    /// Whether a unit shows an event (1) or not (0).
    are_events: bool,
    /// Whether each number is a share.
    are_shares: bool,
}

impl Units {
    /// Makes a collection of numbers.
    pub(super) fn numbers() -> Self {
        Self { values: BTreeMap::new(), are_events: false, are_shares: false }
    }

    /// Makes a collection of shares, from 0 to 1.
    pub(super) fn shares() -> Self {
        Self { are_shares: true, ..Self::numbers() }
    }

    /// Makes a collection of events.
    pub(super) fn events() -> Self {
        Self { are_events: true, ..Self::numbers() }
    }

    /// Notes the number of a unit.
    pub(super) fn put(&mut self, arm: Arm, unit: impl Into<String>, value: f64) {
        self.values.entry(arm).or_default().insert(unit.into(), value);
    }

    /// Returns by unit the difference to another collection, for units that both have.
    pub(super) fn minus(&self, other: &Self) -> Self {
        let mut differences = Self::numbers();
        for (&arm, values) in &self.values {
            for (unit, value) in values {
                if let Some(other) = other.values.get(&arm).and_then(|values| values.get(unit)) {
                    differences.put(arm, unit.clone(), value - other);
                }
            }
        }
        differences
    }

    /// Returns what the numbers say. `None` without any.
    pub(super) fn measure(&self, name: &'static str, of: impl Into<String>) -> Option<Measure> {
        let arms: BTreeMap<Arm, Estimate> =
            self.values.iter().filter_map(|(&arm, values)| Some((arm, self.estimate(values)?))).collect();
        let none = BTreeMap::new();
        let uncapped = self.values.get(&Arm::Uncapped).unwrap_or(&none);
        let capped = self.values.get(&Arm::Capped).unwrap_or(&none);
        let (random, controls) = self.random();
        let random_events = self.are_events && controls == 1;
        (!arms.is_empty()).then(|| Measure {
            name,
            of: of.into(),
            arms,
            capped_minus_uncapped: difference(capped, uncapped, self.are_events),
            capped_minus_random: difference(capped, &random, random_events),
            random_minus_uncapped: difference(&random, uncapped, random_events),
        })
    }

    fn estimate(&self, values: &BTreeMap<String, f64>) -> Option<Estimate> {
        if self.are_events {
            return Estimate::of_share(&values.values().map(|&value| value > 0.5).collect::<Vec<_>>());
        }
        let mean = Estimate::of_mean(&values.values().copied().collect::<Vec<_>>());
        if self.are_shares { mean.map(|mean| mean.within([0.0, 1.0])) } else { mean }
    }

    /// Returns by unit the mean over the controls, of units that all of them have, and the number of controls.
    fn random(&self) -> (BTreeMap<String, f64>, usize) {
        let controls: Vec<_> = self
            .values
            .iter()
            .filter(|(arm, _)| matches!(arm, Arm::Random(_)))
            .map(|(_, values)| values)
            .collect();
        let Some(first) = controls.first() else { return (BTreeMap::new(), 0) };
        let mean = |unit: &String| {
            let values: Option<Vec<f64>> = controls.iter().map(|values| values.get(unit).copied()).collect();
            Some((unit.clone(), values?.iter().sum::<f64>() / controls.len() as f64))
        };
        (first.keys().filter_map(mean).collect(), controls.len())
    }
}

/// Estimates how much larger one arm's numbers are than another's, of units that both have.
fn difference(
    more: &BTreeMap<String, f64>,
    less: &BTreeMap<String, f64>,
    are_events: bool,
) -> Option<Estimate> {
    let pairs: Vec<(f64, f64)> =
        more.iter().filter_map(|(unit, &value)| Some((*less.get(unit)?, value))).collect();
    if are_events {
        let events: Vec<_> = pairs.iter().map(|&(less, more)| (less > 0.5, more > 0.5)).collect();
        return Estimate::of_share_difference(&events);
    }
    Estimate::of_mean(&pairs.iter().map(|(less, more)| more - less).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_those_of_pairs() {
        let mut units = Units::numbers();
        for (unit, uncapped, capped, random) in [("a", 1.0, 3.0, [1.0, 2.0]), ("b", 10.0, 12.5, [9.0, 11.0])]
        {
            units.put(Arm::Uncapped, unit, uncapped);
            units.put(Arm::Capped, unit, capped);
            for (number, value) in (1..).zip(random) {
                units.put(Arm::Random(number), unit, value);
            }
        }
        // A unit that only one arm has is in no pair.
        units.put(Arm::Capped, "c", 100.0);
        let found = units.measure("projection", "all").unwrap();
        let value = |estimate: Option<Estimate>| estimate.unwrap().value;
        assert_eq!(value(found.capped_minus_uncapped), 2.25);
        assert_eq!(value(found.capped_minus_random), 2.0);
        assert_eq!(value(found.random_minus_uncapped), 0.25);
        assert_eq!(found.arms[&Arm::Capped].units, 3);
        let none = units.minus(&units);
        assert_eq!(none.measure("none", "all").unwrap().arms[&Arm::Capped].ci95, Some([0.0, 0.0]));
        assert_eq!(Units::numbers().measure("x", "y"), None);
    }

    #[test]
    fn events_have_intervals_of_shares() {
        let mut units = Units::events();
        for unit in 0..40 {
            units.put(Arm::Uncapped, unit.to_string(), f64::from(unit % 4 == 0));
            units.put(Arm::Capped, unit.to_string(), f64::from(unit % 4 == 0));
        }
        let found = units.measure("errors", "plain").unwrap();
        assert_eq!(found.arms[&Arm::Uncapped].value, 0.25);
        let difference = found.capped_minus_uncapped.unwrap();
        assert!(difference.value == 0.0 && difference.ci95.unwrap()[1] > 0.0, "{difference:?}");
        assert_eq!(found.capped_minus_random, None);
    }
}
