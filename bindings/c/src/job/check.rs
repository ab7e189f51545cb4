//! What is checked of a job before it is handed on, the same for host and device memory.

use std::ffi::c_void;

use axiscap::{Dtype, Epsilon, Error, Operation, RowsError};

use crate::failure::Failure;
use crate::job::call::{
    AXISCAP_ADD_CAP, AXISCAP_ADD_CAP_NORM, AXISCAP_BF16, AXISCAP_CAP, AXISCAP_CAP_NORM, AXISCAP_F16,
    AXISCAP_F32, Job,
};
use crate::pointer;
use crate::status::Status;

/// A job whose numbers are known, and whose fields fit the table and each other.
#[derive(Debug)]
pub(crate) struct Checked<'a> {
    pub(crate) job: &'a Job,
    pub(crate) operation: Operation,
    pub(crate) dtype: Dtype,
    /// Checked for operations with a norm. Others have 0, which they do not use.
    pub(crate) epsilon: Epsilon,
}

/// Checks a job for a table. The shapes of rows are left to the call that takes them.
///
/// # Safety
/// `job` is null, or points to a size and, if that is the size of a [`Job`], to a whole one, which nothing
/// changes during `'a`.
pub(crate) unsafe fn checked<'a>(
    job: *const Job,
    width: usize,
    max_caps_per_row: usize,
) -> Result<Checked<'a>, Failure> {
    pointer::check(job, "job")?;
    // SAFETY: the pointer is aligned and not null, and the caller promises a size, which is the first field.
    // The rest of a job of another version may be shorter than this one's.
    let size = unsafe { job.cast::<usize>().read() };
    if size != size_of::<Job>() {
        let expected = size_of::<Job>();
        return Err(argument(format!(
            "job.size is {size}, not {expected}; set it to sizeof(axiscap_job), and use the header of this version ({})",
            env!("CARGO_PKG_VERSION")
        )));
    }
    // SAFETY: the caller promises that a job of this size is whole.
    let job = unsafe { pointer::shared(job, "job") }?;
    let operation = operation_of(job.operation)?;
    let dtype = dtype_of(job.dtype)?;
    if job.width != width {
        let (what, against) = ("the batch of rows".into(), "the table of caps");
        return Err(Error::Width { what, found: job.width, against, expected: width }.into());
    }
    rows_used(job, "x", job.x, operation.adds())?;
    rows_used(job, "residual", job.residual, operation.adds())?;
    rows_used(job, "normed", job.normed, operation.norms())?;
    one_place(job, "x", job.x, job.x_stride)?;
    one_place(job, "residual", job.residual, job.residual_stride)?;
    let normed = job.normed.cast_const();
    if job.rows > 0 && !normed.is_null() && [job.h.cast_const(), job.x, job.residual].contains(&normed) {
        return Err(argument("normed is also h, x or residual; give the normed rows memory of their own"));
    }
    match operation.norms() {
        true => pointer::check(job.weight, "weight")?,
        false => unused("weight", job.weight.cast())?,
    }
    let epsilon = Epsilon::new(if operation.norms() { job.epsilon } else { 0.0 })?;
    count("profiles", job.profiles, job.profile_count, job.rows)?;
    let stats = job.rows.checked_mul(max_caps_per_row).ok_or(RowsError::Overflow)?;
    count("stats", job.stats, job.stat_count, stats)?;
    Ok(Checked { job, operation, dtype, epsilon })
}

fn operation_of(operation: u32) -> Result<Operation, Failure> {
    Ok(match operation {
        AXISCAP_CAP => Operation::Cap,
        AXISCAP_ADD_CAP => Operation::AddCap,
        AXISCAP_CAP_NORM => Operation::CapNorm,
        AXISCAP_ADD_CAP_NORM => Operation::AddCapNorm,
        other => {
            return Err(argument(format!(
                "job.operation is {other}; use one of AXISCAP_CAP, AXISCAP_ADD_CAP, AXISCAP_CAP_NORM and AXISCAP_ADD_CAP_NORM"
            )));
        }
    })
}

fn dtype_of(dtype: u32) -> Result<Dtype, Failure> {
    Ok(match dtype {
        AXISCAP_F32 => Dtype::F32,
        AXISCAP_F16 => Dtype::F16,
        AXISCAP_BF16 => Dtype::BF16,
        other => {
            return Err(argument(format!(
                "job.dtype is {other}; use one of AXISCAP_F32, AXISCAP_F16 and AXISCAP_BF16"
            )));
        }
    })
}

fn argument(message: impl Into<String>) -> Failure {
    Failure::new(Status::InvalidArgument, message)
}

/// Checks that rows are there if the operation uses them, and are not if it does not.
fn rows_used(job: &Job, name: &str, rows: *const c_void, used: bool) -> Result<(), Failure> {
    match used {
        // Alignment is that of the type, which the call checks that takes the rows.
        true if job.rows > 0 => pointer::check(rows.cast::<u8>(), name),
        true => Ok(()),
        false => unused(name, rows),
    }
}

fn unused(name: &str, pointer: *const c_void) -> Result<(), Failure> {
    if pointer.is_null() {
        return Ok(());
    }
    Err(argument(format!(
        "job.operation does not use {name}; set {name} to NULL, or choose another operation"
    )))
}

/// Checks that a summand which begins where h does is the same rows as h.
fn one_place(job: &Job, name: &str, rows: *const c_void, stride: usize) -> Result<(), Failure> {
    if job.rows > 1 && rows == job.h.cast_const() && stride != job.h_stride {
        return Err(argument(format!(
            "{name} is h, but its stride is {stride} and that of h is {}; rows in place have one stride",
            job.h_stride
        )));
    }
    Ok(())
}

/// Checks an array of values per row. It may be absent, which is null with a count of 0.
fn count<T>(what: &'static str, values: *const T, found: usize, expected: usize) -> Result<(), Failure> {
    if values.is_null() && found == 0 {
        return Ok(());
    }
    pointer::check_array(values, found, what)?;
    if found == expected { Ok(()) } else { Err(RowsError::Count { what, found, expected }.into()) }
}
