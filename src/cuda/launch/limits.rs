//! The limits of a GPU that decide on launch shapes.

use crate::cuda::launch::kernel::KernelPath;

/// Limits of a GPU, as its driver reports them. Barriers, which it does not report, are those of the
/// architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Threads that can be resident on one multiprocessor.
    pub threads_per_multiprocessor: u32,
    /// Blocks that can be resident on one multiprocessor.
    pub blocks_per_multiprocessor: u32,
    /// Registers of one multiprocessor.
    pub registers_per_multiprocessor: u32,
    /// Shared memory of one multiprocessor in bytes.
    pub shared_per_multiprocessor: u32,
    /// Maximum shared memory that a block may opt in to, in bytes.
    pub shared_per_block: u32,
    /// Shared memory that the system reserves per block, in bytes.
    pub shared_reserved: u32,
    /// Hardware barriers of one multiprocessor: see [`Limits::barriers_of`].
    pub barriers_per_multiprocessor: u32,
    /// Whether blocks can form clusters, in the GPU and in the code that it runs.
    pub clusters: bool,
}

impl Limits {
    /// The limits of an H100 (SXM) or H200, for tests.
    pub const HOPPER: Self = Self {
        multiprocessors: 132,
        threads_per_multiprocessor: 2048,
        blocks_per_multiprocessor: 32,
        registers_per_multiprocessor: 65536,
        shared_per_multiprocessor: 233_472,
        shared_per_block: 232_448,
        shared_reserved: 1024,
        barriers_per_multiprocessor: 64,
        clusters: true,
    };

    /// The limits of an RTX 4090, which has little shared memory, for tests.
    pub const ADA: Self = Self {
        multiprocessors: 128,
        threads_per_multiprocessor: 1536,
        blocks_per_multiprocessor: 24,
        registers_per_multiprocessor: 65536,
        shared_per_multiprocessor: 102_400,
        shared_per_block: 101_376,
        shared_reserved: 1024,
        barriers_per_multiprocessor: 24,
        clusters: false,
    };

    /// Returns the barriers of a multiprocessor of capability `arch`, e.g. 90, on which `blocks` blocks can
    /// be resident.
    ///
    /// The driver does not report them. CUDA's `cuda_occupancy.h` counts two per resident block on the large
    /// chips and one on the others. Unknown architectures get one.
    #[must_use]
    pub fn barriers_of(arch: u32, blocks: u32) -> u32 {
        let per_block = if matches!(arch, 80 | 90 | 100 | 103) { 2 } else { 1 };
        blocks * per_block
    }

    /// Returns how many blocks of a path's kernels can be resident on a multiprocessor.
    pub(super) fn blocks(&self, path: KernelPath, threads: u32, shared: u32) -> u32 {
        let by_threads = self.threads_per_multiprocessor / threads;
        let by_registers = self.registers_per_multiprocessor / (path.registers() * threads);
        let by_shared = self.shared_per_multiprocessor / (shared + self.shared_reserved);
        let by_barriers = self.barriers_per_multiprocessor / path.barriers();
        by_threads.min(by_registers).min(by_shared).min(by_barriers).min(self.blocks_per_multiprocessor)
    }
}
