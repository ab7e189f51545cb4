//! The cap files, read before anything is started.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use axiscap::file::CapFile;

use crate::output;

/// Reads every cap file, and warns of those that cap nothing.
///
/// # Errors
/// A file that is no cap file, a folder without cap files.
pub(super) fn check(paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        if path.is_dir() {
            files_of(path)?.iter().try_for_each(|file| check_file(file))?;
        } else {
            check_file(path)?;
        }
    }
    Ok(())
}

/// Returns the cap files of a folder by their names.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let place = folder.display();
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read the folder {place}"))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    let mut paths = paths.with_context(|| format!("cannot read the folder {place}"))?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    paths.sort();
    ensure!(!paths.is_empty(), "{place}: the folder has no cap file (*.gguf); name another, or a cap file");
    Ok(paths)
}

fn check_file(path: &Path) -> Result<()> {
    let file = CapFile::read(path)?;
    let place = path.display();
    if file.is_unbounded() {
        output::warning(&format!(
            "{place}: no cap has a bound, so nothing can be capped; `axiscap calibrate` gives axes their bounds"
        ));
    }
    if file.model.norms.is_empty() {
        output::warning(&format!(
            "{place}: the file has no digests of its model's norms, by which the plugin knows the model; `axiscap bind` writes them"
        ));
    }
    Ok(())
}
