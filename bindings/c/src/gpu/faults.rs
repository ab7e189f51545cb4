//! Rows that went uncapped on a GPU, because their profile does not exist.

use std::ffi::c_void;

use crate::gpu::backend;
use crate::gpu::device_table::DeviceTable;
use crate::status::Status;
use crate::{guard, pointer};

/// Rows with a profile that the table does not have. They went uncapped, so treat them as an error.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProfileFaults {
    /// Number of rows since the upload, or since the record was cleared. 0 is no fault.
    pub rows: u64,
    /// The lowest row, as an index into the rows of its launch.
    pub row: u32,
    /// The profile index of that row.
    pub profile: u32,
}

/// Tells which rows went uncapped because their profile does not exist. Waits for everything that is on the
/// stream now. Fails with AXISCAP_STATUS_CAPTURING inside of a capture, and with AXISCAP_STATUS_DRIVER, also
/// for errors of earlier work on the stream.
///
/// Threads: any number may call this with the same table.
///
/// # Safety
/// `table` is NULL or a live handle. `stream` is a CUstream or cudaStream_t of the primary context of the
/// table's GPU, or NULL for the default stream. `out` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_device_table_faults(
    table: *const DeviceTable,
    stream: *mut c_void,
    out: *mut ProfileFaults,
) -> Status {
    guard::call(|| {
        pointer::check(out, "out")?;
        // SAFETY: the caller promises a live handle.
        let DeviceTable(table) = unsafe { pointer::shared(table, "table") }?;
        // SAFETY: the caller promises the stream.
        let faults = unsafe { backend::faults(table, stream) }?;
        // SAFETY: the caller promises the pointer.
        unsafe { pointer::store(out, "out", faults) }
    })
}

/// Clears the record of axiscap_device_table_faults in stream order. Can be captured. Fails with
/// AXISCAP_STATUS_DRIVER.
///
/// Threads: any number may call this with the same table.
///
/// # Safety
/// `table` is NULL or a live handle. `stream` is a CUstream or cudaStream_t of the primary context of the
/// table's GPU, or NULL for the default stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_device_table_clear_faults(
    table: *const DeviceTable,
    stream: *mut c_void,
) -> Status {
    guard::call(|| {
        // SAFETY: the caller promises a live handle.
        let DeviceTable(table) = unsafe { pointer::shared(table, "table") }?;
        // SAFETY: the caller promises the stream.
        unsafe { backend::clear_faults(table, stream) }
    })
}
