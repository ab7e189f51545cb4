//! Watches: how far the answers of a text have drifted, token by token, and from where on that is an alarm.

use axiscap::CapSet;
use axiscap::file::{CapFile, FileError, Quantiles};

use crate::Token;
use crate::alarm::{Alarm, AlarmRule, Monitor, first_cap};
use crate::error::Error;

/// What is watched of the answers of a sequence: the projections of their tokens on the axis of a cap.
///
/// The projections are those before the cap. At the lowest capped block no cap has moved them, nor what their rows
/// attend to: they are what the uncapped model reads in the text, whether its caps act or not.
///
/// Two alarms watch the projections `p` of an answer's tokens. Both go on over the answers of a conversation.
/// - *EWMA*: `average = w * p + (1 - w) * average`, with `w = 2 / (tokens + 1)`, from the usual projection on. The
///   alarm begins when the average is down to [`Thresholds::alarm`], and ends when it is back at
///   [`Thresholds::release`]. It finds a text that drifts far.
/// - *CUSUM*: `sum = max(0, sum + release - p)`. The alarm begins when the sum reaches
///   `2 * tokens * (release - alarm)`, and ends at 0. The sum is at most twice that. It finds a text that stays lower
///   than answers usually are, though no average is as low as the EWMA's threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Watch {
    /// The watched cap, as index in the set. `None` stands for the first cap of the lowest capped block.
    pub cap: Option<usize>,
    /// Tokens that the average is over, more or less. 1 or more.
    pub tokens: u32,
    /// From where on there is an alarm. `None` only reads.
    pub thresholds: Option<Thresholds>,
}

/// Projections from which on there is an alarm, in units of the residual stream. They ascend: alarm, release, usual.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// The average begins here.
    pub usual: f64,
    /// The EWMA's alarm begins when the average is down to this.
    pub alarm: f64,
    /// It ends when the average is back at this. Tokens below it add to the CUSUM.
    pub release: f64,
}

impl Thresholds {
    /// Percentiles of the mean projections of the model's own answers, as itself, that the calibration found: alarm,
    /// release and usual.
    pub const PERCENTILES: [f32; 3] = [1.0, 10.0, 50.0];

    /// Returns the thresholds for a cap of a file, from the quantiles of its calibration
    /// ([`Thresholds::PERCENTILES`]). `None` if the file has no such quantiles.
    ///
    /// # Errors
    /// Those of [`Quantiles::of_default_answers`].
    pub fn calibrated(file: &CapFile, cap: usize) -> Result<Option<Self>, FileError> {
        let Some(quantiles) = Quantiles::of_default_answers(file)? else { return Ok(None) };
        let [alarm, release, usual] =
            Self::PERCENTILES.map(|percentile| quantiles.at(cap, percentile).map(f64::from));
        let found = alarm.zip(release).zip(usual);
        let found = found.map(|((alarm, release), usual)| Self { usual, alarm, release });
        // Answers that are all alike have no spread to tell drift by.
        Ok(found.filter(|thresholds| thresholds.check().is_ok()))
    }

    fn check(&self) -> Result<(), Error> {
        let &Self { usual, alarm, release } = self;
        if usual.is_finite() && alarm.is_finite() && alarm < release && release < usual {
            return Ok(());
        }
        Err(Error::Option {
            option: "the thresholds of a watch, alarm, release, usual",
            value: format!("{alarm}, {release}, {usual}"),
            expected: "three numbers that ascend".into(),
        })
    }
}

impl Watch {
    /// Tokens of the average by default.
    pub const TOKENS: u32 = 50;

    /// Returns the watch of a cap file's first cap of the lowest capped block, or another cap, with the thresholds of
    /// its calibration. Without any it only reads.
    ///
    /// # Errors
    /// Those of [`Thresholds::calibrated`].
    pub fn calibrated(file: &CapFile, cap: Option<usize>) -> Result<Self, FileError> {
        let watched = cap.unwrap_or_else(|| first_cap(&file.caps));
        Ok(Self { cap, tokens: Self::TOKENS, thresholds: Thresholds::calibrated(file, watched)? })
    }

    /// Returns the watched cap of a set, which may not be there.
    #[must_use]
    pub fn watched(&self, caps: &CapSet) -> usize {
        self.cap.unwrap_or_else(|| first_cap(caps))
    }

    /// Returns the weight of a new projection in the average.
    #[must_use]
    pub fn weight(&self) -> f64 {
        2.0 / (f64::from(self.tokens) + 1.0)
    }

