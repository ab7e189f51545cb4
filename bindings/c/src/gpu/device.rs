//! A GPU with the kernels loaded.

use std::ffi::{CString, c_char};

use crate::gpu::{Properties, backend};
use crate::status::Status;
use crate::{guard, pointer, text};

/// A GPU with the kernels loaded into its primary context, which is also the CUDA runtime's.
#[derive(Debug)]
pub struct Device {
    pub(super) gpu: backend::Gpu,
    properties: Properties,
    name: CString,
}

/// What axiscap_device_describe tells.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DeviceInfo {
    /// The GPU's name.
    pub name: *const c_char,
    /// Compute capability, e.g. 90 for 9.0.
    pub compute_capability: u32,
    /// The newest CUDA version that the driver supports: 1000 * major + 10 * minor.
    pub driver_version: u32,
}

/// Counts the GPUs of the machine. Loads the NVIDIA driver's library if it is there. Fails with
/// AXISCAP_STATUS_NO_CUDA in a library for the CPU alone, AXISCAP_STATUS_NO_DRIVER, AXISCAP_STATUS_NO_DEVICE
/// or AXISCAP_STATUS_DRIVER.
///
/// Threads: any number may call this.
///
/// # Safety
/// `count` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_device_count(count: *mut usize) -> Status {
    guard::call(|| {
        pointer::check(count, "count")?;
        let found = backend::count()?;
        // SAFETY: the caller promises the pointer.
        unsafe { pointer::store(count, "count", found) }
    })
}

/// Opens a GPU by CUDA's index: checks driver and device code, and loads all kernels. A capture therefore loads
/// nothing. Every call with the device or its tables makes the primary context current, and restores the
/// previous one. Fails with AXISCAP_STATUS_NO_CUDA in a library for the CPU alone, AXISCAP_STATUS_NO_DRIVER,
/// _NO_DEVICE, _DRIVER_TOO_OLD, _NO_DEVICE_CODE or _DRIVER. The message says what to do.
///
/// Ownership: *out belongs to the caller, who frees it with axiscap_device_free. A GPU that is opened twice is
/// loaded once.
///
/// Threads: any number may open GPUs.
///
/// # Safety
/// `out` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_device_open(ordinal: usize, out: *mut *mut Device) -> Status {
    guard::call(|| {
        let open = || {
            let (gpu, properties) = backend::open(ordinal)?;
            let name = text::to_c(&properties.name);
            Ok(Device { gpu, properties, name })
        };
        // SAFETY: the caller promises the pointer.
        unsafe { pointer::give(out, open) }
    })
}

/// Describes a GPU.
///
/// Ownership: the name belongs to the device. It is valid until axiscap_device_free.
///
/// Threads: any number may call this with the same device.
///
/// # Safety
/// `device` is NULL or a live handle. `out` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_device_describe(device: *const Device, out: *mut DeviceInfo) -> Status {
    guard::call(|| {
        // SAFETY: the caller promises a live handle.
        let device = unsafe { pointer::shared(device, "device") }?;
        let info = DeviceInfo {
            name: device.name.as_ptr(),
            compute_capability: device.properties.compute_capability,
            driver_version: device.properties.driver_version,
        };
        // SAFETY: the caller promises the pointer.
        unsafe { pointer::store(out, "out", info) }
    })
}

/// Frees a device; does nothing for NULL. Tables on it stay usable, and the kernels stay loaded until the last
/// of them is freed. An error of the driver is returned by the next call on the same GPU.
///
/// Threads: nothing may use the device during the call or later.
///
/// # Safety
/// `device` is NULL, or a handle that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_device_free(device: *mut Device) {
    // SAFETY: the caller promises a handle that is freed once.
    guard::call(|| unsafe { pointer::free(device) });
}
