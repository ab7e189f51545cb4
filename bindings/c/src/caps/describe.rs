//! What a set of caps says of itself and of its model.

use std::ffi::{CString, c_char};
use std::ptr;

use crate::caps::open::Caps;
use crate::status::Status;
use crate::{guard, pointer};

/// What axiscap_caps_describe tells.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct CapsInfo {
    /// Values per axis: the width of the model's residual stream (n_embd).
    pub width: usize,
    /// Number of caps, at least 1.
    pub cap_count: usize,
    /// Number of blocks of the model.
    pub block_count: usize,
    /// Number of blocks that have caps. axiscap_caps_blocks lists them.
    pub capped_block_count: usize,
    /// The policy of the caps: the number of first positions of every sequence whose rows are left alone.
    /// This library knows rows and not their positions, so the caller obeys it: it leaves these rows out, or
    /// gives them profile 0. 0 caps every row.
    pub skip_positions: u32,
    /// The model's architecture, e.g. "llama".
    pub architecture: *const c_char,
    /// The model's name, or NULL if the file has none.
    pub model: *const c_char,
    /// What a positive projection means, e.g. "more Assistant", or NULL.
    pub orientation: *const c_char,
}

/// Describes caps and the model that they are for.
///
/// Ownership: the texts are UTF-8 and belong to the caps. They are valid until axiscap_caps_free. A NUL inside
/// of a text of the file is replaced by U+FFFD.
///
/// Threads: any number may call this with the same caps.
///
/// # Safety
/// `caps` is NULL or a live handle. `out` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_caps_describe(caps: *const Caps, out: *mut CapsInfo) -> Status {
    guard::call(|| {
        // SAFETY: the caller promises a live handle.
        let Caps { file, texts } = unsafe { pointer::shared(caps, "caps") }?;
        let info = CapsInfo {
            width: file.caps.width(),
            cap_count: file.caps.caps().len(),
            block_count: file.model.blocks,
            capped_block_count: file.caps.blocks().len(),
            skip_positions: file.caps.policy().skip_positions,
            architecture: texts.architecture.as_ptr(),
            model: or_null(texts.model.as_ref()),
            orientation: or_null(texts.orientation.as_ref()),
        };
        // SAFETY: the caller promises the pointer.
        unsafe { pointer::store(out, "out", info) }
    })
}

/// Checks that caps are for a model of this width and number of blocks. Fails with
/// AXISCAP_STATUS_OTHER_MODEL. Compare the architecture with the one that axiscap_caps_describe tells: another
/// one is a warning, because a model may have two names.
///
/// Threads: any number may call this with the same caps.
///
/// # Safety
/// `caps` is NULL or a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_caps_check_model(
    caps: *const Caps,
    width: usize,
    block_count: usize,
) -> Status {
    guard::call(|| {
        // SAFETY: the caller promises a live handle.
        let Caps { file, .. } = unsafe { pointer::shared(caps, "caps") }?;
        file.check_model(&file.model.architecture, width, block_count)?;
        Ok(())
    })
}

/// Returns the address of a text, or null.
pub(crate) fn or_null(text: Option<&CString>) -> *const c_char {
    text.map_or(ptr::null(), |text| text.as_ptr())
}
