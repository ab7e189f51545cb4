//! The host: one process that is started, in a group of its own.

use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, getpgrp, getpid, getppid, kill_current_process_group, kill_process,
    kill_process_group, test_kill_process_group, wait,
};

use super::signals::with_default;
use super::terminal;

/// The host. It is sent SIGTERM if this is dropped while it runs.
pub(super) struct Host {
    /// Its process and its group.
    pid: Pid,
    is_running: bool,
}

/// What happened to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It ended. The status is that of a shell: its own, or 128 and the number of the signal that ended it.
    Ended(u8),
    /// A signal stopped it.
    Stopped(Signal),
}

impl Host {
    /// Starts a program. Its stdin, stdout and stderr are those of this process.
    pub(super) fn start(program: &[OsString], variables: &[(&str, OsString)]) -> io::Result<Self> {
        let [name, arguments @ ..] = program else { return Err(io::ErrorKind::InvalidInput.into()) };
        let has_terminal = terminal::is_ours();
        let mut command = Command::new(name);
        command.args(arguments).process_group(0);
        command.envs(variables.iter().map(|(key, value)| (key, value)));
        let parent = getpid();
        // SAFETY: `prepare` makes system calls only. It allocates nothing and takes no lock, so it may run in
        // the child between fork and exec.
        unsafe {
            command.pre_exec(move || prepare(parent, has_terminal));
        }
        let child = command.spawn().inspect_err(|_| {
            // A child that was given the terminal and could not become the program has it no more.
            if has_terminal {
                terminal::set(io::stdin(), getpgrp());
            }
        })?;
        // The process is waited for with all others, below.
        let pid = Pid::from_child(&child);
        Ok(Self { pid, is_running: true })
    }

    /// Passes a signal on: those that a terminal sends to the whole group, others to the process.
    pub(super) fn pass_on(&self, signal: Signal) {
        match signal {
            Signal::CHILD => {}
            Signal::CONT => self.resume(),
            Signal::INT | Signal::QUIT | Signal::TSTP => self.signal_group(signal),
            _ if self.is_running => drop(kill_process(self.pid, signal)),
            _ => {}
        }
    }

    /// Sends a signal to all processes of the group.
    pub(super) fn signal_group(&self, signal: Signal) {
        let _ = kill_process_group(self.pid, signal);
    }

    /// Returns whether the group has a process, if only one that was not waited for.
    pub(super) fn has_group(&self) -> bool {
        test_kill_process_group(self.pid).is_ok()
    }

    /// Returns what happened since the last call. Waits for no process, and reaps every child that has ended:
    /// the first process of a container has to do so with all that lost their parents.
    pub(super) fn changes(&mut self) -> io::Result<Vec<Change>> {
        let mut changes = Vec::new();
        loop {
            let (pid, status) = match wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
                Ok(Some(change)) => change,
                Ok(None) | Err(Errno::CHILD) => return Ok(changes),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            if pid != self.pid {
                continue;
            }
            if let Some(signal) = status.stopping_signal().and_then(Signal::from_named_raw) {
                changes.push(Change::Stopped(signal));
                continue;
            }
            let signalled = || status.terminating_signal().map(|signal| 128 + signal);
            if let Some(code) = status.exit_status().or_else(signalled) {
                self.is_running = false;
                terminal::take(self.pid);
                changes.push(Change::Ended(u8::try_from(code).unwrap_or(u8::MAX)));
            }
        }
    }

    /// Stops this process's group too, if the host was stopped as a job of a shell is (Ctrl-Z). Returns how
    /// long it was stopped. The SIGCONT that ends this is passed on like any other.
    pub(super) fn stop_with(&self, signal: Signal) -> Duration {
        // SIGSTOP is for the host alone: a debugger or a supervisor sent it, and will continue it.
        if ![Signal::TSTP, Signal::TTIN, Signal::TTOU].contains(&signal)
            || std::fs::File::open("/dev/tty").is_err()
        {
            return Duration::ZERO;
        }
        let stopped = Instant::now();
        terminal::take(self.pid);
        // The shell sees that the job is stopped, the other programs of its pipeline included.
        let _ = with_default(Signal::TSTP, || kill_current_process_group(Signal::TSTP));
        // Where no shell could continue the group (in a container), the system has ignored that, and Ctrl-Z
        // does nothing. A host that may not use the terminal stays stopped there.
        if signal == Signal::TSTP {
            self.resume();
        }
        stopped.elapsed()
    }

    /// Continues the group, with the terminal if this process's group has it.
    fn resume(&self) {
        if self.is_running {
            terminal::give(self.pid);
        }
        self.signal_group(Signal::CONT);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.is_running {
            self.signal_group(Signal::TERM);
            terminal::take(self.pid);
        }
    }
}

/// Prepares the child to become the host: it is sent SIGTERM when its parent ends (on Linux), and is given
/// the terminal if its parent had it.
///
/// Makes system calls only, because it runs between fork and exec.
fn prepare(parent: Pid, has_terminal: bool) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    // It may have ended before.
    if getppid() != Some(parent) {
        return Err(Errno::SRCH.into());
    }
    if has_terminal {
        // SAFETY: the parent has found a terminal under this descriptor, and the child has the same
        // descriptors. Nothing closes it before the program is executed.
        let stdin = unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) };
        terminal::set(stdin, getpid());
    }
    Ok(())
}
