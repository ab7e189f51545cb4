//! The driver's library: whether it is there, and what it says of an error.

use std::ffi::{CStr, c_char};
use std::ptr;
use std::sync::OnceLock;

use cudarc::driver::sys;

/// Loads the driver's library, once per process. cudarc would panic where it is missing.
pub(super) fn load() -> Result<(), String> {
    static LIBRARY: OnceLock<Result<(), String>> = OnceLock::new();
    LIBRARY.get_or_init(find_library).clone()
}

fn find_library() -> Result<(), String> {
    let names: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };
    let mut reason = String::new();
    for name in names {
        // SAFETY: the driver's library may be loaded at any time, and its initialisers have no preconditions.
        match unsafe { libloading::Library::new(*name) } {
            Ok(library) => {
                // Never unloaded: cudarc keeps the library as well, and drivers do not unload cleanly.
                std::mem::forget(library);
                return Ok(());
            }
            Err(error) if reason.is_empty() => {
                // The loader's own message is the source of this error.
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                reason = cause.unwrap_or_else(|| error.to_string());
            }
            Err(_) => {}
        }
    }
    Err(reason)
}

/// Returns the driver's explanation of an error; `None` without a driver.
pub(super) fn meaning(code: sys::CUresult) -> Option<String> {
    load().ok()?;
    let mut text: *const c_char = ptr::null();
    // SAFETY: the library is loaded and the pointer is valid. The driver sets it to a string, or to null.
    let found = unsafe { sys::cuGetErrorString(code, &mut text) };
    if found != sys::CUresult::CUDA_SUCCESS || text.is_null() {
        return None;
    }
    // SAFETY: the text is not null, so it is one of the driver's static strings.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}
