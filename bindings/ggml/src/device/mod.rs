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
//! On request, [`outer`] has all of this captured as one graph per token, which is then launched as a whole whenever
//! the same graph comes again; [`content`] says what the same is.
//!
//! Where the norm behind a block is asked for and fits ([`norm`]), the launch between two views does that as well, and
//! the next view begins behind it.
//!
//! [`driver`] is what the plan is carried out with, [`check`] compares the first rows of each block with the CPU's.

mod check;
mod content;
mod counts;
#[cfg(feature = "gpu")]
mod cuda;
mod driver;
mod fusion;
#[cfg(test)]
mod host_work;
mod norm;
#[cfg(test)]
mod norm_difference;
#[cfg(test)]
mod norm_tests;
mod obstacle;
mod outer;
mod plan;
#[cfg(test)]
mod recording;
mod slot;
#[cfg(test)]
pub(crate) mod tests;
mod timeline;
#[cfg(test)]
mod timeline_tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use axiscap::{CapTable, RowStat};
use llama_cpp_sys_2 as sys;

pub use counts::GraphCounts;
pub use fusion::{FusedNorms, NormObstacle};
pub(crate) use slot::{Slot, capping};
pub use timeline::{BlockTiming, GraphTimeline};

use crate::by_uid::ByUid;
use crate::engine::{Compute, cap_computed, show_computed};
use crate::error::HookError;
use crate::find::Output;
use crate::graph::Graph;
use crate::session::{Config, Inner};
use content::Contents;
use driver::{Attempt, Driver, Kernel, Launch, Result, Ticket};
use obstacle::Obstacles;
use outer::{Action, Outer};
use plan::{Cut, Places, Plan, Prepared, Work};
use timeline::{Clock, Side};

/// How blocks are capped here, as reports say it.
pub(crate) const ON_DEVICE: &str = "the graph is cut at capped blocks, caps run on the GPU in stream order";

/// The same, where it is one graph.
const ONE_GRAPH: &str = "the graph and its caps are captured as one and replayed on the GPU";

/// How blocks are capped where a launch does the norm behind the block too.
const WITH_NORM: &str =
    "the graph is cut at capped blocks, caps and the norm behind them run as one on the GPU";

/// How many graphs' figures may be under way before the host waits for the oldest: a decode's logits are read, and
/// so its figures there, long before this many more graphs have been given to the GPU.
const MOST_PENDING: usize = 256;

/// Read by whoever captures. A backend must not go meanwhile: it takes its cuBLAS handle along, which a capture on
/// another thread does not survive. ggml has a lock of its own for its own captures, and does not know of ours.
static CAPTURING: RwLock<()> = RwLock::new(());

/// Waits until nothing is being captured, and has captures wait until the guard goes.
pub(crate) fn between_captures() -> RwLockWriteGuard<'static, ()> {
    CAPTURING.write().unwrap_or_else(PoisonError::into_inner)
}

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
    /// Blocks whose first capped rows were right, without and with the norm behind them, and by which kernel.
    checked: HashSet<(usize, bool, Kernel)>,
    places: Places,
    /// By block, what the session was last told of the norm behind it.
    norms: HashMap<usize, Option<NormObstacle>>,
    pending: VecDeque<Pending>,
    outer: Outer,
    obstacles: Obstacles,
    contents: Contents,
    /// Plans for `config`.
    prepared: ByUid<Prepared>,
    clock: Clock,
    /// The most figures of a graph so far: their buffer moves when it grows.
    room: usize,
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
    /// Whether graphs may be captured as a whole.
    pub(crate) one_graph: bool,
}

/// How the views of a graph ended.
enum Ran {
    Fine(Vec<Entry>),
    /// ggml or the work of a block failed, with this status.
    Failed(sys::ggml_status),
}

