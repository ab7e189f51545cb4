//! The CUDA kernels without a GPU: their own source, compiled for the CPU by `kernels/emulate`, against the
//! definition, the f64 oracle's bounds and the CPU twin, bit for bit. Launch shapes and arguments are those a device
//! would get.
//!
//!     cargo test --test emulator                      # a covering array: a minute or two
//!     cargo test --test emulator -- --ignored         # every launch there is: an hour
//!     cargo test --test emulator -- --ignored few     # those of up to 19 rows: ten minutes
#![cfg(feature = "cuda")]

#[allow(dead_code, reason = "shared with tests/gpu, which needs the rest")]
#[path = "../support/case.rs"]
mod case;
mod emulate;
mod ladder;
#[allow(dead_code, reason = "shared with tests/cpu, which needs the rest")]
#[path = "../support/literal.rs"]
mod literal;
mod machine;
#[allow(dead_code, reason = "shared with tests/cpu, which needs the rest")]
#[path = "../support/numbers.rs"]
mod numbers;
#[allow(dead_code, reason = "shared with tests/gpu, which needs the rest")]
#[path = "../support/sweep.rs"]
mod sweep;
#[path = "../support/twin.rs"]
mod twin;

use std::sync::OnceLock;

use axiscap::cuda::{
    DeviceNorm, DeviceRows, Dtype, Job, Limits, Operation, Path, Plan, TableLayout, TableView,
};
use case::{Case, Profiles, Setup};
use emulate::{TableImage, check};
use half::{bf16, f16};
use sweep::Space;

/// Checks cases of which each is a launch.
fn check_all<'a>(cases: impl IntoIterator<Item = &'a Case>) {
    let (mut launches, mut acted) = (0, 0);
    for case in cases {
        let outcome = check(case);
        assert!(outcome.ran, "no launch: {case:?}");
        launches += 1;
        acted += outcome.acted;
    }
    println!("{launches} launches gave the definition's bits; caps acted {acted} times");
    assert!(launches > 0 && acted > launches, "{launches} launches, caps acted {acted} times");
}

