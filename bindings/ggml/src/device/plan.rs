//! What a graph needs of the GPU: tables brought up to the configuration, and what to do at each block output.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::driver::{Driver, Kernel, Launch, LaunchNorm, Result};
use super::norm::{Behind, behind};
use super::obstacle::{Obstacle, passing};
use super::outer::Facts;
use super::{DevicePath, ELSEWHERE, NormObstacle, Pass, closed};
use crate::find::{Output, place_of};
use crate::graph::Graph;
use crate::session::Config;

/// Graphs with more rows are not captured: they keep the GPU busy for longer than it takes to launch them one by one,
/// and would take the places of those that do not.
const MOST_CAPTURED_ROWS: usize = 128;
const MANY_ROWS: Obstacle = passing("it has so many rows that launching it is no matter");

/// What a pass does at its block outputs.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) cuts: Vec<Cut>,
    /// Pairs of events needed.
    pub(super) hops: usize,
    /// Figures that the launches write.
    pub(super) stats: usize,
}

// SAFETY: it points to tensors of a graph, and is kept while that graph may come again. They are only read by whoever
// holds the path and has just found them to be the block outputs of the graph at hand; of a norm's tensors only what was
// read when the plan was made is used.
unsafe impl Send for Plan {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for Plan {}

/// What happens at one block output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    pub(super) output: Output,
    pub(super) work: Work,
    /// A tap sees the rows first.
    pub(super) shown: bool,
    /// The norm behind the block, if it was to be done with the caps.
    pub(super) norm: Option<std::result::Result<Behind, NormObstacle>>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Work {
    /// There are no rows, or no caps.
    Nothing,
    /// The rows are not in memory of our GPU.
    Host,
    Launch {
        hop: usize,
        launch: Launch,
        /// The kernel, where its first rows are still to be compared with the CPU's.
        check: Option<Kernel>,
    },
}

impl Plan {
    /// Whether nothing is left to be compared with the CPU's, so that the next time is like this one.
    fn is_settled(&self) -> bool {
        !self.cuts.iter().any(|cut| matches!(cut.work, Work::Launch { check: Some(_), .. }))
    }

    /// Whether there are launches, and nothing for which the host waits.
    pub(super) fn runs_by_itself(&self) -> bool {
        let by_itself = |cut: &Cut| match cut.work {
            Work::Nothing => true,
            Work::Host => false,
            Work::Launch { check, .. } => check.is_none(),
        };
        self.hops > 0 && self.cuts.iter().all(|cut| !cut.shown && by_itself(cut))
    }
}

/// A plan that holds for as long as the graph is the same.
#[derive(Debug)]
pub(super) struct Prepared {
    rows: Vec<Rows>,
    plan: Arc<Plan>,
    facts: Option<Facts>,
}

/// A block output, and where its rows lie.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rows {
    node: usize,
    block: usize,
    /// The address of the tensor.
    tensor: usize,
    place: (usize, usize),
    rows: usize,
    stride: usize,
}

impl Rows {
    fn of(output: &Output) -> Self {
        Self {
            node: output.node,
            block: output.block,
            tensor: output.tensor as usize,
            place: output.place(),
            rows: output.rows(),
            stride: output.stride(),
        }
    }
}

impl Cut {
    /// Whether the graph has to be cut here.
    pub(super) fn cuts(&self) -> bool {
        self.shown || !matches!(self.work, Work::Nothing)
    }

    /// The first node of the graph that the cut leaves to ggml.
    pub(super) fn next(&self) -> usize {
        match self.norm {
            Some(Ok(behind)) => behind.last + 1,
            _ => self.output.node + 1,
        }
    }
}

/// Whether addresses are in memory of the GPU, asked once for each place.
#[derive(Debug, Default)]
pub(super) struct Places(HashMap<(usize, usize), bool>);

impl Places {
    /// Whether the GPU holds an address of a buffer.
    fn hold(&mut self, driver: &mut dyn Driver, place: (usize, usize)) -> Result<bool> {
        if let Some(&held) = self.0.get(&place) {
            return Ok(held);
        }
        let held = driver.holds(place.0 as u64)?;
        self.0.insert(place, held);
        Ok(held)
    }

