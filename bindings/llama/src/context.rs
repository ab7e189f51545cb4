//! A llama.cpp context whose graphs run with caps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use axiscap::{CapSet, CapStats};
use axiscap_ggml::{DecodeBatch, DecodeRow, Hook, HookError, ProfileId, ProfileInfo, Session, Split};
use llama_cpp_2::DecodeError;
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::llama_batch::LlamaBatch;

use crate::batch::BatchRow;
use crate::cached::{CachedRow, CachedRows};
use crate::error::Error;
use crate::model::Model;
use crate::options::{ContextOptions, ContextParams};
use crate::schedule::{Engagement, Schedule, Schedules, revision};
use crate::trace::{TraceRow, Tracer};
use crate::watch::{Reading, Watcher};
use crate::{Token, backend, log, memory};

/// A context and the caps of everything it decodes.
pub struct Context<'m> {
    // The first field is dropped first: the backends inside must be freed before the hook is.
    llama: LlamaContext<'m>,
    batch: LlamaBatch<'static>,
    model: &'m Model,
    hooked: Option<Hooked>,
    options: ContextOptions,
    ctx: usize,
    /// Whether each row of the last batch has logits.
    outputs: Vec<bool>,
    /// What the KV cache holds.
    pub(crate) cached: CachedRows,
    /// What sequences are under.
    pub(crate) schedules: Schedules,
}

struct Hooked {
    session: Session,
    trace: Tracer,
    /// Whether the caller wants traces.
    tracing: bool,
    /// Whether an alarm needs them.
    watching: bool,
    _hook: Hook,
}

/// Why a decode failed.
enum Failure {
    Hook(HookError),
    Llama(DecodeError),
}

impl From<HookError> for Failure {
    fn from(error: HookError) -> Self {
        Self::Hook(error)
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("model", &self.model.path())
            .field("options", &self.options)
            .field("hooked", &self.hooked.is_some())
            .finish_non_exhaustive()
    }
}

impl<'m> Context<'m> {
    /// Makes a context that can be capped. Until [`Context::set_caps`] its graphs run untouched.
    ///
    /// # Errors
    /// [`Error::Hook`] when the hook cannot be installed in this llama.cpp, [`Error::Option`],
    /// [`Error::ContextCreation`], [`Error::NotBound`].
    pub fn new(model: &'m Model, options: &ContextOptions) -> Result<Self, Error> {
        backend::llama();
        let hook = Hook::install()?;
        let session = Session::new(model.shape().clone());
        let (ctx, llama) = hook.bind(&session, || create(model, options))?;
        if !session.is_bound() {
            return Err(Error::NotBound);
        }
        let hooked =
            Hooked { session, trace: Tracer::default(), tracing: false, watching: false, _hook: hook };
        Ok(Self::wrap(model, options, ctx, llama, Some(hooked)))
    }

    /// Makes a context that the hook never touches: llama.cpp as it is, the baseline of measurements.
    ///
    /// # Errors
    /// [`Error::Option`], [`Error::ContextCreation`].
    pub fn uncapped(model: &'m Model, options: &ContextOptions) -> Result<Self, Error> {
        let (ctx, llama) = create(model, options)?;
        Ok(Self::wrap(model, options, ctx, llama, None))
    }

    fn wrap(
        model: &'m Model,
        options: &ContextOptions,
        ctx: u32,
        llama: LlamaContext<'m>,
        hooked: Option<Hooked>,
    ) -> Self {
        Self {
            batch: LlamaBatch::new(llama.n_batch() as usize, 1),
            llama,
            model,
            hooked,
            options: options.clone(),
            ctx: ctx as usize,
            outputs: Vec::new(),
            cached: CachedRows::default(),
            schedules: Schedules::default(),
        }
    }

    /// Returns the model.
    #[must_use]
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Returns how many tokens the context holds, over all sequences.
    #[must_use]
    pub fn ctx(&self) -> usize {
        self.ctx
    }

    /// Returns the maximum rows of one [`Context::decode`].
    #[must_use]
    pub fn batch(&self) -> usize {
        self.llama.n_batch() as usize
    }

    /// Returns the maximum rows that llama.cpp computes in one pass.
    #[must_use]
    pub fn ubatch(&self) -> usize {
        self.llama.n_ubatch() as usize
    }

    /// Returns the options that the context was made with.
    #[must_use]
    pub fn options(&self) -> &ContextOptions {
        &self.options
    }