    /// Returns the sum at which the CUSUM's alarm begins. `None` without thresholds.
    #[must_use]
    pub fn most_sum(&self) -> Option<f64> {
        let thresholds = self.thresholds?;
        Some(2.0 * f64::from(self.tokens) * (thresholds.release - thresholds.alarm))
    }

    /// Returns the EWMA's alarm for caps that are to act from it until its end
    /// ([`Schedule::OnAlarm`](crate::Schedule::OnAlarm)). `None` without thresholds, and for a cap without a floor.
    #[must_use]
    pub fn alarm(&self, caps: &CapSet) -> Option<Alarm> {
        let cap = self.watched(caps);
        let floor = f64::from(caps.caps().get(cap)?.cap.bound().lo());
        let thresholds = self.thresholds.filter(|_| floor.is_finite())?;
        let beyond = |projection: f64| floor - projection;
        let rule = AlarmRule::Ewma {
            weight: self.weight(),
            start: Some(beyond(thresholds.usual)),
            engage: beyond(thresholds.alarm),
            release: beyond(thresholds.release),
        };
        Some(Alarm { cap: Some(cap), rule })
    }
}

/// What a watch found after a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// The projection of the token.
    pub projection: f32,
    /// The average. Not a number until the first finite projection, where there are no thresholds.
    pub average: f64,
    /// The sum. 0 without thresholds.
    pub sum: f64,
    /// The EWMA's alarm.
    pub ewma: AlarmState,
    /// The CUSUM's alarm.
    pub cusum: AlarmState,
}

/// The state of an alarm after a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AlarmState {
    /// There is no alarm.
    #[default]
    Off,
    /// It begins with this token.
    Begins,
    /// It began with an earlier one.
    On,
}

impl AlarmState {
    fn of(was_on: bool, is_on: bool) -> Self {
        match (was_on, is_on) {
            (_, false) => Self::Off,
            (false, true) => Self::Begins,
            (true, true) => Self::On,
        }
    }

    /// Whether there is an alarm.
    #[must_use]
    pub fn is_on(self) -> bool {
        self != Self::Off
    }
}

impl Level {
    /// Whether one of the alarms is on.
    #[must_use]
    pub fn is_alarm(&self) -> bool {
        self.ewma.is_on() || self.cusum.is_on()
    }
}

/// The state of a watch: of a sequence of a context ([`Context::set_watch`](crate::Context::set_watch)), or of
/// projections from anywhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Watcher {
    watch: Watch,
    ewma: Monitor,
    cusum: Option<Monitor>,
}

impl Watcher {
    /// Begins a watch.
    ///
    /// # Errors
    /// [`Error::Option`] for numbers out of range.
    pub fn new(watch: &Watch) -> Result<Self, Error> {
        if watch.tokens == 0 {
            let (option, expected) = ("the tokens of a watch", "1 or more".into());
            return Err(Error::Option { option, value: "0".into(), expected });
        }
        let weight = watch.weight();
        let Some(thresholds) = watch.thresholds else {
            // An average that no threshold ends.
            let rule = AlarmRule::Ewma { weight, start: None, engage: f64::INFINITY, release: f64::INFINITY };
            return Ok(Self { watch: *watch, ewma: Monitor::over(rule, 0.0), cusum: None });
        };
        thresholds.check()?;
        let Thresholds { usual, alarm, release } = thresholds;
        let (start, beyond) = (Some(alarm - usual), alarm - release);
        let ewma = AlarmRule::Ewma { weight, start, engage: 0.0, release: beyond };
        let most = watch.most_sum().unwrap_or_default();
        let cusum = AlarmRule::Cusum { slack: 0.0, engage: most, release: 0.0 };
        let (ewma, cusum) = (Monitor::over(ewma, alarm), Monitor::over(cusum, release));
        Ok(Self { watch: *watch, ewma, cusum: Some(cusum) })
    }

    /// Returns the watch.
    #[must_use]
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Sees the projection of a token. One that is not finite raises the alarms, and leaves average and sum as they
    /// are.
    pub fn see(&mut self, projection: f32) -> Level {
        let see = |monitor: &mut Monitor| {
            let was_on = monitor.engaged;
            monitor.see(projection);
            AlarmState::of(was_on, monitor.engaged)
        };
        let (ewma, cusum) = (see(&mut self.ewma), self.cusum.as_mut().map(see));
        let from = self.watch.thresholds.map_or(0.0, |thresholds| thresholds.alarm);
        Level {
            projection,
            average: self.ewma.value().map_or(f64::NAN, |beyond| from - beyond),
            sum: self.cusum.as_ref().and_then(Monitor::value).unwrap_or(0.0),
            ewma,
            cusum: cusum.unwrap_or_default(),
        }
    }

