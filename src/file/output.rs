//! Output files that appear whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::error::{FileError, Result};

/// Writes a file so that `path` holds either all of what `write` wrote, or what it held before.
///
/// The bytes go to a temporary file in the same folder, are forced to the medium, and take the place of `path` in
/// one step. If anything fails (`write` itself, a full disk), the temporary file is removed and an older file stays
/// as it was. The new file has the older one's permissions, or the usual ones. A symbolic link is followed. What is
/// not a regular file (`/dev/stdout`, a pipe) is written to as it is: there is nothing to replace.
///
/// # Errors
/// [`FileError::Io`], naming the file and the step that failed.
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
        // The process's umask takes its part of this.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    // Removed when dropped, that is on every early return below.
    let mut temporary = builder.tempfile_in(folder).map_err(action(path, "create a file in its folder"))?;
    let mut buffered = BufWriter::new(temporary.as_file_mut());
    write(&mut buffered).and_then(|()| buffered.flush()).map_err(action(path, "write it"))?;
    drop(buffered);
    if let Some(old) = old {
        temporary
            .as_file()
            .set_permissions(old.permissions())
            .map_err(action(path, "set its permissions"))?;
    }
    temporary.as_file().sync_all().map_err(action(path, "write it to the disk"))?;
    temporary.persist(&target).map_err(|failed| action(path, "put it in its place")(failed.error))?;
    // The file is in place. That a folder cannot be synced (some file systems) does not undo that.
    #[cfg(unix)]
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(())
}

/// Where a symbolic link leads, also when nothing is there yet; any other path as it is.
fn followed(path: &Path) -> io::Result<PathBuf> {
    let mut target = path.to_path_buf();
    // As many as Linux follows.
    for _ in 0..40 {
        match fs::read_link(&target) {
            Ok(link) => target = target.parent().unwrap_or(Path::new("")).join(link),
            Err(_) => return Ok(target),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}