    /// Returns the session of this context: switches for tracing and statistics, taps, profiles, and what the
    /// caps did.
    ///
    /// A change of caps made here applies from the next decode on. Rows that the KV cache holds stay as they
    /// are. [`generate`](crate::generate()) knows under which caps each of them was computed, and decodes
    /// those of other caps again.
    ///
    /// # Errors
    /// [`Error::NotHooked`] for a context made by [`Context::uncapped`].
    pub fn session(&self) -> Result<&Session, Error> {
        self.hooked.as_ref().map(|hooked| &hooked.session).ok_or(Error::NotHooked)
    }

    /// Sets the caps of the default profile, checked against the model. `None` removes them.
    ///
    /// # Errors
    /// [`Error::Hook`] with the reason, [`Error::NotHooked`].
    pub fn set_caps(&mut self, caps: Option<&CapSet>) -> Result<(), Error> {
        let hooked = self.hooked.as_mut().ok_or(Error::NotHooked)?;
        // The session drops its traces with the caps.
        let passes = hooked.session.take_trace();
        hooked.trace.keep(&passes, &mut self.schedules);
        Ok(hooked.session.set_caps(caps)?)
    }

    /// Puts a sequence under a profile from the next decode on, whose caps act on every row. `None` leaves its
    /// rows uncapped. Every sequence is under [`ProfileId::DEFAULT`] until then.
    ///
    /// Rows that the KV cache holds of the sequence stay as they are. [`generate`](crate::generate()) decodes
    /// those of other caps again.
    ///
    /// # Errors
    /// [`Error::Sequence`], [`Error::NotHooked`], and [`HookError::NoProfile`] as [`Error::Hook`].
    pub fn set_profile(&mut self, sequence: i32, profile: Option<ProfileId>) -> Result<(), Error> {
        self.schedule_profile(sequence, profile, Schedule::Always)
    }

    /// As [`Context::set_profile`], with caps that act as the schedule says.
    ///
    /// # Errors
    /// Those of [`Context::set_profile`], and [`Error::Option`] for a schedule out of range.
    pub fn schedule_profile(
        &mut self,
        sequence: i32,
        profile: Option<ProfileId>,
        schedule: Schedule,
    ) -> Result<(), Error> {
        self.check_sequence(sequence)?;
        let session = self.session()?.clone();
        self.schedules.put(&session, sequence, profile, schedule)?;
        self.update_tracing();
        Ok(())
    }

    /// As [`Context::schedule_profile`]. A context without the hook takes what it has by default.
    pub(crate) fn put(
        &mut self,
        sequence: i32,
        profile: Option<ProfileId>,
        schedule: Schedule,
    ) -> Result<(), Error> {
        let default = profile == Some(ProfileId::DEFAULT) && schedule == Schedule::Always;
        if self.hooked.is_none() && (default || profile.is_none()) {
            return Ok(());
        }
        self.schedule_profile(sequence, profile, schedule)
    }

    /// Refuses what [`Context::put`] and [`Context::set_watch_of`] would refuse of any sequence.
    pub(crate) fn check(
        &self,
        profile: Option<ProfileId>,
        schedule: Schedule,
        watcher: Option<&Watcher>,
    ) -> Result<(), Error> {
        let default = profile == Some(ProfileId::DEFAULT) && schedule == Schedule::Always;
        if self.hooked.is_none() && watcher.is_none() && (default || profile.is_none()) {
            return Ok(());
        }
        crate::schedule::check(self.session()?, profile, schedule, watcher)
    }

    /// Returns the profile of a sequence.
    #[must_use]
    pub fn profile(&self, sequence: i32) -> Option<ProfileId> {
        self.schedules.profile(sequence)
    }

    /// Says where the model speaks in a sequence, for schedules: rows from `prompt` on are generated, and
    /// `answers` are the rows of earlier answers within the prompt. [`generate`](crate::generate()) and
    /// [`Chat`](crate::Chat) say it themselves. Rows of a sequence of which it was not said count as the
    /// model's own.
    pub fn begin_text(&mut self, sequence: i32, prompt: usize, answers: &[Range<usize>]) {
        self.schedules.begin_text(sequence, prompt, answers);
    }

    /// Takes what alarms did since the last call ([`Schedule::OnAlarm`]).
    pub fn take_engagements(&mut self) -> Vec<Engagement> {
        self.schedules.take_changes()
    }

