//! The caps of one context: what is configured, and what was seen.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

use axiscap::{Bound, CapSet, CapStats, CapTable, RowStat};

use crate::architecture::{ModelShape, block_output};
use crate::device::{Collect, DevicePath, FusedNorms, GraphCounts, GraphTimeline, NormObstacle};
use crate::error::{HookError, Seen};
use crate::find::{Output, Wanted};
use crate::tap::Tap;

/// The caps of one llama.cpp context, and the record of what they did. A handle: clones are the same session.
///
/// Bounds, strength, the caps themselves, taps and the switch may change between two decodes, from any thread;
/// a decode in progress goes on with what it started with.
#[derive(Debug, Clone)]
pub struct Session(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) model: ModelShape,
    bound: AtomicBool,
    config: Mutex<Arc<Config>>,
    record: Mutex<Record>,
    /// Backends that cap on a GPU and hold figures which are still to be read from there.
    devices: Mutex<Vec<Weak<Mutex<DevicePath>>>>,
}

/// What a decode works with, as one unchanging snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) enabled: bool,
    pub(crate) tracing: bool,
    statistics: bool,
    /// Whether caps on a GPU are to do the norm behind their block too.
    pub(crate) fused_norm: bool,
    pub(crate) engine: Engine,
    /// Whether graphs on GPUs are timed.
    pub(crate) timeline: bool,
    /// By block. Empty where the architecture has no block outputs.
    pub(crate) wanted: Vec<bool>,
    pub(crate) prefix: &'static str,
    pub(crate) blocks: Vec<BlockCaps>,
    pub(crate) tap: Option<Tap>,
    caps: usize,
    /// How often caps were set before these: figures belong to the caps that made them.
    generation: u64,
}

impl Config {
    /// The blocks to look for in a graph; `None` when there is nothing to do.
    pub(crate) fn wanted(&self, width: usize) -> Option<Wanted<'_>> {
        let active = self.enabled && self.wanted.iter().any(|&w| w);
        active.then_some(Wanted { prefix: self.prefix, width, blocks: &self.wanted })
    }

    /// Whether anyone wants to know what the caps did.
    pub(crate) fn records(&self) -> bool {
        self.statistics || self.tracing
    }

    pub(crate) fn caps_of(&self, block: usize) -> Option<&BlockCaps> {
        self.blocks.iter().find(|b| b.block == block)
    }

    pub(crate) fn tap_of(&self, block: usize) -> Option<&Tap> {
        self.tap.as_ref().filter(|tap| tap.blocks.contains(&block))
    }
}

/// The caps of one block.
#[derive(Debug, Clone)]
pub(crate) struct BlockCaps {
    pub(crate) block: usize,
    /// Indices in the set, in order of application.
    pub(crate) indices: Vec<usize>,
    pub(crate) table: CapTable,
}

/// How caps get into a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Engine {
    /// What suits the backend: inserted nodes on the CPU backend, views elsewhere.
    #[default]
    Auto,
    /// Cap nodes are inserted into ggml's own graph and run on its worker threads, in its barriers. CPU backend
    /// only; elsewhere views are used.
    Inserted,
    /// The graph is cut into views that end at the capped block outputs; caps run between them: on ggml's CUDA
    /// backend on the GPU, elsewhere on the host.
    Views,
    /// On ggml's CUDA backend, the graph and its caps are captured as one CUDA graph, which is replayed whenever
    /// llama.cpp comes with the same graph; a few are kept at a time. Needs `GGML_CUDA_DISABLE_GRAPHS` in the environment from the start of the
    /// process; without it, and elsewhere, as [`Engine::Auto`]. Not yet run on a GPU.
    DeviceGraph,
    /// The caps through ggml's own operations between views, on the backend that computes the block; exists to be
    /// compared with. Its rows differ from those of the other engines in the last bits. It counts and traces nothing:
    /// a decode fails with [`HookError::StockChainFigures`] unless statistics and tracing are off.
    StockChain,
}

/// What the caps of one block did to the rows of one pass.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockTrace {
    /// The block.
    pub block: usize,
    /// Its caps, as indices in the [`CapSet`], in order of application.
    pub caps: Vec<usize>,
    /// Rows of the pass.
    pub rows: usize,
    /// `[rows][caps]`.
    pub stats: Vec<RowStat>,
}