impl DevicePath {
    fn new(name: String, driver: Box<dyn Driver>) -> Self {
        Self {
            name,
            driver: Some(driver),
            config: None,
            uploaded: HashSet::new(),
            checked: HashSet::new(),
            places: Places::default(),
            norms: HashMap::new(),
            pending: VecDeque::new(),
            outer: Outer::new(),
            obstacles: Obstacles::default(),
            contents: Contents::default(),
            prepared: ByUid::default(),
            clock: Clock::default(),
            room: 0,
        }
    }

    /// Computes the graph with its caps.
    pub(crate) fn compute(&mut self, pass: Pass<'_>) -> sys::ggml_status {
        let session = pass.session;
        let status = self.run(pass).unwrap_or_else(|error| {
            self.clock.abandon();
            session.fail(error);
            sys::GGML_STATUS_FAILED
        });
        // While the GPU is at work: those of the graphs before.
        self.collect(session, Collect::Arrived);
        status
    }

    fn run(&mut self, mut pass: Pass<'_>) -> Result<sys::ggml_status> {
        #[cfg(test)]
        recording::note_graph(pass.graph.uid(), || Contents::default().of(pass.graph));
        self.follow(pass.config)?;
        let (plan, facts) = self.prepare(&pass)?;
        let mut action = if let Some(facts) = facts {
            if let Some(lasting) = facts.obstacle.filter(|obstacle| obstacle.lasting) {
                pass.session
                    .slow(&self.name, &format!("its graphs are not captured as one: {}", lasting.reason));
            }
            self.outer.begin(&facts)
        } else {
            Action::Eager
        };
        let ran = loop {
            action = match action {
                Action::Eager => {
                    self.begin_times(&pass, &plan, false)?;
                    break self.run_views(&mut pass, &plan, true)?;
                }
                Action::BeginCapture => {
                    let captured = self.capture(&mut pass, &plan);
                    self.outer.ended(captured)
                }
                Action::Instantiate(slot) => {
                    let made = self.driver()?.instantiate(slot);
                    self.outer.made(made)
                }
                Action::Update(slot) => {
                    let made = self.driver()?.update_graph(slot);
                    self.outer.made(made)
                }
                Action::Replay(slot) => {
                    self.begin_times(&pass, &plan, true)?;
                    self.replay(slot, plan.hops + 1)?;
                    pass.session.used(&self.name, ONE_GRAPH, None);
                    let notes = plan.cuts.iter().filter(|cut| cut.cuts());
                    break Ran::Fine(notes.filter_map(|cut| note(cut, &pass)).collect());
                }
            };
        };
        let entries = match ran {
            Ran::Fine(entries) => entries,
            Ran::Failed(status) => {
                self.clock.abandon();
                return Ok(status);
            }
        };
        self.end_times()?;
        for cut in plan.cuts.iter().filter(|cut| !cut.cuts()) {
            note(cut, &pass);
        }
        if !entries.is_empty() {
            let ticket = self.driver()?.fetch_stats(plan.stats)?;
            self.pending.push_back(Pending { ticket, config: Arc::clone(pass.config), entries });
        }
        Ok(sys::GGML_STATUS_SUCCESS)
    }

    /// Tells the session what becomes of the norms behind capped blocks, where that is news.
    fn tell_norms(&mut self, plan: &Plan, session: &Inner) {
        for cut in &plan.cuts {
            let Some(norm) = cut.norm else { continue };
            let obstacle = norm.err();
            if self.norms.insert(cut.output.block, obstacle) != Some(obstacle) {
                session.norm_behind(&self.name, cut.output.block, obstacle);
            }
        }
    }

    /// Begins to take the times of a graph, where they are asked for and no host waits within it.
    fn begin_times(&mut self, pass: &Pass<'_>, plan: &Plan, replayed: bool) -> Result<()> {
        if !pass.config.timeline || !plan.runs_by_itself() {
            return Ok(());
        }
        let driver = self.driver.as_deref_mut().ok_or_else(|| closed(&self.name))?;
        self.clock.begin(driver, &self.name, if replayed { 0 } else { plan.hops }, replayed)
    }