    /// Forgets what it saw, for another text.
    pub fn reset(&mut self) {
        self.ewma.reset();
        self.cusum.iter_mut().for_each(Monitor::reset);
    }

    /// Goes on as another one stands.
    pub(crate) fn stand_as(&mut self, other: &Self) {
        self.ewma.stand_as(&other.ewma);
        if let (Some(cusum), Some(other)) = (&mut self.cusum, &other.cusum) {
            cusum.stand_as(other);
        }
    }
}

/// The level after a generated token of a watched sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// The sequence.
    pub sequence: i32,
    /// Position of the token in it.
    pub position: usize,
    /// The token.
    pub token: Token,
    /// What the watch found.
    pub level: Level,
}

#[cfg(test)]
mod tests {
    use axiscap::file::ModelInfo;
    use axiscap::{Axis, BlockCap, Bound, Cap};

    use super::*;

    const THRESHOLDS: Thresholds = Thresholds { usual: 0.0, alarm: -10.0, release: -4.0 };

    fn watch(tokens: u32, thresholds: Option<Thresholds>) -> Watch {
        Watch { cap: None, tokens, thresholds }
    }

    fn caps() -> CapSet {
        let axis = Axis::from_direction(&[1.0, 2.0]).unwrap();
        let cap = |block, lo| {
            let bound = Bound::floor(lo).unwrap();
            BlockCap { block, cap: Cap::new(axis.clone(), bound) }
        };
        CapSet::new([cap(7, -9.0), cap(3, -7.0)]).unwrap()
    }

    /// A text that drifts and comes back, with noise.
    fn text() -> Vec<f32> {
        let noise = |i: i32| ((i * 37) % 19 - 9) as f32;
        (0..400).map(|i| noise(i) - 12.0 * (i as f32 / 60.0).sin().max(0.0)).collect()
    }

    #[test]
    fn average_and_sum_are_those_of_their_formulas() {
        let watch = watch(4, Some(THRESHOLDS));
        let mut watcher = Watcher::new(&watch).unwrap();
        let weight = 2.0 / 5.0;
        assert_eq!((watch.weight(), watch.most_sum()), (weight, Some(48.0)));
        let (mut average, mut sum) = (0.0_f64, 0.0_f64);
        let (mut ewma, mut cusum) = (false, false);
        let mut began = (0, 0);
        for projection in text() {
            let level = watcher.see(projection);
            average = weight * f64::from(projection) + (1.0 - weight) * average;
            sum = (sum + -4.0 - f64::from(projection)).clamp(0.0, 96.0);
            let is_on = (
                if ewma { average < -4.0 } else { average <= -10.0 },
                if cusum { sum > 0.0 } else { sum >= 48.0 },
            );
            assert!((level.average - average).abs() < 1e-9 && (level.sum - sum).abs() < 1e-9, "{level:?}");
            assert_eq!((level.ewma.is_on(), level.cusum.is_on()), is_on, "{level:?}");
            assert_eq!(level.ewma == AlarmState::Begins, is_on.0 && !ewma);
            assert_eq!(level.cusum == AlarmState::Begins, is_on.1 && !cusum);
            assert_eq!(level.is_alarm(), is_on.0 || is_on.1);
            began = (began.0 + usize::from(is_on.0 && !ewma), began.1 + usize::from(is_on.1 && !cusum));
            (ewma, cusum) = is_on;
        }
        assert!(began.0 > 1 && began.1 > 0, "the text has alarms of both kinds: {began:?}");
    }

    #[test]
    fn one_low_token_at_the_beginning_is_no_alarm() {
        let mut watcher = Watcher::new(&watch(50, Some(THRESHOLDS))).unwrap();
        assert!(!watcher.see(-100.0).is_alarm());
        let level = (0..400).map(|_| watcher.see(-9.0)).last().unwrap();
        assert!(
            !level.ewma.is_on() && level.cusum.is_on(),
            "no average is as low, but the text stays low: {level:?}"
        );
    }

