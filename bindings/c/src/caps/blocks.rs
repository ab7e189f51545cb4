//! The blocks that have caps.

use crate::caps::open::Caps;
use crate::failure::Failure;
use crate::status::Status;
use crate::{guard, pointer};

/// Lists the capped blocks in ascending order. A block is 0-based, and its caps act on its output (llama.cpp's
/// node l_out-N). *count becomes their number, also if `capacity` is smaller, which is
/// AXISCAP_STATUS_TOO_SHORT and stores no block. With a capacity of 0 and `blocks` NULL the call succeeds and
/// only counts.
///
/// Ownership: both arrays are the caller's.
///
/// Threads: any number may call this with the same caps.
///
/// # Safety
/// `caps` is NULL or a live handle. `blocks` is NULL or has space for `capacity` values. `count` is NULL or
/// writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_caps_blocks(
    caps: *const Caps,
    blocks: *mut usize,
    capacity: usize,
    count: *mut usize,
) -> Status {
    guard::call(|| {
        // SAFETY: the caller promises a live handle.
        let caps = unsafe { pointer::shared(caps, "caps") }?;
        let capped = caps.file.caps.blocks();
        // SAFETY: the caller promises the pointer.
        unsafe { pointer::store(count, "count", capped.len()) }?;
        if blocks.is_null() && capacity == 0 {
            return Ok(());
        }
        pointer::check_array(blocks, capacity, "blocks")?;
        if capacity < capped.len() {
            let message = format!(
                "{} blocks have caps, but there is space for {capacity}; ask for the count first",
                capped.len()
            );
            return Err(Failure::new(Status::TooShort, message));
        }
        for (index, &block) in capped.keys().enumerate() {
            // SAFETY: there are at most `capacity` blocks, for which the caller promises space.
            unsafe { blocks.add(index).write(block) };
        }
        Ok(())
    })
}
