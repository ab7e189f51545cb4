//! Ctrl-C and SIGTERM: what there is of the work is written, and the status is 130.
#![cfg(unix)]

mod support;

use std::fs;
use std::process::Output;

use axiscap::Bound;
use serde_json::Value;
use support::{arg, caps, folder, interrupted, quick_model as model, signalled};

/// What llama.cpp's log says when a context is made.
const CONTEXT: &str = "llama_context: constructing";
/// What ours says before every pass of the model.
const DECODING: &str = "decoding rows=";
/// What a text on stdout soon holds.
const TEXT: &str = " ";

/// Runs a command and interrupts it.
fn stop(command: &str, args: &[&str], ready: (&str, usize), signals: &[&str]) -> Output {
    let model = model();
    let log: &[&str] = if ready.0 == TEXT { &[] } else { &["-vv"] };
    let all = [&[command, "--model", arg(&model), "--threads", "1"], log, args].concat();
    signalled(&all, "", ready, signals)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not one JSON value ({error}): {text}"))
}

/// A text of more than 1500 tokens.
const STORY: &str = "Write a very long story about the sea.";
const ENDLESS: [&str; 8] = ["--prompt", STORY, "-n", "-1", "-c", "8000", "--temp", "0"];

#[test]
fn a_text_that_is_cut_short_is_kept() {
    for signal in ["INT", "TERM"] {
        let output = stop("run", &ENDLESS, (TEXT, 4), &[signal]);
        let text = interrupted(output, &["cut short"]);
        assert!(text.trim().len() > 4 && text.ends_with('\n'), "{text:?}");
    }
    let folder = folder();
    let (file, trace) = (folder.path().join("c.gguf"), folder.path().join("t.jsonl"));
    caps(&file, &[(9, 1, Bound::band(-0.1, 0.1).unwrap(), 1.0)]);
    let more = ["--json", "--caps", arg(&file), "--trace", arg(&trace)];
    let output = stop("run", &[&ENDLESS[..], &more].concat(), (DECODING, 8), &["INT"]);
    let report = json(&interrupted(output, &["cut short"]));
    assert_eq!((&report["interrupted"], &report["stop"]), (&true.into(), &"interrupted".into()));
    let (prompt, tokens) = (report["prompt_tokens"].as_u64().unwrap(), report["tokens"].as_array().unwrap());
    let lines: Vec<Value> = fs::read_to_string(&trace).unwrap().lines().map(json).collect();
    // Every token but the last one was decoded, and every line is whole.
    let decoded = prompt as usize + tokens.len().saturating_sub(1);
    assert_eq!(lines.len(), decoded, "{report}");
    assert_eq!(report["caps"][0]["rows"].as_u64().unwrap() as usize, decoded);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is half written");
}

#[test]
fn a_long_prompt_is_stopped_between_two_passes() {
    let folder = folder();
    let (file, trace, prompt) =
        (folder.path().join("c.gguf"), folder.path().join("t.jsonl"), folder.path().join("p.txt"));
    caps(&file, &[(9, 1, Bound::NONE, 1.0)]);
    fs::write(&prompt, "word ".repeat(7900)).unwrap();
    let args = ["--raw", "-f", arg(&prompt), "-c", "8000", "-ub", "32", "--json", "-n", "3"];
    let args = [&args[..], &["--caps", arg(&file), "--observe", "--trace", arg(&trace)]].concat();
    let report = json(&interrupted(stop("run", &args, (DECODING, 4), &["INT"]), &["cut short"]));
    assert_eq!((&report["interrupted"], &report["text"]), (&true.into(), &"".into()));
    let traced = fs::read_to_string(&trace).unwrap();
    let lines: Vec<Value> = traced.lines().map(json).collect();
    assert!(lines.len() < 7900 && lines.len().is_multiple_of(32), "{} rows were decoded", lines.len());
    assert_eq!(report["caps"][0]["rows"], lines.len());
    assert!(lines.iter().all(|line| line["phase"] == "prompt"));
}

