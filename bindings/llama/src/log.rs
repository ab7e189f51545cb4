//! llama.cpp's log: sent to `tracing`, and captured for the messages of errors.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use llama_cpp_sys_2 as sys;

thread_local! {
    /// Warnings and errors logged on this thread while a [`capture`] runs on it.
    static CAPTURED: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Sends the log of llama.cpp and ggml to `tracing` (target `llama.cpp`). The subscriber decides what is
/// shown.
pub(crate) fn install() {
    // SAFETY: the callback is a function, which lives as long as the program, and ignores its user data.
    // llama_log_set passes it to ggml as well.
    unsafe { sys::llama_log_set(Some(receive), ptr::null_mut()) }
}

/// Runs `work` and returns its result with the warnings and errors that llama.cpp logged on this thread.
pub fn capture<R>(work: impl FnOnce() -> R) -> (R, Complaints) {
    let outer = CAPTURED.with(|lines| lines.borrow_mut().replace(Vec::new()));
    // A `work` that unwinds leaves the capture open. The next capture replaces it.
    let result = work();
    let lines = CAPTURED.with(|lines| std::mem::replace(&mut *lines.borrow_mut(), outer));
    (result, Complaints(lines.unwrap_or_default()))
}

/// Warnings and errors of llama.cpp, in order.
#[derive(Debug)]
pub struct Complaints(Vec<String>);

impl Complaints {
    /// Returns whether there were any.
    #[cfg(feature = "dynamic-backends")]
    pub(crate) fn any(&self) -> bool {
        !self.0.is_empty()
    }

    /// Returns the complaints in one sentence, without function names, repetitions, and lines that say only
    /// that the call failed.
    #[must_use]
    pub fn reason(&self) -> String {
        let mut parts: Vec<&str> = Vec::new();
        for line in &self.0 {
            let text = without_function(line.trim());
            let text = text.strip_prefix("error loading model: ").unwrap_or(text);
            let empty_words =
                ["failed to load model", "llama_model_loader: failed to load model", "failed to decode"];
            if !empty_words.iter().any(|empty| text.starts_with(empty))
                && !text.is_empty()
                && !parts.contains(&text)
            {
                parts.push(text);
            }
        }
        if parts.is_empty() { "it gave no reason".into() } else { parts.join(", ") }
    }
}

/// Removes the function's name from `function_name: what happened`.
fn without_function(line: &str) -> &str {
    match line.split_once(": ") {
        Some((name, rest))
            if name.contains('_') && name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric()) =>
        {
            rest.trim_start()
        }
        _ => line,
    }
}

unsafe extern "C" fn receive(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: ggml passes a NUL-terminated string that lives for the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    // A subscriber that panics must not unwind into C++. Only its line is lost.
    let _ = catch_unwind(AssertUnwindSafe(|| forward(level, text.trim_end_matches('\n'))));
}

fn forward(level: sys::ggml_log_level, text: &str) {
    if matches!(level, sys::GGML_LOG_LEVEL_WARN | sys::GGML_LOG_LEVEL_ERROR) {
        // A thread may log while its locals are destroyed, or from within another log call.
        let _ = CAPTURED.try_with(|lines| {
            if let Ok(mut lines) = lines.try_borrow_mut()
                && let Some(lines) = lines.as_mut()
            {
                lines.push(text.to_owned());
            }
        });
    }
    match level {
        sys::GGML_LOG_LEVEL_ERROR => tracing::error!(target: "llama.cpp", "{text}"),
        sys::GGML_LOG_LEVEL_WARN => tracing::warn!(target: "llama.cpp", "{text}"),
        sys::GGML_LOG_LEVEL_INFO => tracing::info!(target: "llama.cpp", "{text}"),
        // Continuations are the dots of a progress bar.
        sys::GGML_LOG_LEVEL_CONT => {}
        _ => tracing::debug!(target: "llama.cpp", "{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_name_each_cause_once() {
        let lines = [
            "gguf_init_from_file_ptr: invalid magic characters: 'Not ', expected 'GGUF'",
            "llama_model_load: error loading model: llama_model_loader: failed to load model from x",
            "llama_model_load: error loading model: llama_model_loader: failed to load model from x",
            "llama_model_load_from_file_impl: failed to load model",
        ];
        let reason = Complaints(lines.map(String::from).to_vec()).reason();
        assert_eq!(reason, "invalid magic characters: 'Not ', expected 'GGUF'");
        assert_eq!(Complaints(vec![]).reason(), "it gave no reason");
    }

    #[test]
    fn captures_nest_and_stay_on_their_thread() {
        let ((), outer) = capture(|| {
            forward(sys::GGML_LOG_LEVEL_ERROR, "before");
            let ((), inner) = capture(|| forward(sys::GGML_LOG_LEVEL_WARN, "inside"));
            assert_eq!(inner.0, ["inside"]);
            std::thread::spawn(|| forward(sys::GGML_LOG_LEVEL_ERROR, "elsewhere")).join().unwrap();
            forward(sys::GGML_LOG_LEVEL_INFO, "quiet");
        });
        assert_eq!(outer.0, ["before"]);
        forward(sys::GGML_LOG_LEVEL_ERROR, "after the capture");
    }
}
