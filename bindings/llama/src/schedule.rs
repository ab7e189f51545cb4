//! When the caps of a profile act along a sequence.

use std::collections::BTreeMap;
use std::ops::Range;

use axiscap::{Bound, CapSet};
use axiscap_ggml::{DecodeRow, ProfileId, ProfileInfo, Session};

use crate::alarm::{Alarm, Monitor};
use crate::error::Error;
use crate::trace::TraceRow;
use crate::watch::{Reading, Watcher};

/// When the caps of a sequence's profile act. Rows on which they do not act are left alone.
///
/// What a schedule means for rows in the KV cache is said with each of them. The policy of the caps
/// ([`axiscap::Policy`]) comes on top: rows that it skips are left alone under every schedule.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Schedule {
    /// On every row. A row's caps depend on nothing else, so cached rows are reused if they were computed
    /// under the same caps.
    #[default]
    Always,
    /// On the rows that the model generates, not on the prompt. Generated rows that are cached stay capped
    /// when they become part of the next prompt. Without the cache they would be computed uncapped.
    Generated,
    /// On the model's own turns: the rows that it generates, and earlier answers in a prompt
    /// ([`Chat`](crate::Chat) knows where they are). Cached rows are reused if they would be computed alike.
    AssistantTurns,
    /// With a strength that grows along the positions of the sequence, in [`RAMP_STEPS`] steps: 0 at `from`,
    /// the caps' own from `to` on. Depends on positions alone, as do cached rows.
    Ramp {
        /// The last position without caps.
        from: u32,
        /// The first position with the caps' own strength.
        to: u32,
    },
    /// From an alarm until its end. Until then the projections are only measured. Cached rows stay as they
    /// were computed, capped or not.
    OnAlarm(Alarm),
}

/// Steps of [`Schedule::Ramp`]. Each is a profile of its own, with its own copy of the axes in the tables.
pub const RAMP_STEPS: usize = 8;

impl Schedule {
    /// Returns how many weaker profiles are needed beside the profile itself.
    fn steps(&self) -> Option<usize> {
        match self {
            Self::Always | Self::Generated | Self::AssistantTurns => None,
            Self::OnAlarm(_) => Some(1),
            Self::Ramp { .. } => Some(RAMP_STEPS),
        }
    }
}

/// The caps of a sequence began to act, or ceased to.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Engagement {
    /// The sequence.
    pub sequence: i32,
    /// Whether the caps act from now on.
    pub engaged: bool,
    /// The first position that is decoded so.
    pub position: usize,
    /// The average or the sum of the alarm that reached its threshold.
    pub value: f64,
    /// The threshold.
    pub threshold: f64,
    /// Rows of the sequence that were decoded after the one that decided. 0 unless statistics arrive late
    /// from a GPU.
    pub late: usize,
}

/// Profiles with weaker caps than another one has, made of it.
#[derive(Debug)]
struct Steps {
    /// Revision of the profile that they were made of.
    revision: u64,
    /// From no strength, where projections are only measured, upwards.
    profiles: Vec<ProfileId>,
}

/// What one sequence is under.
#[derive(Debug, Clone)]
struct SequenceCaps {
    profile: Option<ProfileId>,
    schedule: Schedule,
    monitor: Option<Monitor>,
    /// Revision of the profile whose bounds the monitor has.
    monitored: Option<u64>,
    watching: Option<Watching>,
    text: Option<Text>,
    /// One past the last position that was decoded.
    decoded: usize,
    /// Rows of decodes up to this number may have been removed since, and say nothing about the text.
    removed: Option<u64>,
}

/// The watch of a sequence.
#[derive(Debug, Clone)]
struct Watching {
    watcher: Watcher,
    /// Index of the watched cap in the caps of the profile's revision.
    cap: usize,
    revision: u64,
}

/// Where the model speaks in a sequence.
#[derive(Debug, Clone)]
struct Text {
    /// Rows of the prompt.
    prompt: usize,
    /// Rows of earlier answers in it.
    answers: Vec<Range<usize>>,
}

