//! Where the small model is that the tests of every crate run on. Included by path, since it belongs to no
//! crate.

use std::path::PathBuf;

/// The small model. Tests that need it fail without it rather than pass unseen.
pub(crate) fn path() -> PathBuf {
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
