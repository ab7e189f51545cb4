//! Signals that are passed on to the host.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use signal_hook::consts::{SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

/// Signals that are passed on.
const PASSED_ON: [i32; 8] = [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGCONT, SIGTSTP];

/// The signals that this process is sent, from now on.
pub(super) struct Signals(SignalDelivery<UnixStream, SignalOnly>);

impl Signals {
    /// Takes over the signals. One that is ignored (`nohup`, a job that a script started in the background)
    /// stays so, and the host inherits that.
    pub(super) fn new() -> Result<Self> {
        let taken = PASSED_ON.into_iter().filter(|&signal| !is_ignored(signal)).chain([SIGCHLD]);
        let delivery = UnixStream::pair()
            .and_then(|(read, write)| SignalDelivery::with_pipe(read, write, SignalOnly, taken));
        Ok(Self(delivery.context("cannot take over the signals")?))
    }

    /// Returns what is readable when there is a signal.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }

    /// Returns the signals that have arrived.
    pub(super) fn arrived(&mut self) -> Vec<Signal> {
        self.0.pending().filter_map(Signal::from_named_raw).collect()
    }
}

/// Returns whether this process ignores a signal.
fn is_ignored(signal: i32) -> bool {
    current(signal).is_ok_and(|action| action.sa_sigaction == libc::SIG_IGN)
}

fn current(signal: i32) -> io::Result<libc::sigaction> {
    // SAFETY: zeros are a valid `sigaction`, which is plain data.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: without a new action the call only writes the present one, to a live `sigaction`.
    let status = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    if status == 0 { Ok(action) } else { Err(io::Error::last_os_error()) }
}

/// Runs `work` while a signal has the system's default action.
pub(super) fn with_default<R>(signal: Signal, work: impl FnOnce() -> R) -> io::Result<R> {
    let signal = signal.as_raw();
    let before = current(signal)?;
    // SAFETY: zeros are a valid `sigaction`: the default action, no flags, an empty mask.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: both actions live for the calls. The default action runs no code of this process, and the one
    // that is put back was in place before.
    unsafe {
        if libc::sigaction(signal, &raw const default, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let result = work();
        libc::sigaction(signal, &raw const before, std::ptr::null_mut());
        Ok(result)
    }
}