#[derive(Debug, Default)]
struct Record {
    /// Whose figures these are.
    generation: u64,
    stats: Vec<CapStats>,
    /// With the place of each in the order of computation.
    trace: Vec<(u64, BlockTrace)>,
    /// Block outputs seen so far.
    order: u64,
    /// Rows seen per block since the decode began.
    seen: Vec<Option<usize>>,
    /// Tokens of the decode in progress.
    rows: usize,
    /// Per block, the backend that was about to compute its output first, and how many rows all were.
    claimed: Vec<Option<(usize, usize)>>,
    error: Option<HookError>,
    /// What the decode in progress began with.
    decoding: Option<Arc<Config>>,
    engines: Vec<(String, &'static str)>,
    /// What the log has been told about them.
    slow: Vec<(String, String)>,
    /// Blocks whose caps did the norm behind them.
    fused: BTreeSet<usize>,
    /// Blocks behind which ggml did, and why.
    unfused: BTreeSet<(usize, NormObstacle)>,
}

impl Session {
    /// A session without caps for a model of this shape.
    #[must_use]
    pub fn new(model: ModelShape) -> Self {
        let config = Config {
            enabled: true,
            tracing: false,
            statistics: true,
            fused_norm: false,
            engine: Engine::Auto,
            timeline: false,
            wanted: vec![false; model.blocks],
            prefix: "",
            blocks: Vec::new(),
            tap: None,
            caps: 0,
            generation: 0,
        };
        let (seen, claimed) = (vec![None; model.blocks], vec![None; model.blocks]);
        let record = Record { seen, claimed, ..Record::default() };
        Self(Arc::new(Inner {
            model,
            bound: AtomicBool::new(false),
            config: Mutex::new(Arc::new(config)),
            record: Mutex::new(record),
            devices: Mutex::default(),
        }))
    }

    /// The model this session is for.
    #[must_use]
    pub fn model(&self) -> &ModelShape {
        &self.0.model
    }

    /// Whether a backend was created under [`Hook::bind`](crate::Hook::bind) for this session.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        self.0.bound.load(Ordering::Acquire)
    }

    /// Sets the caps, or with `None` removes them. Statistics and traces start anew.
    ///
    /// # Errors
    /// [`HookError::Caps`] when width or blocks are not the model's, [`HookError::Architecture`].
    pub fn set_caps(&self, caps: Option<&CapSet>) -> Result<(), HookError> {
        let mut blocks = Vec::new();
        if let Some(set) = caps {
            block_output(&self.0.model.architecture)?;
            set.check_model(self.0.model.width, self.0.model.blocks)?;
            for (block, indices) in set.blocks() {
                let table = CapTable::new(indices.iter().map(|&i| &set.caps()[i].cap))?;
                blocks.push(BlockCaps { block, indices, table });
            }
        }
        let count = caps.map_or(0, |set| set.caps().len());
        let mut config = lock(&self.0.config);
        let next = self.changed(&config, |config| {
            config.blocks = blocks;
            config.caps = count;
            config.generation += 1;
            Ok(())
        })?;
        // Before a decode can begin with the new caps. What others still report, from a decode under way or from a
        // GPU, is of another generation.
        let mut record = self.0.record();
        record.generation = next.generation;
        record.stats = vec![CapStats::default(); count];
        record.trace.clear();
        record.forget_norms();
        drop(record);
        *config = next;
        Ok(())
    }

    /// Switches capping and observing off or on; off, graphs run untouched.
    pub fn set_enabled(&self, on: bool) {
        let changed = self.change(|config| {
            config.enabled = on;
            Ok(())
        });
        debug_assert!(changed.is_ok());
    }

    /// Whether caps and taps are on.
    #[must_use]
    pub fn enabled(&self) -> bool {
        lock(&self.0.config).enabled
    }

    /// Changes the bound of one cap from the next decode on.
    ///
    /// # Errors
    /// [`HookError::Caps`] when there is no such cap.
    pub fn set_bound(&self, cap: usize, bound: Bound) -> Result<(), HookError> {
        self.change(|config| config.cap_mut(cap, |table, i| table.set_bound(i, bound)))
    }