/// What the sequences of a context are under.
#[derive(Debug, Default)]
pub(crate) struct Schedules {
    /// Sequences that are not always under the default profile, are watched, or have a text.
    sequences: BTreeMap<i32, SequenceCaps>,
    steps: BTreeMap<(ProfileId, usize), Steps>,
    changes: Vec<Engagement>,
    readings: Vec<Reading>,
    /// Number of the last decode.
    last: Option<u64>,
}

impl Schedules {
    /// Puts a sequence under a profile.
    ///
    /// # Errors
    /// [`Error::Option`] for a schedule out of range, and [`Error::Hook`] for a profile that is not there.
    pub(crate) fn put(
        &mut self,
        session: &Session,
        sequence: i32,
        profile: Option<ProfileId>,
        schedule: Schedule,
    ) -> Result<(), Error> {
        let monitor = monitor_of(session, profile, schedule)?;
        let old = self.sequences.remove(&sequence);
        let (text, decoded, watching) =
            old.map_or((None, 0, None), |old| (old.text, old.decoded, old.watching));
        let removed = self.last;
        let caps =
            SequenceCaps { profile, schedule, monitor, monitored: None, watching, text, decoded, removed };
        if !caps.is_default() {
            self.sequences.insert(sequence, caps);
        }
        self.follow(session, sequence)
    }

    /// Watches the answers of a sequence from its next row on, or ceases to.
    ///
    /// # Errors
    /// [`Error::Option`] for a sequence whose caps measure no such projection.
    pub(crate) fn set_watch(
        &mut self,
        session: &Session,
        sequence: i32,
        watcher: Option<Watcher>,
    ) -> Result<(), Error> {
        let profile = self.profile(sequence);
        let watching = watcher.map(|watcher| Watching::new(watcher, session, profile)).transpose()?;
        let caps = self.sequences.entry(sequence).or_insert_with(SequenceCaps::default_profile);
        caps.watching = watching;
        caps.removed = self.last;
        if caps.is_default() {
            self.sequences.remove(&sequence);
        }
        Ok(())
    }

    /// Returns the profile of a sequence.
    pub(crate) fn profile(&self, sequence: i32) -> Option<ProfileId> {
        self.sequences.get(&sequence).map_or(Some(ProfileId::DEFAULT), |caps| caps.profile)
    }

    /// Notes that a text begins or goes on: its prompt's length, and where earlier answers are in it.
    pub(crate) fn begin_text(&mut self, sequence: i32, prompt: usize, answers: &[Range<usize>]) {
        // A schedule or a watch may be set later.
        let caps = self.sequences.entry(sequence).or_insert_with(SequenceCaps::default_profile);
        caps.text = Some(Text { prompt, answers: answers.to_vec() });
    }

    /// Notes that a sequence was truncated.
    pub(crate) fn truncate(&mut self, sequence: i32, position: usize) {
        let Some(caps) = self.sequences.get_mut(&sequence) else { return };
        caps.decoded = caps.decoded.min(position);
        caps.removed = self.last;
        if position == 0 {
            caps.text = None;
            caps.monitor.iter_mut().for_each(Monitor::reset);
            caps.watching.iter_mut().for_each(|watching| watching.watcher.reset());
            if caps.is_default() {
                self.sequences.remove(&sequence);
            }
        }
    }

    /// Notes that all sequences were removed.
    pub(crate) fn clear(&mut self) {
        let sequences: Vec<_> = self.sequences.keys().copied().collect();
        sequences.into_iter().for_each(|sequence| self.truncate(sequence, 0));
    }

    /// Whether projections are watched.
    pub(crate) fn watches(&self) -> bool {
        self.sequences.values().any(|caps| caps.monitor.is_some() || caps.watching.is_some())
    }

    /// Brings the weaker profiles up to the profiles that they were made of, and has alarm and watch of a sequence
    /// follow the caps of its profile. Weaker profiles are kept while these are there, because making them again
    /// would upload tables to a GPU again.
    ///
    /// # Errors
    /// Those of [`Session::add_profile`], and [`Error::Option`] for a cap of the sequence that is not there any
    /// more, or has no bound. What other sequences are under does not matter.
    pub(crate) fn follow(&mut self, session: &Session, sequence: i32) -> Result<(), Error> {
        self.follow_steps(session)?;
        let Some(caps) = self.sequences.get_mut(&sequence) else { return Ok(()) };
        if let Some(watching) = &mut caps.watching {
            watching.follow(session, caps.profile)?;
        }
        let (Some(monitor), Some(id)) = (&mut caps.monitor, caps.profile) else { return Ok(()) };
        let revision =
            session.profiles().iter().find(|profile| profile.id == id).map(|profile| profile.revision);
        if revision != caps.monitored
            && let Some(now) = session.profile_caps(id)
        {
            monitor.follow(&now)?;
            // Only now: a decode after one that failed is refused again.
            caps.monitored = revision;
        }
        Ok(())
    }

