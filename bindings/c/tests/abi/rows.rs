//! Rows capped through C have the bits of rows capped through Rust.

use axiscap::cpu::{self, Element, Rows, RowsMut};
use axiscap::{Bound, CapTable, Dtype, Epsilon, Operation, RowStat};
use axiscap_c::{
    AXISCAP_ADD_CAP, AXISCAP_ADD_CAP_NORM, AXISCAP_BF16, AXISCAP_CAP, AXISCAP_CAP_NORM, AXISCAP_ENGAGED,
    AXISCAP_F16, AXISCAP_F32, AXISCAP_NON_FINITE, Job, axiscap_run,
};
use axiscap_testing::numbers::Random;
use bytemuck::{Pod, cast_slice};
use half::{bf16, f16};

use crate::support::{OpenTable, cap, file, job, ok, open, table};

/// One case: an operation, with or without profiles and statistics, on rows of a width and gaps between them.
#[derive(Debug, Clone, Copy)]
struct Case {
    operation: Operation,
    rows: usize,
    width: usize,
    gap: usize,
    profiles: bool,
    stats: bool,
    in_place: bool,
}

impl Case {
    /// The strides of h, x, residual and normed. They differ, so that none can stand for another.
    fn strides(&self) -> [usize; 4] {
        [0, 1, 2, 3].map(|more| self.width + self.gap + more * usize::from(self.gap > 0))
    }
}

/// The memory of a call. Gaps between rows are filled too, so that a write to one is noticed.
#[derive(Clone)]
struct Memory<E> {
    h: Vec<E>,
    x: Vec<E>,
    residual: Vec<E>,
    normed: Vec<E>,
    weight: Vec<f32>,
    profiles: Vec<u32>,
    stats: Vec<RowStat>,
}

const EPSILON: f32 = 1e-5;

impl<E: Element + Pod> Memory<E> {
    fn new(random: &mut Random, case: &Case, table: &CapTable) -> Self {
        let values = |stride| (0..case.rows * stride).map(|_| E::from_f32(random.value())).collect();
        let [h, x, residual, normed]: [Vec<E>; 4] = case.strides().map(values);
        Self {
            h,
            x,
            residual,
            normed,
            weight: (0..case.width).map(|_| random.signed()).collect(),
            profiles: (0..case.rows).map(|row| (row % table.profile_count()) as u32).collect(),
            stats: vec![RowStat { before: 7.0, after: 7.0, flags: 7 }; case.rows * table.max_caps_per_row()],
        }
    }

    fn run_in_rust(&mut self, case: &Case, table: &CapTable) {
        let Case { rows, width, .. } = *case;
        let [h_stride, x_stride, residual_stride, normed_stride] = case.strides();
        let h = RowsMut::with_stride(&mut self.h, rows, width, h_stride).unwrap();
        let x = Rows::with_stride(&self.x, rows, width, x_stride).unwrap();
        let residual = Rows::with_stride(&self.residual, rows, width, residual_stride).unwrap();
        let mut call = match (case.operation.adds(), case.in_place) {
            (false, _) => cpu::Job::cap(h),
            (true, true) => cpu::Job::add_cap(x, h),
            (true, false) => cpu::Job::add_cap_into(x, residual, h),
        };
        if case.operation.norms() {
            let out = RowsMut::with_stride(&mut self.normed, rows, width, normed_stride).unwrap();
            call = call.norm(&self.weight, Epsilon::new(EPSILON).unwrap(), out);
        }
        if case.profiles {
            call = call.row_profiles(&self.profiles);
        }
        if case.stats {
            call = call.stats(&mut self.stats);
        }
        call.run(table).unwrap();
    }

    fn run_in_c(&mut self, case: &Case, table: &OpenTable) {
        let [h_stride, x_stride, residual_stride, normed_stride] = case.strides();
        let mut job = Job {
            operation: match case.operation {
                Operation::Cap => AXISCAP_CAP,
                Operation::AddCap => AXISCAP_ADD_CAP,
                Operation::CapNorm => AXISCAP_CAP_NORM,
                Operation::AddCapNorm => AXISCAP_ADD_CAP_NORM,
            },
            dtype: match E::DTYPE {
                Dtype::F32 => AXISCAP_F32,
                Dtype::F16 => AXISCAP_F16,
                Dtype::BF16 => AXISCAP_BF16,
            },
            rows: case.rows,
            h: self.h.as_mut_ptr().cast(),
            h_stride,
            ..job(case.width)
        };
        if case.operation.adds() {
            (job.x, job.x_stride) = (self.x.as_ptr().cast(), x_stride);
            (job.residual, job.residual_stride) = match case.in_place {
                true => (job.h.cast_const(), h_stride),
                false => (self.residual.as_ptr().cast(), residual_stride),
            };
        }
        if case.operation.norms() {
            (job.normed, job.normed_stride) = (self.normed.as_mut_ptr().cast(), normed_stride);
            (job.weight, job.epsilon) = (self.weight.as_ptr(), EPSILON);
        }
        if case.profiles {
            (job.profiles, job.profile_count) = (self.profiles.as_ptr(), self.profiles.len());
        }
        if case.stats {
            (job.stats, job.stat_count) = (self.stats.as_mut_ptr().cast(), self.stats.len());
        }
        // SAFETY: the job describes the vectors of this value, which nothing else uses.
        ok(unsafe { axiscap_run(table.0, &job) });
    }

