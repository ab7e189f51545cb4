//! Record of a session: what its decodes showed and what its caps did.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

use axiscap::{CapStats, RowStat};

use crate::config::Config;
use crate::decode::{Decode, Given};
use crate::error::{HookError, Seen};
use crate::profile::{ProfileId, RowProfiles};
use crate::report::{BlockTrace, FusedNorms, GraphCounts, NotFused, NotFusedReason, RouteUse, RowTrace};
use crate::route::choice::Route;
use crate::tally::Tally;

/// Position of a block output in the order of computation. Statistics from a GPU arrive later than those of
/// blocks that the CPU computed in the meantime, so traces are sorted by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order {
    /// Number of the graph, from [`Record::next_graph`].
    pub(crate) graph: u64,
    /// Index of the block output in its graph.
    pub(crate) output: usize,
}

/// Statistics of the rows of one block output in one graph.
#[derive(Debug)]
pub(crate) struct BlockStats {
    pub(crate) order: Order,
    /// The configuration that the rows were capped under.
    pub(crate) config: Arc<Config>,
    pub(crate) block: usize,
    pub(crate) rows: usize,
    /// The profiles of the rows.
    pub(crate) profiles: RowProfiles,
    /// `[rows][`[`BlockCaps::depth`](crate::profile::BlockCaps::depth)`]`.
    pub(crate) stats: Vec<RowStat>,
}

/// Statistics that have arrived from a GPU.
#[derive(Debug, Default)]
pub(crate) struct Arrived {
    pub(crate) stats: Vec<BlockStats>,
    /// The first error, if not all could be read.
    pub(crate) error: Option<HookError>,
}

/// A backend that holds statistics on a GPU.
pub(crate) trait PendingStats: Debug + Send {
    /// Waits for all statistics that are still on the GPU, and returns them.
    fn wait_for_stats(&mut self) -> Arrived;

    /// Returns the statistics that have arrived, without waiting.
    fn arrived_stats(&mut self) -> Arrived;

    /// Returns how its graphs were run.
    fn graph_counts(&self) -> GraphCounts;
}

/// The record of one session.
#[derive(Debug)]
pub(crate) struct Record {
    recorded: Mutex<Recorded>,
    /// Graphs numbered so far.
    graphs: AtomicU64,
    /// Decodes numbered so far.
    decodes: AtomicU64,
    /// Backends that hold statistics on a GPU.
    sources: Mutex<Vec<Weak<Mutex<dyn PendingStats>>>>,
}

#[derive(Debug, Default)]
struct Recorded {
    /// Statistics of the profiles that the session has.
    stats: BTreeMap<ProfileId, ProfileStats>,
    trace: Vec<(Order, BlockTrace)>,
    /// By block, the rows seen since the decode began.
    seen: Vec<Option<usize>>,
    /// By block, the backend that claimed its output first, and the rows claimed by all backends.
    claimed: Vec<Option<(usize, usize)>>,
    error: Option<HookError>,
    /// The decode in progress.
    decoding: Option<Decode>,
    /// Whether rows of one decode were under different profiles. From then on every row has an index, so that
    /// launches look alike from decode to decode.
    mixed: bool,
    routes: Vec<RouteUse>,
    /// Devices and reasons that the log has been told.
    slow: Vec<(String, String)>,
    /// Blocks whose caps included the following norm.
    fused: BTreeSet<usize>,
    /// Blocks whose following norm was left to ggml.
    refused: BTreeSet<(usize, NotFused)>,
}

/// Statistics of one profile.
#[derive(Debug)]
struct ProfileStats {
    /// Generation of the caps that they belong to.
    generation: u64,
    caps: Vec<CapStats>,
}

