//! The kernels of the image: their names, and the resources that they use at most.

use crate::op::{Dtype, Operation};

/// The way a kernel goes through the rows: the file of this name in kernels/.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KernelPath {
    /// Very few rows of 8192 elements, with at most one cap each. A cluster of eight blocks per row.
    Cluster,
    /// Rows of whole segments, at most 8192 elements, with at most one cap each: few of them, or any number of
    /// long ones without a norm that are f32 or summed. A block per row.
    Single,
    /// Few rows of at most 8192 elements, loaded directly into registers.
    Direct,
    /// Many rows of at most 8192 elements with the same caps, eight at most, in place. The axes stay in shared
    /// memory, and two rows are capped at a time.
    Pairs,
    /// Many rows of at most 16384 elements. The next rows are copied to shared memory while one is worked on.
    Staged,
    /// Longer or unaligned rows, which are read again for each cap.
    General,
}

impl KernelPath {
    /// All paths.
    pub const ALL: [Self; 6] =
        [Self::Cluster, Self::Single, Self::Direct, Self::Pairs, Self::Staged, Self::General];

    /// Whether the image has kernels of this path for an operation.
    #[must_use]
    pub fn has(self, operation: Operation) -> bool {
        self != Self::Pairs || operation == Operation::Cap
    }

    /// The path's part of a kernel's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Single => "single",
            Self::Direct => "direct",
            Self::Pairs => "pairs",
            Self::Staged => "staged",
            Self::General => "general",
        }
    }

    /// Returns the maximum number of threads of a block: `__launch_bounds__` in kernels/operation.cuh.
    #[must_use]
    pub fn max_threads(self) -> u32 {
        match self {
            Self::Cluster | Self::Single | Self::Direct | Self::Pairs => 512,
            Self::Staged | Self::General => 1024,
        }
    }

    /// Returns the maximum number of registers per thread. The compiled kernels are checked against it
    /// (tests/device-code.json).
    #[must_use]
    pub fn registers(self) -> u32 {
        match self {
            Self::Cluster | Self::Single | Self::Direct | Self::Pairs => 128,
            Self::Staged | Self::General => 64,
        }
    }

    /// Returns the maximum number of hardware barriers of a block, which is also the maximum number of groups
    /// of several warps in a staged block, and of groups in a block of pairs. The compiled kernels are checked
    /// against it (tests/device-code.json).
    #[must_use]
    pub fn barriers(self) -> u32 {
        match self {
            Self::Pairs | Self::Staged => 4,
            Self::Cluster | Self::Single | Self::Direct | Self::General => 1,
        }
    }

    /// Returns the number of blocks of a cluster, which work on one row together: `AXISCAP_CLUSTER_KERNEL` in
    /// kernels/operation.cuh. 1 for paths without clusters.
    #[must_use]
    pub fn cluster(self) -> u32 {
        if self == Self::Cluster { 8 } else { 1 }
    }

    /// Whether blocks may use all shared memory that the device has.
    pub(crate) fn shares_much(self) -> bool {
        matches!(self, Self::Pairs | Self::Staged)
    }
}

/// Returns the name of a kernel in the image.
pub(crate) fn kernel_name(operation: Operation, dtype: Dtype, path: KernelPath) -> String {
    format!("axiscap_{}_{}_{}", operation.name(), dtype.name(), path.name())
}
