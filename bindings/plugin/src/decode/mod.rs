//! Sees the batches that the program decodes, where slots have profiles.
//!
//! The library exports the functions of llama.cpp's that take and make batches. Loaded by LD_PRELOAD, they come
//! before llama.cpp's own. Each notes its arguments and goes on in llama.cpp's function with the same arguments.
//! Loaded by ggml alone, nothing calls them.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod batches;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod stand_in;

use std::sync::atomic::{AtomicBool, Ordering};

use crate::host::is_own;

/// Whether slots have profiles.
static ON: AtomicBool = AtomicBool::new(false);

/// Has batches noted from now on.
///
/// # Errors
/// Says why the program does not let them be seen.
pub(crate) fn switch_on() -> Result<(), String> {
    // SAFETY: a lookup in the libraries that are loaded.
    let first = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"llama_decode".as_ptr()) };
    // The name of our function would stand for the one that comes first.
    if first.is_null() || !is_own(first as usize) {
        return Err(
            "slots can have profiles only where the plugin sees the batches that the program decodes; set LD_PRELOAD to the plugin as well (`axiscap exec --profiles` does)"
                .into(),
        );
    }
    ON.store(true, Ordering::Release);
    Ok(())
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn is_on() -> bool {
    ON.load(Ordering::Acquire)
}
