//! The terminal, which the host has while it runs.
//!
//! The host is a process group of its own. Where this program has the terminal on its stdin, it gives the
//! terminal to that group, as a shell does. Ctrl-C then reaches the host and not this program. Where it does
//! not, Ctrl-C reaches this program and not the host, and is passed on. Either way the host gets it once.

use std::io::stdin;
use std::os::fd::AsFd;

use rustix::process::{Pid, getpgrp};
use rustix::termios::{tcgetpgrp, tcsetpgrp};

/// Returns whether the terminal on stdin is that of this process's group.
pub(super) fn is_ours() -> bool {
    tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp())
}

/// Gives the terminal on stdin to a group, if it is ours.
pub(super) fn give(group: Pid) {
    if is_ours() {
        set(stdin(), group);
    }
}

/// Takes the terminal on stdin back from a group, if that has it.
pub(super) fn take(group: Pid) {
    if tcgetpgrp(stdin()).is_ok_and(|found| found == group) {
        set(stdin(), getpgrp());
    }
}

/// Sets the group that has a terminal. If that fails, the terminal is gone.
///
/// Calls functions that are safe after a fork only.
pub(super) fn set(terminal: impl AsFd, group: Pid) {
    // A group without the terminal that changes it is sent SIGTTOU, which would stop it. A blocked SIGTTOU is
    // not sent.
    //
    // SAFETY: zeros are valid signal sets, which are plain data and live for the calls. Blocking a signal of
    // this thread for a moment changes no handler.
    unsafe {
        let mut blocked: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut blocked);
        libc::sigaddset(&raw mut blocked, libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, &raw mut before);
        let _ = tcsetpgrp(terminal, group);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
    }
}