    fn end_times(&mut self) -> Result<()> {
        let driver = self.driver.as_deref_mut().ok_or_else(|| closed(&self.name))?;
        self.clock.end(driver)
    }

    /// The graphs that were timed since the last call.
    pub(crate) fn take_times(&mut self) -> Result<Vec<GraphTimeline>> {
        match self.driver.as_deref_mut() {
            Some(driver) => self.clock.take(driver, &self.name),
            None => Ok(Vec::new()),
        }
    }

    /// How graphs were run so far.
    pub(crate) fn counts(&self) -> GraphCounts {
        self.outer.counters()
    }

    /// Gives the GPU the views and the caps between them.
    fn run_views(&mut self, pass: &mut Pass<'_>, plan: &Plan, noted: bool) -> Result<Ran> {
        let nodes = pass.graph.nodes().len();
        let mut next = 0;
        let mut entries = Vec::new();
        for cut in plan.cuts.iter().filter(|cut| cut.cuts()) {
            let output = cut.output;
            let status = pass.graph.with_view(next..output.node + 1, || (pass.compute)(pass.graph));
            if status != sys::GGML_STATUS_SUCCESS {
                return Ok(Ran::Failed(status));
            }
            next = cut.next();
            if cut.shown || matches!(cut.work, Work::Host) {
                // SAFETY: the backend is computing this graph and waits for us.
                unsafe { sys::ggml_backend_synchronize(pass.backend) };
            }
            match cut.work {
                Work::Host => {
                    pass.session.used(&self.name, crate::hook::VIEWS, Some(ELSEWHERE));
                    if !cap_computed(output, pass.staging, pass.config, pass.session) {
                        return Ok(Ran::Failed(sys::GGML_STATUS_FAILED));
                    }
                    continue;
                }
                _ if cut.shown && !show_computed(output, pass.staging, pass.config, pass.session) => {
                    return Ok(Ran::Failed(sys::GGML_STATUS_FAILED));
                }
                Work::Nothing => {}
                Work::Launch { hop, launch, check } => {
                    let caps = pass.config.caps_of(output.block);
                    let check = check.and_then(|kernel| Some((&caps?.table, kernel)));
                    self.cap(hop, &launch, check)?;
                    let how = if launch.norm.is_some() { WITH_NORM } else { ON_DEVICE };
                    pass.session.used(&self.name, how, None);
                }
            }
            if noted {
                entries.extend(note(cut, pass));
            }
        }
        // Where the scheduler splits a graph right behind a block output, nothing is left.
        if next < nodes {
            let status = pass.graph.with_view(next..nodes, || (pass.compute)(pass.graph));
            if status != sys::GGML_STATUS_SUCCESS {
                return Ok(Ran::Failed(status));
            }
        }
        Ok(Ran::Fine(entries))
    }

    /// Caps rows between two views; with table and kernel, comparing the result with the CPU's.
    fn cap(&mut self, hop: usize, launch: &Launch, check: Option<(&CapTable, Kernel)>) -> Result<()> {
        let driver = self.driver.as_deref_mut().ok_or_else(|| closed(&self.name))?;
        let clock = &mut self.clock;
        clock.stamp(driver, Side::Backend)?;
        driver.record_on_backend(hop)?;
        driver.wait_on_ours(hop)?;
        clock.stamp(driver, Side::Ours)?;
        match check {
            // SAFETY: the rows are the block output's, in memory of the GPU; the backend has computed them when our
            // stream gets there, and waits for our stream before it goes on. Weight and rows of a norm were looked
            // at when the launch was planned.
            Some((table, kernel)) => unsafe {
                check::launch_checked(driver, launch, table, &self.name)?;
                self.checked.insert((launch.block, launch.norm.is_some(), kernel));
            },
            // SAFETY: as above.
            None => unsafe { driver.launch(launch)? },
        }
        clock.stamp(driver, Side::Ours)?;
        driver.record_on_ours(hop)?;
        driver.wait_on_backend(hop)?;
        clock.stamp(driver, Side::Backend)?;
        clock.launched(launch.block, launch.rows);
        Ok(())
    }

