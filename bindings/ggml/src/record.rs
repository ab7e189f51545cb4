//! Record of a session: what its decodes showed and what its caps did.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

use axiscap::{CapStats, RowStat};

use crate::config::Config;
use crate::error::{HookError, Seen};
use crate::report::{BlockTrace, FusedNorms, GraphCounts, NotFused, NotFusedReason, RouteUse};
use crate::route::choice::Route;

/// Position of a block output in the order of computation. Statistics from a GPU arrive later than those of blocks that
/// the CPU computed in the meantime, so traces are sorted by it.
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
    /// `[rows][caps]`.
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

    /// Returns how its graphs were run.
    fn graph_counts(&self) -> GraphCounts;
}

/// The record of one session.
#[derive(Debug)]
pub(crate) struct Record {
    recorded: Mutex<Recorded>,
    /// Backends that hold statistics on a GPU.
    sources: Mutex<Vec<Weak<Mutex<dyn PendingStats>>>>,
}

#[derive(Debug, Default)]
struct Recorded {
    /// Generation of the caps that `stats` and `trace` belong to.
    generation: u64,
    stats: Vec<CapStats>,
    trace: Vec<(Order, BlockTrace)>,
    /// Graphs numbered so far.
    graphs: u64,
    /// By block, the rows seen since the decode began.
    seen: Vec<Option<usize>>,
    /// Tokens of the decode in progress.
    rows: usize,
    /// By block, the backend that claimed its output first, and the rows claimed by all backends.
    claimed: Vec<Option<(usize, usize)>>,
    error: Option<HookError>,
    /// Configuration of the decode in progress.
    decoding: Option<Arc<Config>>,
    routes: Vec<RouteUse>,
    /// Devices and reasons that the log has been told.
    slow: Vec<(String, String)>,
    /// Blocks whose caps included the following norm.
    fused: BTreeSet<usize>,
    /// Blocks whose following norm was left to ggml.
    refused: BTreeSet<(usize, NotFused)>,
}

impl Record {
    pub(crate) fn new(blocks: usize) -> Self {
        let (seen, claimed) = (vec![None; blocks], vec![None; blocks]);
        Self {
            recorded: Mutex::new(Recorded { seen, claimed, ..Recorded::default() }),
            sources: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Recorded> {
        lock(&self.recorded)
    }

    /// A decode of `rows` tokens begins.
    pub(crate) fn begin(&self, config: Arc<Config>, rows: usize) {
        let mut recorded = self.lock();
        recorded.seen.fill(None);
        recorded.claimed.fill(None);
        recorded.rows = rows;
        recorded.decoding = Some(config);
    }

    /// The decode ends. Returns the first error since the last decode ended.
    pub(crate) fn end(&self) -> Option<HookError> {
        let mut recorded = self.lock();
        recorded.decoding = None;
        recorded.error.take()
    }

    /// The configuration of the decode in progress.
    pub(crate) fn decoding(&self) -> Option<Arc<Config>> {
        self.lock().decoding.clone()
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

    /// Keeps an error for the end of the decode. The first error is kept, because later ones follow from it.
    pub(crate) fn fail(&self, error: HookError) {
        self.lock().error.get_or_insert(error);
    }

    /// Notes that a backend is about to compute these block outputs, given as block and number of rows.
    ///
    /// # Errors
    /// [`HookError::SplitTensors`] when another backend has computed the same block in this decode, and both together
    /// computed more rows than the decode has. ggml's meta backend hands the same nodes to each of its devices. The
    /// devices are hooked one by one, and nothing in their graphs shows that they work on the same rows.
    pub(crate) fn claim_blocks(
        &self,
        backend: usize,
        outputs: impl IntoIterator<Item = (usize, usize)>,
    ) -> Result<(), HookError> {
        let mut recorded = self.lock();
        if recorded.decoding.is_none() {
            return Ok(());
        }
        let max = recorded.rows;
        for (block, rows) in outputs {
            let (first, claimed) = recorded.claimed[block].get_or_insert((backend, 0));
            *claimed += rows;
            if *first != backend && *claimed > max {
                return Err(HookError::SplitTensors { block });
            }
        }
        Ok(())
    }

    /// Returns the number of the next graph.
    pub(crate) fn next_graph(&self) -> u64 {
        let mut recorded = self.lock();
        recorded.graphs += 1;
        recorded.graphs
    }

    /// Notes that rows of a block output were computed. A block output without rows counts as seen.
    pub(crate) fn record_block(&self, block: usize, rows: usize) {
        *self.lock().seen[block].get_or_insert(0) += rows;
    }

    /// Adds the statistics of one block output. Statistics from a decode that began under other caps are dropped.
    pub(crate) fn add_stats(&self, block: BlockStats) {
        let BlockStats { order, config, block, rows, stats } = block;
        let Some(caps) = config.caps_of(block) else { return };
        let mut recorded = self.lock();
        if recorded.generation != config.generation() {
            return;
        }
        for (i, row) in stats.iter().enumerate() {
            recorded.stats[caps.indices[i % caps.indices.len()]].add(row);
        }
        if config.settings.tracing {
            let caps = caps.indices.clone();
            recorded.trace.push((order, BlockTrace { block, caps, rows, stats }));
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

    /// Discards statistics, traces and norms of the former caps. Statistics that arrive for them later are of another
    /// generation and are dropped.
    pub(crate) fn reset_for_caps(&self, config: &Config) {
        let mut recorded = self.lock();
        recorded.generation = config.generation();
        recorded.stats = vec![CapStats::default(); config.cap_count()];
        recorded.trace.clear();
        recorded.forget_norms();
    }

    /// Discards what is known of the norms after capped blocks.
    pub(crate) fn forget_norms(&self) {
        self.lock().forget_norms();
    }

    pub(crate) fn stats(&self) -> Vec<CapStats> {
        self.collect();
        self.lock().stats.clone()
    }

    pub(crate) fn reset_stats(&self) {
        self.collect();
        self.lock().stats.fill(CapStats::default());
    }

    pub(crate) fn take_trace(&self) -> Vec<BlockTrace> {
        self.collect();
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

    /// Adds the statistics that are still on GPUs.
    fn collect(&self) {
        self.each_source(|source| self.add_arrived(source.wait_for_stats()));
    }

    /// Calls `with` for each source that is idle. A busy one may be locked by this very thread, when a tap asks for
    /// statistics.
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

/// Locks a mutex, poisoned or not. Every change under these locks is one assignment or one push, so a panic leaves
/// nothing half-changed.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