impl Record {
    pub(crate) fn new(blocks: usize) -> Self {
        let (seen, claimed) = (vec![None; blocks], vec![None; blocks]);
        Self {
            recorded: Mutex::new(Recorded { seen, claimed, ..Recorded::default() }),
            graphs: AtomicU64::new(0),
            decodes: AtomicU64::new(0),
            sources: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Recorded> {
        lock(&self.recorded)
    }

    /// A decode begins.
    pub(crate) fn begin(&self, decode: Decode) {
        let mut recorded = self.lock();
        recorded.seen.fill(None);
        recorded.claimed.fill(None);
        recorded.decoding = Some(decode);
    }

    /// Returns whether every row has an index from now on, given whether the next decode is mixed.
    pub(crate) fn is_mixed(&self, mixed: bool) -> bool {
        let mut recorded = self.lock();
        recorded.mixed |= mixed;
        recorded.mixed
    }

    /// The decode ends. Returns the first error since the last decode ended.
    pub(crate) fn end(&self) -> Option<HookError> {
        let mut recorded = self.lock();
        recorded.decoding = None;
        recorded.error.take()
    }

    /// The configuration of the decode in progress.
    pub(crate) fn decoding(&self) -> Option<Arc<Config>> {
        self.lock().decoding.as_ref().map(|decode| Arc::clone(&decode.config))
    }

    /// Checks that a decode showed all its rows of each wanted block.
    ///
    /// # Errors
    /// [`HookError::NotSeen`]. The last block may show only the rows with logits.
    pub(crate) fn check_seen(&self, wanted: &[bool], rows: usize, outputs: usize) -> Result<(), HookError> {
        let last = wanted.len().wrapping_sub(1);
        let recorded = self.lock();
        for (block, _) in wanted.iter().enumerate().filter(|(_, wanted)| **wanted) {
            let seen = match recorded.seen[block] {
                None => Seen::Never,
                Some(n) if n == rows || (block == last && n == outputs) => continue,
                Some(n) => Seen::Rows(n),
            };
            return Err(HookError::NotSeen { block, seen, rows, outputs });
        }
        Ok(())
    }

    /// Checks that the graphs of a micro-batch showed all rows of each wanted block. `rows` is their number, if
    /// an input told it; else the blocks must agree.
    ///
    /// # Errors
    /// [`HookError::NotSeen`].
    pub(crate) fn check_shown(
        &self,
        wanted: &[bool],
        rows: Option<usize>,
        outputs: usize,
    ) -> Result<(), HookError> {
        self.check_seen(wanted, rows.unwrap_or_else(|| self.most_seen()), outputs)
    }

    /// Checks that these blocks were computed, and as many rows of each block that was. The last block of the
    /// model may have been computed with fewer.
    ///
    /// # Errors
    /// [`HookError::NotSeen`].
    pub(crate) fn check_part(&self, must: &[bool]) -> Result<(), HookError> {
        let rows = self.most_seen();
        let last = must.len().wrapping_sub(1);
        let recorded = self.lock();
        for (block, (&must, &seen)) in must.iter().zip(&recorded.seen).enumerate() {
            let seen = match seen {
                None if must => Seen::Never,
                Some(n) if n != rows && block != last => Seen::Rows(n),
                _ => continue,
            };
            return Err(HookError::NotSeen { block, seen, rows, outputs: rows });
        }
        Ok(())
    }

    /// Returns the blocks that were computed since the decode began.
    pub(crate) fn seen_blocks(&self) -> Vec<usize> {
        let recorded = self.lock();
        let seen = recorded.seen.iter().enumerate();
        seen.filter_map(|(block, seen)| seen.is_some().then_some(block)).collect()
    }

    /// Whether a block was computed since the decode began.
    pub(crate) fn any_seen(&self) -> bool {
        self.lock().seen.iter().any(Option::is_some)
    }

    /// Returns the largest number of rows that a block was computed with since the decode began.
    pub(crate) fn most_seen(&self) -> usize {
        self.lock().seen.iter().copied().flatten().max().unwrap_or(0)
    }

    /// Keeps an error for the end of the decode. The first error is kept, because later ones follow from it.
    pub(crate) fn fail(&self, error: HookError) {
        self.lock().error.get_or_insert(error);
    }

    /// Notes that a backend is about to compute these block outputs, given as block and number of rows.
    /// Returns the profiles of their rows. `config` is for graphs outside of a decode.
    ///
    /// # Errors
    /// [`HookError::SplitTensors`] when another backend has computed the same block in this decode, and both
    /// together computed more rows than the decode has. ggml's meta backend hands the same nodes to each of
    /// its devices. The devices are hooked one by one, and nothing in their graphs shows that they work on
    /// the same rows. [`HookError::RowOrder`], [`HookError::PositionsUnknown`].
    pub(crate) fn claim_blocks(
        &self,
        backend: usize,
        config: &Config,
        outputs: &[(usize, usize)],
    ) -> Result<RowProfiles, HookError> {
        let mut recorded = self.lock();
        let Recorded { decoding, claimed, .. } = &mut *recorded;
        let Some(decode) = decoding else {
            return if outputs.is_empty() { Ok(RowProfiles::None) } else { config.any_rows() };
        };
        for &(block, rows) in outputs {
            let (first, claimed) = claimed[block].get_or_insert((backend, 0));
            *claimed += rows;
            if *first != backend && decode.rows.is_none_or(|all| *claimed > all) {
                return Err(HookError::SplitTensors { block });
            }
        }
        decode.profiles_of(outputs)
    }

    /// Whether a decode of which only the graphs are seen has computed one of these block outputs before, so
    /// that another micro-batch begins.
    pub(crate) fn repeats(&self, backend: usize, outputs: &[(usize, usize)]) -> bool {
        let recorded = self.lock();
        let claimed = |block: usize| recorded.claimed[block].is_some_and(|(first, _)| first == backend);
        recorded.decoding.as_ref().is_some_and(Decode::is_shown)
            && outputs.iter().any(|&(block, _)| claimed(block))
    }

    /// Whether what a graph is given is to be shown to [`Record::give`].
    pub(crate) fn needs_given(&self) -> bool {
        self.lock().decoding.as_ref().is_some_and(Decode::needs_given)
    }

    /// Notes the tokens that a graph of the decode was given.
    pub(crate) fn give_tokens(&self, tokens: Vec<i32>) {
        if let Some(decode) = &mut self.lock().decoding {
            decode.give_tokens(tokens);
        }
    }

    /// Returns the tokens that a graph of the decode was given.
    pub(crate) fn tokens(&self) -> Option<Vec<i32>> {
        self.lock().decoding.as_ref().and_then(Decode::tokens).map(<[i32]>::to_vec)
    }

    /// Notes what a graph of the decode was given.
    pub(crate) fn give(&self, given: Given) {
        if let Some(decode) = &mut self.lock().decoding {
            decode.give(given);
        }
    }

    /// Whether tokens and positions of graphs are to be shown to [`Record::identify`].
    pub(crate) fn has_order(&self) -> bool {
        self.lock().decoding.as_ref().is_some_and(Decode::has_order)
    }

    /// Compares the tokens and positions that a graph is given with those of the decode.
    ///
    /// # Errors
    /// [`HookError::RowOrder`].
    pub(crate) fn identify(&self, tokens: &[i32], positions: Option<&[i32]>) -> Result<(), HookError> {
        self.lock().decoding.as_mut().map_or(Ok(()), |decode| decode.identify(tokens, positions))
    }

    /// Returns the number of the next decode.
    pub(crate) fn next_decode(&self) -> u64 {
        self.decodes.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns the number of the next graph.
    pub(crate) fn next_graph(&self) -> u64 {
        self.graphs.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes that block outputs were computed, given as block and number of rows. A block output without rows
    /// counts as seen.
    pub(crate) fn record_blocks(&self, blocks: impl IntoIterator<Item = (usize, usize)>) {
        let mut recorded = self.lock();
        for (block, rows) in blocks {
            *recorded.seen[block].get_or_insert(0) += rows;
        }
    }

    /// Adds the statistics of one block output. Those of profiles that were removed or have other caps by now
    /// are dropped. Rows that an acting cap left alone because they are not finite fail the decode.
    pub(crate) fn add_stats(&self, block: BlockStats) {
        let Some(caps) = block.config.caps_of(block.block) else { return };
        let mut recorded = self.lock();
        let profiles = block.config.profiles();
        let depth = caps.depth();
        let index_of = |row| block.profiles.profile(block.rows, row);
        let mut not_finite = 0;
        for index in 1..=profiles.slots().len() as u32 {
            let Some((profile, slot)) = profiles.slot(index) else { continue };
            let own = caps.caps_of(index);
            let stats = recorded.stats.get_mut(&profile.id);
            let mut known = stats.filter(|stats| stats.generation == profile.generation);
            // Rows of caps that were replaced belong to their tally all the same.
            let mut tally = profile.tally.as_deref().map(Tally::lock);
            if own.is_empty() {
                continue;
            }
            let acts = |cap: usize| {
                let cap = &profile.caps.caps()[cap].cap;
                cap.strength() > 0.0 && !cap.bound().is_none()
            };
            for row in (0..block.rows).filter(|&row| index_of(row) == index) {
                let left = |(&cap, stat): (&usize, &RowStat)| stat.non_finite() && acts(cap);
                not_finite +=
                    usize::from(!slot.skipped && own.iter().zip(&block.stats[row * depth..]).any(left));
                for (&cap, stat) in own.iter().zip(&block.stats[row * depth..]) {
                    if let Some(known) = &mut known {
                        match slot.skipped {
                            true => known.caps[cap].skipped += 1,
                            false => known.caps[cap].add(stat),
                        }
                    }
                    if let Some(tally) = &mut tally {
                        match slot.skipped {
                            true => tally[cap].stats.skipped += 1,
                            false => tally[cap].add(profile.caps.caps()[cap].cap.bound(), stat),
                        }
                    }
                }
            }
        }
        if not_finite > 0 {
            let error = HookError::NotFinite { block: block.block, rows: not_finite, of: block.rows };
            recorded.error.get_or_insert(error);
        }
        let default = |config: &Config| config.profiles().get(ProfileId::DEFAULT).map(|p| p.generation);
        let now = recorded.stats.get(&ProfileId::DEFAULT).map(|stats| stats.generation);
        if block.config.settings.tracing && default(&block.config) == now {
            let row = |row: usize| {
                let index = index_of(row);
                let slot = profiles.slot(index);
                let stats = block.stats.get(row * depth..).unwrap_or_default();
                RowTrace {
                    batch_row: block.profiles.batch_row(block.rows, row),
                    profile: slot.map(|(profile, _)| profile.id),
                    skipped: slot.is_some_and(|(_, slot)| slot.skipped),
                    caps: caps.caps_of(index).iter().copied().zip(stats.iter().copied()).collect(),
                }
            };
            let decode = block.profiles.micro_batch().map(|micro_batch| micro_batch.decode);
            let trace = BlockTrace { decode, block: block.block, rows: (0..block.rows).map(row).collect() };
            recorded.trace.push((block.order, trace));
        }
    }

    /// Adds statistics that have arrived from a GPU.
    pub(crate) fn add_arrived(&self, arrived: Arrived) {
        arrived.stats.into_iter().for_each(|stats| self.add_stats(stats));
        if let Some(error) = arrived.error {
            self.fail(error);
        }
    }

    /// Notes that a graph took a route on a device.
    pub(crate) fn record_route(&self, device: &str, route: Route) {
        let mut recorded = self.lock();
        if !recorded.routes.iter().any(|used| used.device == device && used.route == route) {
            recorded.routes.push(RouteUse { device: device.into(), route });
        }
    }

    /// Logs once per device and reason that a faster route was not possible.
    pub(crate) fn warn_slow_route(&self, device: &str, reason: &str) {
        let mut recorded = self.lock();
        if recorded.slow.iter().any(|(d, r)| d == device && r == reason) {
            return;
        }
        recorded.slow.push((device.into(), reason.into()));
        drop(recorded);
        tracing::warn!(device, reason, "capping is correct here, but could be faster");
    }

    /// Notes whether the norm after a block ran with its caps. Each refusal is logged once.
    pub(crate) fn record_norm(&self, device: &str, block: usize, refused: Option<NotFused>) {
        let mut recorded = self.lock();
        let Some(reason) = refused else {
            recorded.fused.insert(block);
            return;
        };
        let first_on_host = !recorded.refused.iter().any(|&(_, known)| known == NotFused::NoGpu);
        if !recorded.refused.insert((block, reason)) {
            return;
        }
        drop(recorded);
        match reason {
            NotFused::NoGpu if !first_on_host => {}
            NotFused::NoGpu => {
                tracing::warn!(device, "the fused norm has no effect here: blocks are capped on the host");
            }
            _ => tracing::info!(device, block, %reason, "ggml computes the norm after this block"),
        }
    }

    /// Keeps statistics of the profiles of a configuration, and discards those of profiles that are gone or
    /// have other caps. Statistics that arrive for these later are dropped.
    pub(crate) fn follow_profiles(&self, config: &Config) {
        let mut recorded = self.lock();
        let mut old = std::mem::take(&mut recorded.stats);
        for profile in config.profiles().list() {
            let kept = old.remove(&profile.id).filter(|stats| stats.generation == profile.generation);
            let stats = kept.unwrap_or_else(|| ProfileStats {
                generation: profile.generation,
                caps: vec![CapStats::default(); profile.caps.caps().len()],
            });
            recorded.stats.insert(profile.id, stats);
        }
    }

    /// Discards traces and norms, because the caps of the default profile are replaced.
    pub(crate) fn reset_for_caps(&self) {
        let mut recorded = self.lock();
        recorded.trace.clear();
        recorded.mixed = false;
        recorded.forget_norms();
    }

    /// Discards what is known of the norms after capped blocks.
    pub(crate) fn forget_norms(&self) {
        self.lock().forget_norms();
    }

    pub(crate) fn stats(&self, profile: ProfileId) -> Option<Vec<CapStats>> {
        self.collect();
        self.lock().stats.get(&profile).map(|stats| stats.caps.clone())
    }

    /// Returns the statistics of the default profile that have arrived.
    pub(crate) fn arrived_stats(&self) -> Vec<CapStats> {
        self.lock().stats.get(&ProfileId::DEFAULT).map_or_else(Vec::new, |stats| stats.caps.clone())
    }

    pub(crate) fn reset_stats(&self) {
        self.collect();
        self.lock().stats.values_mut().for_each(|stats| stats.caps.fill(CapStats::default()));
    }

    /// Takes the traces of all decodes, or without `wait` those that have arrived from GPUs.
    pub(crate) fn take_trace(&self, wait: bool) -> Vec<BlockTrace> {
        if wait {
            self.collect();
        } else {
            self.add_all_arrived();
        }
        let mut trace = std::mem::take(&mut self.lock().trace);
        trace.sort_by_key(|(order, _)| *order);
        trace.into_iter().map(|(_, trace)| trace).collect()
    }

    pub(crate) fn routes_used(&self) -> Vec<RouteUse> {
        self.lock().routes.clone()
    }

    pub(crate) fn fused_norms(&self) -> FusedNorms {
        let recorded = self.lock();
        let refused = recorded.refused.iter().map(|&(block, reason)| (block, NotFusedReason(reason)));
        FusedNorms { fused: recorded.fused.iter().copied().collect(), refused: refused.collect() }
    }

    pub(crate) fn graph_counts(&self) -> GraphCounts {
        let mut counts = GraphCounts::default();
        self.each_source(|source| counts += source.graph_counts());
        counts
    }

    /// From now on, statistics are also collected from this source.
    pub(crate) fn add_source(&self, source: Weak<Mutex<dyn PendingStats>>) {
        let mut sources = lock(&self.sources);
        sources.retain(|source| source.strong_count() > 0);
        sources.push(source);
    }

    /// Adds the statistics that have arrived from GPUs, without waiting.
    pub(crate) fn add_all_arrived(&self) {
        self.each_source(|source| self.add_arrived(source.arrived_stats()));
    }

    /// Adds the statistics that are still on GPUs.
    fn collect(&self) {
        self.each_source(|source| self.add_arrived(source.wait_for_stats()));
    }

    /// Calls `with` for each source that is idle. A busy one may be locked by this very thread, when a tap
    /// asks for statistics.
    fn each_source(&self, mut with: impl FnMut(&mut dyn PendingStats)) {
        let sources: Vec<_> = lock(&self.sources).iter().filter_map(Weak::upgrade).collect();
        for source in sources {
            match source.try_lock() {
                Ok(mut source) => with(&mut *source),
                Err(TryLockError::Poisoned(source)) => with(&mut *source.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
        }
    }
}

impl Recorded {
    fn forget_norms(&mut self) {
        self.fused.clear();
        self.refused.clear();
    }
}

/// Locks a mutex, poisoned or not. Every change under these locks is one assignment or one push, so a panic
/// leaves nothing half-changed.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
