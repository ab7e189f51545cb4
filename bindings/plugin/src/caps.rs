//! Reads the cap files that the environment names.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use axiscap::file::{CapFile, FileError};
use axiscap_ggml::{ModelCaps, ModelShape};

/// Reason why caps could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CapsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{}: the folder cannot be read ({error}); name a folder of cap files, or the files", .path.display())]
    Folder { path: PathBuf, error: io::Error },
    #[error("{}: no file of this folder ends in .gguf; put the cap files there, or name them", .0.display())]
    EmptyFolder(PathBuf),
    #[error("{}: no cap has a bound, so that nothing would be capped; name the caps that `axiscap calibrate` has made of these axes", .0.display())]
    Unbounded(PathBuf),
    #[error(transparent)]
    Strength(#[from] axiscap::Error),
}

/// Reads cap files, and those of folders.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<ModelCaps>, CapsError> {
    let mut models = Vec::new();
    for path in paths {
        if path.is_dir() {
            for file in files_of(path)? {
                models.push(read_file(&file)?);
            }
        } else {
            models.push(read_file(path)?);
        }
    }
    Ok(models)
}

/// Returns the same caps with this strength in the place of their own, if there is one.
pub(crate) fn with_strength(
    models: &[ModelCaps],
    strength: Option<f32>,
) -> Result<Vec<ModelCaps>, CapsError> {
    let mut models = models.to_vec();
    if let Some(strength) = strength {
        for model in &mut models {
            model.caps = model.caps.with_strength(strength)?;
        }
    }
    Ok(models)
}

/// Returns the files of a folder whose names end in .gguf, in the order of their names.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>, CapsError> {
    let failed = |error| CapsError::Folder { path: folder.into(), error };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(CapsError::EmptyFolder(folder.into()));
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path) -> Result<ModelCaps, CapsError> {
    let file = CapFile::read(path)?;
    if file.is_unbounded() {
        return Err(CapsError::Unbounded(path.into()));
    }
    for warning in file.warnings() {
        tracing::warn!("{}: {warning}", path.display());
    }
    let caps = file.caps;
    let shape =
        ModelShape { architecture: file.model.architecture, blocks: file.model.blocks, width: caps.width() };
    let norms = file.model.norms.into_iter().map(|norm| (norm.tensor, norm.sha256)).collect();
    Ok(ModelCaps { name: path.display().to_string(), shape, norms, caps })
}
