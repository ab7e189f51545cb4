//! Files that grow while work goes on, and are continued after it was stopped.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

/// Opens a file for appending, makes it if there is none, and returns it with what it holds. One process has it at a
/// time.
///
/// # Errors
/// What is wrong, and what to do: it cannot be opened or read, is no regular file, or another process has it.
pub(crate) fn open(path: &Path) -> Result<(File, Vec<u8>), String> {
    let failed = |what: &str, error: io::Error| format!("cannot be {what}: {error}");
    let file = File::options()
        .read(true)
        .append(true)
        .create(true)
        .open(path)
        .map_err(|error| failed("opened", error))?;
    // Two programs writing to one file would ruin it.
    if !is_locked(&file) {
        return Err("another axiscap is writing it; wait for it, or name another file".into());
    }
    // A device may have no end, and cannot be cut to whole lines.
    if !file.metadata().map_err(|error| failed("read", error))?.is_file() {
        return Err("is no regular file; remove it, or name another".into());
    }
    let text = fs::read(path).map_err(|error| failed("read", error))?;
    Ok((file, text))
}

/// Locks a file. Returns `false` if another process has it.
fn is_locked(file: &File) -> bool {
    // A program that was started from another thread keeps the lock of a file that is closed here, until it runs.
    for pause in [1, 10, 100] {
        match file.try_lock() {
            // A file system without locks is no reason to fail.
            Err(fs::TryLockError::Error(_)) | Ok(()) => return true,
            Err(fs::TryLockError::WouldBlock) => sleep(Duration::from_millis(pause)),
        }
    }
    !matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock))
}
