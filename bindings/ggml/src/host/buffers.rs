//! Notices when buffers are freed, after which their addresses may be those of others.
//!
//! Each buffer has its own copy of its interface, so that `free_buffer` can be replaced in one of them.

use std::collections::HashMap;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use super::api::api;
use super::arena::Arena;
use super::cpu::CpuBackend;
use super::layout::layout;
use super::types::{Buffer, F32};
use crate::error::HookError;

pub(super) type FreeBuffer = unsafe extern "C" fn(Buffer);

/// The own `free_buffer` of watched buffers, by address.
static WATCHED: LazyLock<Mutex<HashMap<usize, FreeBuffer>>> = LazyLock::new(Mutex::default);

/// Number of watched buffers that were freed.
static FREED: AtomicU64 = AtomicU64::new(0);

/// Returns the number of watched buffers that were freed so far.
pub(crate) fn freed() -> u64 {
    FREED.load(Ordering::Acquire)
}

/// Watches a buffer, if it is not watched yet. Returns false where this build of ggml does not allow it.
///
/// # Safety
/// The buffer must be alive, and not be freed during this call.
pub(crate) unsafe fn watch(buffer: Buffer) -> bool {
    let Some(offset) = layout().buffer_free else { return false };
    let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
    if watched.contains_key(&(buffer as usize)) {
        return true;
    }
    // SAFETY: the offset was measured, and the buffer is alive. The slot is one aligned word, which holds a valid
    // function before and after.
    unsafe {
        let slot = buffer.byte_add(offset).cast::<Option<FreeBuffer>>();
        let Some(own) = slot.read() else { return false };
        watched.insert(buffer as usize, own);
        slot.write(Some(watched_free));
    }
    true
}

/// Replaces a buffer's `free_buffer`.
unsafe extern "C" fn watched_free(buffer: Buffer) {
    let own = catch_unwind(|| {
        let own = WATCHED.lock().unwrap_or_else(PoisonError::into_inner).remove(&(buffer as usize));
        FREED.fetch_add(1, Ordering::Release);
        own
    });
    if let Ok(Some(own)) = own {
        // SAFETY: the buffer's own function with the argument it was called with.
        unsafe { own(buffer) };
    }
}

/// Measures where a buffer has its `free_buffer`: it is the first word in all versions read. `None` where
/// another function is called.
pub(super) fn measure_free() -> Result<Option<usize>, HookError> {
    static CALLED: Mutex<Option<FreeBuffer>> = Mutex::new(None);
    unsafe extern "C" fn called(buffer: Buffer) {
        if let Some(own) = CALLED.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // SAFETY: the buffer's own function with the argument it was called with.
            unsafe { own(buffer) };
        }
    }
    let backend = CpuBackend::new()?;
    let arenas = [Arena::new(1)?, Arena::new(1)?];
    let buffers = arenas.each_ref().map(|arena| {
        // SAFETY: the tensor lives in the arena, which has room for it, and has no memory yet. The backend is
        // alive.
        unsafe {
            (api().ggml_new_tensor_1d)(arena.context(), F32, 8);
            (api().ggml_backend_alloc_ctx_tensors)(arena.context(), backend.raw())
        }
    });
    if buffers.iter().any(|buffer| buffer.is_null()) {
        return Ok(None);
    }
    // SAFETY: two buffers that are alive. Their first words are read as addresses and not followed.
    let words = unsafe { buffers.map(|buffer| buffer.cast::<usize>().read()) };
    // SAFETY: a buffer that is alive.
    let kind = unsafe { (api().ggml_backend_buffer_get_type)(buffers[0]) };
    let plausible = words[0] == words[1] && words[0] != 0 && words[0] != kind as usize;
    if plausible {
        // SAFETY: the first word of the buffer, which was read as that of both.
        unsafe {
            let slot = buffers[0].cast::<Option<FreeBuffer>>();
            *CALLED.lock().unwrap_or_else(PoisonError::into_inner) = slot.read();
            slot.write(Some(called));
        }
    }
    for buffer in buffers {
        // SAFETY: made above and freed once.
        unsafe { (api().ggml_backend_buffer_free)(buffer) };
    }
    let was_called = CALLED.lock().unwrap_or_else(PoisonError::into_inner).take().is_none();
    Ok((plausible && was_called).then_some(0))
}

#[cfg(all(test, feature = "linked"))]
mod tests {
    use super::*;

    #[test]
    fn a_watched_buffer_that_is_freed_is_noticed() {
        crate::host::use_linked_host().unwrap();
        let backend = CpuBackend::new().unwrap();
        let arena = Arena::new(1).unwrap();
        // SAFETY: the tensor lives in the arena and has no memory yet. The buffer is watched while it is alive, and
        // freed once.
        unsafe {
            (api().ggml_new_tensor_1d)(arena.context(), F32, 8);
            let buffer = (api().ggml_backend_alloc_ctx_tensors)(arena.context(), backend.raw());
            assert!(watch(buffer) && watch(buffer), "watched twice is watched");
            let before = freed();
            (api().ggml_backend_buffer_free)(buffer);
            assert!(freed() > before);
            assert!(!WATCHED.lock().unwrap().contains_key(&(buffer as usize)));
        }
    }
}
