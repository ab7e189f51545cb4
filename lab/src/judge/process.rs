//! A command line, with all the processes that its shell starts.

use std::io;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

/// A shell and the programs that it started. Dropping it kills and reaps them.
#[derive(Debug)]
pub(super) struct Process {
    shell: Child,
    group: Group,
}

/// The pipes to a process, as it names them.
pub(super) type Pipes = (ChildStdin, ChildStdout, ChildStderr);

impl Process {
    /// Starts a command line. The shell and what it starts are one process group.
    pub(super) fn start(line: &str) -> io::Result<(Self, Pipes)> {
        let mut command = shell(line);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut shell = command.spawn()?;
        let pipes = (shell.stdin.take(), shell.stdout.take(), shell.stderr.take());
        let group = Group(shell.id());
        let process = Self { shell, group };
        match pipes {
            (Some(stdin), Some(stdout), Some(stderr)) => Ok((process, (stdin, stdout, stderr))),
            _ => Err(io::Error::other("it has no pipes")),
        }
    }

    /// Returns the group, which is valid as long as the process is neither waited for nor dropped.
    pub(super) fn group(&self) -> Group {
        self.group
    }

    /// Reaps the shell after its end.
    pub(super) fn wait(mut self) -> io::Result<ExitStatus> {
        self.shell.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // After a wait the number may belong to another process.
        if let Ok(None) = self.shell.try_wait() {
            self.group.kill();
            // It fails only if another part of the program has reaped it.
            let _ = self.shell.wait();
        }
    }
}

#[cfg(unix)]
fn shell(line: &str) -> Command {
    use std::os::unix::process::CommandExt as _;

    let mut command = Command::new("sh");
    command.arg("-c").arg(line).process_group(0);
    command
}

#[cfg(not(unix))]
fn shell(line: &str) -> Command {
    let mut command = Command::new("cmd");
    command.arg("/C");
    // cmd has its own rules for quotes.
    #[cfg(windows)]
    std::os::windows::process::CommandExt::raw_arg(&mut command, line);
    #[cfg(not(windows))]
    command.arg(line);
    command
}

/// The processes of a command line, by the number of its shell.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group(u32);

#[cfg(unix)]
impl Group {
    fn leader(self) -> Option<rustix::process::Pid> {
        i32::try_from(self.0).ok().and_then(rustix::process::Pid::from_raw)
    }

    /// Kills all of them.
    pub(super) fn kill(self) {
        if let Some(leader) = self.leader() {
            // It fails only if there is none left.
            let _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
        }
    }

    /// Waits until the shell ends, and kills what it leaves running, which would keep the pipes open. The
    /// shell is not reaped, so that its number stays taken.
    pub(super) fn end_with_shell(self) {
        use rustix::io::Errno;
        use rustix::process::{WaitId, WaitIdOptions, waitid};

        let Some(leader) = self.leader() else { return };
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while waitid(WaitId::Pid(leader), ended).is_err_and(|error| error == Errno::INTR) {}
        self.kill();
    }
}

#[cfg(not(unix))]
impl Group {
    /// Kills all of them.
    pub(super) fn kill(self) {
        let mut kill = Command::new("taskkill");
        kill.args(["/T", "/F", "/PID"]).arg(self.0.to_string());
        // It fails only if there is none left.
        let _ = kill.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }

    /// Does nothing: a process that outlives the shell is no longer known as one of its own.
    pub(super) fn end_with_shell(self) {}
}
