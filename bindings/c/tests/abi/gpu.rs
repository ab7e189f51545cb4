//! Functions for GPUs on machines and in libraries without one: a status and a message, and no abort.

use std::mem::MaybeUninit;
use std::ptr;

use axiscap_c::{
    AXISCAP_OVERLAP_NONE, Device, DeviceTable, ProfileFaults, Status, axiscap_device_count,
    axiscap_device_describe, axiscap_device_free, axiscap_device_open, axiscap_device_table_clear_faults,
    axiscap_device_table_faults, axiscap_device_table_free, axiscap_device_table_new,
    axiscap_device_table_update, axiscap_launch,
};

use crate::support::{failed, job, message};

#[test]
fn a_gpu_is_opened_or_the_reason_is_given() {
    let (mut count, mut device) = (0, ptr::dangling_mut::<Device>());
    // SAFETY: the pointers are writable.
    let statuses = unsafe { [axiscap_device_count(&mut count), axiscap_device_open(0, &mut device)] };
    for status in statuses {
        if cfg!(feature = "cuda") {
            let known = [
                Status::Ok,
                Status::NoDriver,
                Status::NoDevice,
                Status::NoDeviceCode,
                Status::DriverTooOld,
                Status::Driver,
            ];
            assert!(known.contains(&status), "{status:?}: {}", message());
        } else {
            failed(status, Status::NoCuda, "scripts/install-c --cuda");
        }
    }
    assert_eq!(statuses[1] == Status::Ok, !device.is_null());
    // SAFETY: the handle is null or freed once.
    unsafe { axiscap_device_free(device) };
}

#[test]
fn a_gpu_that_is_not_there_is_no_gpu() {
    let mut device = ptr::dangling_mut::<Device>();
    // SAFETY: the pointer is writable.
    assert_ne!(unsafe { axiscap_device_open(usize::MAX, &mut device) }, Status::Ok);
    assert!(device.is_null());
}

/// Every function for GPUs, with handles that are none.
fn with_handles(device: *mut Device, table: *mut DeviceTable, expected: Status) {
    let (mut info, mut out) = (MaybeUninit::uninit(), ptr::dangling_mut::<DeviceTable>());
    let (mut faults, stream) = (ProfileFaults::default(), ptr::null_mut());
    // SAFETY: every call is refused.
    unsafe {
        failed(axiscap_device_describe(device, info.as_mut_ptr()), expected, "device");
        failed(axiscap_device_table_new(device, ptr::null(), &mut out), expected, "device");
        assert!(out.is_null());
        failed(axiscap_device_table_update(table, ptr::null(), stream), expected, "on_gpu");
        failed(axiscap_launch(table, &job(8), stream, AXISCAP_OVERLAP_NONE), expected, "table");
        failed(axiscap_device_table_faults(table, stream, &mut faults), expected, "table");
        failed(axiscap_device_table_clear_faults(table, stream), expected, "table");
        axiscap_device_table_free(table);
        axiscap_device_free(device);
    }
}

#[test]
fn handles_are_neither_null_nor_misaligned() {
    with_handles(ptr::null_mut(), ptr::null_mut(), Status::NullPointer);
    let odd = 1;
    let (device, table) = (ptr::without_provenance_mut(odd), ptr::without_provenance_mut(odd));
    with_handles(device, table, Status::Misaligned);
}

#[test]
fn results_and_numbers_are_checked_first() {
    let null = Status::NullPointer;
    // SAFETY: every call is refused.
    unsafe {
        failed(axiscap_device_count(ptr::null_mut()), null, "count is NULL");
        failed(axiscap_device_open(0, ptr::null_mut()), null, "out is NULL");
        let stream = ptr::null_mut();
        let faults = axiscap_device_table_faults(ptr::null(), stream, ptr::null_mut());
        failed(faults, null, "out is NULL");
        let launch = axiscap_launch(ptr::null(), &job(8), stream, 2);
        failed(launch, Status::InvalidArgument, "overlap is 2");
    }
}