    /// Changes the strength of one cap from the next decode on.
    ///
    /// # Errors
    /// [`HookError::Caps`] when there is no such cap or the strength is outside `[0, 1]`.
    pub fn set_strength(&self, cap: usize, strength: f32) -> Result<(), HookError> {
        self.change(|config| config.cap_mut(cap, |table, i| table.set_strength(i, strength)))
    }

    /// What each cap did since the caps were set or the statistics reset, in the order of the set. Waits for a GPU
    /// that still caps rows of decodes that have ended.
    #[must_use]
    pub fn stats(&self) -> Vec<CapStats> {
        self.0.collect();
        self.0.record().stats.clone()
    }

    /// Starts the statistics anew.
    pub fn reset_stats(&self) {
        self.0.collect();
        self.0.record().stats.fill(CapStats::default());
    }

    /// Counts, from the next decode on, what the caps do, for [`Session::stats`]; on at first. Off, and without
    /// tracing, nothing is recorded anywhere.
    pub fn set_statistics(&self, on: bool) {
        let changed = self.change(|config| {
            config.statistics = on;
            Ok(())
        });
        debug_assert!(changed.is_ok());
    }

    /// Keeps, from the next decode on, what happened to every single row, for [`Session::take_trace`].
    pub fn set_tracing(&self, on: bool) {
        let changed = self.change(|config| {
            config.tracing = on;
            Ok(())
        });
        debug_assert!(changed.is_ok());
    }

    /// The rows since the last call, in the order in which blocks were computed.
    #[must_use]
    pub fn take_trace(&self) -> Vec<BlockTrace> {
        self.0.collect();
        let mut trace = std::mem::take(&mut self.0.record().trace);
        // Figures from a GPU arrive later than those of blocks that the CPU computed.
        trace.sort_by_key(|(order, _)| *order);
        trace.into_iter().map(|(_, trace)| trace).collect()
    }

    /// Observes block outputs from the next decode on; `None` ends it.
    ///
    /// # Errors
    /// [`HookError::TapBlock`], [`HookError::Architecture`].
    pub fn set_tap(&self, tap: Option<Tap>) -> Result<(), HookError> {
        if let Some(tap) = &tap {
            block_output(&self.0.model.architecture)?;
            let blocks = self.0.model.blocks;
            if let Some(&block) = tap.blocks.iter().find(|&&b| b >= blocks) {
                return Err(HookError::TapBlock { block, blocks });
            }
        }
        self.change(|config| {
            config.tap = tap;
            Ok(())
        })
    }

    /// Chooses how caps get into a graph. The results are the same bits, apart from those of [`Engine::StockChain`].
    pub fn set_engine(&self, engine: Engine) {
        let changed = self.change(|config| {
            config.engine = engine;
            Ok(())
        });
        debug_assert!(changed.is_ok());
    }

    /// Has caps that run on a GPU do the RMSNorm behind their block as well, from the next decode on, where the graph
    /// allows it: one launch in the place of ggml's, so that a capped block costs no launch more than an uncapped one.
    /// Off at first. [`Session::fused_norms`] says where it is so.
    ///
    /// The normed rows are those of `axiscap::cpu::cap_norm_rows` and not, bit for bit, ggml's: sums of squares are
    /// added up in another order. Not yet run on a GPU.
    pub fn set_fused_norm(&self, on: bool) {
        let changed = self.change(|config| {
            config.fused_norm = on;
            Ok(())
        });
        debug_assert!(changed.is_ok());
        self.0.record().forget_norms();
    }

    /// What became of the norms behind capped blocks since [`Session::set_fused_norm`] or [`Session::set_caps`].
    /// Empty before the first decode, and where the fused norm is off.
    #[must_use]
    pub fn fused_norms(&self) -> FusedNorms {
        let record = self.0.record();
        FusedNorms {
            fused: record.fused.iter().copied().collect(),
            refused: record.unfused.iter().copied().collect(),
        }
    }

