//! The launch shape: which kernel, how many blocks of how many threads, how much shared memory.
//!
//! The shape is a pure function of the problem and the device's limits, so the emulator runs exactly what a
//! device would. The result does not depend on it.

use crate::cuda::launch::kernel::KernelPath;
use crate::cuda::launch::limits::Limits;
use crate::op::{Dtype, MAX_STEPS, Operation, SEGMENT};

/// A launch shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// How the kernel goes through the rows.
    pub path: KernelPath,
    /// Blocks of the grid, which stride over the rows.
    pub blocks: u32,
    /// Threads of a group. A group works on one row at a time, with a warp per segment.
    pub threads: u32,
    /// Groups of a block.
    pub groups: u32,
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
    /// Rows in flight per group; 0 for kernels without stages.
    pub stages: u32,
}

/// Shared memory of a group's slots: `SLOT_BYTES` in kernels/reduce.cuh.
const SLOT_BYTES: u32 = 2 * 32 * 4;

/// Further slots of the direct kernel, per warp: `TOGETHER_BYTES` in kernels/reduce.cuh.
const TOGETHER_BYTES: u32 = 2 * 8 * 4;

/// Shared memory of the steps in kernels/general.cuh: `MAX_STEPS` of 8 bytes.
const STEP_BYTES: u32 = 8 * MAX_STEPS as u32;

/// Maximum length of a row that is held in registers: 32 segments, one per warp of a block.
const MAX_RESIDENT_WIDTH: usize = 32 * SEGMENT;

/// Maximum length of a row of the direct kernel: 16 warps.
const MAX_DIRECT_WIDTH: usize = 16 * SEGMENT;

/// Bytes that should be in flight per multiprocessor. 4.8 TB/s over 132 multiprocessors move 55 KB in 1.5
/// microseconds of loaded latency (Little's law), and the work between two fetches asks for more.
const BYTES_IN_FLIGHT: u32 = 96 << 10;

/// Threads of a block that several short rows share, approximately.
const GROUPED_THREADS: u32 = 256;

/// How many waves of blocks a launch may have. The blocks of one wave are all resident at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waves {
    One,
    Any,
}

