//! Whether caps took the norm behind their block along, and why not.

use std::fmt;

/// Why the norm behind a capped block stays with ggml, under
/// [`Session::set_fused_norm`](crate::Session::set_fused_norm). The block's caps run as they do without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum NormObstacle {
    /// The block is capped on the host.
    NoGpu,
    /// The block is capped by ggml's own operations, to be compared with.
    StockOperations,
    /// The backend's graph ends before it: another device computes the next block.
    GraphEnds,
    /// The node behind the block output is not its RMS_NORM.
    NoNorm,
    /// The node behind the RMS_NORM does not multiply it by a weight.
    NoWeight,
    /// Something else reads the RMS_NORM too, or it is an output of the graph.
    ReadElsewhere,
    /// The use counts of this build of ggml were not found.
    UsesUnknown,
    /// One of the two nodes lies in the memory of another.
    View,
    /// One of the two nodes is not marked to be computed.
    NotComputed,
    /// One of the two nodes is a capped or observed block output itself.
    BlockOutput,
    /// The rows of the two nodes are not f32 rows of the block output's shape.
    Shape,
    /// The weight is not one contiguous f32 per channel.
    Weight,
    /// The epsilon is not a number that a norm can have.
    Epsilon,
    /// The normed rows lie where block output or weight do. ggml puts them there where nothing but the norm reads
    /// the block output: behind the last block.
    Overlap,
    /// Weight or normed rows are not in memory of the GPU that caps the block.
    OtherMemory,
}

impl fmt::Display for NormObstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoGpu => "the block is not capped on a GPU",
            Self::StockOperations => "the block is capped by ggml's own operations",
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

/// What became of the norms behind capped blocks since they were asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FusedNorms {
    /// Blocks whose caps did the norm behind them in one launch, ascending.
    pub fused: Vec<usize>,
    /// Blocks behind which ggml's norm ran, and why, ascending. A block can be in both lists: graphs differ.
    pub refused: Vec<(usize, NormObstacle)>,
}