    /// Takes the times, from the next decode on, of graphs with blocks that are capped on a GPU, for
    /// [`Session::take_timeline`]; off at first. Events that take the time lengthen what they measure a little. Graphs
    /// are left out in which a tap or the comparison on first use has the host wait. Not yet run on a GPU.
    pub fn set_timeline(&self, on: bool) {
        let changed = self.change(|config| {
            config.timeline = on;
            Ok(())
        });
        debug_assert!(changed.is_ok());
    }

    /// The graphs that were timed since the last call, in order per GPU. Waits for them. To be called while the
    /// context lives.
    ///
    /// # Errors
    /// [`HookError::NoTimeline`] when there are none, [`HookError::Device`].
    pub fn take_timeline(&self) -> Result<Vec<GraphTimeline>, HookError> {
        let mut graphs = Vec::new();
        let mut error = None;
        self.0.each_device(|path| match path.take_times() {
            Ok(times) => graphs.extend(times),
            Err(failed) => error = Some(failed),
        });
        match error {
            Some(error) => Err(error),
            None if graphs.is_empty() => Err(HookError::NoTimeline),
            None => Ok(graphs),
        }
    }

    /// Where caps ran so far, and how: pairs of a ggml device's name and a few words.
    #[must_use]
    pub fn engines_used(&self) -> Vec<(String, &'static str)> {
        self.0.record().engines.clone()
    }

    /// How the session's graphs were run on GPUs under [`Engine::DeviceGraph`], summed over the backends of its
    /// context while that lives.
    #[must_use]
    pub fn graph_counts(&self) -> GraphCounts {
        let mut counts = GraphCounts::default();
        self.0.each_device(|path| counts += path.counts());
        counts
    }

    /// Runs one `llama_decode` of `rows` tokens, `outputs` of them with logits, and makes sure that it was capped.
    ///
    /// The inner result is `decode`'s own; an error of it is handed on unless the hook is its cause.
    ///
    /// # Errors
    /// [`HookError::NotBound`]; whatever went wrong within the hook; [`HookError::NotSeen`] when a capped or tapped
    /// block did not show up with all its rows (the last block: `outputs` of them, or all). On an error the
    /// result of `decode` is dropped: its logits must not be used.
    pub fn watch<R, E>(
        &self,
        rows: usize,
        outputs: usize,
        decode: impl FnOnce() -> Result<R, E>,
    ) -> Result<Result<R, E>, HookError> {
        let config = self.0.begin(rows);
        let result = decode();
        let error = self.0.end();
        match (error, result) {
            (Some(error), _) => Err(error),
            (None, Err(error)) => Ok(Err(error)),
            (None, Ok(result)) => {
                self.0.check_seen(&config, rows, outputs)?;
                Ok(Ok(result))
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut Config) -> Result<(), HookError>) -> Result<(), HookError> {
        let mut config = lock(&self.0.config);
        *config = self.changed(&config, change)?;
        Ok(())
    }

    /// The configuration after a change.
    fn changed(
        &self,
        config: &Config,
        change: impl FnOnce(&mut Config) -> Result<(), HookError>,
    ) -> Result<Arc<Config>, HookError> {
        let mut next = config.clone();
        change(&mut next)?;
        next.wanted.fill(false);
        let tapped = next.tap.iter().flat_map(|tap| tap.blocks.iter().copied());
        for block in next.blocks.iter().map(|b| b.block).chain(tapped).collect::<Vec<_>>() {
            next.wanted[block] = true;
        }
        if next.wanted.contains(&true) {
            next.prefix = block_output(&self.0.model.architecture)?;
        }
        Ok(Arc::new(next))
    }
}

impl Config {
    fn cap_mut(
        &mut self,
        cap: usize,
        change: impl FnOnce(&mut CapTable, usize) -> axiscap::Result<()>,
    ) -> Result<(), HookError> {
        for block in &mut self.blocks {
            if let Some(i) = block.indices.iter().position(|&index| index == cap) {
                return Ok(change(&mut block.table, i)?);
            }
        }
        Err(axiscap::Error::NoSuchCap { index: cap, caps: self.caps }.into())
    }
}

impl Inner {
    /// What the current decode works with: the snapshot taken when it began, so that all of its passes agree.
    pub(crate) fn config(&self) -> Arc<Config> {
        let decoding = self.record().decoding.clone();
        decoding.unwrap_or_else(|| Arc::clone(&lock(&self.config)))
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }

