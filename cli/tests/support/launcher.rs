//! Launchers of `axiscap exec` and their hosts, for tests.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use axiscap::Bound;
use axiscap::file::{CapFile, NormDigest};
use serde_json::{Value, json};

use super::{arg, caps, folder};

/// Time for what must happen at some time.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// A folder with a cap file, a plugin, and what hosts leave there.
pub(crate) struct Place(pub(crate) tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        let new = Self(folder());
        fs::write(new.at("plugin.so"), "").unwrap();
        caps(&new.at("c.gguf"), &[(3, 1, Bound::floor(0.5).unwrap(), 1.0)]);
        let mut file = CapFile::read(&new.at("c.gguf")).unwrap();
        file.model.norms = vec![NormDigest { tensor: "output_norm.weight".into(), sha256: [7; 32] }];
        file.write(&new.at("c.gguf")).unwrap();
        new
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A path as a step has it.
    pub(crate) fn step(&self, name: &str) -> String {
        arg(&self.at(name)).to_owned()
    }

    /// `axiscap exec --caps c.gguf --plugin plugin.so OPTIONS`.
    pub(crate) fn command(&self, options: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_axiscap"));
        command.args(["exec", "--caps", arg(&self.at("c.gguf")), "--plugin", arg(&self.at("plugin.so"))]);
        command.args(options).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for variable in ["STRENGTH", "STRICT", "ENGINE", "LOG", "PLUGIN", "REPORT", "CAPS"]
            .map(|name| format!("AXISCAP_{name}"))
        {
            command.env_remove(variable);
        }
        command.env_remove("GGML_BACKEND_PATH");
        // A shell starts its background jobs with SIGINT and SIGQUIT ignored, and the launcher keeps that.
        //
        // SAFETY: `signal` is one system call, safe after a fork, and no handler of this process is involved.
        #[cfg(unix)]
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(&mut command, || {
                for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGTERM] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                Ok(())
            });
        }
        command
    }

    /// Starts a host with these steps.
    pub(crate) fn start(&self, options: &[&str], steps: &[Value]) -> Child {
        self.command(options).arg("--").args(host(steps)).spawn().expect("the program starts")
    }

    /// Runs a host with these steps to its end.
    pub(crate) fn run(&self, options: &[&str], steps: &[Value]) -> Output {
        finish(self.start(options, steps))
    }

    /// Waits until a host has left a file, and returns the numbers in it: its process, its group, its parent.
    pub(crate) fn wait_for(&self, name: &str) -> Vec<i32> {
        let started = Instant::now();
        loop {
            if let Ok(text) = fs::read_to_string(self.at(name)) {
                return text.split_whitespace().map(|number| number.parse().unwrap()).collect();
            }
            assert!(started.elapsed() < LONG, "no {name}");
            sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the process that has left a file has ended.
    pub(crate) fn has_ended(&self, name: &str) {
        let process = self.wait_for(name)[0];
        until("it has ended", || !is_running(process));
    }

    /// Returns the signals that a host has recorded.
    pub(crate) fn recorded(&self, name: &str) -> Vec<String> {
        fs::read_to_string(self.at(name)).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

pub(crate) fn host(steps: &[Value]) -> Vec<OsString> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/host.py");
    let steps = steps.iter().map(|step| step.to_string().into());
    ["python3", "-B", script].into_iter().map(OsString::from).chain(steps).collect()
}

pub(crate) fn loaded() -> Value {
    json!(["report", {"event": "loaded", "pid": 7, "version": "0.1.0", "ggml": "0.25.3", "devices": ["CPU"]}])
}

pub(crate) fn send(signal: &str, process: i32) {
    let sent = Command::new("kill").args([&format!("-{signal}"), "--", &process.to_string()]).status();
    assert!(sent.expect("kill runs").success());
}

pub(crate) fn until(what: &str, is: impl Fn() -> bool) {
    let started = Instant::now();
    while !is() {
        assert!(started.elapsed() < LONG, "{what}");
        sleep(Duration::from_millis(10));
    }
}

/// Waits for the end of a launcher. One that hangs is killed.
pub(crate) fn finish(mut child: Child) -> Output {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > LONG {
            child.kill().unwrap();
            panic!("it hangs: {:?}", child.wait_with_output());
        }
        sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

/// Runs a launcher to its end.
pub(crate) fn run_to_end(command: &mut Command) -> Output {
    finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts"))
}

/// Returns whether a process runs. One that has ended and was not waited for does not.
pub(crate) fn is_running(process: i32) -> bool {
    let state = state(process);
    !state.is_empty() && !state.starts_with('Z')
}

/// Returns the letter for a process's state, or nothing if there is none.
pub(crate) fn state(process: i32) -> String {
    if cfg!(target_os = "linux") {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        return stat.rsplit_once(") ").map_or(String::new(), |(_, rest)| rest.chars().take(1).collect());
    }
    let state = Command::new("ps").args(["-o", "stat=", "-p", &process.to_string()]).output().unwrap();
    String::from_utf8_lossy(&state.stdout).trim().to_owned()
}
