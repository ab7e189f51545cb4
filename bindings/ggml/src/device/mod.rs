//! Caps on the GPU that computes the graph, in stream order: no host waits between two nodes.
//!
//! ```text
//! backend's stream   [view 1] r0 ............ w1 [view 2] r2 ............ w3 [view 3]
//! our stream                   w0 [cap] r1                 w2 [cap] r3    [figures to host]
//! ```
//!
//! The graph runs in views that end at the capped block outputs. Behind each view the backend records an event (r)
//! that our stream waits for (w); our stream caps the rows and records one that the backend waits for before the
//! next view. The kernels write their figures to a buffer on the GPU, from where one copy per graph takes them to
//! page-locked memory; they are read when somebody asks.
//!
//! [`driver`] is what the plan is carried out with, [`check`] compares the first rows of each block with the CPU's.

mod check;
#[cfg(feature = "gpu")]
mod cuda;
mod driver;
#[cfg(test)]
mod recording;
mod slot;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use axiscap::RowStat;
use llama_cpp_sys_2 as sys;

pub(crate) use slot::{Slot, capping};

use crate::engine::{Compute, cap_computed, show_computed};
use crate::find::Output;
use crate::graph::Graph;
use crate::session::{Config, Inner};
use driver::{Driver, Launch, Result, Ticket};

/// How blocks are capped here, as reports say it.
pub(crate) const ON_DEVICE: &str = "the graph is cut at capped blocks, caps run on the GPU in stream order";

/// How many graphs' figures may be under way before the host waits for the oldest: a decode's logits are read, and
/// so its figures there, long before this many more graphs have been given to the GPU.
const MOST_PENDING: usize = 256;

/// One backend's GPU: what is there, and what is still to be read from there.
#[derive(Debug)]
pub(crate) struct DevicePath {
    /// ggml's name of the device.
    name: String,
    /// Gone once the backend is.
    driver: Option<Box<dyn Driver>>,
    /// What the tables on the GPU were made from.
    config: Option<Arc<Config>>,
    /// Blocks whose table is on the GPU.
    uploaded: HashSet<usize>,
    /// Blocks whose first capped rows were right.
    checked: HashSet<usize>,
    /// Whether the GPU holds an address of a buffer.
    places: HashMap<(usize, usize), bool>,
    pending: VecDeque<Pending>,
}

/// Figures of one graph.
#[derive(Debug)]
struct Pending {
    ticket: Ticket,
    config: Arc<Config>,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    order: u64,
    block: usize,
    rows: usize,
    /// Where its figures begin.
    first: usize,
}

/// Which figures to take in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Collect {
    /// Those that have arrived.
    Arrived,
    /// All, and wait for them.
    All,
}

/// A graph to compute with its caps.
pub(crate) struct Pass<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) outputs: &'a [Output],
    pub(crate) backend: sys::ggml_backend_t,
    pub(crate) staging: &'a mut Vec<f32>,
    pub(crate) config: &'a Arc<Config>,
    pub(crate) session: &'a Inner,
    pub(crate) compute: Compute<'a>,
}

/// What happens at one block output.
#[derive(Debug, Clone, Copy)]
struct Cut {
    output: Output,
    work: Work,
    shown: bool,
}

#[derive(Debug, Clone, Copy)]
enum Work {
    /// There are no rows, or no caps.
    Nothing,
    /// The rows are not in memory of our GPU.
    Host,
    Launch {
        hop: usize,
        launch: Launch,
        check: bool,
    },
}

impl Cut {
    /// Whether the graph has to be cut here.
    fn cuts(&self) -> bool {
        self.shown || !matches!(self.work, Work::Nothing)
    }
}

impl DevicePath {
    fn new(name: String, driver: Box<dyn Driver>) -> Self {
        Self {
            name,
            driver: Some(driver),
            config: None,
            uploaded: HashSet::new(),
            checked: HashSet::new(),
            places: HashMap::new(),
            pending: VecDeque::new(),
        }
    }

    /// Computes the graph with its caps.
    pub(crate) fn compute(&mut self, pass: Pass<'_>) -> sys::ggml_status {
        let session = pass.session;
        self.collect(session, Collect::Arrived);
        self.run(pass).unwrap_or_else(|error| {
            session.fail(error);
            sys::GGML_STATUS_FAILED
        })
    }