    pub(crate) fn set_bound_to_backend(&self) {
        self.bound.store(true, Ordering::Release);
    }

    pub(crate) fn fail(&self, error: HookError) {
        // The first error is the cause; what follows from it would hide it.
        self.record().error.get_or_insert(error);
    }

    /// A backend is about to compute these block outputs.
    ///
    /// # Errors
    /// [`HookError::SplitTensors`] where another one has computed so many of the same block that together they are more
    /// than the decode has. ggml's meta backend hands the same nodes to each of its devices, which are hooked one by
    /// one; it is no device of ggml's registry itself, and nothing in their graphs tells of it.
    pub(crate) fn claims(&self, backend: usize, outputs: &[Output]) -> Result<(), HookError> {
        let mut record = self.record();
        if record.decoding.is_none() {
            return Ok(());
        }
        let most = record.rows;
        for output in outputs {
            let (first, rows) = record.claimed[output.block].get_or_insert((backend, 0));
            *rows += output.rows();
            if *first != backend && *rows > most {
                return Err(HookError::SplitTensors { block: output.block });
            }
        }
        Ok(())
    }

    /// Notes that the output of a block was computed with this many rows. Returns its place in the order of all.
    pub(crate) fn saw(&self, block: usize, rows: usize) -> u64 {
        let mut record = self.record();
        *record.seen[block].get_or_insert(0) += rows;
        record.order += 1;
        record.order
    }

    /// Notes that the output of a block was computed without any row: there was nothing to cap.
    pub(crate) fn saw_no_rows(&self, block: usize, config: &Config) {
        let order = self.saw(block, 0);
        if config.records() {
            self.did(order, config, block, 0, Vec::new());
        }
    }

    /// From now on figures are also collected from this GPU.
    #[cfg_attr(not(feature = "gpu"), allow(dead_code))]
    pub(crate) fn add_device(&self, device: &Arc<Mutex<DevicePath>>) {
        let mut devices = lock(&self.devices);
        devices.retain(|device| device.strong_count() > 0);
        devices.push(Arc::downgrade(device));
    }

    /// Takes in the figures that are still on GPUs.
    fn collect(&self) {
        self.each_device(|path| path.collect(self, Collect::All));
    }