    #[test]
    fn a_watch_without_thresholds_reads() {
        let mut watcher = Watcher::new(&watch(1, None)).unwrap();
        assert!(watcher.see(f32::NAN).average.is_nan());
        let level = watcher.see(-500.0);
        assert_eq!((level.average, level.sum, level.is_alarm()), (-500.0, 0.0, false));
        assert!(watcher.see(f32::NAN).is_alarm());
        let level = watcher.see(3.0);
        assert_eq!((level.average, level.is_alarm()), (3.0, false));
    }

    #[test]
    fn projections_that_are_not_finite_are_alarms_and_change_nothing() {
        let mut watcher = Watcher::new(&watch(4, Some(THRESHOLDS))).unwrap();
        let before = watcher.see(-5.0);
        for projection in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let level = watcher.see(projection);
            assert!(level.ewma.is_on() && level.cusum.is_on(), "{level:?}");
            assert_eq!((level.average, level.sum), (before.average, before.sum));
        }
    }

    #[test]
    fn a_watch_begins_again_and_goes_on_as_another_stands() {
        let mut watcher = Watcher::new(&watch(4, Some(THRESHOLDS))).unwrap();
        let first: Vec<Level> = text().into_iter().map(|projection| watcher.see(projection)).collect();
        watcher.reset();
        let mut half = watcher.clone();
        let again: Vec<Level> = text()[..200].iter().map(|&projection| watcher.see(projection)).collect();
        half.stand_as(&watcher);
        let rest: Vec<Level> = text()[200..].iter().map(|&projection| half.see(projection)).collect();
        assert_eq!(first, [again, rest].concat());
    }

    #[test]
    fn caps_on_the_watchs_alarm_act_where_its_average_is_low() {
        let caps = caps();
        let watch = watch(4, Some(THRESHOLDS));
        let alarm = watch.alarm(&caps).unwrap();
        assert_eq!((alarm.cap, watch.watched(&caps)), (Some(1), 1));
        let mut monitor = Monitor::new(&alarm, &caps).unwrap();
        let mut watcher = Watcher::new(&watch).unwrap();
        for projection in text() {
            monitor.see(projection);
            assert_eq!(monitor.engaged, watcher.see(projection).ewma.is_on());
        }
        assert_eq!(Watch { thresholds: None, ..watch }.alarm(&caps), None);
        assert_eq!(watch.alarm(&caps.with_bounds(|_| Bound::NONE)), None);
        assert_eq!(Watch { cap: Some(9), ..watch }.alarm(&caps), None);
    }

    #[test]
    fn thresholds_are_quantiles_of_the_calibration() {
        let mut file = CapFile::new(caps(), ModelInfo::new("llama", 9));
        assert_eq!(Watch::calibrated(&file, None).unwrap().thresholds, None, "nothing is known");
        let levels = vec![0.0_f32, 1.0, 10.0, 50.0, 100.0];
        let other = [-1.0_f32; 5];
        let own = [-60.0_f32, -50.0, -30.0, 5.0, 9.0];
        file.origin.set("calibrate.quantile_levels", levels.clone());
        file.origin.set("calibrate.default_quantiles", [other, own].concat());
        let watch = Watch::calibrated(&file, None).unwrap();
        let thresholds = Thresholds { usual: 5.0, alarm: -50.0, release: -30.0 };
        assert_eq!(watch, Watch { cap: None, tokens: Watch::TOKENS, thresholds: Some(thresholds) });
        assert_eq!(Watch::calibrated(&file, Some(1)).unwrap().thresholds, Some(thresholds));
        let alike = Watch::calibrated(&file, Some(0)).unwrap();
        assert_eq!(alike.thresholds, None, "answers that are all alike have no spread");
        file.origin.set("calibrate.default_quantiles", vec![1.0_f32]);
        assert!(Watch::calibrated(&file, None).is_err());
    }

    #[test]
    fn watches_out_of_range_are_refused() {
        let wrong = [
            watch(0, None),
            watch(1, Some(Thresholds { usual: -11.0, ..THRESHOLDS })),
            watch(1, Some(Thresholds { release: 0.0, ..THRESHOLDS })),
            watch(1, Some(Thresholds { alarm: -4.0, ..THRESHOLDS })),
            watch(1, Some(Thresholds { alarm: f64::NEG_INFINITY, ..THRESHOLDS })),
            watch(1, Some(Thresholds { usual: f64::NAN, ..THRESHOLDS })),
        ];
        for watch in wrong {
            assert!(matches!(Watcher::new(&watch), Err(Error::Option { .. })), "{watch:?}");
        }
    }
}
