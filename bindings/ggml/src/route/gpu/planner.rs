//! Plans of graphs: tables on the GPU that match the configuration, and the action at each block output.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use axiscap::Dtype;
use axiscap::op::{DeviceJob, DeviceRows};

use super::driver::{Driver, Kernel, Launch, Result};
use super::fused_norm::{FollowingNorm, match_rms_norm};
use crate::by_uid::ByUid;
use crate::config::Config;
use crate::graph::find::Output;
use crate::host::Tensor;
use crate::profile::BlockCaps;
use crate::report::NotFused;
use crate::route::{Cut, GraphCall};

/// The actions at the block outputs of a graph.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) outputs: Vec<PlannedOutput>,
    /// Event pairs that the launches use.
    pub(super) pairs: usize,
    /// Statistics that the launches write.
    pub(super) stats: usize,
    /// Whether each row has its own profile.
    indexed: bool,
}

// SAFETY: it points to tensors of a graph, and is kept while that graph may come again. The tensors are only
// read by the thread that holds the route and has just found them to be the block outputs of the graph at
// hand. Of a norm's tensors only what was read when the plan was made is used.
unsafe impl Send for Plan {}
// SAFETY: a plan is immutable, so shared access is as safe as sending it.
unsafe impl Sync for Plan {}

/// The action at one block output.
#[derive(Debug)]
pub(super) struct PlannedOutput {
    /// Index of the block output in its graph.
    pub(super) index: usize,
    pub(super) output: Output,
    /// Whether a tap sees the rows first.
    pub(super) shown: bool,
    pub(super) action: CutAction,
    /// The norm after the block, if it is included in the launch.
    norm: Option<FollowingNorm>,
}

/// What happens to the rows of a block output.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all block outputs are launches")]
pub(super) enum CutAction {
    /// There are no rows, or no caps.
    Nothing,
    /// The host caps, because of [`ELSEWHERE`].
    Host,
    /// The GPU caps.
    Launch {
        pair: usize,
        launch: Launch,
        /// The kernel, while its first rows are still to be compared with the CPU's.
        unproven: Option<Kernel>,
    },
}

/// Why the host caps a block output that the GPU's backend computed.
pub(super) const ELSEWHERE: &str = "the block output is not in memory of the GPU that computes it";

impl Plan {
    /// Whether every launch has passed its first-use check. The plan can then be reused.
    fn is_proven(&self) -> bool {
        let unproven =
            |planned: &PlannedOutput| matches!(planned.action, CutAction::Launch { unproven: Some(_), .. });
        !self.outputs.iter().any(unproven)
    }

    /// The launches, with the indices of their block outputs.
    pub(super) fn launches(&self) -> impl Iterator<Item = (usize, &Launch)> {
        self.outputs.iter().filter_map(|planned| match &planned.action {
            CutAction::Launch { launch, .. } => Some((planned.index, launch)),
            _ => None,
        })
    }
}

impl PlannedOutput {
    /// Where the graph has to be cut for this block output, if it has to.
    pub(super) fn cut(&self) -> Option<Cut> {
        if !self.shown && matches!(self.action, CutAction::Nothing) {
            return None;
        }
        let cut = Cut::after(&self.output);
        Some(self.norm.map_or(cut, |norm| Cut { next: norm.last + 1, ..cut }))
    }
}