    /// Calls `with` for each GPU, apart from one that is just being given work: it may be this very thread that gives
    /// it, in a tap.
    fn each_device(&self, mut with: impl FnMut(&mut DevicePath)) {
        let devices: Vec<_> = lock(&self.devices).iter().filter_map(Weak::upgrade).collect();
        for device in devices {
            match device.try_lock() {
                Ok(mut path) => with(&mut path),
                Err(TryLockError::Poisoned(path)) => with(&mut path.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
        }
    }

    /// Notes what the caps of a block did to the rows of one pass, `[rows][caps]`. Where other caps were set since the
    /// decode began, its figures belong to nobody.
    pub(crate) fn did(&self, order: u64, config: &Config, block: usize, rows: usize, stats: Vec<RowStat>) {
        let Some(caps) = config.caps_of(block) else { return };
        let mut record = self.record();
        if record.generation != config.generation {
            return;
        }
        for (i, row) in stats.iter().enumerate() {
            record.stats[caps.indices[i % caps.indices.len()]].add(row);
        }
        if config.tracing {
            let caps = caps.indices.clone();
            record.trace.push((order, BlockTrace { block, caps, rows, stats }));
        }
    }

    /// Notes where and how caps ran, and says once per reason in the log why that is not the fastest way.
    pub(crate) fn used(&self, device: &str, how: &'static str, slow: Option<&str>) {
        let mut record = self.record();
        if !record.engines.iter().any(|(d, h)| d == device && *h == how) {
            record.engines.push((device.into(), how));
        }
        drop(record);
        if let Some(reason) = slow {
            self.slow(device, reason);
        }
    }

    /// Says once in the log what keeps a device from its fastest way.
    pub(crate) fn slow(&self, device: &str, reason: &str) {
        let mut record = self.record();
        if record.slow.iter().any(|(d, r)| d == device && r == reason) {
            return;
        }
        record.slow.push((device.into(), reason.into()));
        drop(record);
        tracing::warn!(device, reason, "capping is correct here, but could be faster");
    }

    /// Notes whether the norm behind a block runs with its caps. What it is about is said once in the log.
    pub(crate) fn norm_behind(&self, device: &str, block: usize, obstacle: Option<NormObstacle>) {
        let mut record = self.record();
        let Some(obstacle) = obstacle else {
            record.fused.insert(block);
            return;
        };
        let first_on_host = !record.unfused.iter().any(|&(_, known)| known == NormObstacle::NoGpu);
        if !record.unfused.insert((block, obstacle)) {
            return;
        }
        drop(record);
        match obstacle {
            NormObstacle::NoGpu if !first_on_host => {}
            NormObstacle::NoGpu => {
                tracing::warn!(device, "the fused norm has no effect here: blocks are capped on the host");
            }
            _ => tracing::info!(device, block, reason = %obstacle, "ggml does the norm behind this block"),
        }
    }

    fn begin(&self, rows: usize) -> Arc<Config> {
        let config = Arc::clone(&lock(&self.config));
        let mut record = self.record();
        record.seen.fill(None);
        record.claimed.fill(None);
        record.rows = rows;
        record.decoding = Some(Arc::clone(&config));
        config
    }

    fn end(&self) -> Option<HookError> {
        let mut record = self.record();
        record.decoding = None;
        record.error.take()
    }

    fn check_seen(&self, config: &Config, rows: usize, outputs: usize) -> Result<(), HookError> {
        if config.wanted(self.model.width).is_none() {
            return Ok(());
        }
        if !self.bound.load(Ordering::Acquire) {
            return Err(HookError::NotBound);
        }
        let last = self.model.blocks.wrapping_sub(1);
        let record = self.record();
        for (block, _) in config.wanted.iter().enumerate().filter(|(_, wanted)| **wanted) {
            let seen = match record.seen[block] {
                None => Seen::Never,
                Some(n) if n == rows || (block == last && n == outputs) => continue,
                Some(n) => Seen::Rows(n),
            };
            return Err(HookError::NotSeen { block, seen, rows, outputs });
        }
        Ok(())
    }
}

impl Record {
    fn forget_norms(&mut self) {
        self.fused.clear();
        self.unfused.clear();
    }
}

/// A panic while a lock was held left nothing half-changed here: every change is one assignment or one push.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use axiscap::{Axis, BlockCap, Cap, CapSet};

    use super::*;

    fn caps(count: usize) -> CapSet {
        let axis = Axis::from_direction(&[1.0, 2.0]).unwrap();
        CapSet::new((0..count).map(|_| BlockCap { block: 0, cap: Cap::new(axis.clone(), Bound::NONE) }))
            .unwrap()
    }

    #[test]
    fn figures_of_replaced_caps_are_not_those_of_the_new_ones() {
        let session = Session::new(ModelShape { architecture: "llama".into(), blocks: 1, width: 2 });
        session.set_tracing(true);
        session.set_caps(Some(&caps(2))).unwrap();
        let decode = |meanwhile: &dyn Fn()| {
            let decoded = session.watch(1, 1, || {
                let config = session.0.config();
                meanwhile();
                session.0.set_bound_to_backend();
                let order = session.0.saw(0, 1);
                let depth = config.caps_of(0).unwrap().indices.len();
                session.0.did(order, &config, 0, 1, vec![RowStat::default(); depth]);
                Ok::<_, ()>(())
            });
            decoded.unwrap().unwrap();
            let rows: Vec<_> = session.stats().iter().map(|stats| stats.rows).collect();
            (rows, session.take_trace().len())
        };
        assert_eq!(decode(&|| {}), (vec![1, 1], 1));
        for count in [2, 1] {
            let replaced = decode(&|| session.set_caps(Some(&caps(count))).unwrap());
            assert_eq!(replaced, (vec![0; count], 0));
        }
        assert_eq!(decode(&|| {}), (vec![1], 1));
        // Another bound of the same caps keeps what there is.
        assert_eq!(decode(&|| session.set_bound(0, Bound::floor(1.0).unwrap()).unwrap()), (vec![2], 1));
    }
}