    /// Watches the answers of a sequence from its next generated row on, or ceases to. The watch begins again with
    /// every text but one that goes on, and [`generate`](crate::generate()) and [`Chat`](crate::Chat) say which do
    /// ([`Generated::readings`](crate::Generated::readings)). Callers with batches of their own say with
    /// [`Context::begin_text`] what is generated, and take the readings
    /// ([`Context::take_readings`]). Rows that the profile's policy skips are not read, and none while caps are
    /// switched off.
    ///
    /// # Errors
    /// [`Error::Sequence`], [`Error::NotHooked`], and [`Error::Option`] for a cap that the profile of the sequence
    /// does not have. A decode fails so too, if the caps change.
    pub fn set_watch(&mut self, sequence: i32, watcher: Option<Watcher>) -> Result<(), Error> {
        self.check_sequence(sequence)?;
        let session = self.session()?.clone();
        self.schedules.set_watch(&session, sequence, watcher)?;
        self.update_tracing();
        Ok(())
    }

    /// As [`Context::set_watch`]. A context without the hook watches none, and need not cease to.
    pub(crate) fn set_watch_of(&mut self, sequence: i32, watcher: Option<Watcher>) -> Result<(), Error> {
        if watcher.is_none() && self.schedules.watcher(sequence).is_none() {
            return Ok(());
        }
        self.set_watch(sequence, watcher)
    }

    /// Returns the watch of a sequence as it stands. Rows that a GPU is still capping are not part of it.
    #[must_use]
    pub fn watch(&self, sequence: i32) -> Option<&Watcher> {
        self.schedules.watcher(sequence)
    }

    /// Takes what the watches of all sequences read since the last call ([`Context::set_watch`]).
    pub fn take_readings(&mut self) -> Vec<Reading> {
        self.schedules.take_readings()
    }

    /// Takes what the watch of one sequence read since the last call, and drops what its alarm did.
    pub(crate) fn take_of(&mut self, sequence: i32) -> Vec<Reading> {
        self.schedules.drop_changes_of(sequence);
        self.schedules.take_readings_of(sequence)
    }

    /// Has alarms and watches see all rows that were decoded. Waits for GPUs that are still capping rows.
    pub(crate) fn settle(&mut self) {
        if let Some(hooked) = self.hooked.as_mut().filter(|hooked| hooked.watching) {
            let passes = hooked.session.take_trace();
            hooked.trace.keep(&passes, &mut self.schedules);
            if !hooked.tracing {
                drop(hooked.trace.take_lines());
            }
        }
    }

    /// Returns what each cap of a profile did, rows under the weaker profiles of its schedules included.
    /// `None` if there is no such profile.
    ///
    /// # Errors
    /// [`Error::NotHooked`].
    pub fn profile_stats(&self, profile: ProfileId) -> Result<Option<Vec<CapStats>>, Error> {
        let session = self.session()?;
        let Some(mut stats) = session.profile_stats(profile) else { return Ok(None) };
        for step in self.schedules.steps_of(profile) {
            for (sum, stats) in stats.iter_mut().zip(session.profile_stats(step).unwrap_or_default()) {
                sum.merge(&stats);
            }
        }
        Ok(Some(stats))
    }

    /// Has the session trace if the caller wants traces or an alarm needs them.
    fn update_tracing(&mut self) {
        let watches = self.schedules.watches();
        if let Some(hooked) = &mut self.hooked {
            let tracing = hooked.tracing || watches;
            if tracing || hooked.watching {
                hooked.session.update(|settings| settings.tracing = tracing);
            }
            hooked.watching = watches;
        }
    }

    /// Changes the session in a way that moves rows: caps, bounds, strengths, the switch, the fused norm. The
    /// next [`generate`](crate::generate()) decodes its whole prompt again.
    ///
    /// # Errors
    /// [`Error::Hook`] if `change` fails, [`Error::NotHooked`].
    pub fn update<R>(&mut self, change: impl FnOnce(&Session) -> Result<R, HookError>) -> Result<R, Error> {
        let changed = change(self.session()?);
        self.cached.forget();
        Ok(changed?)
    }

    /// Returns the profiles that the next decode can have. Empty while caps are switched off.
    pub(crate) fn active_profiles(&self) -> Vec<ProfileInfo> {
        let session = self.hooked.as_ref().map(|hooked| &hooked.session);
        session.filter(|session| session.settings().enabled).map(Session::profiles).unwrap_or_default()
    }

