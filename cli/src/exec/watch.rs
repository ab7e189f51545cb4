//! What the launcher waits for, and when it ends the host.

use std::time::{Duration, Instant};

use super::report::Event;

/// Time for a host to end itself after it reported a fatal error, and to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// The deadlines of a host, and what was reported so far.
#[derive(Debug)]
pub(super) struct Watch {
    /// When the plugin must be loaded, until it is.
    load_by: Option<Instant>,
    /// When a model must be capped, until one is.
    cap_by: Option<Instant>,
    is_loaded: bool,
    phase: Phase,
    failure: Option<Failure>,
}

/// Why the host was ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    NotLoaded,
    NotCapped,
    /// A process cannot go on, says its report.
    Fatal(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// It ends itself, or is sent SIGTERM at this time.
    Failing(Instant),
    /// It was sent SIGTERM, and is sent SIGKILL at this time.
    Terminating(Instant),
    Killed,
}

/// What to do to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Terminate,
    Kill,
}

impl Watch {
    /// Begins to watch a host that was started at `now`.
    pub(super) fn new(now: Instant, load: Duration, cap: Option<Duration>) -> Self {
        Self {
            load_by: Some(now + load),
            cap_by: cap.map(|cap| now + cap),
            is_loaded: false,
            phase: Phase::Running,
            failure: None,
        }
    }

    /// Takes note of a report.
    pub(super) fn report(&mut self, event: &Event, now: Instant) {
        match event {
            Event::Loaded { .. } => (self.load_by, self.is_loaded) = (None, true),
            Event::Capped { .. } => (self.cap_by, self.load_by, self.is_loaded) = (None, None, true),
            Event::NotCapped { .. } | Event::Warning { .. } => {}
            Event::Fatal { reason } => self.fail(Failure::Fatal(reason.clone()), Phase::Failing(now + GRACE)),
        }
    }

    /// Keeps the first failure.
    fn fail(&mut self, failure: Failure, phase: Phase) {
        if self.failure.is_none() {
            (self.failure, self.phase) = (Some(failure), phase);
        }
    }

    /// Returns what is due. `has_ended` is whether the host's own process has ended, which may leave others
    /// of its group.
    pub(super) fn due(&mut self, now: Instant, has_ended: bool) -> Option<Action> {
        let is_over = |time: Option<Instant>| time.is_some_and(|time| time <= now);
        match self.phase {
            Phase::Running if is_over(self.load_by) => {
                self.fail(Failure::NotLoaded, Phase::Terminating(now + GRACE));
            }
            Phase::Running if is_over(self.cap_by) => {
                self.fail(Failure::NotCapped, Phase::Terminating(now + GRACE));
            }
            Phase::Failing(until) if until <= now || has_ended => {
                self.phase = Phase::Terminating(now + GRACE)
            }
            Phase::Terminating(until) if until <= now => {
                self.phase = Phase::Killed;
                return Some(Action::Kill);
            }
            _ => return None,
        }
        Some(Action::Terminate)
    }

    /// Returns when something is due next.
    pub(super) fn next(&self) -> Option<Instant> {
        match self.phase {
            Phase::Running => [self.load_by, self.cap_by].into_iter().flatten().min(),
            Phase::Failing(until) | Phase::Terminating(until) => Some(until),
            Phase::Killed => None,
        }
    }

    /// Moves the deadlines: in the meantime nothing could happen.
    pub(super) fn postpone(&mut self, by: Duration) {
        for time in [&mut self.load_by, &mut self.cap_by].into_iter().flatten() {
            *time += by;
        }
        if let Phase::Failing(until) | Phase::Terminating(until) = &mut self.phase {
            *until += by;
        }
    }

    /// Returns whether other processes of the host are still to be ended.
    pub(super) fn is_ending_others(&self) -> bool {
        matches!(self.phase, Phase::Failing(_) | Phase::Terminating(_))
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.is_loaded
    }

    /// Returns whether a capped model is asked for and there was none so far.
    pub(super) fn lacks_cap(&self) -> bool {
        self.cap_by.is_some()
    }

    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn loaded() -> Event {
        Event::Loaded { versions: String::new() }
    }

    fn capped() -> Event {
        Event::Capped { caps: String::new(), model: String::new(), blocks: 1 }
    }

    #[test]
    fn a_host_that_does_not_load_the_plugin_is_ended_in_two_steps() {
        let start = Instant::now();
        let mut watch = Watch::new(start, 30 * SECOND, None);
        assert_eq!((watch.next(), watch.due(start + 29 * SECOND, false)), (Some(start + 30 * SECOND), None));
        let late = start + 31 * SECOND;
        assert_eq!(watch.due(late, false), Some(Action::Terminate));
        assert_eq!((watch.due(late, false), watch.next()), (None, Some(late + GRACE)));
        // It is too late.
        watch.report(&loaded(), late);
        watch.report(&Event::Fatal { reason: "x".into() }, late);
        assert_eq!(watch.due(late + GRACE, false), Some(Action::Kill));
        assert_eq!((watch.due(late + 2 * GRACE, false), watch.next()), (None, None));
        assert_eq!(watch.failure(), Some(&Failure::NotLoaded));
    }

    #[test]
    fn reports_end_the_waiting() {
        let start = Instant::now();
        let mut watch = Watch::new(start, 30 * SECOND, Some(60 * SECOND));
        watch.report(&Event::Warning { text: "x".into() }, start);
        assert!(!watch.is_loaded());
        watch.report(&loaded(), start);
        assert!(watch.is_loaded());
        assert_eq!(watch.next(), Some(start + 60 * SECOND));
        watch.report(&Event::NotCapped { model: "m".into() }, start);
        let mut late = Watch { ..watch };
        assert_eq!(late.due(start + 60 * SECOND, false), Some(Action::Terminate));
        assert_eq!(late.failure(), Some(&Failure::NotCapped));

        let mut watch = Watch::new(start, 30 * SECOND, Some(60 * SECOND));
        watch.report(&capped(), start);
        assert_eq!((watch.next(), watch.is_loaded()), (None, true));
        assert_eq!(watch.due(start + 1000 * SECOND, false), None);
    }

    #[test]
    fn a_host_has_time_to_end_itself_after_a_fatal_report() {
        let start = Instant::now();
        let fatal = |reason: &str| Event::Fatal { reason: reason.into() };
        let mut watch = Watch::new(start, 30 * SECOND, None);
        watch.report(&fatal("first"), start);
        watch.report(&fatal("second"), start);
        assert_eq!(watch.failure(), Some(&Failure::Fatal("first".into())));
        assert_eq!(watch.due(start, false), None);
        assert!(watch.is_ending_others());
        let mut slow = Watch { failure: watch.failure.clone(), ..watch };
        assert_eq!(slow.due(start + GRACE, false), Some(Action::Terminate));
        assert_eq!(slow.due(start + 2 * GRACE, false), Some(Action::Kill));
        // What is left of its group is ended at once.
        let mut watch = Watch::new(start, 30 * SECOND, None);
        watch.report(&fatal("first"), start);
        assert_eq!(watch.due(start, true), Some(Action::Terminate));
    }

    #[test]
    fn a_stopped_host_has_more_time() {
        let start = Instant::now();
        let mut watch = Watch::new(start, 30 * SECOND, Some(60 * SECOND));
        watch.postpone(100 * SECOND);
        assert_eq!(watch.next(), Some(start + 130 * SECOND));
        assert_eq!(watch.due(start + 130 * SECOND, false), Some(Action::Terminate));
        watch.postpone(SECOND);
        assert_eq!(watch.next(), Some(start + 131 * SECOND + GRACE));
    }
}