    #[track_caller]
    fn assert_same(&self, other: &Self, case: &Case) {
        let bytes = |memory: &Self| {
            let rows = [&memory.h, &memory.x, &memory.residual, &memory.normed];
            let rows = rows.into_iter().flat_map(|rows| cast_slice::<E, u8>(rows));
            rows.chain(cast_slice(&memory.stats)).copied().collect::<Vec<_>>()
        };
        assert!(bytes(self) == bytes(other), "{} {case:?}", E::DTYPE.name());
    }
}

fn compare<E: Element + Pod>(random: &mut Random, case: &Case) {
    let bound = Bound::band(-0.001, 0.001).unwrap();
    let two = file([(2, cap(random, case.width, bound)), (2, cap(random, case.width, bound))]);
    let one = file([(2, cap(random, case.width, bound).with_strength(0.5).unwrap())]);
    let caps = |index: usize| &[&two, &one][index].caps;
    let profiles = [0, 1].map(|set| caps(set).caps().iter().map(|entry| &entry.cap).collect::<Vec<_>>());
    let in_rust = CapTable::with_profiles(&[&profiles[0], &profiles[1]]).unwrap();
    let in_c = table(&[&open(&two), &open(&one)], 2);
    let mut expected = Memory::<E>::new(random, case, &in_rust);
    let (before, mut found) = (expected.clone(), expected.clone());
    expected.run_in_rust(case, &in_rust);
    found.run_in_c(case, &in_c);
    found.assert_same(&expected, case);
    // One or three rows may all be within the bounds.
    assert!(case.rows < 5 || cast_slice::<E, u8>(&found.h) != cast_slice::<E, u8>(&before.h), "{case:?}");
}

#[test]
fn every_operation_has_the_same_bits_on_every_type() {
    let random = &mut Random(7);
    for operation in Operation::ALL {
        for (rows, width, gap) in [(0, 8, 0), (1, 1, 0), (5, 64, 8), (7, 576, 0), (3, 1030, 3)] {
            for options in 0..8 {
                let case = Case {
                    operation,
                    rows,
                    width,
                    gap,
                    profiles: options & 1 != 0 && rows != 1,
                    stats: options & 2 != 0,
                    in_place: options & 4 != 0,
                };
                compare::<f32>(random, &case);
                compare::<f16>(random, &case);
                compare::<bf16>(random, &case);
            }
        }
    }
}

#[test]
fn a_row_that_is_not_finite_is_flagged_and_left_alone() {
    let table = table(&[&open(&file([(1, cap(&mut Random(1), 8, Bound::floor(100.0).unwrap()))]))], 1);
    let mut h = [[1.0_f32; 8], [f32::NAN; 8], [f32::INFINITY; 8]];
    // Not initialised, as memory of malloc.
    let mut stats = Box::<[axiscap_c::RowStat]>::new_uninit_slice(3);
    let job =
        Job { rows: 3, h: h.as_mut_ptr().cast(), stats: stats.as_mut_ptr().cast(), stat_count: 3, ..job(8) };
    // SAFETY: the job describes these arrays, which nothing else uses.
    ok(unsafe { axiscap_run(table.0, &job) });
    // SAFETY: a call that succeeds has written every entry.
    let stats = unsafe { stats.assume_init() };
    assert_eq!(stats[0].flags, AXISCAP_ENGAGED);
    assert_eq!([stats[1].flags, stats[2].flags], [AXISCAP_NON_FINITE; 2]);
    assert_eq!(stats[0].after, 100.0);
    assert!(h[1].iter().all(|value| value.is_nan()));
    assert_eq!(h[2], [f32::INFINITY; 8]);
}

#[test]
fn no_rows_need_no_memory() {
    let table = table(&[&open(&file([(1, cap(&mut Random(1), 8, Bound::NONE))]))], 1);
    // SAFETY: the job has no rows.
    ok(unsafe { axiscap_run(table.0, &job(8)) });
    let weight = [1.0; 8];
    let all = Job { operation: AXISCAP_ADD_CAP_NORM, weight: weight.as_ptr(), ..job(8) };
    let all = Job { x_stride: 8, residual_stride: 8, normed_stride: 8, ..all };
    // SAFETY: the job has no rows, and the weight lives.
    ok(unsafe { axiscap_run(table.0, &all) });
}
