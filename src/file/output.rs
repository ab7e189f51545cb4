//! Files that are written whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::file::error::{FileError, Result};

/// Writes a file. Afterwards `path` holds either everything that `write` wrote, or its former content.
///
/// The bytes go to a temporary file in the same folder, are flushed to the disk, and replace `path` in one
/// step. If anything fails (`write` itself, a full disk), the temporary file is removed and an older file
/// keeps its content. The new file has the permissions of the older one, or the usual ones. Symbolic links
/// are followed. Devices and pipes are written to directly, because they cannot be replaced.
///
/// # Errors
/// [`FileError::Io`], with the file and the step that failed.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let action = FileError::io;
    let old = match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            return Err(action(path, "write it")(io::ErrorKind::IsADirectory.into()));
        }
        Ok(metadata) if !metadata.is_file() => {
            let mut file =
                File::options().write(true).open(path).map_err(action(path, "open it for writing"))?;
            return write(&mut file).and_then(|()| file.flush()).map_err(action(path, "write it"));
        }
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(action(path, "look it up")(error)),
    };
    let target = followed(path).map_err(action(path, "follow the link"))?;
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));

    let mut builder = tempfile::Builder::new();
    builder.prefix(".axiscap-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // The process's umask is applied to this. The temporary file never allows more than the older file:
        // users who may not read that must not read this while it is being written.
        let mode = old.as_ref().map_or(0o666, |old| old.permissions().mode() & 0o777);
        builder.permissions(fs::Permissions::from_mode(mode));
    }
    // Removed when it is dropped, on every early return below.
    let mut temporary = builder.tempfile_in(folder).map_err(action(path, "create a file in its folder"))?;
    // The umask may have removed permissions of the older file.
    #[cfg(unix)]
    set_permissions(temporary.as_file(), old.as_ref()).map_err(action(path, "set its permissions"))?;
    let mut buffered = BufWriter::new(temporary.as_file_mut());
    write(&mut buffered).and_then(|()| buffered.flush()).map_err(action(path, "write it"))?;
    drop(buffered);
    // On other systems the permission may forbid writing, so it is set after the file is written.
    #[cfg(not(unix))]
    set_permissions(temporary.as_file(), old.as_ref()).map_err(action(path, "set its permissions"))?;
    temporary.as_file().sync_all().map_err(action(path, "write it to the disk"))?;
    temporary.persist(&target).map_err(|failed| action(path, "put it in its place")(failed.error))?;
    // The file is in place, whether or not the folder can be synced (some file systems cannot).
    #[cfg(unix)]
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(())
}

/// Gives a file the permissions of the older one, if there is one.
fn set_permissions(file: &File, old: Option<&fs::Metadata>) -> io::Result<()> {
    old.map_or(Ok(()), |old| file.set_permissions(old.permissions()))
}

/// Maximum number of successive symbolic links, as in Linux.
const MAX_LINKS: usize = 40;

/// Returns the target of a symbolic link, which need not exist. Other paths are returned unchanged.
fn followed(path: &Path) -> io::Result<PathBuf> {
    let mut target = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&target) {
            Ok(link) => target = target.parent().unwrap_or(Path::new("")).join(link),
            Err(_) => return Ok(target),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &[u8] = b"the former content";
    const NEW: &[u8] = b"the content that replaces it, somewhat longer than the former";

    fn entries(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The disk is full after any number of bytes, with and without a file to replace.
    #[test]
    fn nothing_changes_when_the_disk_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let (absent, present) = (folder.path().join("absent"), folder.path().join("present"));
        fs::write(&present, OLD).unwrap();
        for room in 0..NEW.len() {
            for path in [&absent, &present] {
                let full = |out: &mut dyn Write| {
                    out.write_all(&NEW[..room])?;
                    out.flush()?;
                    Err(io::ErrorKind::StorageFull.into())
                };
                let error = write_atomically(path, full).unwrap_err();
                assert!(
                    matches!(&error, FileError::Io { error, .. } if error.kind() == io::ErrorKind::StorageFull)
                );
                let message = error.to_string();
                assert!(
                    message.contains(path.to_str().unwrap()) && message.contains("free some space"),
                    "{message}"
                );
            }
            assert_eq!(entries(folder.path()), ["present"]);
            assert_eq!(fs::read(&present).unwrap(), OLD);
        }
    }

    #[test]
    fn a_writer_that_panics_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let write = || {
            write_atomically(&path, |out| {
                out.write_all(NEW)?;
                panic!("on purpose")
            })
        };
        assert!(std::panic::catch_unwind(write).is_err());
        assert!(entries(folder.path()).is_empty());
    }

    /// A relative path without a folder is written to the current one.
    #[test]
    fn a_bare_name_is_in_the_current_folder() {
        let name = format!("axiscap-test-{}.tmp", std::process::id());
        write_atomically(name.as_ref(), |out| out.write_all(NEW)).unwrap();
        assert_eq!(fs::read(&name).unwrap(), NEW);
        fs::remove_file(&name).unwrap();
    }

    /// Users who may not read the old content may not read the new content before it is in place.
    #[cfg(unix)]
    #[test]
    fn a_private_file_is_private_while_it_is_written() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for mode in [0o600, 0o640, 0o666, 0o400] {
            fs::write(&path, OLD).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let write = |out: &mut dyn Write| {
                out.write_all(NEW)?;
                out.flush()?;
                let temporary = entries(folder.path()).into_iter().find(|name| name != "file").unwrap();
                let found = fs::metadata(folder.path().join(temporary))?.permissions().mode() & 0o777;
                assert_eq!(found, mode, "{found:o} for {mode:o}");
                Ok(())
            };
            write_atomically(&path, write).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
            assert_eq!(fs::read(&path).unwrap(), NEW);
            fs::remove_file(&path).unwrap();
        }
    }
}
