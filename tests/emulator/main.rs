//! The CUDA kernels without a GPU: their source, compiled for the CPU by `kernels/emulate`, against the
//! definition, the bounds of the f64 oracle and the CPU twin, bit for bit. A device would get the same launch
//! shapes and arguments.
//!
//!     cargo test --test emulator                      # a covering array: a minute or two
//!     cargo test --test emulator -- --ignored         # all launches: an hour
//!     cargo test --test emulator -- --ignored few     # launches of up to 19 rows: ten minutes

mod emulate;
mod ladder;
mod machine;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use axiscap::cuda::raw::{KernelPath, Plan, TableLayout, TableView};
use axiscap::cuda::{DeviceRows, Job, Limits};
use axiscap::{Axis, Bound, Cap, CapTable, Dtype, Operation};
use axiscap_testing::case::{self, Case, Profiles, Setup};
use axiscap_testing::numbers::Random;
use axiscap_testing::sweep::Space;
use emulate::{TableImage, check};
use half::{bf16, f16};

/// Checks cases. Each must be a launch. Returns how many launches had rows of profile 0 beside capped rows,
/// per kernel and number of caps.
fn check_all<'a>(cases: impl IntoIterator<Item = &'a Case>) -> BTreeMap<(String, usize), usize> {
    let (mut launches, mut acted, mut mixed) = (0, 0, BTreeMap::new());
    for case in cases {
        let outcome = check(case);
        let kernel = outcome.kernel.unwrap_or_else(|| panic!("no launch: {case:?}"));
        launches += 1;
        acted += outcome.acted;
        *mixed.entry((kernel, case.caps)).or_default() += usize::from(outcome.mixed);
    }
    println!("{launches} launches gave the bits of the definition; caps acted {acted} times");
    assert!(launches > 0 && acted > launches, "{launches} launches, caps acted {acted} times");
    mixed
}

/// Checks every kernel, width, number of rows and path, with any three of the other factors: see
/// [`Space::covering`]. Each kernel of the operation has launches with rows of profile 0 beside capped rows,
/// with every number of caps.
fn sweep(operation: Operation) {
    static CASES: OnceLock<Vec<Case>> = OnceLock::new();
    let cases = CASES.get_or_init(|| Space::ODD.covering());
    let indexed = rows_with_profiles(operation);
    let mut mixed = check_all(cases.iter().filter(|case| case.operation == operation).chain(&indexed));
    mixed.retain(|(kernel, _), _| !kernel.ends_with(KernelPath::Pairs.name()));
    // Three types, with four numbers of caps on three paths, and one on the single path and on that of clusters.
    // The rows of pairs have the same caps.
    assert_eq!(mixed.len(), 42, "{mixed:?}");
    assert!(mixed.values().all(|&launches| launches > 0), "{mixed:?}");
}

/// Returns a small launch of every kernel of an operation with every number of caps, whose rows name
/// profiles. The covering array leaves a few of these combinations out.
fn rows_with_profiles(operation: Operation) -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in Dtype::ALL {
        for path in KernelPath::ALL {
            for caps in [1, 2, 5, 7] {
                let case = Case {
                    operation,
                    dtype,
                    rows: 19,
                    width: match path {
                        KernelPath::Cluster => 8192,
                        KernelPath::Single => 1024,
                        _ => 576,
                    },
                    caps,
                    gap: 0,
                    offset: 0,
                    profiles: Profiles::Several,
                    aliased: false,
                    path: Some(path),
                    limits: Space::ODD.limits,
                    schedule: cases.len() as u32 % 4,
                    seed: cases.len() as u64,
                };
                cases.extend(case.is_for_its_path().then_some(case));
            }
        }
    }
    cases
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

