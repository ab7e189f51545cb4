//! `axiscap exec` at a terminal: Ctrl-C reaches the host once, and Ctrl-Z stops it as a job of the shell.
#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::{Value, json};
use support::launcher::{Place, host, loaded};

/// Writes a script that becomes the launcher of a host with these steps.
fn script(place: &Place, steps: &[Value], redirected: &str) {
    let mut launcher = place.command(&["--timeout", "1000"]);
    launcher.arg("--").args(host(steps));
    let words = std::iter::once(launcher.get_program()).chain(launcher.get_args());
    // The steps hold no quotes of this kind.
    let words: Vec<_> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let text = format!("#!/bin/sh\nunset GGML_BACKEND_PATH\nexec {} {redirected}\n", words.join(" "));
    fs::write(place.at("run"), text).unwrap();
    fs::set_permissions(place.at("run"), fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs a program at a terminal (`support/terminal.py`). Returns the screen and the exit status.
fn at_terminal(place: &Place, steps: &[(&str, &str)], words: &[&str]) -> (String, i32) {
    let output = Command::new("python3")
        .arg("-B")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/terminal.py"))
        .arg(serde_json::to_string(steps).unwrap())
        .args(words)
        .env("LC_ALL", "C")
        .env("HISTFILE", "/dev/null")
        .current_dir(place.0.path())
        .output()
        .expect("python3 runs");
    let text = String::from_utf8_lossy(&output.stdout).replace("\r\n", "\n");
    let (screen, status) = text.trim_end().rsplit_once('\n').expect("a screen and a status");
    (screen.to_owned(), status.parse().unwrap_or_else(|_| panic!("no status: {text}")))
}

fn steps(place: &Place) -> Vec<Value> {
    vec![
        json!(["record", place.step("signals"), "SIGINT"]),
        loaded(),
        json!(["stderr", "is ready"]),
        json!(["wait", place.step("signals")]),
        // A second one would come in this time.
        json!(["sleep", 0.5]),
        json!(["exit", 5]),
    ]
}

#[test]
fn ctrl_c_reaches_a_host_with_the_terminal_once() {
    let place = Place::new();
    script(&place, &steps(&place), "");
    let (screen, status) = at_terminal(&place, &[("is ready", "\u{3}")], &["/bin/sh", "run"]);
    assert_eq!((status, place.recorded("signals")), (5, vec!["SIGINT".to_owned()]), "{screen}");
}

/// Its stdin leads elsewhere, as that of a server may.
#[test]
fn ctrl_c_reaches_a_host_without_the_terminal_once() {
    let place = Place::new();
    script(&place, &steps(&place), "</dev/null");
    let (screen, status) = at_terminal(&place, &[("is ready", "\u{3}")], &["/bin/sh", "run"]);
    assert_eq!((status, place.recorded("signals")), (5, vec!["SIGINT".to_owned()]), "{screen}");
}

#[test]
fn a_shell_stops_and_continues_the_host_as_a_job() {
    let bash = "/bin/bash";
    if !std::path::Path::new(bash).exists() {
        eprintln!("skipped: there is no {bash}");
        return;
    }
    let place = Place::new();
    let mut all = vec![json!(["stderr", "is waiting"]), json!(["line"])];
    all.extend(steps(&place));
    script(&place, &all, "");
    let typed = [
        ("sh> ", "./run\n"),
        ("is waiting", "\u{1a}"),
        ("Stopped", ""),
        ("sh> ", "echo in between\n"),
        ("\nin between", ""),
        ("sh> ", "fg\n"),
        ("./run", "typed to the host\n"),
        ("read: typed to the host", ""),
        ("is ready", "\u{3}"),
        ("sh> ", "echo status $?\n"),
        ("status 5", ""),
        ("sh> ", "exit 0\n"),
    ];
    fs::write(place.at("rc"), "PS1='sh> '\n").unwrap();
    let (screen, status) = at_terminal(&place, &typed, &[bash, "--rcfile", "rc", "--noediting", "-i"]);
    assert_eq!(status, 0, "{screen}");
    assert!(screen.contains("read: typed to the host") && screen.contains("status 5"), "{screen}");
    assert_eq!(place.recorded("signals"), ["SIGINT"], "{screen}");
}

/// No shell could continue the host: it goes on at once.
#[test]
fn ctrl_z_without_a_shell_does_nothing() {
    let place = Place::new();
    let mut all = vec![loaded(), json!(["stderr", "is waiting"]), json!(["line"])];
    all.push(json!(["exit", 6]));
    script(&place, &all, "");
    let typed = [("is waiting", "\u{1a}"), ("^Z", "typed after it\n"), ("read: typed after it", "")];
    let (screen, status) = at_terminal(&place, &typed, &["/bin/sh", "run"]);
    assert_eq!(status, 6, "{screen}");
}
