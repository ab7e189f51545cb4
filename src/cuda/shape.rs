//! The launch shape: which kernel, how many blocks of how many threads, how much shared memory.
//!
//! Nothing here changes a bit of the result. A pure function of the problem and the device's limits, so that the
//! emulator and the tests run exactly what a device would.

use super::pack::SEGMENT;
use super::plan::{Dtype, Operation};

/// Limits of a device, as its driver reports them, and of its architecture where it does not.
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
    /// The most shared memory a block may opt in to, in bytes.
    pub shared_per_block: u32,
    /// Shared memory the system keeps per block, in bytes.
    pub shared_reserved: u32,
    /// Hardware barriers of one multiprocessor: see [`Limits::barriers_of`].
    pub barriers_per_multiprocessor: u32,
}

impl Limits {
    /// An H100 (SXM) or H200: for tests and predictions.
    pub const HOPPER: Self = Self {
        multiprocessors: 132,
        threads_per_multiprocessor: 2048,
        blocks_per_multiprocessor: 32,
        registers_per_multiprocessor: 65536,
        shared_per_multiprocessor: 233_472,
        shared_per_block: 232_448,
        shared_reserved: 1024,
        barriers_per_multiprocessor: 64,
    };

    /// An RTX 4090: little shared memory. For tests and predictions.
    pub const ADA: Self = Self {
        multiprocessors: 128,
        threads_per_multiprocessor: 1536,
        blocks_per_multiprocessor: 24,
        registers_per_multiprocessor: 65536,
        shared_per_multiprocessor: 102_400,
        shared_per_block: 101_376,
        shared_reserved: 1024,
        barriers_per_multiprocessor: 24,
    };

    /// The barriers of a multiprocessor of capability `arch`, e.g. 90, on which `blocks` blocks can be resident. No
    /// driver reports it; it is what CUDA's `cuda_occupancy.h` reckons with: two per block on the large chips, one on
    /// the others, which those it does not know are taken for.
    #[must_use]
    pub fn barriers_of(arch: u32, blocks: u32) -> u32 {
        let per_block = if matches!(arch, 80 | 90 | 100 | 103) { 2 } else { 1 };
        blocks * per_block
    }

    /// Blocks of a path's kernels that fit on a multiprocessor together.
    fn blocks(&self, path: Path, threads: u32, shared: u32) -> u32 {
        let by_threads = self.threads_per_multiprocessor / threads;
        let by_registers = self.registers_per_multiprocessor / (path.registers() * threads);
        let by_shared = self.shared_per_multiprocessor / (shared + self.shared_reserved);
        let by_barriers = self.barriers_per_multiprocessor / path.barriers();
        by_threads.min(by_registers).min(by_shared).min(by_barriers).min(self.blocks_per_multiprocessor)
    }
}

/// How a kernel goes through the rows: kernels/direct.cuh, kernels/staged.cuh and kernels/general.cuh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// Few rows of at most 8192 elements: straight into registers.
    Direct,
    /// Many rows of at most 16384 elements: the next ones on their way while one is worked on.
    Staged,
    /// Longer or unaligned rows, read again where needed.
    General,
}

impl Path {
    /// All paths.
    pub const ALL: [Self; 3] = [Self::Direct, Self::Staged, Self::General];

    /// Its part of a kernel's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Staged => "staged",
            Self::General => "general",
        }
    }

    /// The most threads a block may have: `__launch_bounds__` in kernels/operation.cuh.
    #[must_use]
    pub fn most_threads(self) -> u32 {
        match self {
            Self::Direct => 512,
            Self::Staged | Self::General => 1024,
        }
    }

    /// Registers per thread at most; tests/device-code.json holds the compiled kernels to it.
    #[must_use]
    pub fn registers(self) -> u32 {
        match self {
            Self::Direct => 128,
            Self::Staged | Self::General => 64,
        }
    }

    /// Hardware barriers of a block at most; tests/device-code.json holds the compiled kernels to it. A staged block has
    /// at most so many groups of several warps.
    #[must_use]
    pub fn barriers(self) -> u32 {
        match self {
            Self::Staged => 4,
            Self::Direct | Self::General => 1,
        }
    }
}

/// A launch shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// How the kernel goes through the rows.
    pub path: Path,
    /// Blocks of the grid; they stride over the rows.
    pub blocks: u32,
    /// Threads of a group: one row at a time, a warp per segment.
    pub threads: u32,
    /// Groups of a block.
    pub groups: u32,
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
    /// Rows on their way per group; 0 where the kernel stages none.
    pub stages: u32,
}

/// Shared memory of a group's slots: `SLOT_BYTES` in kernels/reduce.cuh.
const SLOT_BYTES: u32 = 2 * 32 * 4;

