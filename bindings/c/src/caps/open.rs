//! Reading and freeing a set of caps.

use std::ffi::{CStr, CString, OsStr, c_char, c_void};
use std::path::Path;

use axiscap::file::CapFile;

use crate::failure::Failure;
use crate::status::Status;
use crate::{guard, pointer, text};

/// The content of a cap file: caps, the model they are for, and the rows that they leave alone.
#[derive(Debug)]
pub struct Caps {
    pub(crate) file: CapFile,
    pub(crate) texts: Texts,
}

/// The texts of a file for C. They do not change while the handle lives.
#[derive(Debug)]
pub(crate) struct Texts {
    pub(crate) architecture: CString,
    pub(crate) model: Option<CString>,
    pub(crate) orientation: Option<CString>,
    /// One per cap.
    pub(crate) names: Vec<Option<CString>>,
}

impl From<CapFile> for Caps {
    fn from(file: CapFile) -> Self {
        let texts = Texts {
            architecture: text::to_c(&file.model.architecture),
            model: file.model.name.as_deref().map(text::to_c),
            orientation: file.orientation.as_deref().map(text::to_c),
            names: file.caps.caps().iter().map(|entry| entry.cap.name().map(text::to_c)).collect(),
        };
        Self { file, texts }
    }
}

/// Reads a cap file (docs/cap-files.md). The file may come from a stranger: counts and lengths are checked
/// before memory is allocated, and nothing is executed. Fails with AXISCAP_STATUS_IO, _MALFORMED,
/// _UNSUPPORTED, _INVALID_FILE or _CONTROL_VECTOR.
///
/// On Linux and macOS a path is bytes, as for fopen. Elsewhere it is UTF-8.
///
/// Ownership: *out belongs to the caller, who frees it with axiscap_caps_free.
///
/// Threads: any number may read files at once.
///
/// # Safety
/// `path` is NULL or a C string. `out` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_caps_read(path: *const c_char, out: *mut *mut Caps) -> Status {
    guard::call(|| {
        let read = || {
            pointer::check(path, "path")?;
            // SAFETY: the pointer is not null, and the caller promises a C string.
            let path = path_of(unsafe { CStr::from_ptr(path) })?;
            Ok(CapFile::read(path)?.into())
        };
        // SAFETY: the caller promises the pointer.
        unsafe { pointer::give(out, read) }
    })
}

/// Reads a cap file from memory. Fails as axiscap_caps_read does, without the status for the system.
///
/// Ownership: the bytes are not kept. *out belongs to the caller, who frees it with axiscap_caps_free.
///
/// Threads: any number may parse at once.
///
/// # Safety
/// `bytes` is NULL or points to `length` bytes. `out` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_caps_parse(
    bytes: *const c_void,
    length: usize,
    out: *mut *mut Caps,
) -> Status {
    guard::call(|| {
        let parse = || {
            // A NULL without a length is no empty file but a mistake.
            pointer::check(bytes.cast::<u8>(), "bytes")?;
            // SAFETY: the caller promises that many bytes.
            let bytes = unsafe { pointer::array(bytes.cast::<u8>(), length, "bytes") }?;
            Ok(CapFile::from_bytes(bytes)?.into())
        };
        // SAFETY: the caller promises the pointer.
        unsafe { pointer::give(out, parse) }
    })
}

/// Frees caps; does nothing for NULL. Texts and axes of the caps go with them. Tables that were made from
/// them stay as they are.
///
/// Threads: nothing may use the caps during the call or later.
///
/// # Safety
/// `caps` is NULL, or a handle that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_caps_free(caps: *mut Caps) {
    // SAFETY: the caller promises a handle that is freed once.
    guard::call(|| unsafe { pointer::free(caps) });
}

#[cfg(unix)]
fn path_of(path: &CStr) -> Result<&Path, Failure> {
    use std::os::unix::ffi::OsStrExt;
    Ok(OsStr::from_bytes(path.to_bytes()).as_ref())
}

#[cfg(not(unix))]
fn path_of(path: &CStr) -> Result<&Path, Failure> {
    let path = path.to_str().map_err(|_| Failure::new(Status::InvalidArgument, "path is not UTF-8"))?;
    Ok(OsStr::new(path).as_ref())
}
