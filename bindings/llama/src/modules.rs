//! Backends of ggml in separate files, loaded when llama.cpp starts (feature `dynamic-backends`).
//!
//! The folders searched are that of the program and, if no CPU backend is there, the one that the build put
//! them into. `GGML_BACKEND_PATH` names one more file. ggml does not report files that it could not load, so
//! every file is tried here first and the reason kept.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use llama_cpp_sys_2 as sys;

use crate::log;

/// A file that may hold a backend, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The file.
    pub file: PathBuf,
    /// Whether ggml has taken it up.
    pub loaded: bool,
    /// What the dynamic loader, ggml or the backend complained of, and what to do about it. A backend without
    /// a device complains too.
    pub complaint: Option<String>,
}

/// ggml's variable that names one more file with a backend.
const EXTRA: &str = "GGML_BACKEND_PATH";

/// Loads all backends, unless the program has loaded some itself. Returns the files of all but the CPU
/// backends, of which ggml takes the best one.
pub(crate) fn load() -> Vec<Module> {
    // SAFETY: a plain query of ggml's registry.
    if unsafe { sys::ggml_backend_reg_count() } > 0 {
        return Vec::new();
    }
    let beside = std::env::current_exe().ok().and_then(|program| Some(program.parent()?.to_owned()));
    let built = sys::BACKENDS_DIR.map(PathBuf::from);
    let mut modules = Vec::new();
    for folder in beside.into_iter().chain(built) {
        let (cpu, others): (Vec<_>, Vec<_>) = backends(&folder).into_iter().partition(|file| is_cpu(file));
        if cpu.is_empty() {
            continue;
        }
        modules.extend(others.into_iter().map(load_one));
        modules.extend(std::env::var_os(EXTRA).map(|file| load_one(file.into())));
        if let Some(path) = c_string(&folder) {
            // SAFETY: `path` is NUL-terminated and lives for the call. ggml skips backends that are already
            // loaded.
            log::capture(|| unsafe { sys::ggml_backend_load_all_from_path(path.as_ptr()) });
        }
        break;
    }
    modules
}

/// Returns the files of a folder that are named as ggml names backends.
fn backends(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.path()).filter(|file| stem(file).is_some()).collect();
    files.sort();
    files
}

/// Returns the `cuda` of `libggml-cuda.so`. ggml's base library has such a name too, but is no backend.
fn stem(file: &Path) -> Option<&str> {
    let name = file.file_name()?.to_str()?;
    let stem = name.strip_prefix(if cfg!(windows) { "ggml-" } else { "libggml-" })?;
    let stem = stem.strip_suffix(if cfg!(windows) { ".dll" } else { ".so" })?;
    (stem != "base").then_some(stem)
}

fn is_cpu(file: &Path) -> bool {
    stem(file).is_some_and(|stem| stem == "cpu" || stem.starts_with("cpu-"))
}

fn c_string(path: &Path) -> Option<CString> {
    CString::new(path.to_str()?).ok()
}

fn load_one(file: PathBuf) -> Module {
    let Some(path) = c_string(&file) else {
        return Module { file, loaded: false, complaint: Some("its path is not UTF-8".into()) };
    };
    // SAFETY: `path` is NUL-terminated and lives for the call. The file is named as a backend of ggml, whose
    // initialisers ggml would run as well.
    let (registered, complaints) = log::capture(|| unsafe { sys::ggml_backend_load(path.as_ptr()) });
    let loaded = !registered.is_null();
    let complaint = (!loaded || complaints.any()).then(|| explain(&complaints.reason()));
    Module { file, loaded, complaint }
}

/// Returns the loader's words, with the remedy if they name a library of NVIDIA's.
fn explain(reason: &str) -> String {
    let remedies = [
        ("libcuda.so", "that is the NVIDIA driver's: install the driver; a machine without a GPU needs none"),
        (
            "libcudart.so",
            "that is the CUDA runtime's: put the folder of a CUDA installation's libraries (lib64), or those of the Python packages nvidia-cuda-runtime and nvidia-cublas, into LD_LIBRARY_PATH",
        ),
        (
            "libcublas",
            "that is cuBLAS: put the folder of a CUDA installation's libraries (lib64), or that of the Python package nvidia-cublas, into LD_LIBRARY_PATH",
        ),
        (
            "libggml-base.so",
            "it was built for another llama.cpp than this program's; build it from the same sources",
        ),
        (
            "undefined symbol",
            "it was built for another llama.cpp than this program's; build it from the same sources",
        ),
    ];
    let remedy = remedies.iter().find(|(what, _)| reason.contains(what));
    remedy.map_or_else(|| reason.to_owned(), |(_, remedy)| format!("{reason}; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_are_known_by_their_names() {
        let names =
            ["libggml-cuda.so", "libggml-cpu-zen4.so", "libggml-cpu.so", "libggml-base.so", "libllama.so"];
        let stems: Vec<_> = names.iter().map(|name| stem(Path::new(name))).collect();
        if cfg!(not(windows)) {
            assert_eq!(stems, [Some("cuda"), Some("cpu-zen4"), Some("cpu"), None, None]);
        }
        assert!(is_cpu(Path::new("/x/libggml-cpu-zen4.so")) || cfg!(windows));
        assert!(!is_cpu(Path::new("/x/libggml-cuda.so")));
    }

    #[test]
    fn a_missing_library_comes_with_its_remedy() {
        let reason =
            "failed to load x: libcublas.so.13: cannot open shared object file: No such file or directory";
        let said = explain(reason);
        assert!(said.starts_with(reason) && said.contains("LD_LIBRARY_PATH"), "{said}");
        assert_eq!(explain("something else"), "something else");
    }
}