    /// Starts or stops recording what every cap does to every row.
    ///
    /// # Errors
    /// [`Error::NotHooked`].
    pub fn set_tracing(&mut self, on: bool) -> Result<(), Error> {
        let hooked = self.hooked.as_mut().ok_or(Error::NotHooked)?;
        hooked.tracing = on;
        hooked.session.update(|settings| settings.tracing = on);
        drop(hooked.session.take_trace());
        hooked.trace = Tracer::default();
        self.update_tracing();
        Ok(())
    }

    /// Returns what was recorded since the last call: the rows of each decode in order, and for each row its
    /// caps in the order of the set. Waits for GPUs that are still capping rows.
    pub fn take_trace(&mut self) -> Vec<TraceRow> {
        let Some(hooked) = &mut self.hooked else { return Vec::new() };
        let passes = hooked.session.take_trace();
        hooked.trace.keep(&passes, &mut self.schedules);
        std::mem::take(&mut hooked.trace).take_lines()
    }

    /// Returns what was recorded and has arrived since the last call, as [`Context::take_trace`], without
    /// waiting for a GPU. What a decode on a GPU shows mostly arrives while the next one runs.
    pub fn take_arrived_trace(&mut self) -> Vec<TraceRow> {
        let Some(hooked) = &mut self.hooked else { return Vec::new() };
        let passes = hooked.session.take_arrived_trace();
        hooked.trace.keep(&passes, &mut self.schedules);
        hooked.trace.take_lines()
    }

    /// Decodes one batch of rows of any sequences, each under the profile of its sequence. The positions of a
    /// sequence ascend, and continue from what the KV cache holds of it.
    ///
    /// # Errors
    /// [`Error::BatchTooLong`], [`Error::BatchRow`], [`Error::ContextFull`], [`Error::Decode`], and
    /// [`Error::Hook`] when a capped block was not seen with all its rows.
    ///
    /// After an error the KV cache holds what it held before. A recurrent state cannot be rolled back, nor can a
    /// sequence whose sliding window has lost rows to the decode: they are empty after an error within a decode,
    /// and [`Context::position`] of them is 0.
    pub fn decode(&mut self, rows: &[BatchRow]) -> Result<(), Error> {
        let sequences: BTreeSet<_> = rows.iter().map(|row| row.sequence).collect();
        sequences.into_iter().try_for_each(|sequence| self.follow(sequence))?;
        if let Some(hooked) = &self.hooked {
            // An alarm that sees no rows would leave them uncapped.
            if hooked.watching && !hooked.session.settings().tracing {
                self.update_tracing();
            }
        }
        let profiles: Vec<_> =
            rows.iter().map(|row| self.schedules.profile_of(row.sequence, row.position)).collect();
        self.decode_under(rows, &profiles)
    }

