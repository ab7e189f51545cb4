//! Shared by the tests of the program: the program, the model, and cap files.
#![allow(dead_code, reason = "every test file uses its own part of this")]

pub(crate) mod gguf;
#[cfg(unix)]
pub(crate) mod launcher;

use std::ffi::OsStr;
use std::io::Write;
use std::num::NonZero;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};

use axiscap::file::{CapFile, ModelInfo};
use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use axiscap_testing::numbers::Random;
use serde_json::Value;

pub(crate) use axiscap_testing::llama::quick_model;
pub(crate) use axiscap_testing::small_model as model;

/// A short text and no random directions: doses of the built-in ones take longer than a test should.
pub(crate) const SMALL_DOSE: [&str; 4] =
    ["--text", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/short.txt"), "--random-directions", "0"];

/// Blocks and width of the model that the tests run on.
pub(crate) const BLOCKS: usize = 30;
pub(crate) const WIDTH: usize = 576;

/// Runs `axiscap COMMAND --model <the model> ARGS` with an empty stdin.
pub(crate) fn axiscap(command: &str, args: &[&str]) -> Output {
    with_stdin(command, args, "")
}

/// Runs the same on the quick model, for what computes long texts.
pub(crate) fn quick_axiscap(command: &str, args: &[&str]) -> Output {
    on_model(&quick_model(), command, args, "")
}

/// Runs the same with a text on stdin.
pub(crate) fn with_stdin(command: &str, args: &[&str], stdin: impl AsRef<[u8]>) -> Output {
    on_model(&model(), command, args, stdin)
}

fn on_model(model: &Path, command: &str, args: &[&str], stdin: impl AsRef<[u8]>) -> Output {
    let mut all = vec![command, "--model", arg(model)];
    all.extend(args);
    program(&all, stdin)
}

/// Programs that run, of at most as many as there are processors. Each computes on one thread, because threads
/// that wait for each other on busy processors lose more time than they save.
static RUNNING: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// A processor for a program.
struct Place;

impl Place {
    /// Waits for one.
    fn take() -> Self {
        let places = std::thread::available_parallelism().map_or(1, NonZero::get);
        let running = RUNNING.0.lock().unwrap_or_else(PoisonError::into_inner);
        let free = RUNNING.1.wait_while(running, |running| *running >= places);
        *free.unwrap_or_else(PoisonError::into_inner) += 1;
        Self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *RUNNING.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        RUNNING.1.notify_one();
    }
}

/// Starts `axiscap ARGS` with pipes.
fn start(args: &[impl AsRef<OsStr>]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_axiscap"))
        .args(args)
        .env_remove("AXISCAP_MODEL")
        .env("OMP_THREAD_LIMIT", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts")
}

/// Runs `axiscap ARGS`.
pub(crate) fn program(args: &[impl AsRef<OsStr>], stdin: impl AsRef<[u8]>) -> Output {
    let _place = Place::take();
    let mut child = start(args);
    // A program that fails early closes its stdin unread.
    let _ = child.stdin.take().expect("stdin is piped").write_all(stdin.as_ref());
    child.wait_with_output().expect("the program ends")
}

/// Runs `axiscap ARGS` and sends it signals (`INT`, `TERM`), the first one when its output holds `ready.0` as
/// often as `ready.1` says, and each other one a moment after it. That is looked for on stdout, or with `-vv`
/// on stderr, which says there when a context is made and before every decode.
#[cfg(unix)]
pub(crate) fn signalled(args: &[&str], stdin: &str, ready: (&str, usize), signals: &[&str]) -> Output {
    use std::io::Read;
    use std::sync::Arc;
    use std::thread::{sleep, spawn};
    use std::time::{Duration, Instant};
    let _place = Place::take();
    let mut child = start(args);
    let collect = |mut pipe: Box<dyn Read + Send>| {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&bytes);
        let thread = spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                shared.lock().unwrap().extend_from_slice(&buffer[..length]);
            }
        });
        (bytes, thread)
    };
    // Kept open: the conversation goes on.
    let mut input = child.stdin.take().expect("stdin is piped");
    let _ = input.write_all(stdin.as_bytes());
    let out = collect(Box::new(child.stdout.take().expect("stdout is piped")));
    let err = collect(Box::new(child.stderr.take().expect("stderr is piped")));
    let text = |bytes: &Arc<Mutex<Vec<u8>>>| String::from_utf8_lossy(&bytes.lock().unwrap()).into_owned();
    let started = Instant::now();
    let watched = if args.contains(&"-vv") { &err.0 } else { &out.0 };
    while text(watched).matches(ready.0).count() < ready.1 {
        assert!(child.try_wait().unwrap().is_none(), "it ended early: {}", text(&err.0));
        assert!(started.elapsed() < Duration::from_secs(300), "no {:?} in {}", ready.0, text(&err.0));
        sleep(Duration::from_millis(5));
    }
    for (index, signal) in signals.iter().enumerate() {
        if index > 0 {
            sleep(Duration::from_millis(50));
        }
        let sent = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success() || index > 0, "it ended before the signal");
    }
    let status = child.wait().expect("the program ends");
    drop(input);
    for thread in [out.1, err.1] {
        thread.join().expect("no panic");
    }
    let take = |bytes: Arc<Mutex<Vec<u8>>>| std::mem::take(&mut *bytes.lock().unwrap());
    Output { status, stdout: take(out.0), stderr: take(err.0) }
}

