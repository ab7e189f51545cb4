//! The cap files, read before anything is started.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, ensure};
use axiscap::file::{CapFile, FileError, cap_files};

use crate::output;

/// Reads every cap file, and warns of those that do not name their model.
///
/// # Errors
/// A file that is no cap file or has no bound, a folder without cap files. The plugin would refuse them too.
pub(super) fn check(paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        cap_files(path)?.iter().try_for_each(|file| check_file(file))?;
    }
    Ok(())
}

fn check_file(path: &Path) -> Result<()> {
    let file = CapFile::read(path).map_err(|error| match error {
        // Other commands point to their --model here, which this one leaves to the program.
        FileError::Invalid(problem) if problem.field == "general.architecture" => {
            anyhow!("{problem}; --caps takes cap files, and the program after -- its model")
        }
        other => other.into(),
    })?;
    let place = path.display();
    ensure!(
        !file.is_unbounded(),
        "{place}: no cap has a bound, so nothing would be capped; `axiscap calibrate` gives axes their bounds"
    );
    if file.model.norms.is_empty() {
        output::warning(&format!(
            "{place}: the file has no digests of its model's norms, by which the plugin knows the model; `axiscap bind` writes them"
        ));
    }
    Ok(())
}