    /// As [`Context::decode`], with one profile per row in the place of those of the sequences. `None` leaves
    /// a row uncapped.
    ///
    /// # Errors
    /// Those of [`Context::decode`], and [`HookError::NoProfile`] as [`Error::Hook`].
    ///
    /// # Panics
    /// If there is not one profile per row.
    pub fn decode_under(&mut self, rows: &[BatchRow], profiles: &[Option<ProfileId>]) -> Result<(), Error> {
        assert_eq!(rows.len(), profiles.len(), "one profile per row");
        self.outputs.clear();
        let Some(first) = rows.first() else { return Ok(()) };
        self.check_rows(rows)?;
        self.batch.clear();
        for row in rows {
            let added = self.batch.add(row.token, row.position, &[row.sequence], row.logits);
            added.map_err(|_| Error::BatchTooLong { rows: rows.len(), batch: self.batch() })?;
        }
        let before = self.positions(rows);
        let sequences: Vec<_> = rows.iter().map(|row| row.sequence).collect();
        let micro_batches = split_of(self.model).micro_batches(&sequences, self.llama.n_ubatch() as usize);
        tracing::trace!(rows = rows.len(), position = first.position, "decoding");
        let mut number = None;
        let (decoded, complaints) = log::capture(|| {
            let mut decode = || self.llama.decode(&mut self.batch).map_err(Failure::Llama);
            let Some(hooked) = &self.hooked else { return decode().map(|()| vec![None; rows.len()]) };
            let decode_rows: Vec<_> = rows.iter().zip(profiles).map(decode_row).collect();
            let batch = DecodeBatch { rows: &decode_rows, micro_batches: &micro_batches };
            hooked.session.watch_batch(batch, |decoding| {
                number = Some(decoding.number);
                decode().map(|()| decode_rows.iter().map(|row| revision(decoding.profiles, row)).collect())
            })
        });
        let revisions = match decoded {
            Ok(revisions) => revisions,
            Err(failure) => {
                self.roll_back(&before);
                return Err(match failure {
                    Failure::Hook(error) => Error::Hook(error),
                    Failure::Llama(DecodeError::NoKvCacheSlot) => {
                        Error::ContextFull { rows: rows.len(), context: self.ctx }
                    }
                    Failure::Llama(_) => {
                        let reason = complaints.reason();
                        Error::Decode { rows: rows.len(), position: first.position, reason }
                    }
                });
            }
        };
        self.cached.extend(rows.iter().copied().zip(revisions));
        rows.iter().for_each(|row| self.schedules.decoded(row.sequence, row.position, number));
        self.outputs.extend(rows.iter().map(|row| row.logits));
        if let (Some(hooked), Some(number)) = (&mut self.hooked, number)
            && hooked.session.settings().tracing
        {
            hooked.trace.decoded(number, rows);
            if self.schedules.watches() {
                // What has arrived from a GPU, without a wait for the rest.
                let passes = hooked.session.take_arrived_trace();
                hooked.trace.keep(&passes, &mut self.schedules);
                if !hooked.tracing {
                    drop(hooked.trace.take_lines());
                }
            }
        }
        Ok(())
    }

    /// Brings the weaker profiles of a sequence's schedule, its alarm and its watch up to the caps that its profile
    /// has now. Until then they are those of the caps before.
    ///
    /// # Errors
    /// [`Error::Option`] for caps that the alarm or the watch of the sequence cannot go on with.
    pub(crate) fn follow(&mut self, sequence: i32) -> Result<(), Error> {
        let Some(hooked) = &self.hooked else { return Ok(()) };
        self.schedules.follow(&hooked.session, sequence)
    }

    /// Returns the number of positions of each sequence of a batch.
    fn positions(&self, rows: &[BatchRow]) -> BTreeMap<i32, usize> {
        rows.iter().map(|row| (row.sequence, self.position(row.sequence))).collect()
    }

    /// Removes what a failed decode left, given the number of positions that its sequences had before:
    /// llama.cpp keeps the rows of the micro-batches that it had finished, and after an error of the hook all
    /// rows.
    fn roll_back(&mut self, before: &BTreeMap<i32, usize>) {
        for (&sequence, &position) in before {
            // What is known of the rows that stay still holds, and so does what is known of a text of which no row
            // was decoded yet.
            if self.remove_rows(sequence, position).is_err() {
                // A state that has seen some of the rows. Removing a whole sequence always works.
                let _ = self.truncate(sequence, 0);
            }
        }
    }

    /// Refuses rows on some of which llama.cpp would abort the process or read out of bounds.
    fn check_rows(&self, rows: &[BatchRow]) -> Result<(), Error> {
        if rows.len() > self.batch() {
            return Err(Error::BatchTooLong { rows: rows.len(), batch: self.batch() });
        }
        let wrong = |row, what, value: i32, expected| {
            Err(Error::BatchRow { row, what, value: i64::from(value), expected })
        };
        for (index, row) in rows.iter().enumerate() {
            if !self.model.has_token(row.token) {
                return wrong(index, "token", row.token.0, format!("0 to {}", self.model.vocab_size() - 1));
            }
            if !usize::try_from(row.position).is_ok_and(|position| position < self.ctx) {
                return wrong(index, "position", row.position, format!("0 to {}", self.ctx - 1));
            }
            if self.check_sequence(row.sequence).is_err() {
                return wrong(
                    index,
                    "sequence",
                    row.sequence,
                    format!("0 to {}", self.options.sequences - 1),
                );
            }
        }
        Ok(())
    }

    /// Decodes `tokens` from `position` of `sequence` on, in batches as long as allowed, with the logits of
    /// the last token.
    ///
    /// # Errors
    /// Those of [`Context::decode`].
    pub fn prefill(&mut self, tokens: &[Token], position: usize, sequence: i32) -> Result<(), Error> {
        self.prefill_part(tokens, position, sequence, true)
    }