    /// Whether it holds a norm's weight and rows.
    fn hold_norm(&mut self, driver: &mut dyn Driver, norm: &Behind) -> Result<bool> {
        // SAFETY: tensors of the graph being computed.
        let [weight, normed] = [norm.weight, norm.normed].map(|tensor| unsafe { place_of(tensor) });
        Ok(self.hold(driver, weight)? && self.hold(driver, normed)?)
    }
}

impl Behind {
    fn launch(&self) -> LaunchNorm {
        // SAFETY: tensors of the graph being computed.
        let (weight, normed) = unsafe { (&*self.weight, &*self.normed) };
        LaunchNorm {
            weight: weight.data as u64,
            eps: self.eps.to_bits(),
            out: normed.data as u64,
            stride: normed.nb[1] / size_of::<f32>(),
        }
    }
}

impl DevicePath {
    /// Brings the tables on the GPU up to the configuration.
    pub(super) fn follow(&mut self, config: &Arc<Config>) -> Result<()> {
        let Some(old) = self.config.take().filter(|old| !Arc::ptr_eq(old, config)) else {
            self.config = Some(Arc::clone(config));
            return Ok(());
        };
        self.norms.clear();
        self.prepared.clear();
        let uploaded: Vec<_> = self.uploaded.iter().copied().collect();
        if let Err(error) = self.bring_up(&old, config) {
            // Some tables may be gone and others not: nothing that is there is good for anything, least of all graphs
            // with the addresses of the tables in them.
            self.throw_graphs_away("the tables could not be brought up to the caps");
            self.uploaded.clear();
            self.checked.clear();
            if let Some(driver) = self.driver.as_deref_mut() {
                uploaded.into_iter().for_each(|block| driver.forget(block));
            }
            return Err(error);
        }
        self.config = Some(Arc::clone(config));
        Ok(())
    }

    /// Updates the tables that only differ in bounds and strengths, and forgets those that differ in more.
    fn bring_up(&mut self, old: &Config, config: &Config) -> Result<()> {
        let mut uploaded: Vec<_> = self.uploaded.iter().copied().collect();
        uploaded.sort_unstable();
        for block in uploaded {
            let tables = (old.caps_of(block).map(|c| &c.table), config.caps_of(block).map(|c| &c.table));
            match tables {
                (Some(old), Some(new))
                    if old.axes() == new.axes() && old.profile_ends() == new.profile_ends() =>
                {
                    if old.params() != new.params()
                        && let Some(driver) = self.driver.as_deref_mut()
                    {
                        driver.update(block, new.params())?;
                    }
                }
                _ => {
                    self.throw_graphs_away("the caps were replaced");
                    self.uploaded.remove(&block);
                    if let Some(driver) = self.driver.as_deref_mut() {
                        driver.forget(block);
                    }
                }
            }
        }
        self.checked.retain(|(block, ..)| self.uploaded.contains(block));
        Ok(())
    }

    /// Something that the captured graphs use is about to go away.
    fn throw_graphs_away(&mut self, reason: &'static str) {
        if let (true, Some(driver)) = (self.outer.reset(reason), self.driver.as_deref_mut()) {
            driver.discard_graphs();
        }
    }

    /// What to do at each block output of a graph, and, where it may be captured as a whole, what is known of it.
    ///
    /// While a graph keeps its uid, and its block outputs are the same rows at the same places, this is what it was for
    /// the last token. The block outputs are found by their names every time, before anything comes here.
    pub(super) fn prepare(&mut self, pass: &Pass<'_>) -> Result<(Arc<Plan>, Option<Facts>)> {
        let uid = pass.graph.uid();
        let known = self
            .prepared
            .get(uid)
            .filter(|known| known.rows.iter().copied().eq(pass.outputs.iter().map(Rows::of)));
        if let Some(Prepared { plan, facts, .. }) =
            known.filter(|known| known.facts.is_some() == pass.one_graph)
        {
            return Ok((Arc::clone(plan), *facts));
        }
        let plan = Arc::new(self.plan(pass.graph, pass.outputs, pass.config)?);
        self.tell_norms(&plan, pass.session);
        let facts = pass.one_graph.then(|| self.facts(pass.graph, &plan));
        if plan.is_settled() {
            let rows = pass.outputs.iter().map(Rows::of).collect();
            self.prepared.insert(uid, Prepared { rows, plan: Arc::clone(&plan), facts });
        }
        Ok((plan, facts))
    }

