//! The caps of one context: its public handle.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use axiscap::{Bound, Cap, CapSet, CapStats};

use crate::config::{Config, Settings};
use crate::decode::{Decode, is_mixed};
use crate::error::HookError;
use crate::host::architecture::ModelShape;
use crate::profile::{DecodeBatch, Decoding, ProfileId, ProfileInfo};
use crate::record::{Record, lock};
use crate::report::{BlockTrace, FusedNorms, GraphCounts, RouteUse};
use crate::route::ComputeHook;
use crate::stock::slots::Slots;
use crate::tally::Tally;
use crate::tap::Tap;

/// The caps of one llama.cpp context, and the record of what they did. A handle: clones are the same session.
///
/// Caps, bounds, strengths, taps and [`Settings`] may change between two decodes, from any thread. A decode
/// in progress keeps the configuration that it began with.
#[derive(Debug, Clone)]
pub struct Session(pub(crate) Arc<SessionState>);

/// The state that the clones of a session and its hooked backends share.
#[derive(Debug)]
pub(crate) struct SessionState {
    pub(crate) model: ModelShape,
    pub(crate) record: Record,
    bound: AtomicBool,
    /// What sequences are capped with, if that differs.
    slots: OnceLock<Slots>,
    config: Mutex<Arc<Config>>,
    compute_hook: Mutex<Option<Arc<dyn ComputeHook>>>,
}

impl Session {
    /// Creates a session without caps for a model of this shape.
    #[must_use]
    pub fn new(model: ModelShape) -> Self {
        Self(Arc::new(SessionState {
            record: Record::new(model.blocks),
            bound: AtomicBool::new(false),
            slots: OnceLock::new(),
            config: Mutex::new(Arc::new(Config::new(model.blocks))),
            compute_hook: Mutex::default(),
            model,
        }))
    }

    /// Returns the shape of the model.
    #[must_use]
    pub fn model(&self) -> &ModelShape {
        &self.0.model
    }

