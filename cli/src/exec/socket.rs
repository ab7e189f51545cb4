//! The socket to which the processes of the host report.

use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::report::Report;
use crate::output;

/// Maximum processes that report at one time.
const MAX_OPEN: usize = 256;
/// Maximum bytes of a line.
const MAX_LINE: usize = 1 << 16;

/// The socket, in a folder that only this user can enter. Both are removed when it is dropped.
pub(super) struct Socket {
    folder: TempDir,
    listener: UnixListener,
    open: Vec<Connection>,
}

struct Connection {
    stream: UnixStream,
    /// What was read of the line that is not yet complete.
    line: Vec<u8>,
}

impl Socket {
    pub(super) fn new() -> Result<Self> {
        let remedy = "set TMPDIR to a folder that can be written to, with a short path";
        let folder = tempfile::Builder::new().prefix("axiscap-").tempdir();
        let folder =
            folder.with_context(|| format!("cannot make a folder for the plugin's reports ({remedy})"))?;
        let path = folder.path().join("report");
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("cannot make the socket {} ({remedy})", path.display()))?;
        listener.set_nonblocking(true).context("cannot prepare the socket of the plugin's reports")?;
        Ok(Self { folder, listener, open: Vec::new() })
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("report")
    }

    /// Returns what is readable when there is a report.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let open = self.open.iter().map(|connection| connection.stream.as_fd());
        std::iter::once(self.listener.as_fd()).chain(open)
    }

    /// Returns the reports that have arrived, without waiting for more. A process that has ended has sent all
    /// that it ever will, so none of its reports is missed after that.
    pub(super) fn reports(&mut self) -> Result<Vec<Report>> {
        loop {
            match self.listener.accept() {
                // Beyond the maximum, a connection is closed.
                Ok((stream, _)) if self.open.len() < MAX_OPEN => {
                    stream.set_nonblocking(true).context("cannot prepare a connection of the plugin")?;
                    self.open.push(Connection { stream, line: Vec::new() });
                }
                Ok(_) => {}
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => break,
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                    _ => return Err(error).context("cannot take a connection of the plugin"),
                },
            }
        }
        let mut reports = Vec::new();
        self.open.retain_mut(|connection| connection.read(&mut reports));
        Ok(reports)
    }
}

impl Connection {
    /// Reads what has arrived. Returns whether there can be more.
    fn read(&mut self, reports: &mut Vec<Report>) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    reports.extend(Report::parse(&self.line));
                    return false;
                }
                Ok(count) => self.take(&buffer[..count], reports),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
            if self.line.len() > MAX_LINE {
                output::warning(
                    "a process of the program reports lines without an end; its reports are ignored",
                );
                return false;
            }
        }
    }

    /// Takes bytes, and the reports of the lines that are complete with them.
    fn take(&mut self, bytes: &[u8], reports: &mut Vec<Report>) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend_from_slice(piece);
            if self.line.ends_with(b"\n") {
                reports.extend(Report::parse(&self.line));
                self.line.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::report::Event;
    use super::*;

    #[test]
    fn reports_are_read_in_any_pieces_and_after_their_process_has_ended() {
        let mut socket = Socket::new().unwrap();
        let mut one = UnixStream::connect(socket.path()).unwrap();
        let mut other = UnixStream::connect(socket.path()).unwrap();
        let warning = |text: &str| Event::Warning { text: text.into() };
        let mut events =
            || socket.reports().unwrap().into_iter().map(|report| report.event).collect::<Vec<_>>();
        one.write_all(br#"{"event":"warning","te"#).unwrap();
        assert_eq!(events(), []);
        other.write_all(b"nonsense\n{\"event\":\"warning\",\"text\":\"b\"}\n{\"event\":\"new\"}\n").unwrap();
        one.write_all(b"xt\":\"a\"}\n{\"event\":\"warning\",\"text\":\"c\"}").unwrap();
        assert_eq!(events(), [warning("a"), warning("b")]);
        drop(one);
        assert_eq!(events(), [warning("c")], "the last line may lack its end");
        other.write_all(&vec![b'x'; MAX_LINE + 5000]).unwrap();
        assert_eq!(events(), []);
        assert!(other.write_all(b"\n").is_err(), "it was closed");
        assert_eq!(socket.open.len(), 0);
    }
}