    /// Makes the weaker profiles that schedules need, and removes those of other caps.
    fn follow_steps(&mut self, session: &Session) -> Result<(), Error> {
        let needed = |caps: &SequenceCaps| Some((caps.profile?, caps.schedule.steps()?));
        let needed: Vec<_> = self.sequences.values().filter_map(needed).collect();
        if self.steps.is_empty() && needed.is_empty() {
            return Ok(());
        }
        let profiles = session.profiles();
        let current = |id: ProfileId| profiles.iter().find(|profile| profile.id == id);
        let stale = |key: &(ProfileId, usize), steps: &Steps| {
            let is_same = current(key.0).is_some_and(|profile| profile.revision == steps.revision);
            // Someone else may have removed one of them.
            !is_same || steps.profiles.iter().any(|&step| current(step).is_none())
        };
        let removed: Vec<_> =
            self.steps.iter().filter(|(key, steps)| stale(key, steps)).map(|(key, _)| *key).collect();
        for key in removed {
            for profile in self.steps.remove(&key).into_iter().flat_map(|steps| steps.profiles) {
                // The caller may have removed it already.
                let _ = session.remove_profile(profile);
            }
        }
        for (id, count) in needed {
            let (Some(profile), Some(caps)) = (current(id), session.profile_caps(id)) else { continue };
            if self.steps.contains_key(&(id, count)) {
                continue;
            }
            let weaker = (0..count).map(|step| weakened(&caps, step, count));
            let weaker = weaker.collect::<Result<Vec<_>, _>>()?;
            let mut made = Vec::with_capacity(count);
            for (step, weaker) in weaker.iter().enumerate() {
                made.push(add_step(session, format!("{}, step {step} of {count}", profile.name), weaker)?);
            }
            self.steps.insert((id, count), Steps { revision: profile.revision, profiles: made });
        }
        Ok(())
    }

    /// Returns the profile that a row is to be computed under.
    pub(crate) fn profile_of(&self, sequence: i32, position: i32) -> Option<ProfileId> {
        let Some(caps) = self.sequences.get(&sequence) else { return Some(ProfileId::DEFAULT) };
        let profile = caps.profile?;
        let position = usize::try_from(position).unwrap_or(0);
        let step = |step: usize| {
            let steps = caps.schedule.steps().and_then(|count| self.steps.get(&(profile, count)));
            // Where there are none the profile is gone, which the decode says.
            steps.and_then(|steps| steps.profiles.get(step)).copied().unwrap_or(profile)
        };
        match caps.schedule {
            Schedule::Always => Some(profile),
            Schedule::Generated => (!caps.is_prompt(position)).then_some(profile),
            Schedule::AssistantTurns => {
                (!caps.is_prompt(position) || caps.is_answer(position)).then_some(profile)
            }
            Schedule::OnAlarm(_) => match &caps.monitor {
                Some(monitor) if !monitor.engaged => Some(step(0)),
                _ => Some(profile),
            },
            Schedule::Ramp { from, to } => {
                let (from, to) = (from as usize, to as usize);
                let share = position.saturating_sub(from) * RAMP_STEPS / (to - from).max(1);
                Some(if position >= to { profile } else { step(share) })
            }
        }
    }

    /// Whether a cached row may stand for one that would be decoded at its place now. With `same_text` it is a
    /// row of the text that goes on, which schedules may have computed otherwise at the time.
    pub(crate) fn accepts(
        &self,
        active: &[ProfileInfo],
        sequence: i32,
        position: i32,
        cached: Option<u64>,
        same_text: bool,
    ) -> bool {
        let revision = |profile| revision(active, &DecodeRow { token: 0, position, profile, output: false });
        match self.sequences.get(&sequence) {
            Some(caps)
                if same_text && matches!(caps.schedule, Schedule::Generated | Schedule::OnAlarm(_)) =>
            {
                cached.is_none() || cached == revision(caps.profile)
            }
            _ => cached == revision(self.profile_of(sequence, position)),
        }
    }

