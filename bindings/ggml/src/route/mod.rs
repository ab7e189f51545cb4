//! Routes: the ways to compute a graph with its caps.
//!
//! A route gets a [`GraphCall`] and returns an [`Outcome`]. It knows neither the session nor the other
//! routes.

mod block_work;
pub(crate) mod choice;
mod custom;
// Without the feature nothing opens a GPU.
#[cfg_attr(not(feature = "gpu"), allow(dead_code))]
pub(crate) mod gpu;
pub(crate) mod host;
pub(crate) mod inserted;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use axiscap::RowStat;

pub use choice::{Route, RouteChoice};
pub(crate) use custom::compute as compute_custom;
pub use custom::{BlockOutput, ComputeHook, OwnedGraph};

use crate::config::Config;
use crate::error::HookError;
use crate::graph::find::Output;
use crate::host::{Backend, Graph, OwnGraphs, SUCCESS, Status, api};
use crate::profile::{BlockCaps, RowProfiles};
use crate::record::Arrived;
use crate::report::NotFused;

/// The backend's own `graph_compute`.
pub(crate) type Compute<'a> = &'a dyn Fn(&Graph) -> Status;

/// A graph to compute with its caps.
pub struct GraphCall<'a> {
    pub(crate) graph: &'a Graph,
    /// The capped and tapped block outputs in the order of their nodes.
    pub(crate) outputs: &'a [Output],
    pub(crate) backend: Backend,
    /// ggml's name of the device.
    pub(crate) device: &'a str,
    /// Number of the graph, from [`Record::next_graph`](crate::record::Record::next_graph).
    pub(crate) number: u64,
    /// Width of the residual stream.
    pub(crate) width: usize,
    pub(crate) config: &'a Arc<Config>,
    /// The profiles of the rows.
    pub(crate) profiles: &'a RowProfiles,
    /// Host memory for rows that the host cannot reach.
    pub(crate) staging: &'a mut Vec<f32>,
    pub(crate) compute: Compute<'a>,
    pub(crate) own_graphs: OwnGraphs,
    /// Whether the views are being captured.
    pub(crate) capturing: bool,
}

impl fmt::Debug for GraphCall<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GraphCall").field("outputs", &self.outputs).finish_non_exhaustive()
    }
}

/// Why a graph was not computed.
#[doc(hidden)]
#[derive(Debug)]
pub enum ComputeError {
    /// ggml returned this `ggml_status`.
    Graph(i32),
    /// The hook failed.
    Hook(HookError),
}

impl From<HookError> for ComputeError {
    fn from(error: HookError) -> Self {
        Self::Hook(error)
    }
}

impl From<axiscap::Error> for ComputeError {
    fn from(error: axiscap::Error) -> Self {
        Self::Hook(error.into())
    }
}

pub(crate) type Result<T = ()> = std::result::Result<T, ComputeError>;

/// What happened while a route computed a graph.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) ended: Result,
    /// The routes taken. Blocks of one graph may take several.
    pub(crate) routes: Vec<Route>,
    /// The block outputs computed. Empty if the graph failed.
    pub(crate) blocks: Vec<BlockDone>,
    /// Capped blocks whose following norm was to be fused, and why it was not.
    pub(crate) norms: Vec<(usize, Option<NotFused>)>,
    /// Reasons why a faster route was not possible.
    pub(crate) slow: Vec<Cow<'static, str>>,
    /// Statistics of earlier graphs.
    pub(crate) arrived: Arrived,
}

/// A block output that was computed.
#[derive(Debug)]
pub(crate) struct BlockDone {
    /// Its index in [`GraphCall::outputs`].
    pub(crate) output: usize,
    pub(crate) block: usize,
    pub(crate) rows: usize,
    /// `[rows][`[`BlockCaps::depth`]`]`, or `None` while they are on a GPU.
    pub(crate) stats: Option<Vec<RowStat>>,
}

impl Outcome {
    /// Returns the outcome of `run`, which notes what happens.
    pub(crate) fn of(run: impl FnOnce(&mut Self) -> Result) -> Self {
        let mut outcome = Self {
            ended: Ok(()),
            routes: Vec::new(),
            blocks: Vec::new(),
            norms: Vec::new(),
            slow: Vec::new(),
            arrived: Arrived::default(),
        };
        outcome.ended = run(&mut outcome);
        if outcome.ended.is_err() {
            outcome.blocks.clear();
        }
        outcome
    }

