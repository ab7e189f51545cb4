//! Writing to sockets without the signal that a closed one causes, which could end the host.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Writes as many bytes as the socket takes, and returns their number.
///
/// # Errors
/// Those of `send`.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the descriptor is open, and as many bytes can be read.
    let sent =
        unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