    /// What to do at each block output. Uploads tables that are missing.
    fn plan(&mut self, graph: &Graph, outputs: &[Output], config: &Config) -> Result<Plan> {
        let driver = self.driver.as_deref_mut().ok_or_else(|| closed(&self.name))?;
        let places = &mut self.places;
        let (mut hops, mut stats) = (0, 0);
        let mut cuts = Vec::with_capacity(outputs.len());
        for (i, &output) in outputs.iter().enumerate() {
            let rows = output.rows();
            let shown = rows > 0 && config.tap_of(output.block).is_some();
            let caps = config.caps_of(output.block).filter(|_| rows > 0);
            let (mut work, mut norm) = (Work::Nothing, None);
            if let Some(caps) = caps {
                let place = output.place();
                let held = places.hold(driver, place)?;
                if config.fused_norm {
                    let next = outputs.get(i + 1).map(|output| output.node);
                    norm = Some(match behind(graph, &output, next) {
                        _ if !held => Err(NormObstacle::NoGpu),
                        Ok(behind) if !places.hold_norm(driver, &behind)? => Err(NormObstacle::OtherMemory),
                        found => found,
                    });
                }
                work = Work::Host;
                if held {
                    let norm = norm.and_then(|norm| norm.ok()).map(|behind| behind.launch());
                    if !self.uploaded.contains(&output.block) {
                        driver.upload(output.block, &caps.table)?;
                        self.uploaded.insert(output.block);
                    }
                    let mut launch = Launch {
                        block: output.block,
                        address: place.0 as u64,
                        rows,
                        stride: output.stride(),
                        stats: None,
                        norm,
                    };
                    // A prompt proves nothing about a decode, whose few rows run another kernel.
                    let kernel = driver.kernel(&launch)?;
                    let proven = self.checked.contains(&(output.block, norm.is_some(), kernel));
                    let check = (!proven).then_some(kernel);
                    if config.records() || check.is_some() {
                        launch.stats = Some(stats);
                        stats += rows * caps.indices.len();
                    }
                    work = Work::Launch { hop: hops, launch, check };
                    hops += 1;
                }
            }
            cuts.push(Cut { output, work, shown, norm });
        }
        if stats > self.room {
            if self.outer.reset("the figures need more room") {
                driver.discard_graphs();
            }
            self.room = stats;
        }
        // Two hops more for a capture: one inside it, one around its replays.
        driver.reserve(hops + 2, stats)?;
        Ok(Plan { cuts, hops, stats })
    }

    fn facts(&mut self, graph: &Graph, plan: &Plan) -> Facts {
        let mut digest = DefaultHasher::new();
        let mut obstacle = None;
        for cut in plan.cuts.iter().filter(|cut| cut.cuts()) {
            match cut.work {
                _ if cut.shown => obstacle = Some(passing("a tap waits for the rows")),
                Work::Host => obstacle = Some(passing(ELSEWHERE)),
                Work::Launch { check: Some(_), .. } => {
                    obstacle = Some(passing("the first rows are compared with the CPU's"))
                }
                Work::Launch { launch, .. } if launch.rows > MOST_CAPTURED_ROWS => obstacle = Some(MANY_ROWS),
                Work::Launch { launch, .. } => (cut.output.node, launch).hash(&mut digest),
                Work::Nothing => {}
            }
        }
        let obstacle = obstacle.or_else(|| self.obstacles.of(graph));
        let unknown = obstacle.is_some() || self.outer.broken().is_some();
        let content = if unknown { None } else { self.contents.of(graph) };
        Facts { content, launches: digest.finish(), obstacle }
    }
}