    /// Notes a route of the graph.
    pub(crate) fn took(&mut self, route: Route) {
        if !self.routes.contains(&route) {
            self.routes.push(route);
        }
    }

    /// Notes that the norms after capped blocks are left to ggml, if they were to be fused.
    pub(crate) fn leave_norms(&mut self, call: &GraphCall<'_>, reason: NotFused) {
        if call.config.settings.fused_norm {
            let capped = call.outputs.iter().filter(|output| output.rows() > 0 && call.is_capped(output));
            self.norms.extend(capped.map(|output| (output.block, Some(reason))));
        }
    }
}

impl BlockDone {
    /// A block output without rows to cap.
    pub(crate) fn without_stats(output: usize, of: &Output) -> Self {
        Self { output, block: of.block, rows: of.rows(), stats: Some(Vec::new()) }
    }
}

/// Where a graph is cut into views.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    /// One past the last node of the view that ends here.
    pub(crate) end: usize,
    /// First node of the next view. Nodes in between are left out.
    pub(crate) next: usize,
}

impl Cut {
    /// A cut right after a block output.
    pub(crate) fn after(output: &Output) -> Self {
        Self { end: output.node + 1, next: output.node + 1 }
    }
}

impl<'a> GraphCall<'a> {
    /// Returns the caps of a block output. `None` if no row has a profile.
    pub(crate) fn caps_of(&self, output: &Output) -> Option<&'a BlockCaps> {
        self.config.caps_of(output.block).filter(|_| *self.profiles != RowProfiles::None)
    }

    /// Whether a block output has caps.
    pub(crate) fn is_capped(&self, output: &Output) -> bool {
        self.caps_of(output).is_some()
    }

    /// Computes the whole graph.
    pub(crate) fn compute_graph(&self) -> Result {
        check((self.compute)(self.graph))
    }

    fn compute_view(&self, nodes: Range<usize>) -> Result {
        let compute = || (self.compute)(self.graph);
        check(if self.capturing && self.own_graphs == OwnGraphs::NoneOfNewGraphs {
            // SAFETY: this value stands for a version of ggml whose tensors end with padding.
            unsafe { self.graph.with_new_view(nodes, compute) }
        } else {
            self.graph.with_view(nodes, compute)
        })
    }

    /// Waits until the backend is idle.
    pub(crate) fn synchronize(&self) {
        // SAFETY: the backend is alive. It is computing this graph, and its `graph_compute` waits for this
        // call.
        unsafe { (api().ggml_backend_synchronize)(self.backend) };
    }
}

pub(crate) fn check(status: Status) -> Result {
    if status == SUCCESS { Ok(()) } else { Err(ComputeError::Graph(status)) }
}

/// Computes a graph in views that end at the cuts, and calls `at_cut` after each of them.
///
/// The end of a view guarantees that its last node is in memory, because ggml fuses nodes only within a
/// graph.
pub(crate) fn compute_in_views<T>(
    call: &mut GraphCall<'_>,
    cuts: impl IntoIterator<Item = (Cut, T)>,
    mut at_cut: impl FnMut(&mut GraphCall<'_>, T) -> Result,
) -> Result {
    let nodes = call.graph.nodes().len();
    let mut next = 0;
    for (cut, at) in cuts {
        call.compute_view(next..cut.end)?;
        next = cut.next;
        at_cut(call, at)?;
    }
    // Where the scheduler splits a graph right after a block output, no node is left, and backends expect
    // some.
    if next < nodes { call.compute_view(next..nodes) } else { Ok(()) }
}

/// Computes the graph as it is. Only block outputs without rows count as seen.
pub(crate) fn compute_untouched(call: &GraphCall<'_>) -> Outcome {
    Outcome::of(|outcome| {
        call.compute_graph()?;
        let without_rows = call.outputs.iter().enumerate().filter(|(_, output)| output.rows() == 0);
        outcome.blocks.extend(without_rows.map(|(i, output)| BlockDone::without_stats(i, output)));
        Ok(())
    })
}