    /// Returns the watch of a sequence.
    pub(crate) fn watcher(&self, sequence: i32) -> Option<&Watcher> {
        Some(&self.sequences.get(&sequence)?.watching.as_ref()?.watcher)
    }

    /// Returns how alarm and watch of a sequence stand, for a text that is decoded again.
    pub(crate) fn standing(&self, sequence: i32) -> Standing {
        let caps = self.sequences.get(&sequence);
        Standing {
            monitor: caps.and_then(|caps| caps.monitor.clone()),
            watcher: self.watcher(sequence).cloned(),
        }
    }

    /// Has alarm and watch of a sequence go on as they stood. Those of which it is not known begin again.
    pub(crate) fn stand_as(&mut self, sequence: i32, standing: &Standing) {
        let Some(caps) = self.sequences.get_mut(&sequence) else { return };
        if let Some(monitor) = &mut caps.monitor {
            monitor.reset();
            standing.monitor.iter().for_each(|standing| monitor.stand_as(standing));
        }
        if let Some(Watching { watcher, .. }) = &mut caps.watching {
            watcher.reset();
            standing.watcher.iter().for_each(|standing| watcher.stand_as(standing));
        }
    }

    /// Notes a row that was decoded, with the number of the decode.
    pub(crate) fn decoded(&mut self, sequence: i32, position: i32, number: Option<u64>) {
        self.last = number.or(self.last);
        if let Some(caps) = self.sequences.get_mut(&sequence) {
            caps.decoded = usize::try_from(position).unwrap_or(0) + 1;
        }
    }

    /// Shows traced rows to the alarms and watches, with the numbers of their decodes, which may be earlier ones.
    pub(crate) fn see<'t>(&mut self, lines: impl IntoIterator<Item = (u64, &'t TraceRow)>) {
        for (number, line) in lines.into_iter().filter(|(_, line)| !line.skipped) {
            let Some(caps) = self.sequences.get_mut(&line.sequence) else { continue };
            let position = usize::try_from(line.position).unwrap_or(0);
            if caps.is_prompt(position) || caps.removed.is_some_and(|removed| number <= removed) {
                continue;
            }
            if let Some(watching) = caps.watching.as_mut().filter(|watching| watching.cap == line.cap) {
                let level = watching.watcher.see(line.before);
                let (sequence, token) = (line.sequence, line.token);
                self.readings.push(Reading { sequence, position, token, level });
            }
            let Some(monitor) = caps.monitor.as_mut().filter(|monitor| monitor.cap == line.cap) else {
                continue;
            };
            let Some(change) = monitor.see(line.before) else { continue };
            let change = Engagement {
                sequence: line.sequence,
                engaged: change.engaged,
                position: caps.decoded,
                value: change.value,
                threshold: change.threshold,
                late: caps.decoded.saturating_sub(1 + position),
            };
            tracing::info!(
                sequence = change.sequence,
                position = change.position,
                value = change.value,
                threshold = change.threshold,
                late = change.late,
                "{}",
                if change.engaged { "alarm: the caps act" } else { "the alarm is over: the caps let go" },
            );
            self.changes.push(change);
        }
    }

    /// Takes the changes since the last call.
    pub(crate) fn take_changes(&mut self) -> Vec<Engagement> {
        std::mem::take(&mut self.changes)
    }

    /// Drops the changes of one sequence.
    pub(crate) fn drop_changes_of(&mut self, sequence: i32) {
        self.changes.retain(|change| change.sequence != sequence);
    }

    /// Takes what watches read since the last call.
    pub(crate) fn take_readings(&mut self) -> Vec<Reading> {
        std::mem::take(&mut self.readings)
    }

    /// Takes what the watch of one sequence read.
    pub(crate) fn take_readings_of(&mut self, sequence: i32) -> Vec<Reading> {
        let all = std::mem::take(&mut self.readings);
        let (own, others) = all.into_iter().partition(|reading| reading.sequence == sequence);
        self.readings = others;
        own
    }

    /// Returns the weaker profiles that were made of a profile.
    pub(crate) fn steps_of(&self, profile: ProfileId) -> impl Iterator<Item = ProfileId> {
        let steps = self.steps.iter().filter(move |((id, _), _)| *id == profile);
        steps.flat_map(|(_, steps)| steps.profiles.iter().copied())
    }
}