/// The direct kernel's further slots, per warp: `TOGETHER_BYTES` in kernels/reduce.cuh.
const TOGETHER_BYTES: u32 = 2 * 8 * 4;

/// Shared memory of the steps in kernels/general.cuh: `MOST_STEPS` of 8 bytes.
const STEP_BYTES: u32 = 8 * super::plan::MOST_STEPS as u32;

/// The longest row held in registers: 32 segments, one per warp of a block.
const LONGEST_RESIDENT: usize = 32 * SEGMENT;

/// The longest row of the direct kernel: 16 warps.
const LONGEST_DIRECT: usize = 16 * SEGMENT;

/// Bytes wanted on their way per multiprocessor: what 4.8 TB/s over 132 multiprocessors move in 1.5 microseconds of
/// loaded latency is 55 KB (Little's law), and the work between two fetches asks for more.
const IN_FLIGHT: u32 = 96 << 10;

/// Several short rows share a block of about this many threads.
const GROUPED_THREADS: u32 = 256;

/// What is to be launched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Problem {
    pub(crate) operation: Operation,
    pub(crate) dtype: Dtype,
    pub(crate) rows: usize,
    pub(crate) width: usize,
    /// Whether every pointer and stride is a multiple of 16 bytes and the width of a vector.
    pub(crate) aligned: bool,
}

impl Shape {
    /// The shape for a problem on a device, or on the path asked for; `None` where that path cannot take it.
    pub(crate) fn choose(problem: &Problem, limits: &Limits, path: Option<Path>) -> Option<Self> {
        match path {
            Some(Path::Direct) => Self::direct(problem, limits, false),
            Some(Path::Staged) => Self::staged(problem, limits),
            Some(Path::General) => Some(Self::general(problem, limits)),
            None => Self::direct(problem, limits, true)
                .or_else(|| Self::staged(problem, limits))
                .or_else(|| Some(Self::general(problem, limits))),
        }
    }

    /// One block per row; `one_wave`: only if all of them are resident at once.
    fn direct(problem: &Problem, limits: &Limits, one_wave: bool) -> Option<Self> {
        if !problem.aligned || problem.width > LONGEST_DIRECT {
            return None;
        }
        let warps = segments(problem.width);
        let threads = 32 * warps;
        let shared_bytes = SLOT_BYTES + warps * TOGETHER_BYTES;
        let blocks = limits.multiprocessors * limits.blocks(Path::Direct, threads, shared_bytes);
        if one_wave && problem.rows > blocks as usize {
            return None;
        }
        Some(Self {
            path: Path::Direct,
            blocks: at_most(blocks, problem.rows),
            threads,
            groups: 1,
            shared_bytes,
            stages: 0,
        })
    }

    fn staged(problem: &Problem, limits: &Limits) -> Option<Self> {
        if !problem.aligned || problem.width > LONGEST_RESIDENT {
            return None;
        }
        let threads = 32 * segments(problem.width);
        let groups = (GROUPED_THREADS / threads).clamp(1, 8).min(at_most(8, problem.rows));
        let inputs = if problem.operation.adds() { 2 } else { 1 };
        let stage_bytes =
            groups * inputs * segments(problem.width) * SEGMENT as u32 * problem.dtype.size() as u32;
        let shape = |stages: u32| {
            let shared_bytes = groups * SLOT_BYTES + stages * stage_bytes;
            let blocks = limits.blocks(Path::Staged, groups * threads, shared_bytes);
            (shared_bytes <= limits.shared_per_block && blocks > 0).then_some((stages, blocks, shared_bytes))
        };
        // As many blocks as possible, because one's arithmetic hides behind another's loads; then the fewest stages
        // that keep enough on the way, because what shared memory leaves over is L1 for the axes.
        let (stages, blocks, shared_bytes) =
            (1..=3).filter_map(shape).max_by_key(|&(stages, blocks, _)| {
                let in_flight = blocks * stages * stage_bytes;
                (in_flight.min(IN_FLIGHT), blocks, std::cmp::Reverse(stages))
            })?;
        Some(Self {
            path: Path::Staged,
            blocks: at_most(limits.multiprocessors * blocks, problem.rows.div_ceil(groups as usize)),
            threads,
            groups,
            shared_bytes,
            stages,
        })
    }

    fn general(problem: &Problem, limits: &Limits) -> Self {
        let threads = 32 * segments(problem.width).min(32);
        let shared_bytes = SLOT_BYTES + STEP_BYTES;
        let blocks = limits.blocks(Path::General, threads, shared_bytes).max(1);
        Self {
            path: Path::General,
            blocks: at_most(limits.multiprocessors * blocks, problem.rows),
            threads,
            groups: 1,
            shared_bytes,
            stages: 0,
        }
    }
}

fn segments(width: usize) -> u32 {
    width.div_ceil(SEGMENT) as u32
}

