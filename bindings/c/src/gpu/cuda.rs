//! GPUs through the crate `axiscap`.

use std::ffi::c_void;

use axiscap::CapTable;
use axiscap::cuda::{self, DeviceRows, Overlap, StreamRef};

use crate::failure::Failure;
use crate::gpu::Properties;
use crate::gpu::faults::ProfileFaults;
use crate::job::call::Job;
use crate::job::check::{Checked, checked};

pub(super) type Gpu = cuda::Device;
pub(super) type GpuTable = cuda::DeviceTable;

pub(super) fn count() -> Result<usize, Failure> {
    Ok(cuda::probe()?.len())
}

pub(super) fn open(ordinal: usize) -> Result<(Gpu, Properties), Failure> {
    let gpu = Gpu::open(ordinal)?;
    let info = gpu.info();
    let properties = Properties {
        name: info.name.clone(),
        compute_capability: info.arch,
        driver_version: u32::try_from(info.driver).unwrap_or(0),
    };
    Ok((gpu, properties))
}

pub(super) fn upload(gpu: &Gpu, table: &CapTable) -> Result<GpuTable, Failure> {
    Ok(gpu.upload(table)?)
}

/// # Safety
/// The stream is null or a live one of the table's GPU.
pub(super) unsafe fn update(on_gpu: &GpuTable, table: &CapTable, stream: *mut c_void) -> Result<(), Failure> {
    // SAFETY: the caller promises the stream for the time of the call, and the value is not kept.
    Ok(on_gpu.update(table, unsafe { StreamRef::from_raw(stream) })?)
}

/// # Safety
/// As for [`axiscap_launch`](crate::axiscap_launch).
pub(super) unsafe fn launch(
    table: &GpuTable,
    job: *const Job,
    stream: *mut c_void,
    programmatic: bool,
) -> Result<(), Failure> {
    let layout = table.view().layout;
    // SAFETY: the caller promises a job.
    let checked = unsafe { checked(job, layout.width, layout.max_caps_per_row) }?;
    let overlap = if programmatic { Overlap::Programmatic } else { Overlap::None };
    // SAFETY: the caller promises the stream for the time of the call, and the value is not kept.
    let stream = unsafe { StreamRef::from_raw(stream) };
    // SAFETY: the caller promises memory of the table's GPU that holds what the job says until the stream has
    // passed the launch, and that the table lives as long. `checked` has found numbers of profiles and
    // statistics to fit.
    Ok(unsafe { device_job(&checked).launch(table, stream, overlap) }?)
}

/// Translates a job. Its pointers are addresses on a GPU, which nothing here reads.
fn device_job(checked: &Checked<'_>) -> cuda::Job {
    let Checked { job, operation, dtype, epsilon } = *checked;
    let rows = |address: *const c_void, stride| DeviceRows {
        dtype,
        address: address.addr() as u64,
        count: job.rows,
        stride,
    };
    let h = rows(job.h, job.h_stride);
    let mut call = if operation.adds() {
        cuda::Job::add_cap_into(rows(job.x, job.x_stride), rows(job.residual, job.residual_stride), h)
    } else {
        cuda::Job::cap(h)
    };
    if operation.norms() {
        call = call.norm(job.weight.addr() as u64, epsilon, rows(job.normed, job.normed_stride));
    }
    if !job.profiles.is_null() {
        call = call.row_profiles(job.profiles.addr() as u64);
    }
    if !job.stats.is_null() {
        call = call.stats(job.stats.addr() as u64);
    }
    call
}

/// # Safety
/// The stream is null or a live one of the table's GPU.
pub(super) unsafe fn faults(table: &GpuTable, stream: *mut c_void) -> Result<ProfileFaults, Failure> {
    // SAFETY: the caller promises the stream for the time of the call, and the value is not kept.
    let faults = table.faults(unsafe { StreamRef::from_raw(stream) })?;
    Ok(faults.map_or(ProfileFaults::default(), |faults| ProfileFaults {
        rows: faults.rows,
        row: faults.row,
        profile: faults.profile,
    }))
}

/// # Safety
/// The stream is null or a live one of the table's GPU.
pub(super) unsafe fn clear_faults(table: &GpuTable, stream: *mut c_void) -> Result<(), Failure> {
    // SAFETY: the caller promises the stream for the time of the call, and the value is not kept.
    Ok(table.clear_faults(unsafe { StreamRef::from_raw(stream) })?)
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use axiscap::Epsilon;

    use super::*;
    use crate::job::call::{
        AXISCAP_ADD_CAP, AXISCAP_ADD_CAP_NORM, AXISCAP_BF16, AXISCAP_CAP, AXISCAP_CAP_NORM,
    };

    fn job(operation: u32) -> Job {
        let (adds, norms) = (
            operation == AXISCAP_ADD_CAP || operation == AXISCAP_ADD_CAP_NORM,
            operation == AXISCAP_CAP_NORM || operation == AXISCAP_ADD_CAP_NORM,
        );
        let at = |address: usize, used: bool| {
            if used { ptr::without_provenance_mut(address) } else { ptr::null_mut() }
        };
        Job {
            size: size_of::<Job>(),
            operation,
            dtype: AXISCAP_BF16,
            rows: 3,
            width: 64,
            h: ptr::without_provenance_mut(0x1000),
            h_stride: 64,
            x: at(0x2000, adds),
            x_stride: 72,
            residual: at(0x3000, adds),
            residual_stride: 80,
            normed: at(0x4000, norms),
            normed_stride: 88,
            weight: at(0x5000, norms).cast_const().cast(),
            epsilon: 1e-5,
            profiles: ptr::without_provenance(0x6000),
            profile_count: 3,
            stats: ptr::without_provenance_mut(0x7000),
            stat_count: 6,
        }
    }

    #[test]
    fn every_field_of_a_job_reaches_its_place() {
        let rows = |address, stride| DeviceRows { dtype: axiscap::Dtype::BF16, address, count: 3, stride };
        let (h, x, residual) = (rows(0x1000, 64), rows(0x2000, 72), rows(0x3000, 80));
        let normed = rows(0x4000, 88);
        let epsilon = Epsilon::new(1e-5).unwrap();
        let (cap, add_cap) = (cuda::Job::cap(h), cuda::Job::add_cap_into(x, residual, h));
        for (operation, expected) in [
            (AXISCAP_CAP, cap),
            (AXISCAP_ADD_CAP, add_cap),
            (AXISCAP_CAP_NORM, cap.norm(0x5000, epsilon, normed)),
            (AXISCAP_ADD_CAP_NORM, add_cap.norm(0x5000, epsilon, normed)),
        ] {
            let job = job(operation);
            // SAFETY: the job lives, and its pointers are compared as numbers.
            let checked = unsafe { checked(&job, 64, 2) }.unwrap();
            assert_eq!(device_job(&checked), expected.row_profiles(0x6000).stats(0x7000));
        }
    }

    #[test]
    fn what_a_job_leaves_out_stays_out() {
        let job = Job {
            profiles: ptr::null(),
            profile_count: 0,
            stats: ptr::null_mut(),
            stat_count: 0,
            ..job(AXISCAP_CAP)
        };
        // SAFETY: as above.
        let checked = unsafe { checked(&job, 64, 2) }.unwrap();
        let h = DeviceRows { dtype: axiscap::Dtype::BF16, address: 0x1000, count: 3, stride: 64 };
        assert_eq!(device_job(&checked), cuda::Job::cap(h));
    }
}
