//! Jobs that do not fit are refused, and no row is written.

use std::ptr;

use axiscap::Bound;
use axiscap_c::{
    AXISCAP_ADD_CAP, AXISCAP_ADD_CAP_NORM, AXISCAP_BF16, AXISCAP_CAP_NORM, Job, RowStat, Status, axiscap_run,
};
use axiscap_testing::numbers::Random;

use crate::support::{OpenTable, cap, failed, file, job, ok, open, table};

const WIDTH: usize = 8;
const ROWS: usize = 4;

/// A table with two caps per row and two profiles, and memory for every operation.
struct Fixture {
    table: OpenTable,
    h: Vec<f32>,
    x: Vec<f32>,
    residual: Vec<f32>,
    normed: Vec<f32>,
    weight: Vec<f32>,
    profiles: Vec<u32>,
    stats: Vec<RowStat>,
}

impl Fixture {
    fn new() -> Self {
        let random = &mut Random(1);
        let floor = Bound::floor(50.0).unwrap();
        let caps = open(&file([1, 1].map(|block| (block, cap(random, WIDTH, floor)))));
        let ones = || vec![1.0; WIDTH * ROWS];
        Self {
            table: table(&[&caps, &caps], 1),
            h: ones(),
            x: ones(),
            residual: ones(),
            normed: ones(),
            weight: vec![1.0; WIDTH],
            profiles: vec![1, 0, 2, 1],
            stats: vec![RowStat::default(); ROWS * 2],
        }
    }

    /// A job that uses everything, and succeeds.
    fn job(&mut self) -> Job {
        Job {
            operation: AXISCAP_ADD_CAP_NORM,
            rows: ROWS,
            h: self.h.as_mut_ptr().cast(),
            x: self.x.as_ptr().cast(),
            x_stride: WIDTH,
            residual: self.residual.as_ptr().cast(),
            residual_stride: WIDTH,
            normed: self.normed.as_mut_ptr().cast(),
            normed_stride: WIDTH,
            weight: self.weight.as_ptr(),
            epsilon: 1e-5,
            profiles: self.profiles.as_ptr(),
            profile_count: ROWS,
            stats: self.stats.as_mut_ptr(),
            stat_count: ROWS * 2,
            ..job(WIDTH)
        }
    }

    /// Changes one thing of the job. The call must fail with this status and message, and change nothing.
    #[track_caller]
    fn refused(&mut self, status: Status, part: &str, change: impl FnOnce(&mut Job)) {
        let mut job = self.job();
        change(&mut job);
        // SAFETY: a job that is refused touches no rows. Every pointer of one that is wrongly accepted is null,
        // misaligned or of the fixture.
        failed(unsafe { axiscap_run(self.table.0, &job) }, status, part);
        assert!(self.h.iter().chain(&self.normed).all(|&value| value == 1.0));
    }
}

/// Moves a pointer by one byte.
fn shifted<T>(pointer: *const T) -> *const T {
    pointer.wrapping_byte_add(1)
}

#[test]
fn the_job_of_these_tests_succeeds_unchanged() {
    let mut fixture = Fixture::new();
    let job = fixture.job();
    // SAFETY: the job describes the fixture.
    ok(unsafe { axiscap_run(fixture.table.0, &job) });
    assert!(fixture.h.iter().any(|&value| value != 1.0));
}

#[test]
fn pointers_may_not_be_null() {
    let mut fixture = Fixture::new();
    let null = Status::NullPointer;
    fixture.refused(null, "h: the row pointer is null", |job| job.h = ptr::null_mut());
    fixture.refused(null, "x is NULL", |job| job.x = ptr::null());
    fixture.refused(null, "residual is NULL", |job| job.residual = ptr::null());
    fixture.refused(null, "normed is NULL", |job| job.normed = ptr::null_mut());
    fixture.refused(null, "weight is NULL", |job| job.weight = ptr::null());
    fixture.refused(null, "profiles is NULL", |job| job.profiles = ptr::null());
    fixture.refused(null, "stats is NULL", |job| job.stats = ptr::null_mut());
    let job = fixture.job();
    // SAFETY: the calls are refused.
    unsafe {
        failed(axiscap_run(ptr::null(), &job), null, "table is NULL");
        failed(axiscap_run(fixture.table.0, ptr::null()), null, "job is NULL");
    }
}

#[test]
fn pointers_are_aligned() {
    let mut fixture = Fixture::new();
    let misaligned = Status::Misaligned;
    fixture.refused(misaligned, "h: ", |job| job.h = shifted(job.h).cast_mut());
    fixture.refused(misaligned, "x: ", |job| job.x = shifted(job.x));
    fixture.refused(misaligned, "residual: ", |job| job.residual = shifted(job.residual));
    fixture.refused(misaligned, "normed: ", |job| job.normed = shifted(job.normed).cast_mut());
    fixture.refused(misaligned, "weight is not a multiple of 4", |job| job.weight = shifted(job.weight));
    fixture.refused(misaligned, "profiles is not", |job| job.profiles = shifted(job.profiles));
    fixture.refused(misaligned, "stats is not", |job| job.stats = shifted(job.stats).cast_mut());
    // The alignment is that of the type.
    fixture.refused(misaligned, "2 bytes", |job| {
        job.dtype = AXISCAP_BF16;
        job.h = shifted(job.h).cast_mut();
    });
    let job = fixture.job();
    // SAFETY: the calls are refused.
    unsafe {
        failed(axiscap_run(shifted(fixture.table.0), &job), misaligned, "table");
        failed(axiscap_run(fixture.table.0, shifted(&job)), misaligned, "job");
    }
}