    /// Returns whether a backend was created under [`Hook::bind`](crate::Hook::bind) for this session.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        self.0.bound.load(Ordering::Acquire)
    }

    /// Returns the settings.
    #[must_use]
    pub fn settings(&self) -> Settings {
        lock(&self.0.config).settings
    }

    /// Changes settings from the next decode on. `change` must not use the session.
    ///
    /// ```
    /// # use axiscap_ggml::{ModelShape, RouteChoice, Session};
    /// # let session = Session::new(ModelShape { architecture: "llama".into(), blocks: 1, width: 2 });
    /// session.update(|settings| {
    ///     settings.tracing = true;
    ///     settings.route = RouteChoice::Views;
    /// });
    /// assert!(session.settings().tracing);
    /// ```
    pub fn update(&self, change: impl FnOnce(&mut Settings)) {
        let mut config = lock(&self.0.config);
        let mut next = Config::clone(&config);
        change(&mut next.settings);
        if next.settings.fused_norm != config.settings.fused_norm {
            self.0.record.forget_norms();
        }
        *config = Arc::new(next);
    }

    /// Sets the caps of the default profile, or removes them. Its statistics and all traces start again. Under
    /// a [`Policy`](axiscap::Policy) that skips positions, decodes go through [`Session::watch_batch`].
    ///
    /// # Errors
    /// [`HookError::Caps`] when the width or a block is not the model's, [`HookError::Architecture`].
    pub fn set_caps(&self, caps: Option<&CapSet>) -> Result<(), HookError> {
        let mut config = lock(&self.0.config);
        let mut next = Config::clone(&config);
        next.set_caps(caps, &self.0.model)?;
        // The record changes before a decode can begin with the new caps.
        self.0.record.reset_for_caps();
        self.0.record.follow_profiles(&next);
        *config = Arc::new(next);
        Ok(())
    }

    /// Sets the caps of the default profile as [`Session::set_caps`] does, whether they act, and where their
    /// rows are counted, in one step.
    ///
    /// # Errors
    /// Those of [`Session::set_caps`].
    pub(crate) fn replace_caps(
        &self,
        caps: &CapSet,
        enabled: bool,
        tally: Option<Arc<Tally>>,
    ) -> Result<(), HookError> {
        let mut config = lock(&self.0.config);
        let mut next = Config::clone(&config);
        next.set_caps(Some(caps), &self.0.model)?;
        next.count_in(ProfileId::DEFAULT, tally);
        next.settings.enabled = enabled;
        self.0.record.reset_for_caps();
        self.0.record.follow_profiles(&next);
        *config = Arc::new(next);
        Ok(())
    }

    /// Adds a profile: a further cap set, for rows that a [`DecodeBatch`] puts under it. `name` is for people
    /// and is unique.
    ///
    /// Tables of the capped blocks are made again. On a GPU they are uploaded with the next decode, whose
    /// rows are compared with the CPU's, and graphs are captured again.
    ///
    /// # Errors
    /// Those of [`Session::set_caps`], and [`HookError::ProfileName`].
    pub fn add_profile(&self, name: &str, caps: &CapSet) -> Result<ProfileId, HookError> {
        self.change_profiles(|config| config.add_profile(name, caps, &self.0.model))
    }

    /// Adds a profile as [`Session::add_profile`] does, and where its rows are counted, in one step.
    ///
    /// # Errors
    /// Those of [`Session::add_profile`].
    pub(crate) fn add_counted_profile(
        &self,
        name: &str,
        caps: &CapSet,
        tally: Option<Arc<Tally>>,
    ) -> Result<ProfileId, HookError> {
        self.change_profiles(|config| {
            let id = config.add_profile(name, caps, &self.0.model)?;
            config.count_in(id, tally);
            Ok(id)
        })
    }

    /// Removes a profile with its statistics. A decode in progress keeps it. A later decode with rows under it
    /// is an error. Without the default profile, as after `set_caps(None)`, its rows are uncapped.
    ///
    /// # Errors
    /// [`HookError::NoProfile`].
    pub fn remove_profile(&self, profile: ProfileId) -> Result<(), HookError> {
        if profile == ProfileId::DEFAULT {
            return self.set_caps(None);
        }
        self.change_profiles(|config| config.remove_profile(profile, &self.0.model))
    }

    /// Returns the profiles in the order in which they were added, the default one first.
    #[must_use]
    pub fn profiles(&self) -> Vec<ProfileInfo> {
        let config = Arc::clone(&lock(&self.0.config));
        config.profiles().list().iter().map(|profile| profile.info()).collect()
    }

    /// Returns the caps of a profile with their current bounds and strengths. `None` if there is no such
    /// profile.
    #[must_use]
    pub fn profile_caps(&self, profile: ProfileId) -> Option<Arc<CapSet>> {
        lock(&self.0.config).profiles().get(profile).map(|profile| Arc::clone(&profile.caps))
    }

    /// Changes the bound of one cap of the default profile from the next decode on.
    ///
    /// # Errors
    /// [`HookError::Caps`] when there is no such cap.
    pub fn set_bound(&self, cap: usize, bound: Bound) -> Result<(), HookError> {
        self.change_cap(ProfileId::DEFAULT, cap, |cap| Ok(cap.with_bound(bound)))
    }

    /// Changes the strength of one cap of the default profile from the next decode on.
    ///
    /// # Errors
    /// [`HookError::Caps`] when there is no such cap or the strength is outside `[0, 1]`.
    pub fn set_strength(&self, cap: usize, strength: f32) -> Result<(), HookError> {
        self.change_cap(ProfileId::DEFAULT, cap, |cap| cap.with_strength(strength))
    }

    /// Changes bound and strength of one cap of a profile from the next decode on. Its axis must stay. On a
    /// GPU, 12 bytes per cap of the block are copied in stream order.
    ///
    /// # Errors
    /// [`HookError::NoProfile`], [`HookError::Caps`] when there is no such cap, and the error of `change`.
    pub fn change_cap(
        &self,
        profile: ProfileId,
        cap: usize,
        change: impl FnOnce(Cap) -> axiscap::Result<Cap>,
    ) -> Result<(), HookError> {
        self.change(|config| config.change_cap(profile, cap, change))
    }

    /// Observes block outputs from the next decode on. `None` ends the observation.
    ///
    /// # Errors
    /// [`HookError::TapBlock`], [`HookError::Architecture`].
    pub fn set_tap(&self, tap: Option<Tap>) -> Result<(), HookError> {
        self.change(|config| config.set_tap(tap, &self.0.model))
    }

    /// Has `hook` compute graphs with caps, in the place of every route. `None` removes it. To be called
    /// between two decodes.
    #[doc(hidden)]
    pub fn set_compute_hook(&self, hook: Option<Arc<dyn ComputeHook>>) {
        *lock(&self.0.compute_hook) = hook;
    }

    /// Returns what each cap of the default profile did since the caps were set or the statistics reset, in
    /// the order of the set. Waits for GPUs that are still capping rows of earlier decodes.
    #[must_use]
    pub fn stats(&self) -> Vec<CapStats> {
        self.profile_stats(ProfileId::DEFAULT).unwrap_or_default()
    }

    /// Returns what each cap of a profile did, as [`Session::stats`]. `None` if there is no such profile.
    #[must_use]
    pub fn profile_stats(&self, profile: ProfileId) -> Option<Vec<CapStats>> {
        self.0.record.stats(profile)
    }

    /// Resets the statistics of all profiles.
    pub fn reset_stats(&self) {
        self.0.record.reset_stats();
    }

    /// Takes the rows traced since the last call ([`Settings::tracing`]), in the order in which blocks were
    /// computed.
    #[must_use]
    pub fn take_trace(&self) -> Vec<BlockTrace> {
        self.0.record.take_trace(true)
    }

    /// Takes the traced rows that are there, as [`Session::take_trace`], without waiting for a GPU. The
    /// statistics of a decode on a GPU mostly arrive while the next one runs.
    #[must_use]
    pub fn take_arrived_trace(&self) -> Vec<BlockTrace> {
        self.0.record.take_trace(false)
    }

    /// Returns the routes that graphs took so far, by device.
    #[must_use]
    pub fn routes_used(&self) -> Vec<RouteUse> {
        self.0.record.routes_used()
    }

    /// Returns where caps included the norm after their block ([`Settings::fused_norm`]). Empty before the
    /// first decode, and while the fused norm is off.
    #[must_use]
    pub fn fused_norms(&self) -> FusedNorms {
        self.0.record.fused_norms()
    }

    /// Returns how graphs were run on GPUs under [`RouteChoice::OneGraph`](crate::RouteChoice::OneGraph),
    /// summed over the backends of the session's living contexts.
    #[must_use]
    pub fn graph_counts(&self) -> GraphCounts {
        self.0.record.graph_counts()
    }

    /// Runs one `llama_decode` of `rows` tokens, `outputs` of them with logits, and checks that it was
    /// capped. Every row is under the default profile.
    ///
    /// # Errors
    /// The first error within the hook, or else the error of `decode`. After a successful `decode`
    /// [`HookError::NotBound`], or [`HookError::NotSeen`] when a capped or tapped block was not computed with
    /// all its rows. The last block may be computed for the `outputs` rows alone. On an error the result of
    /// `decode` is dropped, and its logits must not be used.
    ///
    /// [`HookError::PositionsUnknown`] if the default profile skips positions.
    pub fn watch<R, E: From<HookError>>(
        &self,
        rows: usize,
        outputs: usize,
        decode: impl FnOnce() -> Result<R, E>,
    ) -> Result<R, E> {
        let config = Arc::clone(&lock(&self.0.config));
        self.run(Decode::of_any(config, rows)?, rows, outputs, |_| decode())
    }

    /// Runs one `llama_decode` of rows under profiles, and checks that each was capped by its own. `decode`
    /// gets the profiles that the rows are computed under, which do not change during the decode.
    ///
    /// # Errors
    /// Those of [`Session::watch`] but [`HookError::PositionsUnknown`], [`HookError::NoProfile`], and
    /// [`HookError::RowOrder`] if llama.cpp computes the rows in another order.
    pub fn watch_batch<R, E: From<HookError>>(
        &self,
        batch: DecodeBatch<'_>,
        decode: impl FnOnce(Decoding<'_>) -> Result<R, E>,
    ) -> Result<R, E> {
        let config = Arc::clone(&lock(&self.0.config));
        let indexed = self.0.record.is_mixed(is_mixed(batch));
        let outputs = batch.rows.iter().filter(|row| row.output).count();
        let number = self.0.record.next_decode();
        self.run(Decode::of(number, config, batch, indexed)?, batch.rows.len(), outputs, |config| {
            let active = if config.settings.enabled { config.profiles().list() } else { &[] };
            let profiles: Vec<_> = active.iter().map(|profile| profile.info()).collect();
            decode(Decoding { number, profiles: &profiles })
        })
    }

    fn run<R, E: From<HookError>>(
        &self,
        watched: Decode,
        rows: usize,
        outputs: usize,
        decode: impl FnOnce(&Config) -> Result<R, E>,
    ) -> Result<R, E> {
        let config = Arc::clone(&watched.config);
        self.0.record.begin(watched);
        let result = decode(&config);
        if let Some(error) = self.0.record.end() {
            return Err(error.into());
        }
        let result = result?;
        if config.wanted(self.0.model.width).is_some() {
            if !self.is_bound() {
                return Err(HookError::NotBound.into());
            }
            self.0.record.check_seen(config.wanted_blocks(), rows, outputs)?;
        }
        Ok(result)
    }

    fn change_profiles<R>(
        &self,
        change: impl FnOnce(&mut Config) -> Result<R, HookError>,
    ) -> Result<R, HookError> {
        let mut config = lock(&self.0.config);
        let mut next = Config::clone(&config);
        let changed = change(&mut next)?;
        self.0.record.follow_profiles(&next);
        *config = Arc::new(next);
        Ok(changed)
    }

    fn change(&self, change: impl FnOnce(&mut Config) -> Result<(), HookError>) -> Result<(), HookError> {
        let mut config = lock(&self.0.config);
        let mut next = Config::clone(&config);
        change(&mut next)?;
        *config = Arc::new(next);
        Ok(())
    }
}