/// How alarm and watch of a sequence stand at one point of its text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standing {
    monitor: Option<Monitor>,
    watcher: Option<Watcher>,
}

impl Watching {
    /// Watches a cap of a profile.
    ///
    /// # Errors
    /// [`Error::Option`] for a cap that is not there.
    fn new(watcher: Watcher, session: &Session, profile: Option<ProfileId>) -> Result<Self, Error> {
        let mut watching = Self { watcher, cap: 0, revision: 0 };
        watching.find(session, profile)?;
        Ok(watching)
    }

    /// Goes on with the caps that the profile has now.
    fn follow(&mut self, session: &Session, profile: Option<ProfileId>) -> Result<(), Error> {
        let is_same = |info: &ProfileInfo| Some(info.id) == profile && info.revision == self.revision;
        if session.profiles().iter().any(is_same) { Ok(()) } else { self.find(session, profile) }
    }

    fn find(&mut self, session: &Session, profile: Option<ProfileId>) -> Result<(), Error> {
        let watch = self.watcher.watch();
        let info = session.profiles().into_iter().find(|info| Some(info.id) == profile);
        let caps = info.as_ref().and_then(|info| session.profile_caps(info.id));
        let cap = caps.as_ref().map(|caps| watch.watched(caps));
        let (Some(info), Some(cap)) = (info, cap.zip(caps).filter(|(cap, caps)| *cap < caps.caps().len()))
        else {
            return Err(Error::Option {
                option: "the watched cap",
                value: watch.cap.map_or_else(|| "the first one".into(), |cap| cap.to_string()),
                expected: "a cap of the sequence's profile".into(),
            });
        };
        (self.cap, self.revision) = (cap.0, info.revision);
        Ok(())
    }
}

impl SequenceCaps {
    /// What sequences are under of which nothing was said.
    fn default_profile() -> Self {
        Self {
            profile: Some(ProfileId::DEFAULT),
            schedule: Schedule::Always,
            monitor: None,
            monitored: None,
            watching: None,
            text: None,
            decoded: 0,
            removed: None,
        }
    }

    /// Whether nothing needs to be known of the sequence.
    fn is_default(&self) -> bool {
        self.profile == Some(ProfileId::DEFAULT)
            && self.schedule == Schedule::Always
            && self.watching.is_none()
            && self.text.is_none()
    }

    /// Whether a row is one of the prompt. Rows of a sequence without a text count as the model's own, so that
    /// they are capped.
    fn is_prompt(&self, position: usize) -> bool {
        self.text.as_ref().is_some_and(|text| position < text.prompt)
    }

    fn is_answer(&self, position: usize) -> bool {
        self.text.iter().flat_map(|text| &text.answers).any(|answer| answer.contains(&position))
    }
}

/// Refuses a schedule and a watch that no sequence can have.
///
/// # Errors
/// Those of [`Schedules::put`] and [`Schedules::set_watch`].
pub(crate) fn check(
    session: &Session,
    profile: Option<ProfileId>,
    schedule: Schedule,
    watcher: Option<&Watcher>,
) -> Result<(), Error> {
    monitor_of(session, profile, schedule)?;
    watcher.map_or(Ok(()), |watcher| Watching::new(watcher.clone(), session, profile).map(drop))
}

/// Returns what watches for the alarm of a schedule.
fn monitor_of(
    session: &Session,
    profile: Option<ProfileId>,
    schedule: Schedule,
) -> Result<Option<Monitor>, Error> {
    let caps = profile.and_then(|id| session.profile_caps(id));
    if let (Some(id), None) = (profile, &caps)
        && (id != ProfileId::DEFAULT || schedule != Schedule::Always)
    {
        return Err(axiscap_ggml::HookError::NoProfile { profile: id }.into());
    }
    if let Schedule::Ramp { from, to } = schedule
        && from >= to
    {
        let expected = format!("above its beginning, {from}");
        return Err(Error::Option { option: "the end of the ramp", value: to.to_string(), expected });
    }
    match (schedule, &caps) {
        (Schedule::OnAlarm(alarm), Some(caps)) => Monitor::new(&alarm, caps).map(Some),
        _ => Ok(None),
    }
}

