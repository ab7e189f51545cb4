//! Models that were fetched.

use std::path::PathBuf;

use serde::Serialize;

/// The folder of fetched models and what is in it.
#[derive(Debug, Serialize)]
pub(super) struct Cache {
    folder: Option<PathBuf>,
    models: Vec<String>,
    remedy: Option<&'static str>,
}

impl Cache {
    /// Looks into `${XDG_CACHE_HOME:-$HOME/.cache}/axiscap/models`.
    pub(super) fn look() -> Self {
        // By the XDG specification a relative path is ignored.
        let xdg = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let folder = xdg.or_else(home).map(|cache| cache.join("axiscap/models"));
        let entries = folder.as_ref().and_then(|folder| std::fs::read_dir(folder).ok());
        let mut models: Vec<String> = entries
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.ends_with(".gguf"))
            .collect();
        models.sort();
        let remedy = models.is_empty().then_some("scripts/fetch-model fetches a small one (98 MB)");
        Self { folder, models, remedy }
    }

    pub(super) fn describe(&self) -> String {
        let folder = self.folder.as_ref().map_or("no home folder".into(), |path| path.display().to_string());
        match self.remedy {
            Some(remedy) => format!("none in {folder}; {remedy}"),
            None => format!("{} in {folder}", self.models.join(", ")),
        }
    }
}
