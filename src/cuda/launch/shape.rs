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
    /// Rows, or pairs of rows, in flight per group; 0 for kernels without stages.
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

/// Length of a row from which the single kernel takes any number of rows.
const LONG_ROW: usize = 4096;

/// The length of a row of the kernel for clusters: `WIDTH` in kernels/cluster.cuh.
const CLUSTER_WIDTH: usize = 8192;

/// Bytes that should be in flight per multiprocessor. 4.8 TB/s over 132 multiprocessors move 55 KB in 1.5
/// microseconds of loaded latency (Little's law), and the work between two fetches asks for more.
const BYTES_IN_FLIGHT: u32 = 96 << 10;

/// Threads of a block that several short rows share, approximately.
const GROUPED_THREADS: u32 = 256;

/// Maximum number of caps of a row on the path of pairs: `MAX_TOGETHER` in kernels/reduce.cuh.
const MAX_PAIRED_CAPS: usize = 8;

/// Threads of a multiprocessor without which the path of pairs does not hide the latency of memory.
const PAIRED_THREADS: u32 = 256;

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
    /// Maximum number of caps of a row.
    pub(crate) max_caps: usize,
    /// Number of caps, if all rows have the same ones.
    pub(crate) same_caps: Option<usize>,
}

impl Shape {
    /// Chooses the shape for a problem on a device. With a `path`, only this path is tried; `None` if it
    /// cannot take the problem.
    pub(crate) fn choose(problem: &Problem, limits: &Limits, path: Option<KernelPath>) -> Option<Self> {
        match path {
            Some(KernelPath::Cluster) => Self::cluster(problem, limits),
            Some(KernelPath::Single) => Self::single(problem, limits, Waves::Any),
            Some(KernelPath::Direct) => Self::direct(problem, limits, Waves::Any),
            Some(KernelPath::Pairs) => Self::pairs(problem, limits),
            Some(KernelPath::Staged) => Self::staged(problem, limits),
            Some(KernelPath::General) => Some(Self::general(problem, limits)),
            None => Self::cluster(problem, limits)
                .filter(|shape| shape.blocks <= limits.multiprocessors)
                .or_else(|| Self::single(problem, limits, single_waves(problem)))
                .or_else(|| Self::direct(problem, limits, Waves::One))
                .or_else(|| Self::pairs_if_faster(problem, limits))
                .or_else(|| Self::staged(problem, limits))
                .or_else(|| Some(Self::general(problem, limits))),
        }
    }

    /// Returns the shape of the kernel for clusters: one cluster per row, for any number of rows. It is faster than
    /// the single kernel if each block has a multiprocessor of its own.
    fn cluster(problem: &Problem, limits: &Limits) -> Option<Self> {
        let fits = problem.aligned && problem.width == CLUSTER_WIDTH && problem.max_caps <= 1;
        if !fits || !limits.clusters {
            return None;
        }
        let cluster = KernelPath::Cluster.cluster();
        let blocks = u32::try_from(problem.rows).ok()?.checked_mul(cluster)?;
        Some(Self {
            path: KernelPath::Cluster,
            blocks: i32::try_from(blocks).is_ok().then_some(blocks)?,
            threads: 32 * segments(CLUSTER_WIDTH) / cluster,
            groups: 1,
            shared_bytes: SLOT_BYTES,
            stages: 0,
        })
    }

