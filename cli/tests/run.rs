//! `axiscap run` on a real model.

mod support;

use std::io::Read;
use std::process::{Command, Stdio};

use axiscap::Bound;
use support::{arg, axiscap, caps, folder, json, model, program, succeed, with_stdin};

#[test]
fn json_has_the_promised_fields() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    caps(&file, &[(9, 1, Bound::floor(-1.0).unwrap(), 1.0), (10, 2, Bound::NONE, 0.5)]);
    let args = ["--caps", arg(&file), "--prompt", "Say hello.", "--temp", "0", "--max-tokens", "5", "--json"];
    let report = json(axiscap("run", &args));
    assert!(report["text"].is_string());
    let tokens = report["tokens"].as_array().unwrap();
    assert!(!tokens.is_empty() && tokens.len() <= 5 && tokens.iter().all(serde_json::Value::is_i64));
    assert!(report["prompt_tokens"].as_u64().unwrap() > 5, "the chat template adds its markup");
    assert!(report["decode_tokens_per_second"].as_f64().unwrap() > 0.0);
    assert!(report["prefill_tokens_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(report["backend"], "cpu");
    for (cap, block) in [(0, 9), (1, 10)] {
        let cap = &report["caps"][cap];
        assert_eq!(cap["block"], block);
        for field in ["rows", "engaged", "mean_before", "min_after", "max_after"] {
            assert!(cap[field].is_number(), "{field} in {cap}");
        }
    }
    assert_eq!(report["caps"][0]["floor"], -1.0);
    assert!(report["caps"][0]["ceiling"].is_null());
    assert!(report["engines"][0]["how"].is_string() && report["margins"].is_null());

    // Every route gives the same bits. There is a margin per choice, that of the token that ended the text
    // included.
    let again = json(axiscap("run", &[&args[..], &["--margins", "--route", "views"]].concat()));
    assert_eq!(again["tokens"], report["tokens"]);
    assert_ne!(again["engines"], report["engines"]);
    let margins = again["margins"].as_array().unwrap();
    assert_eq!(margins.len(), tokens.len() + usize::from(!report["stop_token"].is_null()));
    assert!(margins.iter().all(|margin| margin.as_f64().unwrap() >= 0.0), "{margins:?}");
}

#[test]
fn the_prompt_comes_from_an_argument_a_file_or_stdin() {
    let folder = folder();
    let path = folder.path().join("prompt.txt");
    std::fs::write(&path, "The sea at night").unwrap();
    let run = |source: &[&str], stdin: &str| {
        let mut args = vec!["--raw", "--temp", "0", "--max-tokens", "4", "--json", "--ctx", "64"];
        args.extend(source);
        json(with_stdin("run", &args, stdin))["tokens"].clone()
    };
    let tokens = run(&["--prompt", "The sea at night"], "");
    assert_eq!(tokens.as_array().unwrap().len(), 4);
    assert_eq!(run(&["--prompt-file", arg(&path)], ""), tokens);
    assert_eq!(run(&["--prompt-file", "-"], "The sea at night"), tokens);
    assert_eq!(run(&["--prompt", "-"], "The sea at night"), tokens);
}

#[test]
fn the_line_break_at_the_end_of_a_prompt_is_dropped_unless_raw() {
    let folder = folder();
    let path = folder.path().join("prompt.txt");
    let length = |source: &[&str], stdin: &str| {
        let args = [&["--temp", "0", "--max-tokens", "1", "--json", "--ctx", "128"], source].concat();
        json(with_stdin("run", &args, stdin))["prompt_tokens"].as_u64().unwrap()
    };
    let length_of_file = |text: &str, more: &[&str]| {
        std::fs::write(&path, text).unwrap();
        length(&[&["--prompt-file", arg(&path)], more].concat(), "")
    };
    let plain = length(&["--prompt", "Who?"], "");
    assert_eq!(length(&["--prompt", "-"], "Who?\n"), plain);
    assert_eq!(length_of_file("Who?\r\n", &[]), plain);
    assert_eq!(length_of_file("Who?\n\n\n", &[]), length(&["--prompt", "Who?\n\n"], ""));
    let raw = length(&["--raw", "--prompt", "Who?"], "");
    assert!(length_of_file("Who?\n", &["--raw"]) > raw);
    assert!(length(&["--raw", "--prompt", "-"], "Who?\n") > raw);
}

#[test]
fn text_goes_to_stdout_and_statistics_to_stderr() {
    let args = ["--prompt", "Say hello.", "--system", "You are brief.", "--temp", "0", "--max-tokens", "8"];
    let output = axiscap("run", &args);
    let notes = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(notes.contains("uncapped") && !notes.contains("llama_"), "{notes}");
    let text = succeed(output);
    let report = json(axiscap("run", &[&args[..], &["--json"]].concat()));
    assert_eq!(text.trim_end_matches('\n'), report["text"].as_str().unwrap().trim_end_matches('\n'));
}

#[test]
fn the_same_seed_draws_the_same_text() {
    let run = |seed: &str| {
        let args =
            ["--raw", "--prompt", "My favourite animal is", "--temp", "1.5", "--max-tokens", "8", "--json"];
        json(axiscap("run", &[&args[..], &["--seed", seed]].concat()))["tokens"].clone()
    };
    let first = run("1");
    assert_eq!(first, run("1"));
    assert_ne!(first, run("2"), "eight tokens at temperature 1.5 are not the same by chance");
}

#[test]
fn a_full_context_ends_the_text_with_a_warning() {
    let args = ["--raw", "--prompt", "One two three four five", "--temp", "0", "--ctx", "9", "--json"];
    let report = json(axiscap("run", &args));
    assert_eq!(report["stop"], "context_full");
    assert_eq!(
        report["prompt_tokens"].as_u64().unwrap() + report["tokens"].as_array().unwrap().len() as u64,
        10
    );
}

#[test]
fn a_closed_stdout_ends_the_program_without_an_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_axiscap"))
        .args(["run", "--model", arg(&model()), "--prompt", "Count to a hundred.", "--temp", "0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut byte = [0];
    child.stdout.take().unwrap().read_exact(&mut byte).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_trace_is_written_although_stdout_is_closed() {
    let folder = folder();
    let (file, trace) = (folder.path().join("c.gguf"), folder.path().join("t.jsonl"));
    caps(&file, &[(9, 1, Bound::floor(-1.0).unwrap(), 1.0)]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_axiscap"))
        .args(["run", "--model", arg(&model()), "--prompt", "Count to a hundred.", "--temp", "0"])
        .args(["--caps", arg(&file), "--trace", arg(&trace)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut byte = [0];
    child.stdout.take().unwrap().read_exact(&mut byte).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let text = std::fs::read_to_string(&trace).expect("a trace");
    assert!(text.contains("\"phase\":\"prompt\"") && text.contains("\"phase\":\"generated\""), "{text}");
}

#[test]
fn wrong_usage_exits_with_2_and_help_with_0() {
    for args in [
        &["run"][..],
        &["run", "--model", "m", "--prompt", "a", "--prompt-file", "b"],
        &["run", "--model", "m", "--prompt", "a", "--trace", "t"],
        &["run", "--model", "m", "--prompt", "a", "--raw", "--system", "s"],
        &["run", "--model", "m", "--prompt", "a", "--kv-type", "q4"],
        &["dance"],
        &[],
    ] {
        assert_eq!(program(args, "").status.code(), Some(2), "{args:?}");
    }
    for command in ["run", "chat", "bench", "doctor"] {
        let help = succeed(program(&[command, "--help"], ""));
        assert!(help.contains("Example") && help.contains("axiscap "), "{help}");
    }
}
