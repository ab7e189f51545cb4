//! Listening sockets, and connections that neither block nor raise signals.

use std::io;
use std::net::{Shutdown, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use super::address::Address;
use super::unix;
use crate::send::send;

/// A socket that listens.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: Socket,
    /// Where it listens, with the port that was chosen.
    address: Address,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Reason why the interface cannot listen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    #[error(
        "AXISCAP_LISTEN: {0} is in use by another process; end that process, or choose another address. Programs that start others, as llama-server's router does for each model, need an address for each process: unix:/run/axiscap-{{pid}}.sock, or 127.0.0.1:0"
    )]
    InUse(Address),
    #[error("AXISCAP_LISTEN: {0} is there and no socket; remove it, or choose another path")]
    NoSocket(Address),
    #[error(
        "AXISCAP_LISTEN: cannot listen on {address}: {error}; the folder of a socket must exist, and this user may write it"
    )]
    Io { address: Address, error: io::Error },
}

impl Listener {
    /// Listens on an address.
    ///
    /// # Errors
    /// [`ListenError`].
    pub(crate) fn bind(address: &Address) -> Result<Self, ListenError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => ListenError::InUse(address.clone()),
            _ => ListenError::Io { address: address.clone(), error },
        };
        let socket = match address {
            Address::Tcp(address) => {
                let listener = TcpListener::bind(address).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                Socket::Tcp(listener)
            }
            Address::Unix(path) => match unix::bind(path) {
                Ok(Some(listener)) => Socket::Unix(listener),
                Ok(None) => return Err(ListenError::NoSocket(address.clone())),
                Err(error) => return Err(failed(error)),
            },
        };
        let address = match &socket {
            Socket::Tcp(listener) => listener.local_addr().map(Address::Tcp).map_err(failed)?,
            Socket::Unix(_) => address.clone(),
        };
        Ok(Self { socket, address })
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Whether only the owner of the socket's file can connect.
    pub(crate) fn is_unix(&self) -> bool {
        matches!(self.socket, Socket::Unix(_))
    }

    /// Accepts a connection, if one waits.
    ///
    /// # Errors
    /// Those of `accept`.
    pub(crate) fn accept(&self) -> io::Result<Stream> {
        let descriptor = match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                OwnedFd::from(stream)
            }
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                OwnedFd::from(stream)
            }
        };
        Ok(Stream(descriptor))
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match &self.socket {
            Socket::Tcp(listener) => listener.as_raw_fd(),
            Socket::Unix(listener) => listener.as_raw_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A connection that does not block.
#[derive(Debug)]
pub(crate) struct Stream(OwnedFd);

impl Stream {
    /// Reads what has arrived. 0 stands for the end.
    ///
    /// # Errors
    /// Those of `recv`.
    pub(crate) fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the descriptor is open, and as many bytes can be written.
        let received = unsafe { libc::recv(self.0.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// Writes as much as there is room for.
    ///
    /// # Errors
    /// Those of `send`.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        send(self.0.as_fd(), bytes)
    }

    /// Tells the client that nothing more comes. It is told so also while a forked child has the descriptor.
    pub(crate) fn shut_down(&self, how: Shutdown) {
        let how = match how {
            Shutdown::Read => libc::SHUT_RD,
            Shutdown::Write => libc::SHUT_WR,
            Shutdown::Both => libc::SHUT_RDWR,
        };
        // SAFETY: the descriptor is open.
        unsafe { libc::shutdown(self.0.as_raw_fd(), how) };
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shut_down(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_an_error_and_a_free_one_is_named() {
        let listener = Listener::bind(&Address::Tcp(([127, 0, 0, 1], 0).into())).unwrap();
        let Address::Tcp(address) = *listener.address() else { panic!("a port") };
        assert_ne!(address.port(), 0);
        assert!(!listener.is_unix());
        let error = Listener::bind(listener.address()).unwrap_err();
        assert!(error.to_string().contains("is in use by another process"), "{error}");
    }
}