    /// Returns the shape of the single kernel: one block per row, for any number of rows.
    fn single(problem: &Problem, limits: &Limits, waves: Waves) -> Option<Self> {
        let whole = problem.width.is_multiple_of(SEGMENT) && problem.width <= MAX_DIRECT_WIDTH;
        if !problem.aligned || !whole || problem.max_caps > 1 {
            return None;
        }
        let threads = 32 * segments(problem.width);
        let resident = limits.multiprocessors * limits.blocks(KernelPath::Single, threads, SLOT_BYTES);
        let blocks = u32::try_from(problem.rows).ok().filter(|&blocks| i32::try_from(blocks).is_ok())?;
        if waves == Waves::One && blocks > resident {
            return None;
        }
        Some(Self {
            path: KernelPath::Single,
            blocks,
            threads,
            groups: 1,
            shared_bytes: SLOT_BYTES,
            stages: 0,
        })
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

    /// Returns the shape of the kernel for pairs: as many groups as shared memory has room for, beside the axes.
    fn pairs(problem: &Problem, limits: &Limits) -> Option<Self> {
        let caps = problem.same_caps.filter(|&caps| (1..=MAX_PAIRED_CAPS).contains(&caps))?;
        let fits = problem.aligned && problem.width <= MAX_DIRECT_WIDTH;
        if !fits || !KernelPath::Pairs.has(problem.operation) {
            return None;
        }
        let warps = segments(problem.width);
        let threads = 32 * warps;
        let row_elements = warps * SEGMENT as u32;
        let axes = caps as u32 * row_elements * 4;
        // Slots of single sums and of sums together (`group_floats` in kernels/pairs.cuh), and two rows.
        let group = (4 * 32 + 4 * 8 * warps) * 4 + 2 * row_elements * problem.dtype.size() as u32;
        let most = (KernelPath::Pairs.max_threads() / threads).min(KernelPath::Pairs.barriers());
        let shape = |groups: u32| {
            let shared_bytes = axes + groups * group;
            if shared_bytes > limits.shared_per_block {
                return None;
            }
            let blocks = limits.blocks(KernelPath::Pairs, groups * threads, shared_bytes);
            (blocks > 0).then_some((groups, blocks, shared_bytes))
        };
        let (groups, blocks, shared_bytes) = (1..=most).rev().find_map(shape)?;
        Some(Self {
            path: KernelPath::Pairs,
            blocks: at_most(limits.multiprocessors * blocks, problem.rows.div_ceil(2 * groups as usize)),
            threads,
            groups,
            shared_bytes,
            stages: 1,
        })
    }

    /// Returns the shape for pairs if that path is faster than the staged one: each row has several caps, and
    /// enough threads fit beside the axes.
    fn pairs_if_faster(problem: &Problem, limits: &Limits) -> Option<Self> {
        let shape =
            Self::pairs(problem, limits).filter(|_| problem.same_caps.is_some_and(|caps| caps > 1))?;
        let threads = shape.groups * shape.threads;
        let resident = limits.blocks(KernelPath::Pairs, threads, shape.shared_bytes) * threads;
        (resident >= PAIRED_THREADS).then_some(shape)
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

/// Returns for how many waves the single kernel is the fastest. The staged one is faster from the second wave on
/// with the norm, for shorter rows, and for rows of 16-bit values in place, whose axis is twice as long as the row.
fn single_waves(problem: &Problem) -> Waves {
    let &Problem { operation, dtype, width, .. } = problem;
    let long = width >= LONG_ROW && (dtype == Dtype::F32 || operation.adds());
    if long && !operation.norms() { Waves::Any } else { Waves::One }
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
        Problem { operation, dtype, rows, width, aligned: true, max_caps: 2, same_caps: None }
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

    /// A block needs no more than one cap, and whole segments, to take the shortest way.
    #[test]
    fn rows_with_one_cap_take_the_single_path() {
        let path = |rows, width, max_caps| {
            let problem = Problem { max_caps, ..problem(Operation::CapNorm, Dtype::F32, rows, width) };
            Shape::choose(&problem, &Limits::HOPPER, None).unwrap().path
        };
        assert_eq!(path(1, 4096, 1), KernelPath::Single);
        assert_eq!(path(1, 4096, 0), KernelPath::Single);
        assert_eq!(path(1, 4096, 2), KernelPath::Direct);
        assert_eq!(path(1, 576, 1), KernelPath::Direct);
        assert_eq!(path(1, 16384, 1), KernelPath::Staged);
        assert_eq!(path(2 * 132, 4096, 1), KernelPath::Single);
        assert_eq!(path(2 * 132 + 1, 4096, 1), KernelPath::Staged);
        let unaligned =
            Problem { aligned: false, max_caps: 1, ..problem(Operation::Cap, Dtype::F32, 1, 4096) };
        assert_eq!(Shape::choose(&unaligned, &Limits::HOPPER, None).unwrap().path, KernelPath::General);
    }

    #[test]
    fn very_few_long_rows_go_to_clusters() {
        let choose = |limits: Limits, rows, width, max_caps, path| {
            let problem = Problem { max_caps, ..problem(Operation::AddCapNorm, Dtype::BF16, rows, width) };
            Shape::choose(&problem, &limits, path)
        };
        let path = |limits, rows, width, max_caps| choose(limits, rows, width, max_caps, None).unwrap().path;
        let one = choose(Limits::HOPPER, 1, 8192, 1, None).unwrap();
        assert_eq!((one.path, one.blocks, one.threads), (KernelPath::Cluster, 8, 64));
        assert_eq!(path(Limits::HOPPER, 1, 8192, 0), KernelPath::Cluster);
        // 132 multiprocessors have room for 16 clusters of 8 blocks, one block each.
        assert_eq!(path(Limits::HOPPER, 16, 8192, 1), KernelPath::Cluster);
        assert_eq!(path(Limits::HOPPER, 17, 8192, 1), KernelPath::Single);
        assert_eq!(path(Limits::HOPPER, 1, 8192, 2), KernelPath::Direct);
        assert_eq!(path(Limits::HOPPER, 1, 4096, 1), KernelPath::Single);
        assert_eq!(path(Limits::HOPPER, 1, 7680, 1), KernelPath::Single);
        assert_eq!(path(Limits::ADA, 1, 8192, 1), KernelPath::Single);
        let cluster = Some(KernelPath::Cluster);
        assert_eq!(choose(Limits::ADA, 1, 8192, 1, cluster), None);
        assert_eq!(choose(Limits::HOPPER, 1, 4096, 1, cluster), None);
        assert_eq!(choose(Limits::HOPPER, 1 << 28, 8192, 1, cluster), None);
        let most = choose(Limits::HOPPER, (1 << 28) - 1, 8192, 1, cluster).unwrap();
        assert_eq!(most.blocks, i32::MAX as u32 - 7);
    }

    #[test]
    fn many_long_rows_with_one_cap_have_a_block_each() {
        let shape = |operation, width| {
            let problem = Problem { max_caps: 1, ..problem(operation, Dtype::F32, 8192, width) };
            Shape::choose(&problem, &Limits::HOPPER, None).unwrap()
        };
        for width in [4096, 5120, 8192] {
            for operation in [Operation::Cap, Operation::AddCap] {
                let shape = shape(operation, width);
                assert_eq!((shape.path, shape.blocks), (KernelPath::Single, 8192), "{operation:?} {width}");
            }
            assert_eq!(shape(Operation::CapNorm, width).path, KernelPath::Staged, "{width}");
        }
        for width in [2048, 4100, 16384] {
            assert_eq!(shape(Operation::Cap, width).path, KernelPath::Staged, "{width}");
        }
        let path_of = |operation| {
            let problem = Problem { max_caps: 1, ..problem(operation, Dtype::F16, 8192, 8192) };
            Shape::choose(&problem, &Limits::HOPPER, None).unwrap().path
        };
        assert_eq!(path_of(Operation::Cap), KernelPath::Staged);
        assert_eq!(path_of(Operation::AddCap), KernelPath::Single);
    }

    #[test]
    fn many_rows_with_several_caps_go_in_pairs() {
        let shape = |limits, operation, width, caps: usize| {
            let problem = Problem {
                max_caps: caps,
                same_caps: Some(caps),
                ..problem(operation, Dtype::F32, 8192, width)
            };
            Shape::choose(&problem, &limits, None).unwrap()
        };
        let hopper = |operation, width, caps| shape(Limits::HOPPER, operation, width, caps);
        let five = hopper(Operation::Cap, 8192, 5);
        assert_eq!((five.path, five.blocks, five.threads, five.groups), (KernelPath::Pairs, 132, 512, 1));
        let shorter = hopper(Operation::Cap, 4096, 5);
        assert_eq!((shorter.path, shorter.blocks, shorter.groups), (KernelPath::Pairs, 132, 2));
        // One cap has a kernel of its own, six axes of 8192 elements leave no room for rows, and nine sums are too
        // many for one barrier.
        assert_eq!(hopper(Operation::Cap, 8192, 1).path, KernelPath::Single);
        assert_eq!(hopper(Operation::Cap, 8192, 6).path, KernelPath::Staged);
        assert_eq!(hopper(Operation::Cap, 1024, 9).path, KernelPath::Staged);
        assert_eq!(hopper(Operation::CapNorm, 4096, 5).path, KernelPath::Staged);
        assert_eq!(shape(Limits::ADA, Operation::Cap, 8192, 5).path, KernelPath::Staged);
        let several = Problem { max_caps: 5, ..problem(Operation::Cap, Dtype::F32, 8192, 4096) };
        assert_eq!(Shape::choose(&several, &Limits::HOPPER, None).unwrap().path, KernelPath::Staged);
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
                // The single path has a block per row, of which a wave need not be resident.
                for path in [KernelPath::Direct, KernelPath::Pairs, KernelPath::Staged, KernelPath::General] {
                    let problem =
                        Problem { same_caps: Some(1), ..problem(Operation::Cap, Dtype::F32, 1 << 20, width) };
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
                                for path in [None].into_iter().chain(KernelPath::ALL.map(Some)) {
                                    let one = [KernelPath::Cluster, KernelPath::Single].map(Some);
                                    let caps = if one.contains(&path) { 1 } else { 5 };
                                    let problem = Problem {
                                        operation,
                                        dtype,
                                        rows,
                                        width,
                                        aligned,
                                        max_caps: caps,
                                        same_caps: Some(caps),
                                    };
                                    let Some(shape) = Shape::choose(&problem, &limits, path) else {
                                        continue;
                                    };
                                    let what = format!("{problem:?} {path:?}: {shape:?}");
                                    let clusters = (shape.blocks / shape.path.cluster()) as usize;
                                    assert!(shape.blocks.is_multiple_of(shape.path.cluster()), "{what}");
                                    assert!((1..=rows).contains(&clusters), "{what}");
                                    assert!(
                                        shape.groups * shape.threads <= shape.path.max_threads(),
                                        "{what}"
                                    );
                                    let alone = shape.threads == 32 && shape.path == KernelPath::Staged;
                                    let meeting = if alone { 1 } else { shape.groups };
                                    assert!(meeting <= shape.path.barriers(), "{what}");
                                    assert!(shape.shared_bytes <= limits.shared_per_block, "{what}");
                                    assert!(shape.path == KernelPath::General || aligned, "{what}");
                                    assert_eq!(shape.stages > 0, shape.path.shares_much(), "{what}");
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
