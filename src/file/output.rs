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
/// not a regular file (a device, a pipe) is written to as it is: there is nothing to replace. So is what this process
/// holds open and `path` names by its descriptor (`/dev/stdout`, `/dev/fd/3`), a regular file too: whoever opened it
/// said where in it to write.
///
/// # Errors
/// [`FileError::Io`], naming the file and the step that failed.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let action = FileError::io;
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
    let target = followed(path).map_err(action(path, "follow the link"))?;
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));

    let mut builder = tempfile::Builder::new();
    builder.prefix(".axiscap-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // The process's umask takes its part of this. Never more than the older file allows, at no time: what
        // nobody else may read there, nobody else may read here while it is being written.
        let mode = old.as_ref().map_or(0o666, |old| old.permissions().mode() & 0o777);
        builder.permissions(fs::Permissions::from_mode(mode));
    }
    // Removed when dropped, that is on every early return below.
    let mut temporary = builder.tempfile_in(folder).map_err(action(path, "create a file in its folder"))?;
    // The umask may have taken what the older file allows.
    #[cfg(unix)]
    set_permissions(temporary.as_file(), old.as_ref()).map_err(action(path, "set its permissions"))?;
    let mut buffered = BufWriter::new(temporary.as_file_mut());
    write(&mut buffered).and_then(|()| buffered.flush()).map_err(action(path, "write it"))?;
    drop(buffered);
    // Elsewhere the permission is whether it may be written at all: only once it is.
    #[cfg(not(unix))]
    set_permissions(temporary.as_file(), old.as_ref()).map_err(action(path, "set its permissions"))?;
    temporary.as_file().sync_all().map_err(action(path, "write it to the disk"))?;
    temporary.persist(&target).map_err(|failed| action(path, "put it in its place")(failed.error))?;
    // The file is in place. That a folder cannot be synced (some file systems) does not undo that.
    #[cfg(unix)]
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(())
}

/// Gives a file the permissions of an older one, if there is one.
fn set_permissions(file: &File, old: Option<&fs::Metadata>) -> io::Result<()> {
    old.map_or(Ok(()), |old| file.set_permissions(old.permissions()))
}

/// As many symbolic links in a row as Linux follows.
const MOST_LINKS: usize = 40;

/// Where a symbolic link leads, also when nothing is there yet; any other path as it is.
fn followed(path: &Path) -> io::Result<PathBuf> {
    let mut target = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&target) {
            Ok(link) => target = target.parent().unwrap_or(Path::new("")).join(link),
            Err(_) => return Ok(target),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

/// Open files of this process under the names that the system gives their descriptors.
#[cfg(unix)]
mod descriptor {
    use std::fs::{self, File};
    use std::io::{self, Write};
    use std::os::fd::{BorrowedFd, RawFd};
    use std::path::Path;

    use super::MOST_LINKS;

    /// The descriptor of this process that a path names: `/dev/stdout`, `/dev/fd/N`, `/proc/self/fd/N`, or a link to
    /// such a name. The name itself is a link to the file that is open; following it would lose where in it, and
    /// how, it was opened.
    pub(super) fn named_by(path: &Path) -> Option<RawFd> {
        let mut path = path.to_path_buf();
        for _ in 0..MOST_LINKS {
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

    /// Whether a folder lists the descriptors of this process, or of one of its threads, which has the same.
    fn is_ours(folder: &Path) -> bool {
        let Ok(folder) = folder.canonicalize() else { return false };
        let same = |known: &str| Path::new(known).canonicalize().is_ok_and(|known| known == folder);
        let thread = || {
            let tasks = Path::new("/proc/self/task").canonicalize();
            folder.ends_with("fd") && tasks.is_ok_and(|tasks| folder.starts_with(tasks))
        };
        same("/proc/self/fd") || same("/dev/fd") || thread()
    }

    /// The open file behind a descriptor once more: one place in it and one mode for both.
    pub(super) fn duplicate(descriptor: RawFd) -> io::Result<File> {
        if descriptor == 1 {
            // What was printed before comes first.
            io::stdout().flush()?;
        }
        // SAFETY: it is not negative, and borrowed for this one call, which has no effect but an error where it is
        // not open.
        let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
        Ok(File::from(borrowed.try_clone_to_owned()?))
    }
}
