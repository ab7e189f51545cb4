//! Output files that appear whole or not at all.

use std::io::{self, Write};
use std::path::Path;

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
/// [`axiscap::file::write_atomically`] says how. A file that this process has open is written to directly, at
/// the position of its descriptor, if `path` names that (`/dev/stdout`, `/dev/fd/3`).
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
    #[cfg(unix)]
    if let Some(descriptor) = descriptor::named_by(path) {
        let action = |action| move |error| FileError::Io { path: path.into(), action, error };
        let mut file = descriptor::duplicate(descriptor).map_err(action("open it for writing"))?;
        return write(&mut file).and_then(|()| file.flush()).map_err(action("write it"));
    }
    axiscap::file::write_atomically(path, write)
}

/// Open files of this process, by the names that the system gives their descriptors.
#[cfg(unix)]
mod descriptor {
    use std::fs::{self, File};
    use std::io::{self, Write};
    use std::os::fd::{BorrowedFd, RawFd};
    use std::path::Path;

    /// Maximum symbolic links in a row, as on Linux.
    const MAX_LINKS: usize = 40;

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
