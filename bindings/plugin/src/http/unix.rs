//! The file of a unix socket: its mode, and what becomes of one that is there already.

use std::fs::{self, File, TryLockError};
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long another process may be busy with the same folder.
const PATIENCE: Duration = Duration::from_secs(2);

/// Connections that may wait to be accepted.
const BACKLOG: libc::c_int = 64;

/// Listens on a path, with a file that only its owner can use. A socket that no process listens on is replaced.
/// Returns `None` if the path is there and is no socket.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] for a socket in use, and those of the system.
pub(crate) fn bind(path: &Path) -> io::Result<Option<UnixListener>> {
    let _alone = lock_folder(path)?;
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Ok(None),
        Ok(_) => match connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            // Connected, or too many wait to be.
            _ => return Err(io::ErrorKind::AddrInUse.into()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let (socket, address) = (socket()?, address(path)?);
    // SAFETY: the socket is open, and the address is valid for its size.
    check(unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_un>() as u32)
    })?;
    // Before it listens, no client can connect, whatever mode the file was made with.
    let prepared = fs::set_permissions(path, fs::Permissions::from_mode(0o600)).and_then(|()| {
        // SAFETY: the socket is open.
        check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })
    });
    if let Err(error) = prepared {
        let _ = fs::remove_file(path);
        return Err(error);
    }
    Ok(Some(UnixListener::from(socket)))
}

/// Has other processes wait that are about to bind a socket in the same folder. One of them could take the new
/// socket for an old one otherwise.
fn lock_folder(path: &Path) -> io::Result<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (folder, start) = (File::open(folder)?, Instant::now());
    loop {
        match folder.try_lock() {
            Ok(()) => return Ok(folder),
            Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            // Another program has locked the folder for its own ends.
            Err(TryLockError::WouldBlock) => return Ok(folder),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Connects to the process that listens on a path, if one does, without waiting for it.
fn connect(path: &Path) -> io::Result<()> {
    let (socket, address) = (socket()?, address(path)?);
    // SAFETY: the socket is open, and the address is valid for its size.
    check(unsafe {
        libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_un>() as u32)
    })
}

/// Makes a socket that does not block, and that no program inherits which the process starts.
fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: a plain request.
    let descriptor = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    check(descriptor)?;
    // SAFETY: the descriptor was just made, and belongs to this value alone.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn address(path: &Path) -> io::Result<libc::sockaddr_un> {
    // SAFETY: an all-zero value is valid for this plain structure.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let (bytes, room) = (path.as_os_str().as_bytes(), address.sun_path.len());
    if bytes.len() >= room || bytes.contains(&0) {
        let most = size_of::<libc::sockaddr_un>() - offset_of!(libc::sockaddr_un, sun_path) - 1;
        let what = format!("the path of a socket has at most {most} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    for (to, &byte) in address.sun_path.iter_mut().zip(bytes) {
        *to = byte as libc::c_char;
    }
    Ok(address)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_is_for_its_owner_alone_and_an_old_one_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = bind(&path).unwrap().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        UnixStream::connect(&path).unwrap();
        drop(listener);
        assert!(fs::exists(&path).unwrap(), "as a process leaves it that was killed");
        let listener = bind(&path).unwrap().unwrap();
        UnixStream::connect(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(listener);
    }

    #[test]
    fn a_process_that_accepts_nothing_is_not_replaced_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _listener = bind(&path).unwrap().unwrap();
        let mut waiting = Vec::new();
        while connect(&path).is_ok() && waiting.len() < 200 {
            let (socket, address) = (socket().unwrap(), address(&path).unwrap());
            let size = size_of::<libc::sockaddr_un>() as u32;
            // SAFETY: the socket is open, and the address is valid for its size.
            unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size) };
            waiting.push(socket);
        }
        assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn other_files_stay_and_wrong_paths_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "mine").unwrap();
        assert!(bind(&path).unwrap().is_none());
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        assert!(bind(folder.path()).unwrap().is_none());
        assert_eq!(bind(&path.join("absent")).unwrap_err().kind(), io::ErrorKind::NotADirectory);
        let long = folder.path().join("x".repeat(200));
        assert!(bind(&long).unwrap_err().to_string().contains("at most 107 bytes"));
    }
}
