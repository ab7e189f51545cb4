//! The loop that serves all connections on one thread.
//!
//! No client is waited for: the loop asks the system which of its sockets can go on, and takes one step with
//! each. So a slow client costs the others nothing, and a request is as large as `request.rs` allows.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::connection::{Connection, Handler};
use super::socket::Listener;

/// Connections at a time. The oldest one gives way to one more.
const MAX_CONNECTIONS: usize = 32;

/// Connections accepted in one turn, so that those that are there go on in between.
const MAX_ACCEPTED: usize = 8;

/// How long no connection is accepted after the system refused one, e.g. for want of descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// The connections of a listener.
#[derive(Debug)]
pub(crate) struct Server<'a> {
    listener: &'a Listener,
    /// The oldest first.
    connections: Vec<Connection>,
    paused: Option<Instant>,
}

impl<'a> Server<'a> {
    pub(crate) fn new(listener: &'a Listener) -> Self {
        Self { listener, connections: Vec::new(), paused: None }
    }

    /// Waits until a socket can go on or a time is over, and takes one step with each that can.
    ///
    /// # Errors
    /// Those of `poll`.
    pub(crate) fn turn(&mut self, handler: Handler<'_>) -> io::Result<()> {
        let now = Instant::now();
        self.paused = self.paused.filter(|&until| until > now);
        let listens = if self.paused.is_none() { libc::POLLIN } else { 0 };
        let poll = |descriptor, events| libc::pollfd { fd: descriptor, events, revents: 0 };
        let mut sockets = vec![poll(self.listener.as_raw_fd(), listens)];
        sockets.extend(self.connections.iter().map(|open| poll(open.as_raw_fd(), open.events())));
        let deadlines = self.connections.iter().map(Connection::deadline);
        let timeout = match deadlines.chain(self.paused).min() {
            // Rounded up, so that the time is over when the call returns.
            Some(next) => next.saturating_duration_since(now).as_millis() as libc::c_int + 1,
            None => -1,
        };
        // SAFETY: the array is valid for its length during the call.
        if unsafe { libc::poll(sockets.as_mut_ptr(), sockets.len() as libc::nfds_t, timeout) } < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        let now = Instant::now();
        for (connection, socket) in self.connections.iter_mut().zip(&sockets[1..]) {
            if socket.revents != 0 {
                connection.advance(now, handler);
            }
            connection.expire(now);
        }
        self.connections.retain(|connection| !connection.is_done());
        if sockets[0].revents != 0 {
            self.accept(now);
        }
        Ok(())
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..MAX_ACCEPTED {
            match self.listener.accept() {
                Ok(stream) => {
                    if self.connections.len() == MAX_CONNECTIONS {
                        self.connections.remove(0);
                    }
                    self.connections.push(Connection::new(stream, now));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(_) => {
                    self.paused = Some(now + PAUSE);
                    return;
                }
            }
        }
    }
}