#[test]
fn a_second_signal_ends_at_once() {
    use std::os::unix::process::ExitStatusExt;
    // One pass over the whole prompt: the first signal has to wait for its end.
    let folder = folder();
    let prompt = folder.path().join("p.txt");
    fs::write(&prompt, "word ".repeat(7900)).unwrap();
    let args = ["--raw", "-f", arg(&prompt), "-c", "8000", "-ub", "8000", "-n", "3"];
    for (signals, number) in [(["INT", "INT"], 2), (["INT", "TERM"], 15), (["TERM", "INT"], 2)] {
        let output = stop("run", &args, (DECODING, 1), &signals);
        assert_eq!(output.status.signal(), Some(number), "{:?}", output.status);
    }
}

#[test]
fn the_pairs_measured_so_far_have_their_interval() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    caps(&file, &[(12, 1, Bound::band(-0.2, 0.2).unwrap(), 1.0)]);
    let few = ["--prompts", "1", "--prompt-tokens", "8", "--generate-tokens", "4", "--pairs", "100000"];
    let few = [&["--caps", arg(&file)], &few[..]].concat();
    // Two contexts a pair: at the fifteenth, seven pairs are complete.
    let args = [&few[..], &["--json"]].concat();
    let report = json(&interrupted(stop("bench", &args, (CONTEXT, 15), &["TERM"]), &["of 100000 pairs"]));
    assert_eq!((&report["interrupted"], &report["pairs_planned"]), (&true.into(), &100_000.into()));
    let pairs = report["decode"]["pairs"].as_u64().unwrap();
    assert!((6..1000).contains(&pairs) && report["decode"]["ratio_ci95"].is_array(), "{report}");
    assert!(report["decode"].get("ratio_ci95_note").is_none() && report["engagement"].is_number());

    // Too few for an interval without assumptions.
    let table = interrupted(stop("bench", &few, (CONTEXT, 3), &["INT"]), &["of 100000 pairs"]);
    assert!(table.contains(" pair") && table.contains("decode, capped"), "{table}");
}

#[test]
fn a_measurement_without_a_pair_says_so() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    caps(&file, &[(12, 1, Bound::band(-0.2, 0.2).unwrap(), 1.0)]);
    let long = ["--caps", arg(&file), "--prompt-tokens", "6000", "-b", "64", "-ub", "64", "--pairs", "2"];
    let says = ["no pair was complete"];
    let text = interrupted(stop("bench", &long, (DECODING, 5), &["INT"]), &says);
    assert_eq!(text, "");
    let args = [&long[..], &["--json"]].concat();
    let report = json(&interrupted(stop("bench", &args, (DECODING, 5), &["INT"]), &says));
    assert_eq!((&report["interrupted"], &report["pairs"]), (&true.into(), &0.into()));
}

