//! `axiscap chat` with its turns on stdin.

mod support;

use axiscap::Bound;
use serde_json::Value;
use support::{arg, caps, fail, folder, succeed, with_stdin};

fn turns(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[test]
fn a_turn_decodes_only_its_new_tokens() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    caps(&file, &[(10, 1, Bound::band(-0.2, 0.2).unwrap(), 1.0), (20, 2, Bound::NONE, 1.0)]);
    let args = ["--caps", arg(&file), "--temp", "0", "--max-tokens", "12", "--json", "--ctx", "512"];
    let script = "My name is Ada.\nWhat is my name?\n/caps off\nThanks.\n/undo\n/caps on\nThanks.\n/quit\nnever said\n";
    let turns = turns(&succeed(with_stdin("chat", &args, script)));
    assert_eq!(turns.len(), 4);
    assert_eq!(turns.iter().map(|t| t["turn"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3, 3]);

    let number = |turn: usize, field: &str| turns[turn][field].as_u64().unwrap();
    assert_eq!(number(0, "reused_tokens"), 0);
    // The cache still holds the first turn without its last token, which was never decoded.
    let first = number(0, "prompt_tokens") + turns[0]["tokens"].as_array().unwrap().len() as u64;
    assert!(number(1, "reused_tokens") >= first - 1, "{} of {first}", number(1, "reused_tokens"));
    assert!(number(1, "prompt_tokens") > first);
    // Under other caps the conversation is decoded again.
    assert_eq!(number(2, "reused_tokens"), 0);
    assert_eq!(number(3, "reused_tokens"), 0);

    for turn in &turns {
        let cap = &turn["caps"][0];
        assert_eq!(cap["block"], 10);
        assert!(cap["rows"].as_u64().unwrap() > 0 && cap["mean_before"].is_number());
    }
    assert!(turns[1]["caps"][0]["engaged"].as_u64().unwrap() > 0);
    let off = &turns[2]["caps"][0];
    assert_eq!(off["mean_before"], off["mean_after"], "switched off, caps only observe");
    assert_ne!(turns[1]["caps"][0]["mean_before"], turns[1]["caps"][0]["mean_after"]);
}

#[test]
fn caps_that_begin_by_observing_can_be_switched_on() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    caps(&file, &[(10, 1, Bound::band(-0.01, 0.01).unwrap(), 1.0), (20, 2, Bound::NONE, 1.0)]);
    let args = ["--caps", arg(&file), "--temp", "0", "--max-tokens", "6", "--json", "--ctx", "256"];
    let script = "Hello.\n/caps on\nHello.\n/caps off\nHello.\n";
    let moved = |more: &[&str]| {
        let output = with_stdin("chat", &[&args[..], more].concat(), script);
        let notes = String::from_utf8_lossy(&output.stderr).into_owned();
        let turns = turns(&succeed(output));
        let moved = |turn: &Value| turn["caps"][0]["mean_before"] != turn["caps"][0]["mean_after"];
        (turns.iter().map(moved).collect::<Vec<_>>(), notes)
    };
    let (observed, notes) = moved(&["--observe"]);
    assert_eq!(observed, [false, true, false]);
    assert!(notes.contains("[caps hold]"), "{notes}");
    assert_eq!(moved(&["--strength", "0.5"]).0, [true, true, false]);
    let (still, notes) = moved(&["--strength", "0"]);
    assert_eq!(still, [false; 3]);
    assert!(!notes.contains("[caps hold]") && notes.contains("their strength is 0"), "{notes}");

    // As in drift, the last capped block stands for all.
    let text =
        with_stdin("chat", &args.map(|arg| if arg == "--json" { "--observe" } else { arg }), "Hello.\n");
    let notes = String::from_utf8_lossy(&text.stderr).into_owned();
    assert!(notes.contains("projection at block 20"), "{notes}");
}

#[test]
fn plain_output_has_statistics_and_a_wrong_command_is_refused() {
    let args = ["--temp", "0", "--max-tokens", "6", "--ctx", "256"];
    let output = with_stdin("chat", &args, "\nHello.\n\n/reset\nHello.\n");
    let notes = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(notes.contains("[turn 1:") && notes.contains("[started again]"), "{notes}");
    let text = succeed(output);
    let answers: Vec<_> = text.lines().collect();
    assert!(answers.len() >= 2 && answers[0] == answers[answers.len() / 2], "{text}");

    fail(with_stdin("chat", &args, "/dance\n"), &["/dance", "/reset"]);
    fail(with_stdin("chat", &args, b"\ncaf\xe9\n"), &["line 2", "UTF-8", "byte 4"]);
    fail(with_stdin("chat", &args, "/caps on\n"), &["--caps"]);
    fail(with_stdin("chat", &args, "long ".repeat(300)), &["prompt has", "256", "--ctx"]);
}
