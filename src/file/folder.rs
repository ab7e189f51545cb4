//! Folders of cap files.

use std::fs;
use std::path::{Path, PathBuf};

use crate::file::error::{FileError, Problem, Result};

/// Returns the cap files that a path stands for: for a folder all its files whose names end in `.gguf`, in the
/// order of their names; else the path itself, whether or not there is such a file.
///
/// # Errors
/// [`FileError::Io`] for a folder that cannot be read, [`FileError::Invalid`] for one without such files.
pub fn cap_files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let failed = |error| FileError::io(path, "read the folder")(error);
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if file.extension().is_some_and(|extension| extension == "gguf") {
            files.push(file);
        }
    }
    if files.is_empty() {
        let expected = "files whose names end in .gguf";
        let problem = Problem::boxed("folder", expected, "none", "put the cap files there, or name them");
        return Err(FileError::Invalid(problem).in_file(path));
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_stands_for_its_cap_files_and_a_file_for_itself() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let error = cap_files(folder.path()).unwrap_err().to_string();
        assert!(error.contains("expected files whose names end in .gguf, found none"), "{error}");
        for name in ["b.gguf", "a.gguf", "notes.txt", "gguf"] {
            fs::write(at(name), "").unwrap();
        }
        assert_eq!(cap_files(folder.path()).unwrap(), [at("a.gguf"), at("b.gguf")]);
        for file in ["b.gguf", "notes.txt", "absent"] {
            assert_eq!(cap_files(&at(file)).unwrap(), [at(file)]);
        }
    }
}