/// The properties of a job that decide on its shape.
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
    /// Chooses the shape for a problem on a device. With a `path`, only this path is tried; `None` if it
    /// cannot take the problem.
    pub(crate) fn choose(problem: &Problem, limits: &Limits, path: Option<KernelPath>) -> Option<Self> {
        match path {
            Some(KernelPath::Direct) => Self::direct(problem, limits, Waves::Any),
            Some(KernelPath::Staged) => Self::staged(problem, limits),
            Some(KernelPath::General) => Some(Self::general(problem, limits)),
            None => Self::direct(problem, limits, Waves::One)
                .or_else(|| Self::staged(problem, limits))
                .or_else(|| Some(Self::general(problem, limits))),
        }
    }

    /// Returns the shape of the direct kernel: one block per row.
    fn direct(problem: &Problem, limits: &Limits, waves: Waves) -> Option<Self> {
        if !problem.aligned || problem.width > MAX_DIRECT_WIDTH {
            return None;
        }
        let warps = segments(problem.width);
        let threads = 32 * warps;
        let shared_bytes = SLOT_BYTES + warps * TOGETHER_BYTES;
        let blocks = limits.multiprocessors * limits.blocks(KernelPath::Direct, threads, shared_bytes);
        if waves == Waves::One && problem.rows > blocks as usize {
            return None;
        }
        Some(Self {
            path: KernelPath::Direct,
            blocks: at_most(blocks, problem.rows),
            threads,
            groups: 1,
            shared_bytes,
            stages: 0,
        })
    }

    fn staged(problem: &Problem, limits: &Limits) -> Option<Self> {
        if !problem.aligned || problem.width > MAX_RESIDENT_WIDTH {
            return None;
        }
        let threads = 32 * segments(problem.width);
        let groups = (GROUPED_THREADS / threads).clamp(1, 8).min(at_most(8, problem.rows));
        let inputs = if problem.operation.adds() { 2 } else { 1 };
        let stage_bytes =
            groups * inputs * segments(problem.width) * SEGMENT as u32 * problem.dtype.size() as u32;
        let shape = |stages: u32| {
            let shared_bytes = groups * SLOT_BYTES + stages * stage_bytes;
            let blocks = limits.blocks(KernelPath::Staged, groups * threads, shared_bytes);
            (shared_bytes <= limits.shared_per_block && blocks > 0).then_some((stages, blocks, shared_bytes))
        };
        // As many blocks as possible, because the arithmetic of one overlaps with the loads of another. Then
        // the fewest stages that keep enough bytes in flight, because unused shared memory is L1 cache for
        // the axes.
        let (stages, blocks, shared_bytes) =
            (1..=3).filter_map(shape).max_by_key(|&(stages, blocks, _)| {
                let in_flight = blocks * stages * stage_bytes;
                (in_flight.min(BYTES_IN_FLIGHT), blocks, std::cmp::Reverse(stages))
            })?;
        Some(Self {
            path: KernelPath::Staged,
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
        let blocks = limits.blocks(KernelPath::General, threads, shared_bytes).max(1);
        Self {
            path: KernelPath::General,
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

/// Returns `wanted`, but at most `max`.
fn at_most(max: u32, wanted: usize) -> u32 {
    u32::try_from(wanted).map_or(max, |wanted| wanted.min(max))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(operation: Operation, dtype: Dtype, rows: usize, width: usize) -> Problem {
        Problem { operation, dtype, rows, width, aligned: true }
    }

    #[test]
    fn decode_has_one_block_per_row() {
        let shape =
            Shape::choose(&problem(Operation::Cap, Dtype::F32, 1, 4096), &Limits::HOPPER, None).unwrap();
        assert_eq!((shape.path, shape.blocks, shape.threads, shape.stages), (KernelPath::Direct, 1, 256, 0));
        let shape =
            Shape::choose(&problem(Operation::Cap, Dtype::F32, 1, 576), &Limits::HOPPER, None).unwrap();
        assert_eq!((shape.blocks, shape.threads), (1, 64));
    }

    #[test]
    fn prefill_keeps_enough_bytes_in_flight() {
        for operation in Operation::ALL {
            for dtype in Dtype::ALL {
                for width in [512, 2048, 4096, 5120, 8192, 16384] {
                    let shape = Shape::choose(&problem(operation, dtype, 8192, width), &Limits::HOPPER, None)
                        .unwrap();
                    let inputs = if operation.adds() { 2 } else { 1 };
                    let row = (width.div_ceil(SEGMENT) * SEGMENT * dtype.size() * inputs) as u32;
                    let resident = shape.blocks.div_ceil(132);
                    let in_flight = resident * shape.groups * shape.stages * row;
                    assert_eq!(shape.path, KernelPath::Staged);
                    assert!(
                        in_flight >= 64 << 10,
                        "{operation:?} {dtype:?} {width}: {in_flight} in flight, {shape:?}"
                    );
                    assert!(resident * (shape.shared_bytes + 1024) <= 233_472);
                }
            }
        }
    }

    /// If a wave is resident only in part, a second wave follows it and leaves most of the GPU idle.
    #[test]
    fn barriers_limit_the_blocks_of_a_wave() {
        let rtx_50 = Limits {
            barriers_per_multiprocessor: Limits::barriers_of(120, Limits::ADA.blocks_per_multiprocessor),
            ..Limits::ADA
        };
        for limits in [Limits::HOPPER, Limits::ADA, rtx_50] {
            for width in [32, 512, 576, 1024, 1536, 2048, 2560, 4096, 8192] {
                for path in KernelPath::ALL {
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
    fn every_shape_is_within_the_limits_of_the_device() {
        for limits in [Limits::HOPPER, Limits::ADA] {
            for operation in Operation::ALL {
                for dtype in Dtype::ALL {
                    for width in [1, 31, 512, 513, 4096, 8192, 8193, 16384, 16385, 50000] {
                        for rows in [1, 2, 19, 1000, 1 << 31] {
                            for aligned in [true, false] {
                                for path in [
                                    None,
                                    Some(KernelPath::Direct),
                                    Some(KernelPath::Staged),
                                    Some(KernelPath::General),
                                ] {
                                    let problem = Problem { operation, dtype, rows, width, aligned };
                                    let Some(shape) = Shape::choose(&problem, &limits, path) else {
                                        continue;
                                    };
                                    let what = format!("{problem:?} {path:?}: {shape:?}");
                                    assert!(shape.blocks >= 1 && shape.blocks as usize <= rows, "{what}");
                                    assert!(
                                        shape.groups * shape.threads <= shape.path.max_threads(),
                                        "{what}"
                                    );
                                    let meeting = if shape.threads > 32 { shape.groups } else { 1 };
                                    assert!(meeting <= shape.path.barriers(), "{what}");
                                    assert!(shape.shared_bytes <= limits.shared_per_block, "{what}");
                                    assert!(shape.path == KernelPath::General || aligned, "{what}");
                                    assert_eq!(shape.stages > 0, shape.path == KernelPath::Staged, "{what}");
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
