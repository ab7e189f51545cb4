//! The small model that the tests of several crates run on.

use std::path::PathBuf;

/// Returns the path of the small model, SmolLM2-135M-Instruct with Q4_1 weights. `scripts/fetch-model`
/// fetches it.
///
/// # Panics
/// If the model is missing, because a test that needs it must not pass without it.
#[must_use]
pub fn small_model() -> PathBuf {
    let xdg = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache =
        xdg.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache"));
    let path = cache.join("axiscap/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(
        path.is_file(),
        "the tests' model is missing: run scripts/fetch-model (looked for {})",
        path.display()
    );
    path
}
