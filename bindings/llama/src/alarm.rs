//! Alarms: when a text has drifted so far that caps are to act, and when they may let go.

use axiscap::{Bound, CapSet};

use crate::error::Error;

/// A watch on the projections of one cap, and the rule by which they raise an alarm.
///
/// What is watched is the *excess* of each generated row: how far its projection lies beyond the cap's bound,
/// in units of the residual stream. It is negative within the bound. The projection is that before the cap,
/// after the caps of earlier blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alarm {
    /// The watched cap, as index in the set. `None` stands for the first cap of the lowest capped block, whose
    /// projection no cap of the same row has moved.
    pub cap: Option<usize>,
    /// The rule.
    pub rule: AlarmRule,
}

/// When an alarm begins and ends. The end lies below the beginning, so that it does not flutter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AlarmRule {
    /// An exponentially weighted moving average of the excess: `x = weight * excess + (1 - weight) * x`.
    Ewma {
        /// Weight of a new excess, above 0 and at most 1.
        weight: f64,
        /// The average before the first excess. With `None` the first excess is the average, so that a single
        /// row may raise the alarm.
        start: Option<f64>,
        /// The alarm begins when the average reaches this.
        engage: f64,
        /// The alarm ends when the average is down to this. Below `engage`.
        release: f64,
    },
    /// A one-sided cumulative sum of the excess: `s = max(0, s + excess - slack)`, at most `2 * engage`.
    Cusum {
        /// Excess that is tolerated.
        slack: f64,
        /// The alarm begins when the sum reaches this. Above 0.
        engage: f64,
        /// The alarm ends when the sum is down to this, 0 or more. Below `engage`.
        release: f64,
    },
}

impl AlarmRule {
    /// Returns where the alarm begins.
    fn engage(&self) -> f64 {
        match *self {
            Self::Ewma { engage, .. } | Self::Cusum { engage, .. } => engage,
        }
    }

    /// Returns the average or the sum before the first excess.
    fn start(&self) -> Option<f64> {
        match self {
            Self::Ewma { start, .. } => *start,
            Self::Cusum { .. } => Some(0.0),
        }
    }
}

impl Alarm {
    /// Returns the watched cap of a set, which may not be there.
    #[must_use]
    pub fn watched(&self, caps: &CapSet) -> usize {
        self.cap.unwrap_or_else(|| first_cap(caps))
    }

    /// Checks the rule.
    fn check(&self) -> Result<(), Error> {
        let refuse = |option, value: f64, expected: String| {
            Err(Error::Option { option, value: value.to_string(), expected })
        };
        let (engage, release) = match self.rule {
            AlarmRule::Ewma { weight, .. } if !(weight > 0.0 && weight <= 1.0) => {
                return refuse("the weight of the alarm", weight, "above 0 and at most 1".into());
            }
            AlarmRule::Ewma { start: Some(start), .. } if !start.is_finite() => {
                return refuse("the start of the alarm", start, "a finite number".into());
            }
            AlarmRule::Ewma { engage, release, .. } => (engage, release),
            AlarmRule::Cusum { slack, .. } if !slack.is_finite() => {
                return refuse("the slack of the alarm", slack, "a finite number".into());
            }
            AlarmRule::Cusum { engage, .. } if engage.is_nan() || engage <= 0.0 => {
                return refuse("the beginning of the alarm", engage, "above 0".into());
            }
            AlarmRule::Cusum { release, .. } if release < 0.0 => {
                return refuse("the end of the alarm", release, "0 or more".into());
            }
            AlarmRule::Cusum { engage, release, .. } => (engage, release),
        };
        if !engage.is_finite() {
            return refuse("the beginning of the alarm", engage, "a finite number".into());
        }
        if !(release.is_finite() && release < engage) {
            return refuse("the end of the alarm", release, format!("below its beginning, {engage}"));
        }
        Ok(())
    }
}

/// Returns the first cap of the lowest capped block. No cap of the same row has moved its projection.
pub(crate) fn first_cap(caps: &CapSet) -> usize {
    caps.blocks().values().next().and_then(|caps| caps.first().copied()).unwrap_or(0)
}

/// The state of an alarm.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Monitor {
    rule: AlarmRule,
    /// Index of the watched cap.
    pub(crate) cap: usize,
    /// Projections beyond these are in excess.
    lo: f64,
    hi: f64,
    /// The average or the sum. `None` before the first excess of an average without a start.
    value: Option<f64>,
    pub(crate) engaged: bool,
}

