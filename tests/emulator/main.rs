//! The CUDA kernels without a GPU: their own source, compiled for the CPU by `kernels/emulate`, against the
//! definition and against the CPU twin, bit for bit. Launch shapes and arguments are those a device would get.
#![cfg(feature = "cuda")]

#[allow(dead_code, reason = "shared with tests/gpu, which needs the rest")]
mod case;
mod emulate;
mod ladder;
mod literal;
mod machine;
mod twin;

use axiscap::cuda::{Limits, Operation, Path};
use case::Case;
use emulate::check;
use half::{bf16, f16};

const WIDTHS: [usize; 13] = [1, 3, 111, 576, 1000, 1023, 3072, 3584, 4096, 5120, 8191, 8192, 16384];

/// Few multiprocessors, so that blocks have several rows each.
const SMALL: Limits = Limits { multiprocessors: 2, ..Limits::HOPPER };

fn check_all_types(case: &Case) -> usize {
    [check::<f32>(case), check::<f16>(case), check::<bf16>(case)].into_iter().filter(|&ran| ran).count()
}

/// One operation over all widths, numbers of rows and paths; caps, profiles, strides, alignment, aliasing and
/// schedules take turns, so that each meets each width.
fn sweep(operation: Operation) {
    let mut ran = 0;
    let mut turn = operation as u64;
    for width in WIDTHS {
        for rows in [0, 1, 19, 129] {
            for path in [None, Some(Path::Direct), Some(Path::Staged), Some(Path::General)] {
                // The emulator switches fibers some 12 times per thread and sum: many long rows are dear, and
                // go only the way that a device would take them.
                let dear = width > 4096 || (width > 1024 && path == Some(Path::General));
                if rows == 129 && dear && path.is_some() {
                    continue;
                }
                turn += 1;
                let case = Case {
                    operation,
                    rows,
                    width,
                    caps: [1, 2, 5][turn as usize % 3],
                    gap: [0, 1, 16][turn as usize / 3 % 3],
                    offset: usize::from(path.is_none() && turn % 4 == 1),
                    profiles: turn % 5 < 2,
                    aliased: turn % 7 < 3,
                    path,
                    limits: SMALL,
                    schedule: turn as u32 % machine::SCHEDULES,
                    seed: turn,
                };
                ran += check_all_types(&case);
            }
        }
    }
    assert!(ran > 200, "only {ran} launches ran");
}

#[test]
fn cap() {
    sweep(Operation::Cap);
}

#[test]
fn add_cap() {
    sweep(Operation::AddCap);
}

#[test]
fn cap_norm() {
    sweep(Operation::CapNorm);
}

#[test]
fn add_cap_norm() {
    sweep(Operation::AddCapNorm);
}

/// The launch shapes of real devices, at full size.
#[test]
fn shapes_of_real_devices() {
    for limits in [Limits::HOPPER, Limits::ADA] {
        for (rows, width) in [(1, 4096), (7, 576), (300, 1000)] {
            for operation in Operation::ALL {
                let case = Case {
                    operation,
                    rows,
                    width,
                    caps: 2,
                    gap: 0,
                    offset: 0,
                    profiles: false,
                    aliased: false,
                    path: None,
                    limits,
                    schedule: 2,
                    seed: 11,
                };
                assert!(check_all_types(&case) == 3);
            }
        }
    }
}

/// Rows longer than a block can hold, odd and even, aligned and not.
#[test]
fn rows_longer_than_registers() {
    for (turn, width) in [16385, 16392, 40000].into_iter().enumerate() {
        for offset in [0, 1] {
            for operation in Operation::ALL {
                let case = Case {
                    operation,
                    rows: 2,
                    width,
                    caps: 3,
                    gap: 0,
                    offset,
                    profiles: false,
                    aliased: offset == 1,
                    path: None,
                    limits: SMALL,
                    schedule: turn as u32,
                    seed: 5 + turn as u64,
                };
                assert!(check_all_types(&case) == 3);
            }
        }
    }
}

/// The f64 oracle: every projection and every capped row within the bounds of docs/operation.md.
#[test]
fn within_the_stated_bounds_of_the_oracle() {
    let mut acted = 0;
    for (seed, width) in (5..).step_by(5).zip([1, 111, 1000, 4096, 8191, 16384]) {
        let case = Case {
            operation: Operation::Cap,
            rows: 12,
            width,
            caps: 1,
            gap: 0,
            offset: 0,
            profiles: false,
            aliased: false,
            path: None,
            limits: SMALL,
            schedule: 0,
            seed,
        };
        acted += judge::<f32>(&case) + judge::<f16>(&case) + judge::<bf16>(&case);
    }
    assert!(acted > 10, "only {acted} rows were capped");
}

fn judge<E: case::Value + axiscap::cpu::Element>(case: &Case) -> usize {
    let mut setup = case::Setup::<E>::new(case);
    let before = setup.clone();
    assert_eq!(setup.emulate(case), Ok(true));
    setup.judge(&before, case)
}

/// The emulator's conversions are those of the `half` crate, which the CPU twin uses.
#[test]
fn conversions() {
    for bits in 0..=u16::MAX {
        let (mine, theirs) = (machine::widen_f16(bits), f16::from_bits(bits).to_f32());
        assert!(mine.to_bits() == theirs.to_bits() || (mine.is_nan() && theirs.is_nan()), "{bits:#06x}");
    }
    let mut random = case::Random(1);
    let halves = (0..=u16::MAX).flat_map(|bits| {
        // Every f16 and bf16, and what lies around it and around the ties between neighbours.
        let (f, b) = (f16::from_bits(bits).to_f32().to_bits(), u32::from(bits) << 16);
        [
            f,
            f + 1,
            f.wrapping_sub(1),
            f + 0x1000,
            f + 0x0fff,
            f + 0x1001,
            b,
            b + 0x8000,
            b + 0x7fff,
            b + 0x8001,
        ]
    });
    let others = std::iter::repeat_with(|| random.next() as u32).take(1_000_000);
    for bits in halves.chain(others) {
        let value = f32::from_bits(bits);
        let (mine, theirs) = (machine::narrow(b"axiscap_emulate_narrow_f16", value), f16::from_f32(value));
        assert!(mine == theirs.to_bits() || value.is_nan(), "{value:e} to f16: {mine:#06x}, {theirs:?}");
        let (mine, theirs) = (machine::narrow(b"axiscap_emulate_narrow_bf16", value), bf16::from_f32(value));
        assert!(mine == theirs.to_bits() || value.is_nan(), "{value:e} to bf16: {mine:#06x}, {theirs:?}");
    }
}
