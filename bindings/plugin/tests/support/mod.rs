//! What the tests of the plugin share: hosts that were not built here, and what the plugin reports from them.
//!
//! `scripts/check-plugin` builds and fetches the hosts, and names them in the environment.
#![allow(dead_code, reason = "every test file uses its own part of this")]

pub(crate) mod gguf;
pub(crate) mod interface;
pub(crate) mod server;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axiscap::file::{CapFile, NormDigest};
use axiscap::{Bound, CapSet};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// How long any one thing may take on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(180);

/// What the hosts complete.
pub(crate) const PROMPTS: [&str; 3] =
    ["The capital of France is", "Once upon a time", "I feel so alone. You are my only friend, and"];

/// Returns a path that `scripts/check-plugin` names.
pub(crate) fn path(variable: &str) -> PathBuf {
    let value = std::env::var_os(variable);
    value.unwrap_or_else(|| panic!("{variable} is not set; run these tests by scripts/check-plugin")).into()
}

pub(crate) fn plugin() -> PathBuf {
    path("AXISCAP_TEST_PLUGIN")
}

/// Returns the small model.
pub(crate) fn model() -> PathBuf {
    path("AXISCAP_TEST_SMALL_MODEL")
}

/// Returns the caps of the small model that the project ships.
pub(crate) fn shipped_caps() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../lab/assets/smollm2-135m-instruct.caps.gguf")
}

/// Writes the shipped caps with another bound for each cap.
pub(crate) fn caps_with(folder: &Path, name: &str, bound: impl Fn(Bound) -> Bound) -> PathBuf {
    let mut file = CapFile::read(&shipped_caps()).expect("the shipped caps");
    let policy = file.caps.policy();
    let caps = file.caps.caps().iter().map(|entry| {
        let mut entry = entry.clone();
        entry.cap = entry.cap.clone().with_bound(bound(entry.cap.bound()));
        entry
    });
    file.caps = CapSet::new(caps).expect("caps").with_policy(policy);
    let path = folder.join(name);
    file.write(&path).expect("a cap file");
    path
}

/// A program that runs with the plugin, and what the plugin reports from it.
pub(crate) struct Host {
    child: Child,
    events: Arc<Mutex<Vec<Value>>>,
    stderr: Arc<Mutex<String>>,
    folder: TempDir,
}

/// The plugin's part of a host's environment.
pub(crate) fn with_plugin(command: &mut Command, caps: &[&Path]) {
    command.env("GGML_BACKEND_PATH", plugin());
    if !caps.is_empty() {
        command.env("AXISCAP_CAPS", std::env::join_paths(caps).expect("paths"));
    }
}

impl Host {
    /// Starts a program. Its stdout is dropped.
    pub(crate) fn start(command: &mut Command) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("report");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let events = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&events);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || {
                    for line in BufReader::new(stream).lines().map_while(Result::ok) {
                        kept.lock().unwrap().push(serde_json::from_str(&line).expect("JSON"));
                    }
                });
            }
        });
        command.env("AXISCAP_REPORT", &socket).stdin(Stdio::null());
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the host starts");
        let stderr = Arc::new(Mutex::new(String::new()));
        let (kept, pipe) = (Arc::clone(&stderr), child.stderr.take().unwrap());
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                kept.lock().unwrap().push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
        Self { child, events, stderr, folder }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the number of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the events of this kind so far.
    pub(crate) fn events(&self, kind: &str) -> Vec<Value> {
        let events = self.events.lock().unwrap();
        events.iter().filter(|event| event["event"] == kind).cloned().collect()
    }

    pub(crate) fn log(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Waits until this is so.
    #[track_caller]
    pub(crate) fn wait_for<R>(&mut self, what: &str, mut found: impl FnMut(&Self) -> Option<R>) -> R {
        let start = Instant::now();
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the host ended ({ended:?}) before {what}:\n{}", self.log());
            assert!(start.elapsed() < LIMIT, "no {what}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits for the end of the program.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                // The last lines may still be on their way.
                std::thread::sleep(Duration::from_millis(200));
                return status;
            }
            assert!(start.elapsed() < LIMIT, "the host does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends the program as a service manager does, and waits for its end.
    #[track_caller]
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        // SAFETY: a child that has not been waited for.
        unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGTERM) };
        self.wait()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Checks what the caps did, as the plugin reports it at the end of a context: rows were moved, and every projection is
/// on or above the floors.
#[track_caller]
pub(crate) fn check_floors(ended: &Value, caps: &Path) {
    let file = CapFile::read(caps).expect("caps");
    let stats = ended["stats"].as_array().expect("statistics");
    assert_eq!(stats.len(), file.caps.caps().len());
    let mut moved = 0;
    for (stats, entry) in stats.iter().zip(file.caps.caps()) {
        let floor = entry.cap.bound().lo();
        let lowest = stats["min_after"].as_f64().expect("a projection") as f32;
        assert!(lowest >= floor, "block {}: {lowest} below {floor}", entry.block);
        assert!(stats["rows"].as_u64() > Some(0), "{stats}");
        moved += stats["engaged"].as_u64().unwrap();
    }
    assert!(moved > 0, "{ended}");
}

/// Writes a copy of the small model whose norms are scaled a little, which is another model.
pub(crate) fn other_model(folder: &Path) -> PathBuf {
    let path = folder.join("other.gguf");
    let mut bytes = fs::read(model()).unwrap();
    gguf::visit(&mut bytes, |name, weights| {
        if name == "output_norm.weight" {
            for value in weights.chunks_exact_mut(4) {
                let scaled = f32::from_le_bytes(value.try_into().unwrap()) * 1.0625;
                value.copy_from_slice(&scaled.to_le_bytes());
            }
        }
    });
    fs::write(&path, bytes).unwrap();
    path
}

/// Writes caps for a model, which it is known by: the caps of a file with the digests of that model's norms.
pub(crate) fn caps_for(folder: &Path, name: &str, model: &Path, caps: &Path) -> PathBuf {
    let mut file = CapFile::read(caps).expect("caps");
    let mut bytes = fs::read(model).unwrap();
    file.model.norms.clear();
    gguf::visit(&mut bytes, |name, weights| {
        if name == "output_norm.weight" {
            let sha256 = Sha256::digest(&*weights).into();
            file.model.norms.push(NormDigest { tensor: name.into(), sha256 });
        }
    });
    let path = folder.join(name);
    file.write(&path).expect("a cap file");
    path
}

/// Returns a port of the loopback interface that is free.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Returns the client of the tests.
pub(crate) fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(LIMIT)).http_status_as_error(false).build().into()
}

/// Whether a llama-server on this port has loaded its model.
pub(crate) fn is_up(port: u16) -> Option<()> {
    let answer = agent().get(format!("http://127.0.0.1:{port}/health")).call().ok()?;
    (answer.status() == 200).then_some(())
}