/// Discards captured graphs, because memory that they use is about to be freed.
pub(super) type Discard<'a> = &'a mut dyn FnMut(&mut dyn Driver, &'static str);

/// Makes plans, and keeps the tables on the GPU up to date.
#[derive(Debug, Default)]
pub(super) struct Planner {
    /// The configuration that tables and prepared plans were made from.
    config: Option<Arc<Config>>,
    /// Blocks whose table is on the GPU.
    uploaded: HashSet<usize>,
    /// Launches whose first rows were right.
    proven: HashSet<Proof>,
    residency: ResidencyCache,
    /// Plans for `config`.
    prepared: ByUid<Prepared>,
    /// Statistics that the buffer on the GPU has space for. It moves when it grows.
    stats_capacity: usize,
    /// As `stats_capacity`, for profiles of rows.
    profiles_capacity: usize,
}

/// A kind of launch that is compared with the CPU once: block, fused norm, profiles of rows, kernel.
type Proof = (usize, bool, bool, Kernel);

fn proof(launch: &Launch, kernel: Kernel) -> Proof {
    (launch.block, launch.job.norm.is_some(), launch.profiles.is_some(), kernel)
}

/// A plan, and the block outputs that it was made for.
#[derive(Debug)]
struct Prepared {
    outputs: Vec<OutputRows>,
    plan: Arc<Plan>,
}

/// A block output and its rows.
#[derive(Debug, Clone, Copy, PartialEq)]
struct OutputRows {
    node: usize,
    block: usize,
    /// Address of the tensor.
    tensor: usize,
    place: (usize, usize),
    rows: usize,
    stride: usize,
}

impl OutputRows {
    fn of(output: &Output) -> Self {
        Self {
            node: output.node,
            block: output.block,
            tensor: output.tensor.raw() as usize,
            place: place_of(output.tensor),
            rows: output.rows(),
            stride: output.stride(),
        }
    }
}

/// Returns the address of a tensor's elements, and that of its buffer.
fn place_of(tensor: Tensor) -> (usize, usize) {
    (tensor.data(), tensor.owning_buffer() as usize)
}

/// Whether tensors are in memory of the GPU, asked once per address and buffer.
#[derive(Debug, Default)]
struct ResidencyCache(HashMap<(usize, usize), bool>);

impl ResidencyCache {
    /// Whether the GPU holds a tensor.
    fn holds(&mut self, driver: &mut dyn Driver, tensor: Tensor) -> Result<bool> {
        let place = place_of(tensor);
        if let Some(&held) = self.0.get(&place) {
            return Ok(held);
        }
        let held = driver.holds(tensor.data() as u64)?;
        self.0.insert(place, held);
        Ok(held)
    }

    /// Whether the GPU holds a norm's weight and rows.
    fn holds_norm(&mut self, driver: &mut dyn Driver, norm: &FollowingNorm) -> Result<bool> {
        Ok(self.holds(driver, norm.weight)? && self.holds(driver, norm.normed)?)
    }
}

/// Returns the rows of a block output or of the norm after it.
fn device_rows(tensor: Tensor) -> DeviceRows {
    DeviceRows {
        dtype: Dtype::F32,
        address: tensor.data() as u64,
        count: tensor.ne()[1] as usize,
        stride: tensor.nb()[1] / size_of::<f32>(),
    }
}

impl Planner {
    /// Brings the tables on the GPU up to the configuration.
    pub(super) fn follow(
        &mut self,
        driver: &mut dyn Driver,
        config: &Arc<Config>,
        discard: Discard<'_>,
    ) -> Result<()> {
        let old = self.config.take();
        let Some(old) = old.filter(|old| !Arc::ptr_eq(old, config)) else {
            self.config = Some(Arc::clone(config));
            return Ok(());
        };
        self.prepared.clear();
        if let Err(error) = self.update_tables(driver, &old, config, discard) {
            // The update failed half way. Drop every table, and before that the captured graphs that hold
            // their addresses.
            discard(driver, "the tables could not be updated to the caps");
            self.proven.clear();
            self.uploaded.drain().for_each(|block| driver.forget(block));
            return Err(error);
        }
        self.config = Some(Arc::clone(config));
        Ok(())
    }

    /// Updates the tables that differ in bounds and strengths alone, and drops those that differ in more.
    fn update_tables(
        &mut self,
        driver: &mut dyn Driver,
        old: &Config,
        config: &Config,
        discard: Discard<'_>,
    ) -> Result<()> {
        let mut uploaded: Vec<_> = self.uploaded.iter().copied().collect();
        uploaded.sort_unstable();
        for block in uploaded {
            match [old, config].map(|config| config.caps_of(block).map(|caps| &caps.table)) {
                [Some(old), Some(new)]
                    if old.axes() == new.axes() && old.profile_ends() == new.profile_ends() =>
                {
                    if old.params() != new.params() {
                        driver.update(block, new.params())?;
                    }
                }
                _ => {
                    discard(driver, "the caps were replaced");
                    self.uploaded.remove(&block);
                    driver.forget(block);
                }
            }
        }
        self.proven.retain(|(block, ..)| self.uploaded.contains(block));
        Ok(())
    }

    /// Returns how many profiles of rows the buffer on the GPU has space for. It moves when that changes.
    pub(super) fn profiles_capacity(&self) -> usize {
        self.profiles_capacity
    }

    /// Notes that the first rows of a launch were right.
    pub(super) fn proven(&mut self, launch: &Launch, kernel: Kernel) {
        self.proven.insert(proof(launch, kernel));
    }

    /// Returns the plan of a graph, and appends the blocks with their norms to `norms` if it is a new plan.
    ///
    /// While a graph keeps its uid, and its block outputs are the same rows at the same places, the plan is
    /// that of the last token. The caller has found the block outputs by their names before.
    pub(super) fn plan(
        &mut self,
        driver: &mut dyn Driver,
        call: &GraphCall<'_>,
        discard: Discard<'_>,
        norms: &mut Vec<(usize, Option<NotFused>)>,
    ) -> Result<Arc<Plan>> {
        let uid = call.graph.uid();
        let outputs = || call.outputs.iter().map(OutputRows::of);
        if let Some(known) = self.prepared.get(uid)
            && known.plan.indexed == call.profiles.each().is_some()
            && known.outputs.iter().copied().eq(outputs())
        {
            return Ok(Arc::clone(&known.plan));
        }
        let plan = Arc::new(self.new_plan(driver, call, discard, norms)?);
        if plan.is_proven() {
            let prepared = Prepared { outputs: outputs().collect(), plan: Arc::clone(&plan) };
            self.prepared.insert(uid, prepared);
        }
        Ok(plan)
    }

    /// Makes a plan. Uploads tables that are missing.
    fn new_plan(
        &mut self,
        driver: &mut dyn Driver,
        call: &GraphCall<'_>,
        discard: Discard<'_>,
        norms: &mut Vec<(usize, Option<NotFused>)>,
    ) -> Result<Plan> {
        let indexed = call.profiles.each().is_some();
        let mut plan = Plan { outputs: Vec::with_capacity(call.outputs.len()), pairs: 0, stats: 0, indexed };
        for (index, &output) in call.outputs.iter().enumerate() {
            let rows = output.rows();
            let shown = rows > 0 && call.config.tap_of(output.block).is_some();
            let mut planned = PlannedOutput { index, output, shown, action: CutAction::Nothing, norm: None };
            if let Some(caps) = call.caps_of(&output).filter(|_| rows > 0) {
                let held = self.residency.holds(driver, output.tensor)?;
                if call.config.settings.fused_norm {
                    let norm = self.norm(driver, call, index, held)?;
                    norms.push((output.block, norm.err()));
                    planned.norm = norm.ok();
                }
                planned.action = if held {
                    self.launch(driver, call, &planned, caps, &mut plan)?
                } else {
                    CutAction::Host
                };
            }
            plan.outputs.push(planned);
        }
        if plan.stats > self.stats_capacity {
            discard(driver, "the buffer of statistics must grow");
            self.stats_capacity = plan.stats;
        }
        let profiles = call.profiles.each().map_or(0, |each| each.words().count());
        if profiles > self.profiles_capacity {
            discard(driver, "the buffer of row profiles must grow");
            self.profiles_capacity = profiles;
        }
        // A capture uses two more pairs: one inside it and one around its replays.
        driver.reserve(plan.pairs + 2, plan.stats, profiles)?;
        Ok(plan)
    }

    /// Returns the norm after a block output, if its launch can include it.
    fn norm(
        &mut self,
        driver: &mut dyn Driver,
        call: &GraphCall<'_>,
        index: usize,
        held: bool,
    ) -> Result<std::result::Result<FollowingNorm, NotFused>> {
        let next = call.outputs.get(index + 1).map(|output| output.node);
        Ok(match match_rms_norm(call.graph, &call.outputs[index], next) {
            _ if !held => Err(NotFused::NoGpu),
            Ok(norm) if !self.residency.holds_norm(driver, &norm)? => Err(NotFused::OtherMemory),
            found => found,
        })
    }

    /// Plans the launch for a block output, whose rows are in memory of the GPU.
    fn launch(
        &mut self,
        driver: &mut dyn Driver,
        call: &GraphCall<'_>,
        planned: &PlannedOutput,
        caps: &BlockCaps,
        plan: &mut Plan,
    ) -> Result<CutAction> {
        let output = &planned.output;
        if self.uploaded.insert(output.block)
            && let Err(error) = driver.upload(output.block, &caps.table)
        {
            self.uploaded.remove(&output.block);
            return Err(error);
        }
        let job = DeviceJob::cap(device_rows(output.tensor));
        let job = planned
            .norm
            .map_or(job, |norm| job.norm(norm.weight.data() as u64, norm.epsilon, device_rows(norm.normed)));
        let each = call.profiles.each().and_then(|each| each.of(output.rows()));
        let profiles = each.map(|(first, _)| first);
        let mut launch = Launch { block: output.block, job, profiles, stats: None };
        // A prompt does not prove a decode, whose few rows run another kernel.
        let kernel = driver.kernel(&launch)?;
        let proven = self.proven.contains(&proof(&launch, kernel));
        if call.config.records() || !proven {
            launch.stats = Some(plan.stats);
            plan.stats += launch.rows() * caps.depth();
        }
        let pair = plan.pairs;
        plan.pairs += 1;
        Ok(CutAction::Launch { pair, launch, unproven: (!proven).then_some(kernel) })
    }
}
