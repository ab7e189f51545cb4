//! A table in the memory of a GPU.

use std::ffi::c_void;

use crate::gpu::backend;
use crate::gpu::device::Device;
use crate::status::Status;
use crate::table::make::Table;
use crate::{guard, pointer};

/// A table of caps in the memory of a GPU. Its addresses stay the same while its values change.
#[derive(Debug)]
pub struct DeviceTable(pub(super) backend::GpuTable);

/// Copies a table to a GPU, and waits for the copy. Fails with AXISCAP_STATUS_DRIVER.
///
/// Ownership: device and table may be freed at once. *out belongs to the caller, who frees it with
/// axiscap_device_table_free.
///
/// Threads: any number may call this with the same device and table.
///
/// # Safety
/// `device` and `table` are NULL or live handles. `out` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_device_table_new(
    device: *const Device,
    table: *const Table,
    out: *mut *mut DeviceTable,
) -> Status {
    guard::call(|| {
        let upload = || {
            // SAFETY: the caller promises live handles.
            let (device, table) =
                unsafe { (pointer::shared(device, "device")?, pointer::shared(table, "table")?) };
            Ok(DeviceTable(backend::upload(&device.gpu, &table.0)?))
        };
        // SAFETY: the caller promises the pointer.
        unsafe { pointer::give(out, upload) }
    })
}

/// Replaces the values of a table on a GPU by those of a table of the same shape, in stream order. Launches
/// that are already on the stream use the old values, later ones and replays of a captured one the new. Fails
/// with AXISCAP_STATUS_TABLE_SHAPE, with AXISCAP_STATUS_CAPTURING inside of a capture, and with
/// AXISCAP_STATUS_DRIVER. It waits only if eight updates are in progress.
///
/// Ownership: the values are copied before this returns, and `table` may change at once.
///
/// Threads: any number may call this with the same handles. Launches on other streams may see a part of the
/// new values.
///
/// # Safety
/// `on_gpu` and `table` are NULL or live handles. `stream` is a CUstream or cudaStream_t of the primary
/// context of the table's GPU, or NULL for the default stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_device_table_update(
    on_gpu: *const DeviceTable,
    table: *const Table,
    stream: *mut c_void,
) -> Status {
    guard::call(|| {
        // SAFETY: the caller promises live handles.
        let (on_gpu, table) =
            unsafe { (pointer::shared(on_gpu, "on_gpu")?, pointer::shared(table, "table")?) };
        // SAFETY: the caller promises the stream.
        unsafe { backend::update(&on_gpu.0, &table.0, stream) }
    })
}

/// Frees a table on a GPU; does nothing for NULL. Waits for all work of the GPU, which a capture on it does
/// not survive. An error of the driver is returned by the next call on the same GPU.
///
/// Threads: nothing may use the table during the call or later, nor may a captured launch be replayed.
///
/// # Safety
/// `table` is NULL, or a handle that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_device_table_free(table: *mut DeviceTable) {
    // SAFETY: the caller promises a handle that is freed once.
    guard::call(|| unsafe { pointer::free(table) });
}