/// Stamps tests of all launches, per operation and type.
macro_rules! every_launch {
    ($($operation:ident $dtype:ident $name:ident)+) => {
        mod every_launch {
            $(mod $name {
                use axiscap::{Dtype, Operation};

                #[test]
                #[ignore = "takes minutes; the covering array represents it"]
                fn few_rows() {
                    crate::check_product(Operation::$operation, Dtype::$dtype, |rows| rows < 129);
                }

                #[test]
                #[ignore = "takes minutes; the covering array represents it"]
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

/// The launch shapes of real devices, at full size, and a case without rows, which is no launch.
#[test]
fn shapes_of_real_devices() {
    for limits in [Limits::HOPPER, Limits::ADA] {
        for (rows, width, caps) in
            [(0, 4096, 2), (1, 4096, 2), (7, 576, 2), (300, 1000, 2), (16, 8192, 1), (17, 8192, 1)]
        {
            for operation in Operation::ALL {
                for dtype in Dtype::ALL {
                    let case = Case {
                        operation,
                        dtype,
                        rows,
                        width,
                        caps,
                        gap: 0,
                        offset: 0,
                        profiles: Profiles::One,
                        aliased: false,
                        path: None,
                        limits,
                        schedule: 2,
                        seed: 11,
                    };
                    assert_eq!(check(&case).kernel.is_some(), rows > 0);
                }
            }
        }
    }
}

/// Returns the plan of a case without memory for its rows. Addresses and strides are aligned as in the case.
fn plan_of(case: &Case) -> Option<Plan> {
    const SOMEWHERE: u64 = 1 << 20;
    let (width, size) = (case.width, case.dtype.size());
    let stride = width + case.gap;
    let stride = if case.offset == 0 { stride.next_multiple_of(16 / size) } else { stride };
    let address = SOMEWHERE + (case.offset * size) as u64;
    let rows = DeviceRows { dtype: case.dtype, address, count: case.rows, stride };
    let weight = SOMEWHERE + case.offset as u64 * 4;
    let job = if case.operation.adds() { Job::add_cap_into(rows, rows, rows) } else { Job::cap(rows) };
    let job = if case.operation.norms() { job.norm(weight, case::epsilon(), rows) } else { job };
    let layout = TableLayout {
        width,
        axis_stride: width.next_multiple_of(512),
        profile_count: 2,
        first: 0,
        count: case.caps,
        max_caps_per_row: case.caps,
    };
    let view = TableView { axes: SOMEWHERE, params: SOMEWHERE, ends: SOMEWHERE, faults: SOMEWHERE, layout };
    Plan::on_path(&job, &view, &case.limits, case.path).expect("a plan")
}

/// The sweeps have launches of every kernel in which each block, or each group of a block, has several rows.
/// The single path has one row per block, and that of clusters one per cluster.
#[test]
fn blocks_have_several_rows() {
    for (space, min) in [(Space::ODD, 4), (Space::SMALL, 2)] {
        let mut rows_per_kernel = BTreeMap::new();
        for case in space.covering() {
            let Some(plan) = plan_of(&case) else { continue };
            let shape = plan.shape();
            if matches!(shape.path, KernelPath::Cluster | KernelPath::Single) {
                continue;
            }
            let rows = case.rows as u32 / (shape.blocks * shape.groups);
            let max = rows_per_kernel.entry(plan.kernel()).or_insert(0);
            *max = rows.max(*max);
        }
        assert_eq!(rows_per_kernel.len(), 39, "{rows_per_kernel:?}");
        assert!(rows_per_kernel.values().all(|&rows| rows >= min), "{rows_per_kernel:?}");
    }
}

/// A launch with one cap, in place, on rows of f32.
fn one_cap(rows: usize, width: usize, path: Option<KernelPath>) -> Case {
    Case {
        operation: Operation::Cap,
        dtype: Dtype::F32,
        rows,
        width,
        caps: 1,
        gap: 0,
        offset: 0,
        profiles: Profiles::One,
        aliased: false,
        path,
        limits: Limits::HOPPER,
        schedule: 0,
        seed: 5,
    }
}

/// Products that underflow leave sums of -0. A slot without a segment is +0 only if the definition has it.
#[test]
fn sums_of_negative_zeros_keep_their_sign() {
    for path in KernelPath::ALL {
        for segments in [1, 2, 3, 4, 5, 8, 11, 16] {
            let case = Case { schedule: 3, ..one_cap(3, 512 * segments, Some(path)) };
            let mut setup = Setup::<f32>::new(&case);
            let axis = Axis::from_direction(&vec![1.0; case.width]).expect("an axis");
            setup.table = CapTable::new(&[Cap::new(axis, Bound::NONE)]).expect("a table");
            (0..case.rows).for_each(|row| setup.h.row_mut(row).fill(-f32::from_bits(1)));
            let mut twin = setup.clone();
            twin.on_twin(&case);
            let launched = emulate::emulate(&mut setup, &case).expect("no fault").is_some();
            assert_eq!(launched, case.is_for_its_path(), "{path:?}, {segments} segments");
            if !launched {
                continue;
            }
            let signs = |setup: &Setup<f32>| {
                setup.stats[..case.rows].iter().map(|stat| stat.before.to_bits()).collect::<Vec<_>>()
            };
            let expected = if segments.is_power_of_two() { -0.0f32 } else { 0.0 };
            assert_eq!(signs(&twin), vec![expected.to_bits(); case.rows], "the twin, {segments} segments");
            assert_eq!(signs(&setup), signs(&twin), "{path:?}, {segments} segments");
        }
    }
}

/// A kernel may load the axis of profile 1 before it knows a row's profile. The first cap of an empty profile 1 is
/// also that of profile 2.
#[test]
fn a_row_has_its_own_axis_although_profile_1_is_empty() {
    for path in KernelPath::ALL {
        let case = Case { profiles: Profiles::Several, ..one_cap(5, 8192, Some(path)) };
        let mut setup = Setup::<f32>::new(&case);
        let cap = |first: f32| {
            let direction: Vec<f32> = (0..case.width).map(|i| (first + i as f32).sin()).collect();
            Cap::new(Axis::from_direction(&direction).expect("an axis"), Bound::floor(7.0).expect("a bound"))
        };
        let (own, other) = (cap(0.0), cap(1.0));
        setup.table = CapTable::with_profiles(&[&[], &[&own], &[&other]]).expect("a table");
        setup.profiles = vec![2, 1, 0, 3, 2];
        let mut random = Random(5);
        (0..case.rows).for_each(|row| setup.h.row_mut(row).fill_with(|| random.value()));
        let mut twin = setup.clone();
        twin.on_twin(&case);
        let launched = emulate::emulate(&mut setup, &case).expect("no fault").is_some();
        assert_eq!(launched, case.is_for_its_path(), "{path:?}");
        if launched {
            let engaged: Vec<_> = setup.stats[..case.rows].iter().map(|stat| stat.engaged()).collect();
            assert_eq!(engaged, [true, false, false, true, true], "{path:?}");
            for row in 0..case.rows {
                assert_eq!(setup.stats[row], twin.stats[row], "{path:?}, row {row}");
                assert!(setup.h.row_mut(row) == twin.h.row_mut(row), "{path:?}, row {row}");
            }
        }
    }
}

/// A warp holds the ends of as many profiles as it has threads. Tables may have more.
#[test]
fn a_table_may_have_more_profiles_than_a_warp_has_threads() {
    let cap = |first: usize| {
        let direction: Vec<f32> = (0..512).map(|i| ((first + i) as f32).sin()).collect();
        Cap::new(Axis::from_direction(&direction).expect("an axis"), Bound::floor(7.0).expect("a bound"))
    };
    let caps: Vec<Cap> = (0..40).map(cap).collect();
    for path in KernelPath::ALL {
        // Without profile 0.
        for count in [31, 32, 40] {
            // The second profile is empty.
            let lists: Vec<Vec<&Cap>> = caps[..count]
                .iter()
                .enumerate()
                .map(|(i, cap)| if i == 1 { vec![] } else { vec![cap] })
                .collect();
            let lists: Vec<&[&Cap]> = lists.iter().map(Vec::as_slice).collect();
            let names = [0, 1, 2, 3, 31, 32, 33, 40, 41, u32::MAX];
            let case = Case { profiles: Profiles::Several, ..one_cap(names.len(), 512, Some(path)) };
            let mut setup = Setup::<f32>::new(&case);
            setup.table = CapTable::with_profiles(&lists).expect("a table");
            setup.profiles = names.to_vec();
            let mut random = Random(count as u64);
            (0..case.rows).for_each(|row| setup.h.row_mut(row).fill_with(|| random.value()));
            let mut twin = setup.clone();
            twin.on_twin(&case);
            let launched = emulate::emulate(&mut setup, &case).expect("no fault").is_some();
            assert_eq!(launched, case.is_for_its_path(), "{path:?}");
            if launched {
                setup.same(&twin).unwrap_or_else(|error| panic!("{path:?}, {count} profiles: {error}"));
            }
        }
    }
}

/// A group without a barrier would meet threads of another group on a GPU. The emulator reports it.
#[test]
fn groups_without_a_barrier_are_found() {
    let case = one_cap(19, 576, Some(KernelPath::Staged));
    let mut setup = Setup::<f32>::new(&case);
    let mut image = TableImage::new(&setup.table);
    let view = image.view();
    let plan =
        Plan::on_path(&setup.job(&case), &view, &case.limits, case.path).expect("a plan").expect("rows");
    let run = |kernel: &str, groups: u32| {
        let launch = machine::Launch { blocks: 1, threads: 64, groups, shared_bytes: 64 << 10, cluster: 1 };
        // SAFETY: every buffer outlives the call, and only this test uses it.
        unsafe { machine::run_named(kernel, plan.args(), &launch, case.schedule) }
    };
    // The path of clusters has no barriers of groups.
    for path in KernelPath::ALL.into_iter().filter(|&path| path != KernelPath::Cluster) {
        let (kernel, max) = (format!("axiscap_cap_f32_{}", path.name()), path.barriers());
        assert_eq!(run(&kernel, max), Ok(()));
        let wrong = run(&kernel, max + 1).expect_err("a group without a barrier");
        assert!(wrong.contains(&format!("barrier {max} of {max}")), "{wrong}");
    }
}

/// kernels/emulate/misuse.hpp does each of these things in a cluster, which CUDA leaves undefined or which never
/// ends on a GPU.
#[test]
fn misuse_of_clusters_is_found() {
    let case = one_cap(1, 512, None);
    let mut setup = Setup::<f32>::new(&case);
    let mut image = TableImage::new(&setup.table);
    let view = image.view();
    let plan =
        Plan::on_path(&setup.job(&case), &view, &case.limits, case.path).expect("a plan").expect("rows");
    let run = |what: &str, blocks: u32, cluster: u32, schedule: u32| {
        let launch = machine::Launch { blocks, threads: 64, groups: 1, shared_bytes: 256, cluster };
        // SAFETY: every buffer outlives the call, and only this test uses it.
        unsafe { machine::run_named(&format!("axiscap_cluster_{what}"), plan.args(), &launch, schedule) }
    };
    let faults = [
        ("store_too_early", "a store to a block that may not have started"),
        ("store_too_late", "without a barrier of the cluster"),
        ("store_to_ended", "a store to a block that has ended"),
        ("unequal_barriers", "a barrier or shuffle that not all its threads reach"),
        ("missing_thread", "a barrier or shuffle that not all its threads reach"),
        ("half_a_barrier", "between the halves of its cluster's barrier"),
        ("two_arrivals", "a second arrival"),
        ("no_arrival", "without an arrival"),
        ("wrong_rank", "a store to block 2 of a cluster"),
        ("wrong_place", "access outside shared memory"),
        ("misaligned", "misaligned access of shared memory"),
    ];
    for schedule in 0..4 {
        for (what, fault) in faults {
            let wrong = run(what, 4, 2, schedule).expect_err(what);
            assert!(wrong.contains(fault), "schedule {schedule}: {wrong}");
        }
        assert!(run("correct", 3, 2, schedule).expect_err("a grid").contains("no multiple of its cluster"));
        assert!(run("correct", 4, 1, schedule).expect_err("a cluster").contains("of another size"));
        assert_eq!(run("correct", 4, 2, schedule), Ok(()));
        assert_eq!(setup.h.row(0)[..4], [2.0, 1.0, 4.0, 3.0]);
        assert_eq!(run("unordered", 4, 2, schedule), Ok(()));
        // The first block to go on reads too early.
        let early = |pair: &[f32]| pair.iter().any(|x| x.is_nan());
        assert!(setup.h.row(0)[..4].chunks(2).all(early), "schedule {schedule}");
    }
}

/// The CPU twin uses the conversions of the `half` crate.
#[test]
fn the_emulator_converts_as_the_half_crate_does() {
    for bits in 0..=u16::MAX {
        let (found, expected) = (machine::widen_f16(bits), f16::from_bits(bits).to_f32());
        let same = found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan());
        assert!(same, "{bits:#06x}");
    }
    let mut random = Random(1);
    let halves = (0..=u16::MAX).flat_map(|bits| {
        // Every f16 and bf16, its neighbours in f32, and the values around the ties.
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
    let others = std::iter::repeat_with(|| random.bits() as u32).take(1_000_000);
    for bits in halves.chain(others) {
        let value = f32::from_bits(bits);
        let (found, half) = (machine::narrow(b"axiscap_emulate_narrow_f16", value), f16::from_f32(value));
        assert!(found == half.to_bits() || value.is_nan(), "{value:e} to f16: {found:#06x}, {half:?}");
        let (found, half) = (machine::narrow(b"axiscap_emulate_narrow_bf16", value), bf16::from_f32(value));
        assert!(found == half.to_bits() || value.is_nan(), "{value:e} to bf16: {found:#06x}, {half:?}");
    }
}
