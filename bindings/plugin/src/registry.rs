//! The registry that ggml gets: a backend without devices.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

/// The name of the backend. Another copy of the plugin is recognised by it.
pub(crate) const NAME: &std::ffi::CStr = c"axiscap";

/// `ggml_backend_reg` (`ggml-backend-impl.h`), the same in versions 1 to 3 of the interface.
#[derive(Debug)]
#[repr(C)]
pub struct Registry {
    api_version: c_int,
    get_name: extern "C" fn(*const Registry) -> *const c_char,
    get_device_count: extern "C" fn(*const Registry) -> usize,
    get_device: extern "C" fn(*const Registry, usize) -> *mut c_void,
    get_proc_address: extern "C" fn(*const Registry, *const c_char) -> *mut c_void,
    context: usize,
}

static REGISTRY: OnceLock<Registry> = OnceLock::new();

impl Registry {
    /// Returns the registry of this process, with this version of ggml's interface.
    pub(crate) fn get(api_version: c_int) -> &'static Self {
        REGISTRY.get_or_init(|| Self {
            api_version,
            get_name,
            get_device_count,
            get_device,
            get_proc_address,
            context: 0,
        })
    }

    /// Returns the version in the registry of a device of ggml's own.
    ///
    /// # Safety
    /// `registry` must be a registry of ggml's.
    pub(crate) unsafe fn api_version(registry: *const c_void) -> c_int {
        // SAFETY: the caller promises a registry, which begins with its version.
        unsafe { registry.cast::<c_int>().read() }
    }
}

extern "C" fn get_name(_: *const Registry) -> *const c_char {
    NAME.as_ptr()
}

extern "C" fn get_device_count(_: *const Registry) -> usize {
    0
}

extern "C" fn get_device(_: *const Registry, _: usize) -> *mut c_void {
    null_mut()
}

extern "C" fn get_proc_address(_: *const Registry, _: *const c_char) -> *mut c_void {
    null_mut()
}
