//! Output files that appear whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use axiscap::file::{CapFile, FileError};

use crate::error::Error;

/// Writes a cap file, whole or not at all ([`write_atomically`]).
///
/// # Errors
/// [`Error::File`]: what [`CapFile::to_bytes`] refuses, or the step that failed.
pub fn write_caps(path: &Path, file: &CapFile) -> Result<(), Error> {
    let bytes = file.to_bytes().map_err(|error| error.in_file(path))?;
    write_atomically(path, |out| out.write_all(&bytes))
}

/// Writes a file whole or not at all: after a failure `path` holds what it held before.
///
/// The bytes go to a temporary file in the same folder, which is synced and then renamed to `path`. After a
/// failure (of `write`, or because the disk is full) the temporary file is removed. The new file has the
/// permissions of the old one, or the usual ones. A symbolic link is followed.
///
/// A device or a pipe is written to directly. So is a file that this process has open, if `path` names its
/// descriptor (`/dev/stdout`, `/dev/fd/3`): the position of the descriptor is where to write.
///
/// # Errors
/// [`Error::File`] with [`FileError::Io`], which names the file and the step that failed.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), Error> {
    Ok(write_file(path, write)?)
}

fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), FileError> {
    fn action(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> FileError {
        move |error| FileError::Io { path: path.into(), action, error }
    }
    #[cfg(unix)]
    if let Some(descriptor) = descriptor::named_by(path) {
        let mut file = descriptor::duplicate(descriptor).map_err(action(path, "open it for writing"))?;
        return write(&mut file).and_then(|()| file.flush()).map_err(action(path, "write it"));
    }
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
    let target = follow(path).map_err(action(path, "follow the link"))?;
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));

    let mut builder = tempfile::Builder::new();
    builder.prefix(".axiscap-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // At no time more than the old file allows: a private file stays private while it is written. The
        // umask of the process may clear further bits.
        let mode = old.as_ref().map_or(0o666, |old| old.permissions().mode() & 0o777);
        builder.permissions(fs::Permissions::from_mode(mode));
    }
    // The temporary file is removed when dropped, on every early return below.
    let mut temporary = builder.tempfile_in(folder).map_err(action(path, "create a file in its folder"))?;
    // The umask may have cleared bits that the old file has.
    #[cfg(unix)]
    set_permissions(temporary.as_file(), old.as_ref()).map_err(action(path, "set its permissions"))?;
    let mut buffered = BufWriter::new(temporary.as_file_mut());
    write(&mut buffered).and_then(|()| buffered.flush()).map_err(action(path, "write it"))?;
    drop(buffered);
    // On other systems the permissions say whether the file may be written, so they are set after writing.
    #[cfg(not(unix))]
    set_permissions(temporary.as_file(), old.as_ref()).map_err(action(path, "set its permissions"))?;
    temporary.as_file().sync_all().map_err(action(path, "write it to the disk"))?;
    temporary.persist(&target).map_err(|failed| action(path, "put it in its place")(failed.error))?;
    // The file is in place. Some file systems cannot sync a folder, which is no failure.
    #[cfg(unix)]
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(())
}

/// Gives a file the permissions of an older one, if any.
fn set_permissions(file: &File, old: Option<&fs::Metadata>) -> io::Result<()> {
    old.map_or(Ok(()), |old| file.set_permissions(old.permissions()))
}

/// Maximum symbolic links in a row, as on Linux.
const MAX_LINKS: usize = 40;

/// Returns the target of a symbolic link, even if it does not exist yet. Returns any other path unchanged.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut target = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&target) {
            Ok(link) => target = target.parent().unwrap_or(Path::new("")).join(link),
            Err(_) => return Ok(target),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

/// Open files of this process, by the names that the system gives their descriptors.
#[cfg(unix)]
mod descriptor {
    use std::fs::{self, File};
    use std::io::{self, Write};
    use std::os::fd::{BorrowedFd, RawFd};
    use std::path::Path;

    use super::MAX_LINKS;

    /// Returns the descriptor of this process that a path names: `/dev/stdout`, `/dev/fd/N`,
    /// `/proc/self/fd/N`, or a link to such a name. The name itself is a link to the open file. Following it
    /// would lose the position and the mode.
    pub(super) fn named_by(path: &Path) -> Option<RawFd> {
        let mut path = path.to_path_buf();
        for _ in 0..MAX_LINKS {
            let folder = path.parent()?;
            let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            if let Some(number) = number.filter(|&number: &RawFd| number >= 0)
                && is_ours(folder)
            {
                return Some(number);
            }
            path = folder.join(fs::read_link(&path).ok()?);
        }
        None
    }

    /// Returns whether a folder lists the descriptors of this process, or of one of its threads, which has
    /// the same ones.
    fn is_ours(folder: &Path) -> bool {
        let Ok(folder) = folder.canonicalize() else { return false };
        let same = |known: &str| Path::new(known).canonicalize().is_ok_and(|known| known == folder);
        let thread = || {
            let tasks = Path::new("/proc/self/task").canonicalize();
            folder.ends_with("fd") && tasks.is_ok_and(|tasks| folder.starts_with(tasks))
        };
        same("/proc/self/fd") || same("/dev/fd") || thread()
    }

    /// Duplicates a descriptor. Both share position and mode.
    pub(super) fn duplicate(descriptor: RawFd) -> io::Result<File> {
        if descriptor == 1 {
            // Earlier output comes first.
            io::stdout().flush()?;
        }
        // SAFETY: `descriptor` is not -1, because `named_by` returns numbers from 0 on. The borrow ends with
        // this function, which only duplicates the descriptor. If it is not open, that fails with an error.
        let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
        Ok(File::from(borrowed.try_clone_to_owned()?))
    }
}
