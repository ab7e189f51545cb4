//! Backends that llama.cpp loads from files.

use serde::Serialize;

/// Whether the build can load any, and what became of those found.
#[derive(Debug, Serialize)]
pub(super) struct Modules {
    /// Whether the program was built to load backends (feature `dynamic-backends`).
    enabled: bool,
    found: Vec<Found>,
}

#[derive(Debug, Serialize)]
struct Found {
    file: String,
    loaded: bool,
    /// What is wrong with it, and what to do about it.
    complaint: Option<String>,
}

impl Modules {
    #[cfg(feature = "dynamic-backends")]
    pub(super) fn look() -> Self {
        let found = axiscap_llama::modules().iter().map(|module| Found {
            file: module.file.display().to_string(),
            loaded: module.loaded,
            complaint: module.complaint.clone(),
        });
        Self { enabled: true, found: found.collect() }
    }

    #[cfg(not(feature = "dynamic-backends"))]
    pub(super) fn look() -> Self {
        Self { enabled: false, found: Vec::new() }
    }

    /// Returns whether backends can be loaded.
    pub(super) fn enabled(&self) -> bool {
        self.enabled
    }

    /// Returns a line per file.
    pub(super) fn describe(&self) -> Vec<String> {
        let line = |Found { file, loaded, complaint }: &Found| {
            let state = if *loaded { "is loaded" } else { "is NOT loaded" };
            format!("{file} {state}{}", complaint.iter().map(|said| format!("; {said}")).collect::<String>())
        };
        self.found.iter().map(line).collect()
    }
}
