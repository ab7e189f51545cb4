//! The route on ggml's CUDA backend: views that end at the block outputs, with caps on the GPU between them,
//! in stream order. The host does not wait between two nodes.
//!
//! ```text
//! backend's stream   [view 1] r ............ w [view 2] r ............ w [view 3]
//! cap stream                   w [cap] r                 w [cap] r    [statistics to host]
//! ```
//!
//! After each view the backend records an event (r) that the cap stream waits for (w). The cap stream caps
//! the rows and records an event that the backend waits for before the next view. The kernels write their
//! statistics to a buffer on the GPU. One copy per graph takes them to page-locked memory, from where they
//! are read by a later graph or on request.
//!
//! [`planner`] decides what happens at each block output, [`first_use`] compares the first rows of each
//! kernel with the CPU's, [`fused_norm`] finds norms that a launch can include, and [`capture`] replays whole
//! graphs on request.

mod backend_gpu;
mod capture;
#[cfg(feature = "gpu")]
mod cuda;
mod driver;
mod first_use;
mod fused_norm;
mod planner;
#[cfg(all(test, feature = "linked"))]
pub(crate) mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use axiscap::RowStat;

pub(crate) use backend_gpu::{BackendGpu, CudaDrivers};
pub(crate) use capture::between_captures;
pub(crate) use driver::DriverFactory;

use super::host::{cap_computed, show_computed};
use super::{BlockDone, GraphCall, Outcome, Result, Route, compute_in_views};
use crate::config::Config;
use crate::error::HookError;
use crate::profile::RowProfiles;
use crate::record::{Arrived, BlockStats, Order, PendingStats};
use crate::report::GraphCounts;
use capture::Capturer;
use driver::{Driver, Launch, Ticket};
use first_use::launch_checked;
use planner::{CutAction, ELSEWHERE, Plan, PlannedOutput, Planner};

/// Graphs whose statistics may be on the way before the host waits for the oldest.
const MAX_PENDING: usize = 256;

/// The GPU of one backend.
#[derive(Debug)]
pub(crate) struct GpuRoute {
    /// ggml's name of the device.
    device: String,
    /// `None` once the backend is about to be freed.
    driver: Option<Box<dyn Driver>>,
    planner: Planner,
    capturer: Capturer,
    pending: VecDeque<Pending>,
    /// Profiles of rows that the driver was given last. Empty if they are unknown.
    row_profiles: Vec<u32>,
}

/// Statistics of one graph that are on the way to the host.
#[derive(Debug)]
struct Pending {
    ticket: Ticket,
    config: Arc<Config>,
    /// Number of the graph.
    graph: u64,
    profiles: RowProfiles,
    plan: Arc<Plan>,
}

impl GpuRoute {
    pub(crate) fn new(device: String, driver: Box<dyn Driver>) -> Self {
        Self {
            device,
            driver: Some(driver),
            planner: Planner::default(),
            capturer: Capturer::default(),
            pending: VecDeque::new(),
            row_profiles: Vec::new(),
        }
    }

    /// Computes the graph with its caps. With `capture` it may be captured and replayed as a whole.
    pub(crate) fn compute(&mut self, call: &mut GraphCall<'_>, capture: bool) -> Outcome {
        let mut outcome = Outcome::of(|outcome| self.run(call, capture, outcome));
        // The GPU is at work on this graph in the meantime.
        outcome.arrived = self.collect(false);
        outcome
    }

