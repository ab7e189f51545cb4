//! Running a call on the CPU.

use axiscap::cpu::{self, Element, Rows, RowsMut};
use axiscap::{CapTable, Dtype};
use half::{bf16, f16};

use crate::failure::Failure;
use crate::job::call::Job;
use crate::job::check::{Checked, checked};
use crate::job::row_stat::RowStat;
use crate::status::Status;
use crate::table::make::Table;
use crate::{guard, pointer};

/// Runs a call on rows in host memory, on the calling thread, with the fastest instruction set of the machine.
/// The bits of the result do not depend on either (docs/operation.md).
///
/// On an error no row is written, and statistics may have become zero. The errors of this call are
/// AXISCAP_STATUS_NULL_POINTER, _MISALIGNED, _OVERFLOW, _INVALID_ARGUMENT, _WIDTH, _STRIDE, _COUNT, _PROFILE
/// and _EPSILON. A row with NaN or infinities is no error. If its projection is not finite, the row stays
/// unchanged, and its statistics are flagged AXISCAP_NON_FINITE.
///
/// Ownership: all memory of the job is the caller's, and nothing of it is kept.
///
/// Threads: any number may call this with the same table, on rows that do not overlap. To share a batch, give
/// each thread some of its rows. The first call on a thread with 16-bit rows allocates four rows of floats,
/// which are freed when the thread ends.
///
/// # Safety
/// `table` is NULL or a live handle. `job` is NULL or describes live memory: rows that are read, weight and
/// profiles are initialised, and nothing else writes them or uses what the call writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_run(table: *const Table, job: *const Job) -> Status {
    guard::call(|| {
        // SAFETY: the caller promises a live handle.
        let Table(table) = unsafe { pointer::shared(table, "table") }?;
        // SAFETY: the caller promises a job.
        let job = unsafe { checked(job, table.width(), table.max_caps_per_row()) }?;
        // SAFETY: the caller promises the memory, and `checked` has found its description to fit.
        unsafe {
            match job.dtype {
                Dtype::F32 => run::<f32>(table, &job),
                Dtype::F16 => run::<f16>(table, &job),
                Dtype::BF16 => run::<bf16>(table, &job),
            }
        }
    })
}

/// # Safety
/// The memory of the job is as [`axiscap_run`] asks for, and of elements of this type.
unsafe fn run<E: Element>(table: &CapTable, checked: &Checked<'_>) -> Result<(), Failure> {
    let Checked { job, operation, epsilon, .. } = *checked;
    let of = |name| move |error: axiscap::Error| Failure::from(error).of(name);
    // SAFETY: the caller promises initialised rows of this type, which nothing else uses during the call.
    // Summands are either other memory or exactly the rows of `h`, as `Rows` allows. `from_raw` checks
    // pointer, stride and extent.
    let rows = unsafe { RowsMut::from_raw(job.h.cast::<E>(), job.rows, job.width, job.h_stride) };
    let rows = rows.map_err(of("h"))?;
    let mut call = if operation.adds() {
        // SAFETY: as for `rows`.
        let x = unsafe { Rows::from_raw(job.x.cast::<E>(), job.rows, job.width, job.x_stride) };
        // SAFETY: as for `rows`.
        let residual =
            unsafe { Rows::from_raw(job.residual.cast::<E>(), job.rows, job.width, job.residual_stride) };
        cpu::Job::add_cap_into(x.map_err(of("x"))?, residual.map_err(of("residual"))?, rows)
    } else {
        cpu::Job::cap(rows)
    };
    if operation.norms() {
        // SAFETY: as for `rows`.
        let out =
            unsafe { RowsMut::from_raw(job.normed.cast::<E>(), job.rows, job.width, job.normed_stride) };
        // SAFETY: the caller promises one value per value of a row.
        let weight = unsafe { pointer::array(job.weight, job.width, "weight") }?;
        call = call.norm(weight, epsilon, out.map_err(of("normed"))?);
    }
    if !job.profiles.is_null() {
        // SAFETY: the caller promises that many initialised values.
        call = call.row_profiles(unsafe { pointer::array(job.profiles, job.profile_count, "profiles") }?);
    }
    if !job.stats.is_null() {
        // SAFETY: the caller promises memory of that many entries, which nothing else uses.
        call = call.stats(unsafe { stats(job.stats, job.stat_count) });
    }
    Ok(call.run(table)?)
}

/// Borrows memory for statistics. It is set to zero, because a reference to memory that the caller has not
/// initialised would be undefined. That is 12 bytes beside every row of thousands.
///
/// # Safety
/// The pointer is aligned, and memory for `count` entries is there, which nothing else uses during `'a`.
unsafe fn stats<'a>(pointer: *mut RowStat, count: usize) -> &'a mut [axiscap::RowStat] {
    // Both types have one layout: `row_stat` asserts it.
    let pointer = pointer.cast::<axiscap::RowStat>();
    // SAFETY: the caller promises the memory. Zeros are a valid entry.
    unsafe {
        pointer.write_bytes(0, count);
        std::slice::from_raw_parts_mut(pointer, count)
    }
}
