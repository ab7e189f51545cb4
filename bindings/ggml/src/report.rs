//! Reports of a session: traces, routes, fused norms and captured graphs.

use std::fmt;
use std::ops::AddAssign;

use axiscap::RowStat;

use crate::profile::ProfileId;
use crate::route::choice::Route;

/// What the caps of one block did to every row in one graph.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockTrace {
    /// Number of the decode ([`Decoding::number`](crate::Decoding::number)). `None` for a decode through
    /// [`Session::watch`](crate::Session::watch).
    pub decode: Option<u64>,
    /// The block.
    pub block: usize,
    /// Its rows, in the order of computation.
    pub rows: Vec<RowTrace>,
}

/// What the caps of one block did to one row.
#[derive(Debug, Clone, PartialEq)]
pub struct RowTrace {
    /// Index of the row in its batch. `None` for a decode through
    /// [`Session::watch`](crate::Session::watch).
    pub batch_row: Option<usize>,
    /// The profile of the row. `None` for a row without one.
    pub profile: Option<ProfileId>,
    /// Whether the policy of the profile left the row alone. Its projections were measured.
    pub skipped: bool,
    /// The profile's caps of the block in order of application, as indices in its
    /// [`CapSet`](axiscap::CapSet).
    pub caps: Vec<(usize, RowStat)>,
}

impl BlockTrace {
    /// Returns the statistics of all rows, one after the other.
    pub fn stats(&self) -> impl Iterator<Item = &RowStat> {
        self.rows.iter().flat_map(|row| row.caps.iter().map(|(_, stat)| stat))
    }
}

/// A route that graphs of a session took on one device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RouteUse {
    /// ggml's name of the device.
    pub device: String,
    /// The route.
    pub route: Route,
}

impl fmt::Display for RouteUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.device, self.route)
    }
}

/// Norms after capped blocks since the fused norm was switched on or the caps were set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FusedNorms {
    /// Blocks whose caps and following norm ran as one launch, ascending.
    pub fused: Vec<usize>,
    /// Blocks whose following norm was left to ggml, ascending, with the reason. A block can be in both
    /// lists, because graphs differ.
    pub refused: Vec<(usize, NotFusedReason)>,
}

/// Reason why the norm after a capped block was left to ggml. The caps of the block are not affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NotFusedReason(pub(crate) NotFused);

impl fmt::Display for NotFusedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Cases of [`NotFusedReason`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum NotFused {
    /// The block is capped on the host.
    NoGpu,
    /// A compute hook caps the block.
    Custom,
    /// The backend's graph ends before the norm. Another device computes the next block.
    GraphEnds,
    /// The node after the block output is not its RMS_NORM.
    NoNorm,
    /// The node after the RMS_NORM does not multiply it by a weight.
    NoWeight,
    /// Another node reads the RMS_NORM too, or it is an output of the graph.
    ReadElsewhere,
    /// The use counts of this build of ggml were not found.
    UsesUnknown,
    /// One of the two nodes lies in the memory of another tensor.
    View,
    /// One of the two nodes is not marked to be computed.
    NotComputed,
    /// One of the two nodes is a capped or tapped block output itself.
    BlockOutput,
    /// The rows of the two nodes are not f32 rows of the block output's shape.
    Shape,
    /// The weight is not one contiguous f32 per channel.
    Weight,
    /// The epsilon is negative or not finite.
    Epsilon,
    /// The normed rows overlap the block output or the weight. ggml puts them there after the last block,
    /// because only the norm reads that block output.
    Overlap,
    /// The weight or the normed rows are not in memory of the GPU that caps the block.
    OtherMemory,
}

impl fmt::Display for NotFused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoGpu => "the block is not capped on a GPU",
            Self::Custom => "a compute hook caps the block",
            Self::GraphEnds => "the next block is computed elsewhere",
            Self::NoNorm => "the next node is not an RMS_NORM of the block output",
            Self::NoWeight => "the RMS_NORM is not multiplied by a weight next",
            Self::ReadElsewhere => "something else reads the RMS_NORM too",
            Self::UsesUnknown => "this build of ggml does not say who reads the RMS_NORM",
            Self::View => "the norm is computed in the memory of another tensor",
            Self::NotComputed => "the norm is not marked to be computed",
            Self::BlockOutput => "the norm is a block output itself",
            Self::Shape => "the norm is not f32 of the block output's shape",
            Self::Weight => "the norm's weight is not one f32 per channel",
            Self::Epsilon => "the norm's epsilon is negative or not finite",
            Self::Overlap => "ggml writes the norm over the block output",
            Self::OtherMemory => "the norm's weight or result is not in memory of the same GPU",
        })
    }
}

/// Numbers of graphs of a session that were captured, replayed or run eagerly on GPUs under
/// [`RouteChoice::OneGraph`](crate::RouteChoice::OneGraph).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GraphCounts {
    /// Graphs captured.
    pub captures: u64,
    /// Captures that reused the executable graph of an older one by an update.
    pub updates: u64,
    /// Launches of executable graphs, the first one after the capture included.
    pub replays: u64,
    /// Graphs run view by view.
    pub eager: u64,
    /// Times that all executable graphs were discarded, because memory they use was about to be freed.
    pub resets: u64,
}

impl AddAssign for GraphCounts {
    fn add_assign(&mut self, other: Self) {
        self.captures += other.captures;
        self.updates += other.updates;
        self.replays += other.replays;
        self.eager += other.eager;
        self.resets += other.resets;
    }
}