    fn run(&mut self, call: &mut GraphCall<'_>, capture: bool, outcome: &mut Outcome) -> Result {
        let Self { device, driver, planner, capturer, pending, row_profiles } = self;
        let driver = driver.as_deref_mut().ok_or_else(|| closed(device))?;
        let mut discard = |driver: &mut dyn Driver, reason| capturer.discard(driver, reason);
        planner.follow(driver, call.config, &mut discard)?;
        let capacity = planner.profiles_capacity();
        let plan = planner.plan(driver, call, &mut discard, &mut outcome.norms)?;
        if planner.profiles_capacity() != capacity {
            row_profiles.clear();
        }
        if let Some(micro_batch) = call.profiles.each()
            && plan.launches().next().is_some()
            && !micro_batch.words().eq(row_profiles.iter().copied())
        {
            // Tokens of a batch that decodes on have the profiles of the last ones, and need no copy.
            row_profiles.clear();
            let words: Vec<_> = micro_batch.words().collect();
            driver.write_profiles(&words)?;
            *row_profiles = words;
        }
        let mut views = |call: &mut GraphCall<'_>, driver: &mut dyn Driver, outcome: &mut Outcome| {
            run_views(device, planner, &plan, call, driver, outcome)
        };
        if capture {
            capturer.run(call, driver, &plan, outcome, &mut views)?;
        } else {
            views(call, driver, outcome)?;
        }
        outcome.blocks.extend(plan.outputs.iter().filter_map(PlannedOutput::done));
        if call.config.records() && plan.launches().next().is_some() {
            let ticket = driver.fetch_stats(plan.stats)?;
            let (config, profiles) = (Arc::clone(call.config), call.profiles.clone());
            pending.push_back(Pending { ticket, config, graph: call.number, profiles, plan });
        }
        Ok(())
    }

    /// Takes the statistics that have arrived. With `wait` it waits for all of them.
    fn collect(&mut self, wait: bool) -> Arrived {
        let mut arrived = Arrived::default();
        let Some(driver) = self.driver.as_deref_mut() else { return arrived };
        while let Some(front) = self.pending.front() {
            match driver.take_stats(front.ticket, wait || self.pending.len() > MAX_PENDING) {
                Ok(None) => break,
                Ok(Some(stats)) if stats.iter().any(RowStat::bad_profile) => {
                    let what = "a row went uncapped, because its profile is not on the GPU".into();
                    let error = HookError::Device { device: self.device.clone(), what };
                    arrived.error.get_or_insert(error);
                }
                Ok(Some(stats)) => arrived.stats.extend(front.blocks(&stats)),
                Err(error) => drop(arrived.error.get_or_insert(error)),
            }
            self.pending.pop_front();
        }
        arrived
    }

    /// Frees everything on the GPU, and returns the last statistics. The backend is about to be freed.
    pub(crate) fn close(&mut self) -> Arrived {
        let mut arrived = self.collect(true);
        if let Some(mut driver) = self.driver.take()
            && let Err(error) = driver.finish()
        {
            arrived.error.get_or_insert(error);
        }
        self.capturer.log(&self.device);
        arrived
    }
}

impl PendingStats for GpuRoute {
    fn wait_for_stats(&mut self) -> Arrived {
        self.collect(true)
    }

    fn arrived_stats(&mut self) -> Arrived {
        self.collect(false)
    }

    fn graph_counts(&self) -> GraphCounts {
        self.capturer.counts()
    }
}

impl Pending {
    fn blocks(&self, stats: &[RowStat]) -> Vec<BlockStats> {
        let block = |(output, launch): (usize, &Launch)| {
            let caps = self.config.caps_of(launch.block)?;
            let stats = &stats[launch.stats?..][..launch.rows() * caps.depth()];
            Some(BlockStats {
                profiles: self.profiles.clone(),
                order: Order { graph: self.graph, output },
                config: Arc::clone(&self.config),
                block: launch.block,
                rows: launch.rows(),
                stats: stats.to_vec(),
            })
        };
        self.plan.launches().filter_map(block).collect()
    }
}

impl PlannedOutput {
    /// The block output once its graph was computed. `None` for one that the host capped, which was noted
    /// then.
    fn done(&self) -> Option<BlockDone> {
        let done = BlockDone::without_stats(self.index, &self.output);
        match self.action {
            CutAction::Nothing => Some(done),
            CutAction::Host => None,
            CutAction::Launch { .. } => Some(BlockDone { stats: None, ..done }),
        }
    }
}

/// Runs views and launches in turn.
fn run_views(
    device: &str,
    planner: &mut Planner,
    plan: &Plan,
    call: &mut GraphCall<'_>,
    driver: &mut dyn Driver,
    outcome: &mut Outcome,
) -> Result {
    let cuts = plan.outputs.iter().filter_map(|planned| Some((planned.cut()?, planned)));
    compute_in_views(call, cuts, |call, planned| {
        let PlannedOutput { index, output, shown, .. } = *planned;
        if let CutAction::Host = planned.action {
            outcome.took(Route::HostViews);
            outcome.slow.push(ELSEWHERE.into());
            call.synchronize();
            outcome.blocks.push(cap_computed(call, index, output)?);
            return Ok(());
        }
        if shown {
            call.synchronize();
            show_computed(call, index, output)?;
        }
        if let CutAction::Launch { pair, launch, unproven } = &planned.action {
            driver.hand_to_cap_stream(*pair)?;
            let check = unproven.and_then(|kernel| Some((kernel, &call.config.caps_of(launch.block)?.table)));
            let profiles = call.profiles.each().and_then(|each| each.of(launch.rows()));
            let profiles = profiles.map(|(_, profiles)| profiles);
            // SAFETY: the rows are the block output's, in memory of the GPU. The backend has computed them
            // when the cap stream gets there, and waits for the cap stream before it continues. The planner
            // checked the weight and the rows of a norm.
            unsafe {
                match check {
                    Some((_, table)) => launch_checked(driver, launch, table, profiles, device)?,
                    None => driver.launch(launch)?,
                }
            }
            if let Some((kernel, _)) = check {
                planner.proven(launch, kernel);
            }
            driver.hand_to_backend(*pair)?;
            let fused = launch.job.norm.is_some();
            outcome.took(if fused { Route::GpuViewsFusedNorm } else { Route::GpuViews });
        }
        Ok(())
    })
}

fn closed(device: &str) -> HookError {
    HookError::Device { device: device.into(), what: "its backend is gone".into() }
}
