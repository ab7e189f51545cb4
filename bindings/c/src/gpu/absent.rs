//! GPUs in a library without the feature `cuda`: none can be opened, and every call says so.

use std::ffi::c_void;

use axiscap::CapTable;

use crate::failure::Failure;
use crate::gpu::Properties;
use crate::gpu::faults::ProfileFaults;
use crate::job::call::Job;
use crate::status::Status;

/// Stands for a GPU. None is ever made. The type has a value and the alignment of a real one, so that a wrong
/// pointer of the caller meets the same checks and not the undefined behaviour of a type without values.
#[derive(Debug)]
pub(super) struct Gpu(#[expect(dead_code, reason = "for its alignment")] u64);

/// Stands for a table on a GPU, as [`Gpu`] for a GPU.
#[derive(Debug)]
pub(super) struct GpuTable(#[expect(dead_code, reason = "for its alignment")] u64);

fn without<T>() -> Result<T, Failure> {
    let message = "this library was built for the CPU alone; build axiscap-c with its feature cuda \
                   (scripts/install-c --cuda), or use axiscap_run";
    Err(Failure::new(Status::NoCuda, message))
}

pub(super) fn count() -> Result<usize, Failure> {
    without()
}

pub(super) fn open(_ordinal: usize) -> Result<(Gpu, Properties), Failure> {
    without()
}

pub(super) fn upload(_gpu: &Gpu, _table: &CapTable) -> Result<GpuTable, Failure> {
    without()
}

/// # Safety
/// None: nothing is done.
pub(super) unsafe fn update(
    _on_gpu: &GpuTable,
    _table: &CapTable,
    _stream: *mut c_void,
) -> Result<(), Failure> {
    without()
}

/// # Safety
/// None: nothing is done.
pub(super) unsafe fn launch(
    _table: &GpuTable,
    _job: *const Job,
    _stream: *mut c_void,
    _programmatic: bool,
) -> Result<(), Failure> {
    without()
}

/// # Safety
/// None: nothing is done.
pub(super) unsafe fn faults(_table: &GpuTable, _stream: *mut c_void) -> Result<ProfileFaults, Failure> {
    without()
}

/// # Safety
/// None: nothing is done.
pub(super) unsafe fn clear_faults(_table: &GpuTable, _stream: *mut c_void) -> Result<(), Failure> {
    without()
}
