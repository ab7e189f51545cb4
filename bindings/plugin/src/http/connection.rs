//! One connection: one request, one answer, each within a time.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use super::request::{Reading, Request};
use super::response::Response;
use super::socket::Stream;

/// How long a client has for its request, and again to read the answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// How long a client that has its answer may go on to send. Closing before that could take the answer away.
const LINGER: Duration = Duration::from_secs(1);

/// A connection of a client.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Stream,
    state: State,
    /// When the state ends, whatever the client does.
    deadline: Instant,
}

#[derive(Debug)]
enum State {
    Reading(Reading),
    Writing {
        answer: Vec<u8>,
        sent: usize,
    },
    /// The client has its answer. What it sends is dropped.
    Lingering,
    Done,
}

/// Answers requests.
pub(crate) type Handler<'a> = &'a dyn Fn(&Request) -> Response;

impl Connection {
    pub(crate) fn new(stream: Stream, now: Instant) -> Self {
        Self { stream, state: State::Reading(Reading::default()), deadline: now + PATIENCE }
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The events to wait for, as `poll` has them.
    pub(crate) fn events(&self) -> libc::c_short {
        match self.state {
            State::Writing { .. } => libc::POLLOUT,
            _ => libc::POLLIN,
        }
    }

    /// Ends the state whose time is over. A client that was too slow with its request is told so.
    pub(crate) fn expire(&mut self, now: Instant) {
        if now < self.deadline {
            return;
        }
        let slow = matches!(&self.state, State::Reading(reading) if reading.has_begun());
        self.state = State::Done;
        if slow {
            self.deadline = now + LINGER;
            let answer = Response::error(408, "the request was not whole within 5 seconds").to_bytes();
            self.state = State::Writing { answer, sent: 0 };
        }
    }

    /// Goes on as far as the socket allows without waiting.
    pub(crate) fn advance(&mut self, now: Instant, handler: Handler<'_>) {
        match self.step(now, handler) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.state = State::Done,
        }
    }

    fn step(&mut self, now: Instant, handler: Handler<'_>) -> io::Result<()> {
        let mut bytes = [0; 4096];
        if let State::Reading(reading) = &mut self.state {
            let received = self.stream.receive(&mut bytes)?;
            if received == 0 {
                self.state = State::Done;
                return Ok(());
            }
            let Some(request) = reading.add(&bytes[..received]) else { return Ok(()) };
            let answer = request.map_or_else(|refused| refused, |request| handler(&request)).to_bytes();
            self.state = State::Writing { answer, sent: 0 };
            // The time that the answer took is not the client's.
            self.deadline = now.max(Instant::now()) + PATIENCE;
        }
        if let State::Writing { answer, sent } = &mut self.state {
            while *sent < answer.len() {
                match self.stream.send(&answer[*sent..])? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    count => *sent += count,
                }
            }
            self.stream.shut_down(Shutdown::Write);
            self.state = State::Lingering;
            self.deadline = now.max(Instant::now()) + LINGER;
            return Ok(());
        }
        if let State::Lingering = self.state
            && self.stream.receive(&mut bytes)? == 0
        {
            self.state = State::Done;
        }
        Ok(())
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}
