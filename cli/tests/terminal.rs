//! `axiscap chat` at a terminal.
#![cfg(target_os = "linux")]

mod support;

use std::process::Command;

use axiscap::Bound;
use support::{arg, caps, folder, model};

/// Converses at a terminal (`support/terminal.py`). Returns the screen and the exit status.
fn converse(steps: &[(&str, &str)], args: &[&str]) -> (String, i32) {
    converse_at("dumb", steps, args)
}

/// Converses at a terminal of this kind. Returns what was written to it, and the exit status.
fn converse_at(terminal: &str, steps: &[(&str, &str)], args: &[&str]) -> (String, i32) {
    let output = Command::new("python3")
        .arg("-B")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/terminal.py"))
        .arg(serde_json::to_string(steps).unwrap())
        .arg(env!("CARGO_BIN_EXE_axiscap"))
        .args(["chat", "--model", arg(&model()), "--temp", "0"])
        .args(args)
        .env("OMP_WAIT_POLICY", "passive")
        .env("TERM", terminal)
        .output()
        .expect("python3 runs");
    let text = String::from_utf8_lossy(&output.stdout).replace("\r\n", "\n");
    let (screen, status) = text.trim_end().rsplit_once('\n').expect("a screen and a status");
    (screen.to_owned(), status.parse().unwrap_or_else(|_| panic!("no status: {text}")))
}

#[test]
fn commands_and_the_end_of_file_are_obeyed_at_a_terminal() {
    let steps = [("> ", "Grüße!\n"), ("[turn 1", ""), ("> ", "\n"), ("> ", "/help\n"), ("> ", "\u{4}")];
    let (screen, status) = converse(&steps, &["--max-tokens", "4", "--ctx", "256"]);
    assert_eq!(status, 0, "{screen}");
    assert!(screen.contains("Ctrl-C") && screen.contains("[cut off by --max-tokens]"), "{screen}");
    assert!(screen.contains("/help\n/caps on|off, /strength S"), "{screen}");
    assert!(screen.ends_with("> \n"), "the shell's prompt begins on a new line: {screen:?}");
}

#[test]
fn ctrl_c_stops_an_answer_and_between_answers_the_program() {
    let question = "Count from one to one thousand.\n";
    let steps = [("> ", question), (question.trim(), ""), (" ", "\u{3}"), ("[turn 1", ""), ("> ", "\u{3}")];
    let (screen, status) = converse(&steps, &["--max-tokens", "4000", "--ctx", "4096"]);
    assert!(screen.contains("[stopped]"), "{screen}");
    assert_eq!(status, -2, "ended by SIGINT: {screen}");
}

#[test]
fn a_line_that_is_not_utf8_does_not_end_the_conversation() {
    let steps =
        [("> ", "caf\u{fffd}\n"), ("error:", ""), ("> ", "Hello.\n"), ("[turn 1", ""), ("> ", "/quit\n")];
    let (screen, status) = converse(&steps, &["--max-tokens", "2", "--ctx", "64"]);
    assert!(screen.contains("line 1 is not UTF-8: its byte 4"), "{screen}");
    assert_eq!(status, 0, "{screen}");
}

#[test]
fn a_full_context_names_undo_and_reset() {
    let long = "A few words to fill the context with. ".repeat(6) + "\n";
    let steps = [("> ", &*long), ("[turn 1", ""), ("> ", &*long), ("error:", ""), ("> ", "/quit\n")];
    let (screen, status) = converse(&steps, &["--max-tokens", "8", "--ctx", "128"]);
    assert!(screen.contains("--ctx") && screen.contains("/undo"), "{screen}");
    assert_eq!(status, 0, "{screen}");
}

/// Returns what a terminal shows after this was written to it.
fn screen(written: &str) -> String {
    let mut terminal = vt100::Parser::new(24, 80, 0);
    // The emulator has no IND, which moves down as VT does.
    terminal.process(written.replace("\x1bD", "\x0b").replace('\n', "\r\n").as_bytes());
    terminal.screen().contents()
}

#[test]
fn a_gauge_follows_the_answer_and_is_gone_after_it() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    caps(&file, &[(12, 2, Bound::NONE, 1.0)]);
    let steps = [("> ", "Who are you?\n"), ("[watched", ""), ("> ", "\u{4}")];
    let watch = ["--watch-tokens", "1", "--watch-thresholds", "999998,999999,1000000"];
    let args = [&["--caps", arg(&file), "--max-tokens", "30", "--ctx", "256"][..], &watch].concat();
    let (written, status) = converse_at("xterm-256color", &steps, &args);
    assert_eq!(status, 0, "{written}");
    assert!(written.contains("block 12 [") && written.contains(", average "), "{written}");
    assert!(written.contains(" ALARM"), "{written}");
    let (plain, _) = converse_at("dumb", &steps, &args);
    assert!(!plain.contains("block 12 [") && plain.contains("[drift alarm at token 1:"), "{plain}");
    // The speed differs.
    let shown = |written: &str| -> Vec<String> {
        screen(written).lines().filter(|line| !line.starts_with("[turn 1:")).map(String::from).collect()
    };
    assert_eq!(shown(&written), shown(&plain));
}