    /// Decodes a part of a prompt as [`Context::prefill`] does, with the logits of the last token if it is
    /// the `last` part.
    ///
    /// # Errors
    /// Those of [`Context::decode`].
    pub fn prefill_part(
        &mut self,
        tokens: &[Token],
        position: usize,
        sequence: i32,
        last: bool,
    ) -> Result<(), Error> {
        let batch = self.batch();
        for (chunk, start) in tokens.chunks(batch).zip((0..).step_by(batch)) {
            let row = |(index, &token): (usize, &Token)| BatchRow {
                token,
                position: i32::try_from(position + start + index).unwrap_or(i32::MAX),
                sequence,
                logits: last && start + index + 1 == tokens.len(),
            };
            let rows: Vec<_> = chunk.iter().enumerate().map(row).collect();
            self.decode(&rows)?;
        }
        Ok(())
    }

    /// Returns the logits of a row of the last batch, `[vocabulary]`. `None` for a row decoded without
    /// logits.
    #[must_use]
    pub fn logits(&self, row: usize) -> Option<&[f32]> {
        let asked = self.outputs.get(row).copied().unwrap_or(false);
        asked.then(|| self.llama.get_logits_ith(i32::try_from(row).unwrap_or(i32::MAX)))
    }

    /// Returns the logits of the last row of the last batch, empty for a row decoded without logits.
    pub(crate) fn last_logits(&self) -> &[f32] {
        self.outputs.len().checked_sub(1).and_then(|row| self.logits(row)).unwrap_or_default()
    }

    /// Returns whether the last row of the last batch has logits to sample from.
    pub(crate) fn has_last_logits(&self) -> bool {
        self.outputs.last().copied().unwrap_or(false)
    }

    /// Returns the number of positions of a sequence in the KV cache, 0 for a sequence that the context does
    /// not have.
    #[must_use]
    pub fn position(&self, sequence: i32) -> usize {
        if self.check_sequence(sequence).is_err() {
            return 0;
        }
        usize::try_from(self.llama.kv_cache_seq_pos_max(sequence) + 1).unwrap_or(0)
    }

    /// Refuses sequences that the context does not have: llama.cpp would abort the process.
    pub(crate) fn check_sequence(&self, sequence: i32) -> Result<u32, Error> {
        u32::try_from(sequence)
            .ok()
            .filter(|&sequence| sequence < self.options.sequences)
            .ok_or(Error::Sequence { sequence, last: self.options.sequences - 1 })
    }

    /// Whether a text begins with all that a sequence holds, and so goes on with it.
    pub(crate) fn goes_on(&self, sequence: i32, tokens: &[Token]) -> bool {
        let cached = self.cached.rows(sequence).unwrap_or_default();
        !cached.is_empty()
            && cached.len() <= tokens.len()
            && cached.iter().zip(tokens).all(|(cached, &token)| cached.token == token)
    }

    /// Whether a sequence holds the first `length` of these tokens, which it generated last, and goes on with them. The
    /// last one that was generated need not have been decoded.
    pub(crate) fn holds_text(&self, sequence: i32, tokens: &[Token], length: usize) -> bool {
        let held = self.cached.rows(sequence).unwrap_or_default().len();
        held + 1 >= length && self.goes_on(sequence, tokens)
    }

    /// Returns how many of these tokens the rows of `from` begin with, each of them computed as it would be now
    /// in `sequence`. Unless `same_text`, each must be as a new text would have it.
    pub(crate) fn shared_of(&self, from: i32, sequence: i32, tokens: &[Token], same_text: bool) -> usize {
        let Some(cached) = self.cached.rows(from) else { return 0 };
        let active = self.active_profiles();
        let is_same = |(index, (cached, &token)): (usize, (&CachedRow, &Token))| {
            let position = i32::try_from(index).unwrap_or(i32::MAX);
            let revision = cached.revision;
            cached.token == token && self.schedules.accepts(&active, sequence, position, revision, same_text)
        };
        cached.iter().zip(tokens).enumerate().take_while(|&pair| is_same(pair)).count()
    }

    /// Removes all sequences from the KV cache.
    pub fn clear(&mut self) {
        self.llama.clear_kv_cache();
        self.cached.clear();
        self.schedules.clear();
    }

