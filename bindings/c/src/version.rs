//! The version of the library.

use std::ffi::{CStr, c_char};

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => panic!("a version holds no NUL"),
};

/// Returns the version of the library, e.g. "0.1.0". Before 1.0 another minor version is another interface.
///
/// The text is static. Any thread may call this.
#[unsafe(no_mangle)]
pub extern "C" fn axiscap_version() -> *const c_char {
    VERSION.as_ptr()
}