    /// Captures what `run_views` gives the GPU. Nothing of it runs; an error is the reason why it cannot be
    /// captured.
    fn capture(&mut self, pass: &mut Pass<'_>, plan: &Plan) -> Attempt {
        let text = |error: HookError| error.to_string();
        let _nothing_goes = CAPTURING.read().unwrap_or_else(PoisonError::into_inner);
        self.driver().map_err(text)?.begin_capture()?;
        // The backend's stream joins the capture, and is joined back at its end.
        let join = plan.hops;
        let ran = catch_unwind(AssertUnwindSafe(|| {
            let driver = self.driver()?;
            driver.record_on_ours(join)?;
            driver.wait_on_backend(join)?;
            let ran = self.run_views(pass, plan, false)?;
            let driver = self.driver()?;
            driver.record_on_backend(join)?;
            driver.wait_on_ours(join)?;
            Ok(ran)
        }));
        // Whatever happened: left in a capture, both streams refuse all that they are asked, and ggml aborts.
        let ended = self.driver().map_err(text).and_then(|driver| driver.end_capture());
        let ran = ran.unwrap_or_else(|panic| {
            self.outer.ended(Err("axiscap panicked while it captured".into()));
            resume_unwind(panic)
        });
        ended?;
        match ran.map_err(text)? {
            Ran::Fine(_) => Ok(()),
            Ran::Failed(status) => Err(format!("ggml could not compute into a capture (status {status})")),
        }
    }

    /// Launches a captured graph in the place of the backend's own work.
    fn replay(&mut self, slot: usize, hop: usize) -> Result<()> {
        let driver = self.driver()?;
        driver.record_on_backend(hop)?;
        driver.wait_on_ours(hop)?;
        // SAFETY: nodes, launches and addresses are those of the capture, and what goes away of ours resets `outer`
        // first.
        unsafe { driver.replay(slot)? };
        driver.record_on_ours(hop)?;
        driver.wait_on_backend(hop)
    }

    fn driver(&mut self) -> Result<&mut dyn Driver> {
        match &mut self.driver {
            Some(driver) => Ok(driver.as_mut()),
            None => Err(closed(&self.name)),
        }
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
        let GraphCounts { captures, updates, replays, eager, resets } = self.outer.counters();
        let (device, reason) = (&self.name, self.outer.broken());
        tracing::debug!(device, captures, updates, replays, eager, resets, reason, "graphs of this context");
        self.driver = None;
    }
}

const ELSEWHERE: &str = "the block output is not in memory of the GPU that computes it";

fn closed(device: &str) -> HookError {
    HookError::Device { device: device.into(), what: "its backend is gone".into() }
}

/// Tells the session that a block output was computed; returns where its figures will be.
fn note(cut: &Cut, pass: &Pass<'_>) -> Option<Entry> {
    let (block, rows) = (cut.output.block, cut.output.rows());
    let order = pass.session.saw(block, rows);
    if !pass.config.records() {
        return None;
    }
    match cut.work {
        Work::Launch { launch, .. } => launch.stats.map(|first| Entry { order, block, rows, first }),
        _ => {
            pass.session.did(order, pass.config, block, rows, Vec::new());
            None
        }
    }
}

impl Pending {
    fn hand_over(&self, stats: &[RowStat], session: &Inner) {
        for entry in &self.entries {
            if let Some(caps) = self.config.caps_of(entry.block) {
                let stats = &stats[entry.first..][..entry.rows * caps.indices.len()];
                session.did(entry.order, &self.config, entry.block, entry.rows, stats.to_vec());
            }
        }
    }
}
