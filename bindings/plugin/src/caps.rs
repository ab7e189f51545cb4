//! Reads the cap files that the environment names.

use std::path::{Path, PathBuf};

use axiscap::file::{CapFile, FileError, cap_files};
use axiscap_ggml::{ModelCaps, ModelShape};

/// Reason why caps could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CapsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{}: no cap has a bound, so that nothing would be capped; name the caps that `axiscap calibrate` has made of these axes", .0.display())]
    Unbounded(PathBuf),
    #[error("{}: no regular file; name a cap file, or a folder of them", .0.display())]
    Irregular(PathBuf),
    #[error(transparent)]
    Strength(#[from] axiscap::Error),
}

/// Reads cap files, and those of folders.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<ModelCaps>, CapsError> {
    let mut models = Vec::new();
    for path in paths {
        for file in cap_files(path)? {
            models.push(read_file(&file)?);
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

/// Reads a cap file. Devices and pipes are refused, which may never end or never begin.
pub(crate) fn read_file(path: &Path) -> Result<ModelCaps, CapsError> {
    // What is not there is left to the reader, and so are folders.
    if path.metadata().is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return Err(CapsError::Irregular(path.into()));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_and_devices_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe.gguf");
        let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
        // SAFETY: the name is NUL-terminated.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        for path in [&pipe, folder.path(), Path::new("/dev/zero")] {
            let error = read(&[path.into()]).unwrap_err().to_string();
            assert!(error.contains("no regular file"), "{}: {error}", path.display());
        }
        std::fs::remove_file(&pipe).unwrap();
        std::fs::create_dir(&pipe).unwrap();
        for path in [folder.path(), Path::new("/absent")] {
            assert!(matches!(read(&[path.into()]), Err(CapsError::File(_))), "{}", path.display());
        }
    }
}
