//! The kernels of the image: their names, and the resources that they use at most.

use crate::op::{Dtype, Operation};

/// The way a kernel goes through the rows: kernels/direct.cuh, kernels/staged.cuh or kernels/general.cuh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KernelPath {
    /// Few rows of at most 8192 elements, loaded directly into registers.
    Direct,
    /// Many rows of at most 16384 elements. The next rows are copied to shared memory while one is worked on.
    Staged,
    /// Longer or unaligned rows, which are read again for each cap.
    General,
}

impl KernelPath {
    /// All paths.
    pub const ALL: [Self; 3] = [Self::Direct, Self::Staged, Self::General];

    /// The path's part of a kernel's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Staged => "staged",
            Self::General => "general",
        }
    }

    /// Returns the maximum number of threads of a block: `__launch_bounds__` in kernels/operation.cuh.
    #[must_use]
    pub fn max_threads(self) -> u32 {
        match self {
            Self::Direct => 512,
            Self::Staged | Self::General => 1024,
        }
    }

    /// Returns the maximum number of registers per thread. The compiled kernels are checked against it
    /// (tests/device-code.json).
    #[must_use]
    pub fn registers(self) -> u32 {
        match self {
            Self::Direct => 128,
            Self::Staged | Self::General => 64,
        }
    }

    /// Returns the maximum number of hardware barriers of a block, which is also the maximum number of groups
    /// of several warps in a staged block. The compiled kernels are checked against it
    /// (tests/device-code.json).
    #[must_use]
    pub fn barriers(self) -> u32 {
        match self {
            Self::Staged => 4,
            Self::Direct | Self::General => 1,
        }
    }
}

/// Returns the name of a kernel in the image.
pub(crate) fn kernel_name(operation: Operation, dtype: Dtype, path: KernelPath) -> String {
    format!("axiscap_{}_{}_{}", operation.name(), dtype.name(), path.name())
}