/// Every kernel, width, number of rows and path, with any three of everything else: see [`Space::covering`].
fn sweep(operation: Operation) {
    static CASES: OnceLock<Vec<Case>> = OnceLock::new();
    let cases = CASES.get_or_init(|| Space::ODD.covering());
    check_all(cases.iter().filter(|case| case.operation == operation));
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

/// Rows longer than a block can hold, odd and even, aligned and not.
#[test]
fn rows_longer_than_registers() {
    check_all(&Space::LONG.covering());
}

/// Every launch there is, operation by operation and type by type.
macro_rules! every_launch {
    ($($operation:ident $dtype:ident $name:ident)+) => {
        mod every_launch {
            $(mod $name {
                use axiscap::cuda::{Dtype, Operation};

                #[test]
                #[ignore = "takes minutes; the covering array stands for it"]
                fn few_rows() {
                    crate::check_product(Operation::$operation, Dtype::$dtype, |rows| rows < 129);
                }

                #[test]
                #[ignore = "takes minutes; the covering array stands for it"]
                fn many_rows() {
                    crate::check_product(Operation::$operation, Dtype::$dtype, |rows| rows >= 129);
                }
            })+
        }
    };
}

fn check_product(operation: Operation, dtype: Dtype, rows: fn(usize) -> bool) {
    let cases = Space::ODD.all(operation, dtype);
    check_all(cases.iter().filter(|case| rows(case.rows)));
}

every_launch! {
    Cap F32 cap_f32
    Cap F16 cap_f16
    Cap BF16 cap_bf16
    AddCap F32 add_cap_f32
    AddCap F16 add_cap_f16
    AddCap BF16 add_cap_bf16
    CapNorm F32 cap_norm_f32
    CapNorm F16 cap_norm_f16
    CapNorm BF16 cap_norm_bf16
    AddCapNorm F32 add_cap_norm_f32
    AddCapNorm F16 add_cap_norm_f16
    AddCapNorm BF16 add_cap_norm_bf16
}

/// The launch shapes of real devices, at full size; and no rows, which are no launch.
#[test]
fn shapes_of_real_devices() {
    for limits in [Limits::HOPPER, Limits::ADA] {
        for (rows, width) in [(0, 4096), (1, 4096), (7, 576), (300, 1000)] {
            for operation in Operation::ALL {
                for dtype in Dtype::ALL {
                    let case = Case {
                        operation,
                        dtype,
                        rows,
                        width,
                        caps: 2,
                        gap: 0,
                        offset: 0,
                        profiles: Profiles::One,
                        aliased: false,
                        path: None,
                        limits,
                        schedule: 2,
                        seed: 11,
                    };
                    assert_eq!(check(&case).ran, rows > 0);
                }
            }
        }
    }
}

/// The plan of a case, without memory for its rows: addresses and strides are as the case would have them.
fn plan_of(case: &Case) -> Option<Plan> {
    const SOMEWHERE: u64 = 1 << 20;
    let (width, size) = (case.width, case.dtype.size());
    let stride = width + case.gap;
    let stride = if case.offset == 0 { stride.next_multiple_of(16 / size) } else { stride };
    let rows = DeviceRows { address: SOMEWHERE + (case.offset * size) as u64, stride };
    let add = case.operation.adds().then_some([rows; 2]);
    let weight = SOMEWHERE + case.offset as u64 * 4;
    let norm = case.operation.norms().then_some(DeviceNorm { weight, eps: case::EPS, out: rows });
    let job = Job { add, norm, ..Job::in_place(case.dtype, rows, case.rows) };
    let axis_stride = width.next_multiple_of(512);
    let layout =
        TableLayout { width, axis_stride, profiles: 2, first: 0, count: case.caps, depth: case.caps };
    let view = TableView { axes: SOMEWHERE, params: SOMEWHERE, ends: SOMEWHERE, faults: SOMEWHERE, layout };
    Plan::on_path(&job, &view, &case.limits, case.path).expect("a plan")
}

/// The sweeps have launches of every kernel in which each block, or each group of a block, goes through several rows.
#[test]
fn blocks_have_several_rows() {
    for (space, least) in [(Space::ODD, 4), (Space::SMALL, 2)] {
        let mut most = std::collections::BTreeMap::new();
        for case in space.covering() {
            let Some(plan) = plan_of(&case) else { continue };
            let shape = plan.shape();
            let rows = case.rows as u32 / (shape.blocks * shape.groups);
            let longest = most.entry(plan.kernel()).or_insert(0);
            *longest = rows.max(*longest);
        }
        assert_eq!(most.len(), 36, "{most:?}");
        assert!(most.values().all(|&rows| rows >= least), "{most:?}");
    }
}

/// A group for which a kernel has no barrier would meet another's threads on a GPU: the emulator says so.
#[test]
fn groups_without_a_barrier_are_found() {
    let case = Case {
        operation: Operation::Cap,
        dtype: Dtype::F32,
        rows: 19,
        width: 576,
        caps: 1,
        gap: 0,
        offset: 0,
        profiles: Profiles::One,
        aliased: false,
        path: Some(Path::Staged),
        limits: Limits::HOPPER,
        schedule: 0,
        seed: 3,
    };
    let mut setup = Setup::<f32>::new(&case);
    let mut image = TableImage::new(&setup.table);
    let view = image.view();
    let plan =
        Plan::on_path(&setup.job(&case), &view, &case.limits, case.path).expect("a plan").expect("rows");
    let run = |kernel: &str, groups: u32| {
        let launch = machine::Launch { blocks: 1, threads: 64, groups, shared_bytes: 64 << 10 };
        // SAFETY: every buffer outlives the call and is ours alone.
        unsafe { machine::run_named(kernel, plan.args(), &launch, case.schedule) }
    };
    for path in Path::ALL {
        let (kernel, most) = (format!("axiscap_cap_f32_{}", path.name()), path.barriers());
        assert_eq!(run(&kernel, most), Ok(()));
        let wrong = run(&kernel, most + 1).expect_err("a group without a barrier");
        assert!(wrong.contains(&format!("barrier {most} of {most}")), "{wrong}");
    }
}

/// The emulator's conversions are those of the `half` crate, which the CPU twin uses.
#[test]
fn conversions() {
    for bits in 0..=u16::MAX {
        let (mine, theirs) = (machine::widen_f16(bits), f16::from_bits(bits).to_f32());
        assert!(mine.to_bits() == theirs.to_bits() || (mine.is_nan() && theirs.is_nan()), "{bits:#06x}");
    }
    let mut random = numbers::Random(1);
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
