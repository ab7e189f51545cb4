//! The small model, in a form that computes quickly.

use std::ffi::CString;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::{fs, process};

use llama_cpp_sys_2 as sys;

use super::start;
use crate::small_model;

/// Returns the path of a copy of the small model whose weights are Q8_0. On a CPU, llama.cpp multiplies
/// batches by them twice as fast as by the Q4_1 weights of the original. Its other tensors are those of the
/// original, so the same caps are for both.
///
/// llama.cpp makes it in three seconds. It is kept beside the original.
///
/// A row's last bits depend on the number of rows in its batch, as they do with most types of weights. A
/// test that compares batches of different sizes to the bit takes the original, [`small_model`].
///
/// # Panics
/// If the small model is missing, or the copy cannot be made.
#[must_use]
pub fn quick_model() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(make).clone()
}

fn make() -> PathBuf {
    let original = small_model();
    let path = original.with_file_name("SmolLM2-135M-Instruct.Q4_1-as-Q8_0.gguf");
    if path.is_file() {
        return path;
    }
    start();
    // Another process may make it at the same time.
    let part = path.with_extension(format!("{}.part", process::id()));
    let name = |path: &PathBuf| CString::new(path.to_str().expect("UTF-8")).expect("no NUL in a path");
    let (from, to) = (name(&original), name(&part));
    // SAFETY: the function only returns a value.
    let mut settings = unsafe { sys::llama_model_quantize_default_params() };
    settings.ftype = sys::LLAMA_FTYPE_MOSTLY_Q8_0;
    settings.allow_requantize = true;
    // SAFETY: the names and the settings outlive the call, and llama.cpp is started.
    let failed = unsafe { sys::llama_model_quantize(from.as_ptr(), to.as_ptr(), &raw const settings) };
    assert_eq!(failed, 0, "llama.cpp could not make {}", path.display());
    fs::rename(&part, &path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    path
}