/// An alarm that began or ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Change {
    pub(crate) engaged: bool,
    pub(crate) value: f64,
    pub(crate) threshold: f64,
}

impl Monitor {
    /// Begins to watch a cap of a set.
    ///
    /// # Errors
    /// [`Error::Option`] for numbers out of range, and a cap that is not there or has no bound.
    pub(crate) fn new(alarm: &Alarm, caps: &CapSet) -> Result<Self, Error> {
        alarm.check()?;
        let cap = alarm.watched(caps);
        let bound = bound_of(caps, cap)?;
        let (lo, hi) = (f64::from(bound.lo()), f64::from(bound.hi()));
        Ok(Self { rule: alarm.rule, cap, lo, hi, value: alarm.rule.start(), engaged: false })
    }

    /// Begins to watch projections that are in excess below a floor. The rule was checked.
    pub(crate) fn over(rule: AlarmRule, floor: f64) -> Self {
        Self { rule, cap: 0, lo: floor, hi: f64::INFINITY, value: rule.start(), engaged: false }
    }

    /// Goes on with other bounds of the watched cap.
    ///
    /// # Errors
    /// [`Error::Option`] for a cap that is not there or has no bound.
    pub(crate) fn follow(&mut self, caps: &CapSet) -> Result<(), Error> {
        let bound = bound_of(caps, self.cap)?;
        (self.lo, self.hi) = (f64::from(bound.lo()), f64::from(bound.hi()));
        Ok(())
    }

    /// Forgets the text.
    pub(crate) fn reset(&mut self) {
        (self.value, self.engaged) = (self.rule.start(), false);
    }

    /// Goes on as another one stands, if it has the same rule. Values of other rules mean something else.
    pub(crate) fn stand_as(&mut self, other: &Self) {
        if self.rule == other.rule && self.cap == other.cap {
            (self.value, self.engaged) = (other.value, other.engaged);
        }
    }

    /// Returns the average or the sum. `None` before the first excess of an average without a start.
    pub(crate) fn value(&self) -> Option<f64> {
        self.value
    }

    /// Sees the projection of a generated row. Returns a change. A projection that is not finite raises the
    /// alarm, and leaves the average or the sum as it is.
    pub(crate) fn see(&mut self, projection: f32) -> Option<Change> {
        let projection = f64::from(projection);
        let excess = (self.lo - projection).max(projection - self.hi);
        if !projection.is_finite() {
            return self.become_engaged(true, excess, self.rule.engage());
        }
        let (value, engage, release) = match self.rule {
            AlarmRule::Ewma { weight, engage, release, .. } => {
                let last = self.value.unwrap_or(excess);
                (weight * excess + (1.0 - weight) * last, engage, release)
            }
            AlarmRule::Cusum { slack, engage, release } => {
                ((self.value.unwrap_or(0.0) + excess - slack).clamp(0.0, 2.0 * engage), engage, release)
            }
        };
        self.value = Some(value);
        let (engaged, threshold) =
            if self.engaged { (value > release, release) } else { (value >= engage, engage) };
        self.become_engaged(engaged, value, threshold)
    }

    /// Begins or ends the alarm. Returns the change.
    fn become_engaged(&mut self, engaged: bool, value: f64, threshold: f64) -> Option<Change> {
        let is_change = std::mem::replace(&mut self.engaged, engaged) != engaged;
        is_change.then_some(Change { engaged, value, threshold })
    }
}

fn bound_of(caps: &CapSet, cap: usize) -> Result<Bound, Error> {
    let bound = caps.caps().get(cap).map(|entry| entry.cap.bound()).filter(|bound| !bound.is_none());
    bound.ok_or_else(|| Error::Option {
        option: "the watched cap",
        value: cap.to_string(),
        expected: "a cap of the set that has a bound".into(),
    })
}

#[cfg(test)]
mod tests {
    use axiscap::{Axis, BlockCap, Cap};

    use super::*;

    fn caps(bounds: &[(usize, Bound)]) -> CapSet {
        let axis = Axis::from_direction(&[1.0, 2.0]).unwrap();
        let cap = |&(block, bound)| BlockCap { block, cap: Cap::new(axis.clone(), bound) };
        CapSet::new(bounds.iter().map(cap)).unwrap()
    }

    fn floor(lo: f32) -> Bound {
        Bound::floor(lo).unwrap()
    }

    fn changes(monitor: &mut Monitor, projections: &[f32]) -> Vec<(usize, bool)> {
        let seen = projections.iter().enumerate();
        seen.filter_map(|(i, &projection)| Some((i, monitor.see(projection)?.engaged))).collect()
    }