    /// Removes a sequence from the KV cache from a position on.
    ///
    /// # Errors
    /// [`Error::Sequence`], and [`Error::CannotTruncate`] if the model keeps a state instead of rows
    /// (recurrent models), or if rows that the next one would attend to are not there any more (models with sliding
    /// windows). A whole sequence can always be removed.
    pub fn truncate(&mut self, sequence: i32, position: usize) -> Result<(), Error> {
        self.remove_rows(sequence, position)?;
        self.cached.truncate(sequence, position);
        self.schedules.truncate(sequence, position);
        Ok(())
    }

    /// Removes rows of a sequence from the KV cache alone.
    fn remove_rows(&mut self, sequence: i32, position: usize) -> Result<(), Error> {
        let known = self.check_sequence(sequence)?;
        // llama.cpp counts positions in an i32: no row lies beyond.
        let from = u32::try_from(position).unwrap_or(u32::MAX).min(i32::MAX.cast_unsigned());
        let removed = self.is_whole(sequence, position)
            && self.llama.clear_kv_cache_seq(Some(known), Some(from), None).unwrap_or(false);
        if !removed {
            return Err(Error::CannotTruncate {
                architecture: self.model.shape().architecture.clone(),
                sequence,
                position: i32::try_from(position).unwrap_or(i32::MAX),
            });
        }
        Ok(())
    }

    /// Whether a sequence that is cut at a position has all rows that the next one attends to. llama.cpp gives the
    /// cells of rows that have left the sliding window of their sequence to any rows, and without them a shorter
    /// sequence is computed wrongly.
    fn is_whole(&self, sequence: i32, position: usize) -> bool {
        // Of a state llama.cpp itself says whether it can be cut. Rows of which nothing is known need not begin at 0.
        if position == 0
            || position >= self.position(sequence)
            || self.model.keeps_state()
            || self.cached.rows(sequence).is_none()
        {
            return true;
        }
        let first = usize::try_from(self.llama.kv_cache_seq_pos_min(sequence)).unwrap_or(0);
        first <= position.saturating_sub(self.model.window())
    }

    /// Makes sequence `to` a copy of sequence `from`, for example to continue from a common prompt. The rows
    /// that `to` had are removed. The two share their cells.
    ///
    /// # Errors
    /// [`Error::Sequence`], and those of [`Context::truncate`].
    pub fn copy_sequence(&mut self, from: i32, to: i32) -> Result<(), Error> {
        self.check_sequence(from)?;
        self.check_sequence(to)?;
        if from != to {
            // llama.cpp would add the copy to the rows of `to`.
            self.truncate(to, 0)?;
            self.llama.copy_cache(from, to, -1);
            self.cached.copy(from, to);
        }
        Ok(())
    }

    pub(crate) fn llama_mut(&mut self) -> &mut LlamaContext<'m> {
        &mut self.llama
    }

    /// Returns the context of `llama-cpp-2`, for what this crate does not cover. A decode through it is not
    /// watched.
    #[must_use]
    pub fn llama(&self) -> &LlamaContext<'m> {
        &self.llama
    }
}

/// Returns a row as the hook wants it.
fn decode_row((row, &profile): (&BatchRow, &Option<ProfileId>)) -> DecodeRow {
    DecodeRow { token: row.token.0, position: row.position, profile, output: row.logits }
}

/// Creates the llama.cpp context. Returns with it how many tokens it may hold. llama.cpp rounds that number
/// up, but the one asked for is kept.
fn create<'m>(model: &'m Model, options: &ContextOptions) -> Result<(u32, LlamaContext<'m>), Error> {
    /// llama.cpp writes to the shared model while it makes a context (`n_ctx_train`, for scaled rope).
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    let params = ContextParams::new(model, options)?;
    let ctx = params.ctx;
    memory::check(model, &params)?;
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (made, complaints) = log::capture(|| model.llama().new_context(backend::llama(), params.to_llama()));
    let llama = made.map_err(|_| Error::of_context(&params, complaints.reason()))?;
    Ok((ctx.min(llama.n_ctx()), llama))
}

/// Returns how llama.cpp splits the batches of a model, in contexts with a unified KV cache
/// (`llama_memory_i::init_batch`).
fn split_of(model: &Model) -> Split {
    let llama = model.llama();
    if llama.is_recurrent() {
        Split::Equal { consecutive: true }
    } else if llama.is_hybrid() {
        Split::Equal { consecutive: false }
    } else {
        Split::InOrder
    }
}