fn at_most(most: u32, wanted: usize) -> u32 {
    u32::try_from(wanted).map_or(most, |wanted| wanted.min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(operation: Operation, dtype: Dtype, rows: usize, width: usize) -> Problem {
        Problem { operation, dtype, rows, width, aligned: true }
    }

    #[test]
    fn decode_is_one_block_per_row() {
        let shape =
            Shape::choose(&problem(Operation::Cap, Dtype::F32, 1, 4096), &Limits::HOPPER, None).unwrap();
        assert_eq!((shape.path, shape.blocks, shape.threads, shape.stages), (Path::Direct, 1, 256, 0));
        let shape =
            Shape::choose(&problem(Operation::Cap, Dtype::F32, 1, 576), &Limits::HOPPER, None).unwrap();
        assert_eq!((shape.blocks, shape.threads), (1, 64));
    }

    #[test]
    fn prefill_keeps_enough_on_its_way() {
        for operation in Operation::ALL {
            for dtype in Dtype::ALL {
                for width in [512, 2048, 4096, 5120, 8192, 16384] {
                    let shape = Shape::choose(&problem(operation, dtype, 8192, width), &Limits::HOPPER, None)
                        .unwrap();
                    let inputs = if operation.adds() { 2 } else { 1 };
                    let row = (width.div_ceil(SEGMENT) * SEGMENT * dtype.size() * inputs) as u32;
                    let resident = shape.blocks.div_ceil(132);
                    let in_flight = resident * shape.groups * shape.stages * row;
                    assert_eq!(shape.path, Path::Staged);
                    assert!(
                        in_flight >= 64 << 10,
                        "{operation:?} {dtype:?} {width}: {in_flight} in flight, {shape:?}"
                    );
                    assert!(resident * (shape.shared_bytes + 1024) <= 233_472);
                }
            }
        }
    }

    /// A wave that is only resident in part has a second one behind it that leaves most of the GPU empty.
    #[test]
    fn a_wave_counts_barriers() {
        let rtx_50 = Limits {
            barriers_per_multiprocessor: Limits::barriers_of(120, Limits::ADA.blocks_per_multiprocessor),
            ..Limits::ADA
        };
        for limits in [Limits::HOPPER, Limits::ADA, rtx_50] {
            for width in [32, 512, 576, 1024, 1536, 2048, 2560, 4096, 8192] {
                for path in Path::ALL {
                    let problem = problem(Operation::Cap, Dtype::F32, 1 << 20, width);
                    let shape = Shape::choose(&problem, &limits, Some(path)).unwrap();
                    let resident = shape.blocks / limits.multiprocessors;
                    assert!(resident * path.barriers() <= limits.barriers_per_multiprocessor, "{shape:?}");
                }
            }
        }
        let few = Limits { barriers_per_multiprocessor: 8, ..Limits::HOPPER };
        let shape = |limits| Shape::choose(&problem(Operation::Cap, Dtype::F32, 1 << 20, 2560), limits, None);
        assert_eq!(shape(&Limits::HOPPER).unwrap().blocks, 6 * 132);
        assert_eq!(shape(&few).unwrap().blocks, 2 * 132);
        for (arch, barriers) in [(80, 64), (86, 32), (90, 64), (100, 64), (110, 32), (120, 32), (130, 32)] {
            assert_eq!(Limits::barriers_of(arch, 32), barriers, "{arch}");
        }
    }

    #[test]
    fn every_shape_is_one_a_driver_accepts() {
        for limits in [Limits::HOPPER, Limits::ADA] {
            for operation in Operation::ALL {
                for dtype in Dtype::ALL {
                    for width in [1, 31, 512, 513, 4096, 8192, 8193, 16384, 16385, 50000] {
                        for rows in [1, 2, 19, 1000, 1 << 31] {
                            for aligned in [true, false] {
                                for path in
                                    [None, Some(Path::Direct), Some(Path::Staged), Some(Path::General)]
                                {
                                    let problem = Problem { operation, dtype, rows, width, aligned };
                                    let Some(shape) = Shape::choose(&problem, &limits, path) else {
                                        continue;
                                    };
                                    let what = format!("{problem:?} {path:?}: {shape:?}");
                                    assert!(shape.blocks >= 1 && shape.blocks as usize <= rows, "{what}");
                                    assert!(
                                        shape.groups * shape.threads <= shape.path.most_threads(),
                                        "{what}"
                                    );
                                    let meeting = if shape.threads > 32 { shape.groups } else { 1 };
                                    assert!(meeting <= shape.path.barriers(), "{what}");
                                    assert!(shape.shared_bytes <= limits.shared_per_block, "{what}");
                                    assert!(shape.path == Path::General || aligned, "{what}");
                                    assert_eq!(shape.stages > 0, shape.path == Path::Staged, "{what}");
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
