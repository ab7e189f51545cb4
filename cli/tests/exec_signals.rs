//! `axiscap exec`: signals, processes without a parent, and the end of the launcher.
#![cfg(unix)]

mod support;

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use serde_json::json;
use support::launcher::{Place, finish, host, is_running, loaded, send, state, until};

#[test]
fn signals_are_passed_on_once_each() {
    let place = Place::new();
    let names = ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2"];
    let long = names.map(|name| format!("SIG{name}"));
    let mut record = vec![json!("record"), json!(place.step("signals"))];
    record.extend(long.iter().map(|name| json!(name)));
    let steps =
        [json!(record), loaded(), json!(["touch", place.step("ready")]), json!(["wait", place.step("end")])];
    let child = place.start(&[], &[&steps[..], &[json!(["exit", 9])]].concat());
    let launcher = child.id().cast_signed();
    place.wait_for("ready");
    let mut expected = Vec::new();
    // A second signal is passed on as well: hosts end at once on it.
    for name in names.iter().chain(&["TERM", "INT"]) {
        send(name, launcher);
        expected.push(format!("SIG{name}"));
        until(name, || place.recorded("signals").len() >= expected.len());
    }
    sleep(Duration::from_millis(300));
    assert_eq!(place.recorded("signals"), expected);
    fs::write(place.at("end"), "").unwrap();
    assert_eq!(finish(child).status.code(), Some(9));

    // The host has the default action of each.
    let steps = [loaded(), json!(["touch", place.step("again")]), json!(["sleep", 1000])];
    for (name, status) in [("TERM", 143), ("HUP", 129), ("USR1", 138)] {
        let _ = fs::remove_file(place.at("again"));
        let child = place.start(&[], &steps);
        place.wait_for("again");
        send(name, child.id().cast_signed());
        assert_eq!(finish(child).status.code(), Some(status), "{name}");
    }
}

/// A supervisor that signals the whole group of the launcher (`timeout`, `kill %1`) does not reach the host,
/// which has a group of its own.
#[test]
fn a_signal_to_the_launchers_group_reaches_the_host_once() {
    let place = Place::new();
    let steps = [
        json!(["record", place.step("signals"), "SIGTERM"]),
        loaded(),
        json!(["touch", place.step("ready")]),
        json!(["wait", place.step("end")]),
    ];
    let child = place.command(&[]).process_group(0).arg("--").args(host(&steps)).spawn().unwrap();
    let [process, group, parent] = place.wait_for("ready")[..] else { panic!("no numbers") };
    let launcher = child.id().cast_signed();
    assert_eq!((group, parent), (process, launcher), "a group of its own");
    send("TERM", -launcher);
    until("the signal", || !place.recorded("signals").is_empty());
    sleep(Duration::from_millis(300));
    assert_eq!(place.recorded("signals"), ["SIGTERM"]);
    fs::write(place.at("end"), "").unwrap();
    assert!(finish(child).status.success());
}

#[cfg(target_os = "linux")]
#[test]
fn a_stopped_host_goes_on_and_the_launcher_stays_awake() {
    let place = Place::new();
    let steps = [
        loaded(),
        json!(["touch", place.step("ready")]),
        json!(["wait", place.step("end")]),
        json!(["exit", 4]),
    ];
    let mut command = place.command(&["--timeout", "1000"]);
    // Without a terminal, no shell could continue the launcher.
    //
    // SAFETY: setsid is one system call, safe after a fork.
    unsafe { command.pre_exec(leave_session) };
    let child = command.arg("--").args(host(&steps)).spawn().unwrap();
    let (launcher, process) = (child.id().cast_signed(), place.wait_for("ready")[0]);
    for stop in ["TSTP", "STOP"] {
        send(stop, if stop == "STOP" { process } else { launcher });
        until("it stops", || state(process) == "T");
        sleep(Duration::from_millis(200));
        assert_ne!(state(launcher), "T");
        send("CONT", launcher);
        until("it goes on", || state(process) != "T");
    }
    fs::write(place.at("end"), "").unwrap();
    assert_eq!(finish(child).status.code(), Some(4));
}

/// Makes this process the leader of a session without a terminal.
#[cfg(target_os = "linux")]
fn leave_session() -> std::io::Result<()> {
    rustix::process::setsid().map(drop).map_err(Into::into)
}

#[test]
fn a_signal_that_is_ignored_stays_so() {
    let place = Place::new();
    let steps = [loaded(), json!(["touch", place.step("ready")]), json!(["wait", place.step("end")])];
    let mut launcher = place.command(&[]);
    launcher.arg("--").args(host(&steps));
    let words = std::iter::once(launcher.get_program()).chain(launcher.get_args());
    let mut child =
        Command::new("sh").args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).args(words).spawn().unwrap();
    let process = place.wait_for("ready")[0];
    send("HUP", child.id().cast_signed());
    send("HUP", process);
    sleep(Duration::from_millis(300));
    assert!(is_running(process) && child.try_wait().unwrap().is_none());
    fs::write(place.at("end"), "").unwrap();
    assert!(finish(child).status.success());
}

#[cfg(target_os = "linux")]
#[test]
fn a_host_is_ended_when_the_launcher_is_killed() {
    let place = Place::new();
    let steps = [
        json!(["record", place.step("signals"), "SIGTERM"]),
        loaded(),
        json!(["touch", place.step("ready")]),
        json!(["wait", place.step("signals")]),
        json!(["touch", place.step("end")]),
    ];
    let mut child = place.start(&[], &steps);
    place.wait_for("ready");
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    place.wait_for("end");
    assert_eq!(place.recorded("signals"), ["SIGTERM"]);
}

/// As the first process of a container: signals reach the host, and processes without a parent are reaped.
#[cfg(target_os = "linux")]
#[test]
fn the_first_process_of_a_container_reaps_and_passes_signals_on() {
    let place = Place::new();
    let orphan = json!(["leave", [["touch", place.step("orphan")]]]);
    let steps = [
        json!(["record", place.step("signals"), "SIGTERM"]),
        loaded(),
        orphan,
        json!(["wait", place.step("orphan")]),
        json!(["touch", place.step("ready")]),
        json!(["wait", place.step("signals")]),
        json!(["exit", 6]),
    ];
    let mut launcher = place.command(&[]);
    launcher.arg("--").args(host(&steps));
    let words = std::iter::once(launcher.get_program()).chain(launcher.get_args());
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]);
    if !unshare.arg("true").status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: no namespace of processes can be made here");
        return;
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "sh", "-c"]);
    // The shell becomes the launcher, which is process 1.
    let child = unshare.args(["exec \"$@\"", "sh"]).args(words).spawn().unwrap();
    assert_eq!(place.wait_for("ready")[2], 1, "its parent is process 1");
    let children = |process: u32| -> Vec<u32> {
        let list = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
        list.split_whitespace().map(|number| number.parse().unwrap()).collect()
    };
    let [launcher] = children(child.id())[..] else { panic!("unshare has one child") };
    // The orphan has ended. If it was not reaped, it is a second child.
    until("the orphan is reaped", || children(launcher).len() == 1);
    send("TERM", launcher.cast_signed());
    assert_eq!(finish(child).status.code(), Some(6));
    assert_eq!(place.recorded("signals"), ["SIGTERM"]);
}