/// Adds a weaker profile, under another name where the caller has given this one to a profile of their own.
fn add_step(session: &Session, mut name: String, caps: &CapSet) -> Result<ProfileId, Error> {
    loop {
        match session.add_profile(&name, caps) {
            Err(axiscap_ggml::HookError::ProfileName { .. }) => name.push('\''),
            added => return Ok(added?),
        }
    }
}

/// Returns the caps with a share of their strength. Without any they only measure.
fn weakened(caps: &CapSet, step: usize, steps: usize) -> Result<CapSet, Error> {
    if step == 0 {
        return Ok(caps.with_bounds(|_| Bound::NONE));
    }
    let share = step as f32 / steps as f32;
    let weaker = caps.with_each(|cap| {
        let strength = cap.strength() * share;
        cap.with_strength(strength)
    });
    Ok(weaker.map_err(axiscap_ggml::HookError::from)?)
}

/// Returns the revision of the profile that moves a row. `None` for a row that none moves: it is left alone, or
/// its caps only measure.
pub(crate) fn revision(active: &[ProfileInfo], row: &DecodeRow) -> Option<u64> {
    let profile = active.iter().find(|profile| Some(profile.id) == row.profile)?;
    (profile.acts && !profile.skips(row.position)).then_some(profile.revision)
}

#[cfg(test)]
mod tests {
    use axiscap::{Axis, BlockCap, Cap};
    use axiscap_ggml::ModelShape;

    use super::*;
    use crate::Token;
    use crate::alarm::AlarmRule;

    /// Rows whose statistics come late from a GPU, of the prompt, and of a text that is not there any more.
    #[test]
    fn an_alarm_says_how_late_it_was_and_ignores_rows_that_are_not_the_texts() {
        let session = Session::new(ModelShape { architecture: "llama".into(), blocks: 2, width: 2 });
        let cap = Cap::new(Axis::from_direction(&[1.0, 2.0]).unwrap(), Bound::floor(1.0).unwrap());
        session.set_caps(Some(&CapSet::new([BlockCap { block: 0, cap }]).unwrap())).unwrap();
        let mut schedules = Schedules::default();
        let rule = AlarmRule::Ewma { weight: 1.0, start: None, engage: 0.0, release: -1.0 };
        let alarm = Schedule::OnAlarm(Alarm { cap: None, rule });
        schedules.put(&session, 3, Some(ProfileId::DEFAULT), alarm).unwrap();
        schedules.begin_text(3, 10, &[]);
        let line = |position, before| TraceRow {
            sequence: 3,
            position,
            token: Token(0),
            block: 0,
            cap: 0,
            before,
            after: before,
            engaged: false,
            non_finite: false,
            profile: ProfileId::DEFAULT,
            skipped: false,
        };
        let see = |schedules: &mut Schedules, number, line: TraceRow| schedules.see([(number, &line)]);
        schedules.decoded(3, 19, Some(6));
        schedules.truncate(3, 15);
        schedules.decoded(3, 20, Some(8));
        see(&mut schedules, 7, line(9, 0.0));
        see(&mut schedules, 6, line(16, 0.0));
        see(&mut schedules, 7, line(15, 5.0));
        assert_eq!(schedules.take_changes(), []);
        let measured = schedules.profile_of(3, 21);
        assert_ne!(measured, Some(ProfileId::DEFAULT));
        see(&mut schedules, 7, line(16, 0.0));
        let expected =
            Engagement { sequence: 3, engaged: true, position: 21, value: 1.0, threshold: 0.0, late: 4 };
        assert_eq!(schedules.take_changes(), [expected]);
        assert_eq!(schedules.profile_of(3, 21), Some(ProfileId::DEFAULT));
        assert!(
            schedules.accepts(&session.profiles(), 3, 12, None, true),
            "measured rows are those of this text"
        );
        schedules.truncate(3, 0);
        assert_eq!(schedules.profile_of(3, 0), measured, "another text begins without an alarm");
    }
}