#[test]
fn the_turns_of_a_conversation_so_far_are_kept_with_their_chart() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (file, script, plot) = (at("c.gguf"), at("script.json"), at("d.svg"));
    caps(file.as_ref(), &[(20, 1, Bound::band(-0.1, 0.1).unwrap(), 1.0)]);
    let talk = |turns: &[&str]| {
        fs::write(&script, serde_json::json!({"name": "t", "turns": turns}).to_string()).unwrap();
    };
    let args = ["--caps", &file, "--script", &script, "--plot", &plot, "--temp", "0", "-c", "8000"];
    let args = [&args[..], &["--speed-pairs", "0", "-n", "-1", "--json"]].concat();

    // Within the first answer.
    talk(&[STORY, "Go on."]);
    let output = stop("drift", &args, (DECODING, 8), &["INT"]);
    let report = json(&interrupted(output, &["0 capped", "cut short", "d.svg"]));
    let turns = report["uncapped"].as_array().unwrap();
    assert_eq!((&report["interrupted"], report["capped"].as_array().unwrap().len()), (&true.into(), 0));
    assert_eq!(turns.last().unwrap()["stop"], "interrupted", "{report}");
    assert!(fs::read_to_string(&plot).unwrap().contains("</svg>"));
    assert!(report["engagement"].is_null() && report["unfinished"].is_null(), "{report}");

    // Within the first prompt: there is nothing to draw.
    fs::remove_file(&plot).unwrap();
    talk(&[&"word ".repeat(7000)]);
    let slow = [&args[..], &["-ub", "32"]].concat();
    let output = stop("drift", &slow, (DECODING, 4), &["TERM"]);
    let report = json(&interrupted(output, &["0 of 1 turns uncapped, 0 capped", "nothing to plot"]));
    assert!(report["plot"].is_null() && report["uncapped"].as_array().unwrap().is_empty(), "{report}");
    assert!(!std::path::Path::new(&plot).exists());

    // Within the first capped answer: the uncapped ones took a pass for the prompt and one a token but the last.
    talk(&[STORY]);
    let length = ["-n", "200"];
    let output = stop("drift", &[&args[..], &length].concat(), (DECODING, 200 + 20), &["INT"]);
    let report = json(&interrupted(output, &["1 of 1 turns uncapped, 1 capped", "cut short", "d.svg"]));
    let (uncapped, capped) = (&report["uncapped"][0], &report["capped"][0]);
    assert_eq!(
        (&uncapped["stop"], &capped["stop"]),
        (&"max_tokens".into(), &"interrupted".into()),
        "{report}"
    );
    let (whole, cut) = (uncapped["tokens"].as_u64().unwrap(), capped["tokens"].as_u64().unwrap());
    assert!(whole == 200 && (10..200).contains(&cut), "{report}");
    assert!(report["engagement"].is_number() && report["decode"].is_null(), "{report}");
    assert!(fs::read_to_string(&plot).unwrap().contains("</svg>"));

    // Within the first capped prompt: the uncapped conversation alone is drawn.
    fs::remove_file(&plot).unwrap();
    talk(&[&"word ".repeat(1600)]);
    let slow = [&args[..], &["-ub", "16", "-n", "2"]].concat();
    let output = stop("drift", &slow, (DECODING, 105), &["INT"]);
    let report = json(&interrupted(output, &["1 of 1 turns uncapped, 0 capped", "d.svg"]));
    assert!(report["capped"].as_array().unwrap().is_empty() && report["interrupted"] == true, "{report}");
    assert!(fs::read_to_string(&plot).unwrap().contains("</svg>"));
}

#[test]
fn the_speed_comparison_of_drift_may_be_cut_short() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (file, script, plot) = (at("c.gguf"), at("script.json"), at("d.svg"));
    caps(file.as_ref(), &[(20, 1, Bound::NONE, 1.0)]);
    fs::write(&script, r#"{"name": "t", "turns": ["Hi.", "Who are you?"]}"#).unwrap();
    let args = ["--caps", &file, "--script", &script, "--plot", &plot, "-n", "4", "--speed-pairs", "100000"];
    // The first context is the conversations'. The fourth is that of the second pair.
    let output = stop("drift", &args, (CONTEXT, 4), &["INT"]);
    let text = interrupted(output, &["2 of 2 turns uncapped, 2 capped", "d.svg"]);
    assert!(text.contains("capped:") && text.contains("short pair"), "{text}");
    assert!(fs::read_to_string(&plot).unwrap().contains("</svg>"));
}

#[test]
fn a_conversation_keeps_the_answer_in_progress() {
    let model = model();
    let args = ["chat", "--model", arg(&model), "-t", "1", "-n", "-1", "-c", "8000", "--temp", "0"];
    let say = format!("{STORY}\n");
    let output = signalled(&args, &say, (TEXT, 4), &["INT"]);
    let text = interrupted(output, &["the conversation is cut short"]);
    assert!(text.trim().len() > 4, "{text:?}");
    let args = [&args[..], &["--json", "-vv"]].concat();
    let output = signalled(&args, &say, (DECODING, 8), &["TERM"]);
    let turn = json(&interrupted(output, &["the conversation is cut short"]));
    assert_eq!((&turn["interrupted"], &turn["stop"]), (&true.into(), &"interrupted".into()));
}

#[test]
fn measuring_answers_may_be_cut_short_and_they_are_kept() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (answers, axes) = (at("answers.jsonl"), at("axes.gguf"));
    let tiny =
        ["--limit-roles", "20", "--limit-questions", "4", "--max-tokens", "1", "--keep", "all", "--json"];
    let args = [&tiny[..], &["--rollouts", &answers, "--out", &axes]].concat();
    // The second context measures.
    let output = stop("extract", &args, (CONTEXT, 2), &["INT"]);
    let report = json(&interrupted(output, &["all answers are kept in", "answers.jsonl", "same command"]));
    assert_eq!(report["interrupted"], true);
    assert!(!std::path::Path::new(&axes).exists() && std::path::Path::new(&answers).exists());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is half written");
}