#[test]
fn sizes_may_not_overflow() {
    let mut fixture = Fixture::new();
    let overflow = Status::Overflow;
    let without_arrays = |job: &mut Job| {
        (job.profiles, job.profile_count) = (ptr::null(), 0);
        (job.stats, job.stat_count) = (ptr::null_mut(), 0);
    };
    fixture.refused(overflow, "h: rows x stride", |job| {
        without_arrays(job);
        job.h_stride = usize::MAX;
    });
    fixture.refused(overflow, "x: ", |job| job.x_stride = usize::MAX / 4);
    fixture.refused(overflow, "residual: ", |job| job.residual_stride = usize::MAX / 8);
    fixture.refused(overflow, "normed: ", |job| job.normed_stride = isize::MAX as usize);
    fixture.refused(overflow, "rows x stride", |job| {
        without_arrays(job);
        job.rows = usize::MAX;
    });
    fixture.refused(overflow, "rows x stride", |job| {
        without_arrays(job);
        job.rows = usize::MAX / 2;
    });
    fixture.refused(overflow, "profiles: ", |job| job.profile_count = usize::MAX);
    fixture.refused(overflow, "stats: ", |job| job.stat_count = usize::MAX / 2);
}

#[test]
fn numbers_must_be_known() {
    let mut fixture = Fixture::new();
    let invalid = Status::InvalidArgument;
    for operation in [0, 5, u32::MAX] {
        fixture.refused(invalid, "job.operation is", |job| job.operation = operation);
    }
    for dtype in [0, 4, u32::MAX] {
        fixture.refused(invalid, "job.dtype is", |job| job.dtype = dtype);
    }
    for size in [0, size_of::<Job>() - 8, size_of::<Job>() + 8, usize::MAX] {
        fixture.refused(invalid, "set it to sizeof(axiscap_job)", |job| job.size = size);
    }
    for epsilon in [-1e-5, f32::NAN, f32::INFINITY] {
        fixture.refused(Status::Epsilon, "epsilon", |job| job.epsilon = epsilon);
    }
}

/// Only the size is there, so reading more would be out of bounds.
#[test]
fn a_job_of_another_size_is_not_read() {
    let (fixture, size) = (Fixture::new(), Box::new(8_usize));
    // SAFETY: the pointer is to a size, and the call is refused.
    let status = unsafe { axiscap_run(fixture.table.0, (&raw const *size).cast()) };
    failed(status, Status::InvalidArgument, "job.size is 8");
}

#[test]
fn widths_strides_and_counts_must_agree() {
    let mut fixture = Fixture::new();
    fixture.refused(Status::Width, "the batch of rows has width 7, not 8", |job| job.width = 7);
    fixture.refused(Status::Width, "width 0", |job| job.width = 0);
    fixture.refused(Status::Stride, "h: a stride of 7 elements", |job| job.h_stride = 7);
    fixture.refused(Status::Stride, "x: ", |job| job.x_stride = 0);
    fixture.refused(Status::Stride, "residual: ", |job| job.residual_stride = 1);
    fixture.refused(Status::Stride, "normed: ", |job| job.normed_stride = 7);
    fixture.refused(Status::Count, "3 entries in profiles, where 4", |job| job.profile_count = 3);
    fixture.refused(Status::Count, "4 entries in stats, where 8", |job| job.stat_count = 4);
    fixture.refused(Status::Count, "9 entries in stats, where 8", |job| job.stat_count = 9);
    fixture.profiles[2] = 3;
    fixture.refused(Status::Profile, "row 2 asks for profile 3", |_| {});
}

#[test]
fn what_an_operation_does_not_use_stays_null() {
    let mut fixture = Fixture::new();
    let invalid = Status::InvalidArgument;
    fixture.refused(invalid, "does not use x", |job| job.operation = AXISCAP_CAP_NORM);
    fixture.refused(invalid, "does not use residual", |job| {
        (job.operation, job.x) = (AXISCAP_CAP_NORM, ptr::null());
    });
    fixture.refused(invalid, "does not use normed", |job| job.operation = AXISCAP_ADD_CAP);
    fixture.refused(invalid, "does not use weight", |job| {
        (job.operation, job.normed) = (AXISCAP_ADD_CAP, ptr::null_mut());
    });
}

#[test]
fn rows_in_place_have_one_stride_and_normed_rows_their_own_memory() {
    let mut fixture = Fixture::new();
    let invalid = Status::InvalidArgument;
    fixture.refused(invalid, "residual is h, but its stride is 9", |job| {
        (job.residual, job.residual_stride) = (job.h, 9);
    });
    fixture.refused(invalid, "x is h, but its stride is 9", |job| (job.x, job.x_stride) = (job.h, 9));
    fixture.refused(invalid, "normed is also", |job| job.normed = job.h);
    fixture.refused(invalid, "normed is also", |job| job.normed = job.x.cast_mut());
}