    fn run(&mut self, pass: Pass<'_>) -> Result<sys::ggml_status> {
        let Pass { graph, outputs, backend, staging, config, session, compute } = pass;
        self.follow(config)?;
        let (cuts, stats) = self.plan(outputs, config)?;
        let Some(driver) = self.driver.as_deref_mut() else { return Ok(compute(graph)) };

        let nodes = graph.nodes().len();
        let mut next = 0;
        let mut entries = Vec::new();
        for Cut { output, work, shown } in cuts.iter().filter(|cut| cut.cuts()) {
            let status = graph.with_view(next..output.node + 1, || compute(graph));
            if status != sys::GGML_STATUS_SUCCESS {
                return Ok(status);
            }
            next = output.node + 1;
            if *shown || matches!(work, Work::Host) {
                // SAFETY: the backend is computing this graph and waits for us.
                unsafe { sys::ggml_backend_synchronize(backend) };
            }
            match *work {
                Work::Host => {
                    session.used(&self.name, crate::hook::VIEWS, Some(ELSEWHERE));
                    if !cap_computed(*output, staging, config, session) {
                        return Ok(sys::GGML_STATUS_FAILED);
                    }
                    continue;
                }
                _ if *shown && !show_computed(*output, staging, config, session) => {
                    return Ok(sys::GGML_STATUS_FAILED);
                }
                Work::Nothing => {}
                Work::Launch { hop, launch, check } => {
                    session.used(&self.name, ON_DEVICE, None);
                    driver.record_on_backend(hop)?;
                    driver.wait_on_ours(hop)?;
                    match config.caps_of(output.block).filter(|_| check) {
                        // SAFETY: the rows are the block output's, in memory of the GPU; the backend has computed
                        // them when our stream gets there, and waits for our stream before it goes on.
                        Some(caps) => unsafe {
                            check::launch_checked(driver, &launch, &caps.table, &self.name)?;
                            self.checked.insert(output.block);
                        },
                        // SAFETY: as above.
                        None => unsafe { driver.launch(&launch)? },
                    }
                    driver.record_on_ours(hop)?;
                    driver.wait_on_backend(hop)?;
                }
            }
            let order = session.saw(output.block, output.rows());
            if let (true, Work::Launch { launch: Launch { block, rows, stats: Some(first), .. }, .. }) =
                (config.records(), *work)
            {
                entries.push(Entry { order, block, rows, first });
            }
        }
        // Where the scheduler splits a graph right behind a block output, nothing is left.
        if next < nodes {
            let status = graph.with_view(next..nodes, || compute(graph));
            if status != sys::GGML_STATUS_SUCCESS {
                return Ok(status);
            }
        }
        for cut in cuts.iter().filter(|cut| !cut.cuts()) {
            let rows = cut.output.rows();
            let order = session.saw(cut.output.block, rows);
            if let Some(caps) = config.caps_of(cut.output.block).filter(|_| config.records()) {
                session.did(order, caps, rows, Vec::new(), config.tracing);
            }
        }
        if !entries.is_empty() {
            let ticket = driver.fetch_stats(stats)?;
            self.pending.push_back(Pending { ticket, config: Arc::clone(config), entries });
        }
        Ok(sys::GGML_STATUS_SUCCESS)
    }

    /// Brings the tables on the GPU up to the configuration.
    fn follow(&mut self, config: &Arc<Config>) -> Result<()> {
        let Some(driver) = self.driver.as_deref_mut() else { return Ok(()) };
        let Some(old) = self.config.take().filter(|old| !Arc::ptr_eq(old, config)) else {
            self.config = Some(Arc::clone(config));
            return Ok(());
        };
        let mut kept = HashSet::new();
        for block in self.uploaded.drain() {
            let tables = (old.caps_of(block).map(|c| &c.table), config.caps_of(block).map(|c| &c.table));
            match tables {
                (Some(old), Some(new))
                    if old.axes() == new.axes() && old.profile_ends() == new.profile_ends() =>
                {
                    if old.params() != new.params() {
                        driver.update(block, new.params())?;
                    }
                    kept.insert(block);
                }
                _ => driver.forget(block),
            }
        }
        self.uploaded = kept;
        self.checked.retain(|block| self.uploaded.contains(block));
        self.config = Some(Arc::clone(config));
        Ok(())
    }

    /// What to do at each block output, and how many figures that makes. Uploads tables that are missing.
    fn plan(&mut self, outputs: &[Output], config: &Config) -> Result<(Vec<Cut>, usize)> {
        let Some(driver) = self.driver.as_deref_mut() else { return Ok((Vec::new(), 0)) };
        let (mut hops, mut stats) = (0, 0);
        let mut cuts = Vec::with_capacity(outputs.len());
        for &output in outputs {
            let rows = output.rows();
            let shown = rows > 0 && config.tap_of(output.block).is_some();
            let work = match config.caps_of(output.block) {
                Some(caps) if rows > 0 => {
                    let place = output.place();
                    let held = match self.places.get(&place) {
                        Some(&held) => held,
                        None => {
                            let held = driver.holds(place.0 as u64)?;
                            self.places.insert(place, held);
                            held
                        }
                    };
                    if held {
                        let check = !self.checked.contains(&output.block);
                        let first = (config.records() || check).then_some(stats);
                        stats += first.map_or(0, |_| rows * caps.indices.len());
                        if !self.uploaded.contains(&output.block) {
                            driver.upload(output.block, &caps.table)?;
                            self.uploaded.insert(output.block);
                        }
                        let launch = Launch {
                            block: output.block,
                            address: place.0 as u64,
                            rows,
                            stride: output.stride(),
                            stats: first,
                        };
                        hops += 1;
                        Work::Launch { hop: hops - 1, launch, check }
                    } else {
                        Work::Host
                    }
                }
                _ => Work::Nothing,
            };
            cuts.push(Cut { output, work, shown });
        }
        driver.reserve(hops, stats)?;
        Ok((cuts, stats))
    }

    /// Takes figures in.
    pub(crate) fn collect(&mut self, session: &Inner, which: Collect) {
        let Some(driver) = self.driver.as_deref_mut() else { return };
        while let Some(front) = self.pending.front() {
            let wait = which == Collect::All || self.pending.len() > MOST_PENDING;
            match driver.take_stats(front.ticket, wait) {
                Ok(None) => return,
                Ok(Some(stats)) => front.hand_over(&stats, session),
                Err(error) => session.fail(error),
            }
            self.pending.pop_front();
        }
    }

    /// Takes in the last figures and gives everything on the GPU back; the backend is about to go.
    pub(crate) fn close(&mut self, session: &Inner) {
        self.collect(session, Collect::All);
        self.driver = None;
    }
}

const ELSEWHERE: &str = "the block output is not in memory of the GPU that computes it";

impl Pending {
    fn hand_over(&self, stats: &[RowStat], session: &Inner) {
        for entry in &self.entries {
            if let Some(caps) = self.config.caps_of(entry.block) {
                let stats = &stats[entry.first..][..entry.rows * caps.indices.len()];
                session.did(entry.order, caps, entry.rows, stats.to_vec(), self.config.tracing);
            }
        }
    }
}