    #[test]
    fn an_average_engages_at_one_threshold_and_lets_go_at_another() {
        let rule = AlarmRule::Ewma { weight: 0.5, start: None, engage: 0.0, release: -1.0 };
        let mut monitor = Monitor::new(&Alarm { cap: None, rule }, &caps(&[(0, floor(2.0))])).unwrap();
        // Excesses -2, 0, 2, 2: averages -2, -1, 0.5, 1.25; then -1 and -3: 0.125, -1.4375.
        assert_eq!(changes(&mut monitor, &[4.0, 2.0, 0.0, 0.0, 3.0, 5.0]), [(2, true), (5, false)]);
        monitor.reset();
        assert_eq!(changes(&mut monitor, &[1.0]), [(0, true)], "the first excess is the average");
    }

    #[test]
    fn a_sum_tolerates_its_slack_and_is_limited() {
        let rule = AlarmRule::Cusum { slack: 0.5, engage: 2.0, release: 0.0 };
        let bound = Bound::band(-1.0, 1.0).unwrap();
        let mut monitor = Monitor::new(&Alarm { cap: None, rule }, &caps(&[(0, bound)])).unwrap();
        // Both sides of the band count. The excess of 1.5 is the slack, and -1.5 adds 0.
        assert_eq!(changes(&mut monitor, &[0.0, 1.5, -1.5, 3.5, 1.5]), [(3, true)]);
        assert_eq!(changes(&mut monitor, &[100.0; 5]), []);
        // From at most 4, by 1.5 per row at the centre.
        assert_eq!(changes(&mut monitor, &[0.0; 4]), [(2, false)]);
    }

    #[test]
    fn a_projection_that_is_not_finite_raises_the_alarm() {
        let rule = AlarmRule::Ewma { weight: 1.0, start: None, engage: 0.0, release: -1.0 };
        let mut monitor = Monitor::new(&Alarm { cap: None, rule }, &caps(&[(0, floor(2.0))])).unwrap();
        assert_eq!(changes(&mut monitor, &[9.0, f32::NAN, f32::INFINITY, 9.0]), [(1, true), (3, false)]);
        let rule = AlarmRule::Cusum { slack: 0.0, engage: 2.0, release: 0.0 };
        for projection in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut monitor = Monitor::new(&Alarm { cap: None, rule }, &caps(&[(0, floor(2.0))])).unwrap();
            // A sum of 1, which stays.
            assert_eq!(changes(&mut monitor, &[1.0, projection]), [(1, true)]);
            assert_eq!((monitor.value(), changes(&mut monitor, &[3.0])), (Some(1.0), vec![(0, false)]));
        }
    }

    #[test]
    fn the_lowest_block_is_watched_unless_another_cap_is_named() {
        let rule = AlarmRule::Ewma { weight: 1.0, start: None, engage: 0.0, release: -1.0 };
        let set = caps(&[(9, floor(1.0)), (3, Bound::NONE), (2, floor(5.0)), (2, floor(6.0))]);
        assert_eq!(Monitor::new(&Alarm { cap: None, rule }, &set).unwrap().cap, 2);
        assert_eq!(Monitor::new(&Alarm { cap: Some(0), rule }, &set).unwrap().cap, 0);
        for cap in [1, 4] {
            let error = Monitor::new(&Alarm { cap: Some(cap), rule }, &set).unwrap_err().to_string();
            assert!(error.contains("has a bound"), "{error}");
        }
        for rule in [
            AlarmRule::Ewma { weight: 0.0, start: None, engage: 0.0, release: -1.0 },
            AlarmRule::Ewma { weight: f64::NAN, start: None, engage: 0.0, release: -1.0 },
            AlarmRule::Ewma { weight: 0.5, start: None, engage: 0.0, release: 0.0 },
            AlarmRule::Ewma { weight: 0.5, start: None, engage: f64::INFINITY, release: 0.0 },
            AlarmRule::Ewma { weight: 0.5, start: Some(f64::NAN), engage: 1.0, release: 0.0 },
            AlarmRule::Cusum { slack: f64::NAN, engage: 1.0, release: 0.0 },
            AlarmRule::Cusum { slack: 0.0, engage: 0.0, release: -1.0 },
            AlarmRule::Cusum { slack: 0.0, engage: 1.0, release: -0.5 },
        ] {
            let refused = Monitor::new(&Alarm { cap: None, rule }, &set);
            assert!(matches!(refused, Err(Error::Option { .. })), "{rule:?}");
        }
    }
}