impl SessionState {
    /// The configuration that graphs are computed with: that of the decode in progress, so that all its
    /// micro-batches agree, or else the current one.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.record.decoding().unwrap_or_else(|| Arc::clone(&lock(&self.config)))
    }

    /// Begins a micro-batch of which only the graphs are seen, under the current configuration.
    pub(crate) fn begin_micro_batch(&self) {
        let config = Arc::clone(&lock(&self.config));
        let by_sequence = self.slots.get().is_some();
        self.record.begin(Decode::shown(self.record.next_decode(), config, by_sequence));
    }

    /// Puts sequences under profiles, before the first decode.
    pub(crate) fn set_slots(&self, slots: Slots) {
        let _ = self.slots.set(slots);
    }

    pub(crate) fn slots(&self) -> Option<&Slots> {
        self.slots.get()
    }

    pub(crate) fn compute_hook(&self) -> Option<Arc<dyn ComputeHook>> {
        lock(&self.compute_hook).clone()
    }

    pub(crate) fn set_bound(&self) {
        self.bound.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use axiscap::{Axis, BlockCap, Cap, RowStat};

    use super::*;
    use crate::profile::RowProfiles;
    use crate::record::{BlockStats, Order};

    fn caps(count: usize) -> CapSet {
        let axis = Axis::from_direction(&[1.0, 2.0]).unwrap();
        CapSet::new((0..count).map(|_| BlockCap { block: 0, cap: Cap::new(axis.clone(), Bound::NONE) }))
            .unwrap()
    }

    #[test]
    fn a_graph_without_block_outputs_needs_no_positions() {
        let session = Session::new(ModelShape { architecture: "llama".into(), blocks: 1, width: 2 });
        let policy = axiscap::Policy::default().with_skip_positions(1);
        session.set_caps(Some(&caps(1).with_policy(policy))).unwrap();
        let (record, config) = (&session.0.record, session.0.config());
        assert_eq!(record.claim_blocks(1, &config, &[]), Ok(RowProfiles::None));
        assert_eq!(record.claim_blocks(1, &config, &[(0, 1)]), Err(HookError::PositionsUnknown));
        assert_eq!(session.watch(1, 1, || Ok::<_, HookError>(())), Err(HookError::PositionsUnknown));
        session.remove_profile(ProfileId::DEFAULT).unwrap();
        assert_eq!(session.profiles(), []);
        assert_eq!(session.watch(1, 1, || Ok::<_, HookError>(())), Ok(()), "as after set_caps(None)");
    }

    #[test]
    fn rows_belong_to_the_tally_of_the_caps_that_they_were_computed_under() {
        let session = Session::new(ModelShape { architecture: "llama".into(), blocks: 1, width: 2 });
        let [first, second] = [1, 2].map(|count| Arc::new(Tally::new(count)));
        session.replace_caps(&caps(1), true, Some(Arc::clone(&first))).unwrap();
        let late = session.0.config();
        session.replace_caps(&caps(2), false, Some(Arc::clone(&second))).unwrap();
        assert!(!session.settings().enabled);
        for (config, count) in [(late, 1), (session.0.config(), 2)] {
            let (order, stats) = (Order { graph: 0, output: 0 }, vec![RowStat::default(); count * 3]);
            let profiles = RowProfiles::First(None);
            let block = BlockStats { order, config, block: 0, rows: 3, profiles, stats };
            session.0.record.add_stats(block);
        }
        let rows = |tally: &Tally| tally.lock().iter().map(|total| total.stats.rows).collect::<Vec<_>>();
        assert_eq!((rows(&first), rows(&second)), (vec![3], vec![3, 3]));
        assert_eq!(session.stats().iter().map(|stats| stats.rows).collect::<Vec<_>>(), [3, 3]);
        // Caps that are set otherwise are counted nowhere else.
        session.set_caps(Some(&caps(1))).unwrap();
        assert!(session.0.config().profiles().list()[0].tally.is_none());
    }

    #[test]
    fn statistics_of_replaced_caps_are_not_those_of_the_new_ones() {
        let session = Session::new(ModelShape { architecture: "llama".into(), blocks: 1, width: 2 });
        session.update(|settings| settings.tracing = true);
        session.set_caps(Some(&caps(2))).unwrap();
        let decode = |while_it_runs: &dyn Fn()| {
            let decoded: Result<(), HookError> = session.watch(1, 1, || {
                let config = session.0.config();
                while_it_runs();
                session.0.set_bound();
                let record = &session.0.record;
                record.record_blocks([(0, 1)]);
                let order = Order { graph: record.next_graph(), output: 0 };
                let stats = vec![RowStat::default(); config.caps_of(0).unwrap().depth()];
                let profiles = RowProfiles::First(None);
                record.add_stats(BlockStats { order, config, block: 0, rows: 1, profiles, stats });
                Ok(())
            });
            decoded.unwrap();
            let rows: Vec<_> = session.stats().iter().map(|stats| stats.rows).collect();
            (rows, session.take_trace().len())
        };
        assert_eq!(decode(&|| {}), (vec![1, 1], 1));
        for count in [2, 1] {
            let replaced = decode(&|| session.set_caps(Some(&caps(count))).unwrap());
            assert_eq!(replaced, (vec![0; count], 0));
        }
        assert_eq!(decode(&|| {}), (vec![1], 1));
        // Another bound of the same caps keeps the statistics.
        assert_eq!(decode(&|| session.set_bound(0, Bound::floor(1.0).unwrap()).unwrap()), (vec![2], 1));
    }
}