/// Checks that a run was cut short, and says what is kept. Returns its stdout.
pub(crate) fn interrupted(output: Output, parts: &[&str]) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{errors}");
    let note = errors.lines().rfind(|line| line.starts_with("[interrupted: "));
    let note = note.unwrap_or_else(|| panic!("no note: {errors}"));
    for part in parts {
        assert!(note.contains(part), "no {part:?} in: {note}");
    }
    assert!(!errors.lines().any(|line| line.starts_with("error: ")), "{errors}");
    String::from_utf8(output.stdout).expect("UTF-8 on stdout")
}

/// Returns stderr of a run that must succeed.
pub(crate) fn notes(output: &Output) -> String {
    let notes = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {notes}", output.status);
    notes
}

/// Returns stdout of a run that must succeed.
pub(crate) fn succeed(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {errors}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8 on stdout")
}

/// Returns the one JSON value on stdout of a run that must succeed.
pub(crate) fn json(output: Output) -> Value {
    let text = succeed(output);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("not one JSON value ({error}): {text}"))
}

/// Checks that a run failed with status 1, an empty stdout, and a message that holds all `parts`.
pub(crate) fn fail(output: Output, parts: &[&str]) {
    assert!(
        output.stdout.is_empty(),
        "a failed run wrote to stdout: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    fail_with(1, &output, parts);
}

/// Checks that a run was refused as wrong usage, with a message that holds all `parts`.
pub(crate) fn misuse(output: Output, parts: &[&str]) {
    assert!(output.stdout.is_empty());
    fail_with(2, &output, parts);
}

/// Checks that a run ended with this status and a message that holds all `parts`.
pub(crate) fn fail_with(status: i32, output: &Output, parts: &[&str]) {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{errors}");
    // The last message, which may have several lines: clap's, and the program's with its hints.
    let message = match errors.strip_prefix("error: ") {
        Some(message) => Some(message),
        None => errors.rsplit_once("\nerror: ").map(|(_, message)| message),
    };
    let message = message.unwrap_or_else(|| panic!("no line begins with `error: `: {errors}"));
    for part in parts {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
    assert!(!errors.contains("panicked") && !errors.contains("backtrace"), "{errors}");
}

/// Returns a unit axis from a seed, the same on every machine.
pub(crate) fn axis(seed: u64, width: usize) -> Axis {
    let mut random = Random(seed);
    let direction: Vec<f32> = (0..width).map(|_| random.signed()).collect();
    Axis::from_direction(&direction).expect("a finite, non-zero axis")
}

/// One cap: block, seed of its axis, bound, strength.
pub(crate) type Entry = (usize, u64, Bound, f32);

/// Writes a cap file for the tests' model.
pub(crate) fn caps(path: &Path, entries: &[Entry]) {
    caps_for(path, entries, WIDTH, BLOCKS);
}

/// Writes a cap file for a model of this width and number of blocks.
pub(crate) fn caps_for(path: &Path, entries: &[Entry], width: usize, blocks: usize) {
    let entries = entries.iter().map(|&(block, seed, bound, strength)| {
        let cap = Cap::new(axis(seed, width), bound).with_strength(strength).expect("a strength in [0, 1]");
        BlockCap { block, cap }
    });
    let set = CapSet::new(entries).expect("a set");
    CapFile::new(set, ModelInfo::new("llama", blocks)).write(path).expect("a cap file");
}

/// Makes a temporary folder.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Returns a path as an argument.
pub(crate) fn arg(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}
