//! llama.cpp's log, kept per thread.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use llama_cpp_sys_2 as sys;

thread_local! {
    static LINES: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Replaces llama.cpp's log. Lines outside a [`capture`] are dropped.
pub(super) fn install() {
    // SAFETY: the callback is a function and ignores its user data.
    unsafe { sys::llama_log_set(Some(receive), ptr::null_mut()) }
}

/// Runs `work`, and returns its result with the warnings and errors that llama.cpp logged on this thread.
pub fn capture<R>(work: impl FnOnce() -> R) -> (R, String) {
    let outer = LINES.with(|lines| lines.replace(Some(String::new())));
    let result = work();
    let lines = LINES.with(|lines| lines.replace(outer));
    (result, lines.unwrap_or_default())
}

unsafe extern "C" fn receive(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if level != sys::GGML_LOG_LEVEL_ERROR && level != sys::GGML_LOG_LEVEL_WARN {
        return;
    }
    // SAFETY: ggml passes a NUL-terminated string that lives for the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    // A thread may log while its locals are destroyed, or from within another log call.
    let _ = LINES.try_with(|lines| {
        if let Ok(mut lines) = lines.try_borrow_mut()
            && let Some(lines) = lines.as_mut()
        {
            lines.push_str(&text);
        }
    });
}
