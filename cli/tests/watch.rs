//! `axiscap watch`, and what `run`, `chat` and `drift` say of the same.

mod support;

use std::fs;

use axiscap::Bound;
use axiscap::file::CapFile;
use serde_json::{Value, json};
use support::{arg, axiscap, caps, fail, fail_with, folder, json as one, misuse, notes, succeed, with_stdin};

/// Lines of other tools, each with fields of its own that are to stay as they are.
const LINES: [&str; 4] = [
    r#"{"id":"a", "reward": 0.12345678901234567890, "messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello! How can I help you today?"}], "score": 1e400}"#,
    r#"  {"conversations": [{"from": "human", "value": "Who are you?"}, {"from": "gpt", "value": "I am an oracle in a cave, and I see all."}, {"from": "human", "value": "Really?"}, {"from": "gpt", "value": "The abyss answers."}], "n": 9007199254740993}  "#,
    r#"{"prompt": "2 + 2?", "completion": "4", "ä": "ü\u0020"}"#,
    r#"{"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}], "response": [{"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Bye."}]}"#,
];

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

fn parsed(line: &str) -> Value {
    // A number that no f64 holds is JSON all the same.
    let line = line.replace("1e400", "1");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// Puts a calibration's quantiles into a cap file: the same for each cap.
fn calibrate(path: &std::path::Path, quantiles: [f32; 5]) {
    let mut file = CapFile::read(path).unwrap();
    let all = quantiles.repeat(file.caps.caps().len());
    file.origin.set("calibrate.quantile_levels", vec![0.0_f32, 1.0, 10.0, 50.0, 100.0]);
    file.origin.set("calibrate.default_quantiles", all);
    file.write(path).unwrap();
}

#[test]
fn lines_stay_as_they_are_and_get_a_field() {
    let folder = folder();
    let (file, input) = (folder.path().join("c.gguf"), folder.path().join("t.jsonl"));
    caps(&file, &[(20, 1, Bound::floor(0.0).unwrap(), 1.0), (12, 2, Bound::NONE, 1.0)]);
    calibrate(&file, [-1e4, -1e3, -900.0, 0.0, 1e4]);
    // As editors of other systems write it: a mark of the byte order, and carriage returns.
    fs::write(&input, format!("\u{feff}{}\r\n\r\n{}\r\n", LINES[0], LINES[1..].join("\r\n"))).unwrap();
    let output = axiscap("watch", &["--caps", arg(&file), "--jsonl", arg(&input), "--tokens"]);
    let note = notes(&output);
    assert!(note.contains("[4 transcripts, 5 answers, ") && note.contains("0 with an alarm]"), "{note}");
    let text = succeed(output);
    let found = lines(&text);
    assert_eq!(found.len(), 4);
    for (line, found) in LINES.iter().zip(&found) {
        let (before, field) = found.rsplit_once(",\"axiscap\":").expect("the field comes last");
        assert_eq!(format!("{before}}}"), line.trim(), "the line itself stays");
        let field = parsed(field.strip_suffix('}').unwrap());
        assert_eq!((&field["block"], &field["alarm"]), (&json!(12), &Value::Null));
        assert_eq!(
            field["thresholds"],
            json!({"alarm": -1000.0, "release": -900.0, "usual": 0.0, "sum": 10000.0, "tokens": 50})
        );
        for turn in field["turns"].as_array().unwrap() {
            let projections: Vec<f64> =
                turn["projections"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
            let count = projections.len();
            assert_eq!(
                (turn["tokens"].as_u64(), turn["ids"].as_array().unwrap().len()),
                (Some(count as u64), count)
            );
            let mean = projections.iter().sum::<f64>() / count as f64;
            for of in [&turn["mean"], &turn["blocks"]["12"]] {
                assert!((of.as_f64().unwrap() - mean).abs() < 1e-4, "{turn}");
            }
            assert!(turn["blocks"]["20"].is_number() && turn["began"] == json!([]), "{turn}");
            // By the formula of the average, from the usual projection on.
            let weight = 2.0 / 51.0;
            let average =
                projections.iter().fold(0.0, |average, value| weight * value + (1.0 - weight) * average);
            if field["turns"][0] == *turn {
                assert!((turn["average"].as_f64().unwrap() - average).abs() < 1e-4, "{turn}");
            }
        }
    }
    let of = |index: usize| parsed(found[index])["axiscap"].clone();
    assert_eq!(
        (of(0)["line"].clone(), of(1)["line"].clone()),
        (json!(1), json!(3)),
        "lines of the file are counted"
    );
    let messages: Vec<_> =
        of(1)["turns"].as_array().unwrap().iter().map(|turn| turn["message"].clone()).collect();
    assert_eq!(messages, [1, 3]);
    let means: Vec<f64> =
        of(1)["turns"].as_array().unwrap().iter().map(|turn| turn["mean"].as_f64().unwrap()).collect();
    assert!((of(1)["slope"].as_f64().unwrap() - (means[1] - means[0])).abs() < 1e-3);
    assert_eq!(of(0)["slope"], Value::Null);
    assert_eq!(of(3)["turns"].as_array().unwrap().len(), 1, "what comes after the last answer is not one");

    // One at a time from stdin, under another name. Only the batches differ.
    let stdin = LINES.join("\n");
    let args = ["--caps", arg(&file), "--jsonl", "-", "--together", "1", "--field", "drift \"x\""];
    let text = succeed(with_stdin("watch", &args, stdin));
    for (alone, together) in lines(&text).iter().zip(&found) {
        let (alone, together) = (parsed(alone)["drift \"x\""].clone(), parsed(together)["axiscap"].clone());
        let of = |field: &Value| field["mean"].as_f64().unwrap();
        assert!((of(&alone) - of(&together)).abs() < 0.1, "{alone} {together}");
        assert!(alone["turns"][0].get("projections").is_none());
    }
}

#[test]
fn lines_that_cannot_be_read_say_why_and_keep_the_others() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    caps(&file, &[(12, 2, Bound::NONE, 1.0)]);
    let long = "long ".repeat(9000);
    let long = format!(r#"{{"prompt": "{long}", "completion": "4"}}"#);
    let mut stdin = Vec::new();
    let bad: [&[u8]; 8] = [
        b"not json",
        b"[1, 2]",
        b"{}",
        b"{\"messages\": [{\"role\": \"tool\", \"content\": \"x\"}]}",
        b"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}",
        b"{\"prompt\": \"caf\xe9\", \"completion\": \"x\"}",
        b"{\"axiscap\": 1, \"prompt\": \"x\", \"completion\": \"y\"}",
        long.as_bytes(),
    ];
    for line in [LINES[0].as_bytes()].into_iter().chain(bad).chain([LINES[2].as_bytes()]) {
        stdin.extend_from_slice(line);
        stdin.push(b'\n');
    }
    let output = with_stdin("watch", &["--caps", arg(&file), "--jsonl", "-"], stdin);
    fail_with(
        1,
        &output,
        &["8 of 10 transcripts could not be read", "their lines say why", "line 2", "no JSON object"],
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let found: Vec<Value> = lines(&text).into_iter().map(parsed).collect();
    assert_eq!(found.len(), 10);
    let expected = [
        "no JSON object",
        "no JSON object",
        "none of",
        "the role \"tool\"",
        "no message is the model's",
        "its byte 16 begins no character",
        "--field NAME",
        "the model was trained on 8192",
    ];
    for (index, expected) in expected.into_iter().enumerate() {
        let field = &found[index + 1]["axiscap"];
        assert_eq!(field["line"], json!(index + 2));
        assert!(field["error"].as_str().unwrap().contains(expected), "{field}");
    }
    assert_eq!(found[4]["messages"][0]["role"], "tool", "what can be printed again is");
    for index in [0, 9] {
        assert!(found[index]["axiscap"]["mean"].is_number(), "{}", found[index]);
    }
    // Without a calibration there is no alarm, and that is said.
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("warning: ") && errors.contains("there is no alarm"), "{errors}");
    assert_eq!(found[0]["axiscap"]["thresholds"], Value::Null);

    fail(axiscap("watch", &["--caps", arg(&file), "--jsonl", "/nowhere.jsonl"]), &["/nowhere.jsonl"]);
    fail(
        with_stdin("watch", &["--caps", arg(&file), "--jsonl", "-", "--watch-block", "3"], LINES[0]),
        &["--watch-block 3", "watch one of 12"],
    );
    for wrong in [["--watch-thresholds", "1,2"], ["--watch-tokens", "0"], ["--together", "0"]] {
        let args = [&["--caps", arg(&file), "--jsonl", "-"], &wrong[..]].concat();
        misuse(with_stdin("watch", &args, LINES[0]), &[wrong[0]]);
    }
    let mut damaged = CapFile::read(&file).unwrap();
    damaged.origin.set("calibrate.quantile_levels", vec![1.0_f32]);
    damaged.origin.set("calibrate.default_quantiles", vec![1.0_f32, 2.0]);
    damaged.write(&file).unwrap();
    fail(
        with_stdin("watch", &["--caps", arg(&file), "--jsonl", "-"], LINES[0]),
        &[arg(&file), "calibrate.default_quantiles", "calibrate the axes again"],
    );
    assert_eq!(
        succeed(with_stdin(
            "watch",
            &["--caps", arg(&file), "--jsonl", "-", "--watch-thresholds", "off"],
            ""
        )),
        ""
    );
}

/// The watch of an answer is the same while it is written, in `run` and `chat`, and when it is read again.
#[test]
fn an_answer_is_watched_as_it_is_written_and_when_it_is_read_again() {
    let folder = folder();
    let (file, plot) = (folder.path().join("c.gguf"), folder.path().join("d.svg"));
    // The caps act on the block above the watched one.
    caps(&file, &[(12, 2, Bound::floor(-1e6).unwrap(), 1.0), (20, 1, Bound::band(1.0, 1.0).unwrap(), 1.0)]);
    let write = ["--caps", arg(&file), "--temp", "0", "--max-tokens", "24", "--json", "--ctx", "512"];
    let thresholds = ["--watch-tokens", "2", "--watch-thresholds", "-0.1,0,0.1"];
    let ran = one(axiscap("run", &[&write[..], &thresholds, &["--watch", "--prompt", "Hello."]].concat()));
    let talked = succeed(with_stdin("chat", &[&write[..], &thresholds].concat(), "Hello.\n"));
    let talked = parsed(&talked);
    let (answer, watch) = (&ran["watch"], &talked["watch"]);
    assert_eq!(
        (&ran["text"], &ran["watch"]["block"], &watch["block"]),
        (&talked["text"], &json!(12), &json!(12))
    );
    for key in ["tokens", "mean", "deviation", "lowest", "average", "sum", "alarm", "began"] {
        assert_eq!(answer[key], watch[key], "{key}");
    }
    assert!(answer["tokens"].as_u64().unwrap() > 5 && answer["deviation"].as_f64().unwrap() > 0.0);

    let line = json!({"prompt": "Hello.", "completion": ran["text"]}).to_string();
    let read = succeed(with_stdin(
        "watch",
        &[&["--caps", arg(&file), "--jsonl", "-", "--tokens"], &thresholds[..]].concat(),
        &line,
    ));
    let read = &parsed(&read)["axiscap"]["turns"][0];
    let projections: Vec<f64> =
        read["projections"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
    // Of an answer that was cut off the last token is not decoded as it is written.
    let live = answer["tokens"].as_u64().unwrap() as usize;
    assert!(projections.len() == live || projections.len() == live + 1, "{} {live}", projections.len());
    let mean = projections[..live].iter().sum::<f64>() / live as f64;
    let spread = answer["deviation"].as_f64().unwrap();
    assert!((mean - answer["mean"].as_f64().unwrap()).abs() < 0.1 * spread, "{mean} {answer}");

    // The same file through drift: uncapped and capped, in pairs.
    let args = ["--caps", arg(&file), "--transcripts", "-", "--plot", arg(&plot)];
    let drifted = one(with_stdin("drift", &[&args[..], &thresholds, &["--json"]].concat(), &line));
    let turn = &drifted["transcripts"][0]["turns"][0];
    assert_eq!((&drifted["block"], &drifted["watch"]["block"]), (&json!(20), &json!(12)));
    assert!((turn["capped_after"].as_f64().unwrap() - 1.0).abs() < 1e-3, "the band holds: {turn}");
    assert!((turn["uncapped"].as_f64().unwrap() - 1.0).abs() > 1e-2, "{turn}");
    assert_eq!(turn["engaged"], json!(1.0));
    assert!((turn["watch"]["mean"].as_f64().unwrap() - read["mean"].as_f64().unwrap()).abs() < 1e-3);
    assert!(fs::read_to_string(&plot).unwrap().contains("read capped"));
    let table = succeed(with_stdin("drift", &args, format!("{line}\n{line}\n")));
    assert!(table.contains("2 transcripts, 2 answers") && table.contains("alarms: none"), "{table}");
    fail(with_stdin("drift", &args, format!("{line}\n{{}}\n")), &["line 2", "none of"]);
    fail(with_stdin("drift", &args, "\n"), &["no transcript"]);
    misuse(with_stdin("drift", &[&args[..], &["--temp", "1"]].concat(), &line), &["--transcripts", "--temp"]);
}

#[test]
fn caps_act_from_the_watchs_alarm_on() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    caps(&file, &[(12, 2, Bound::floor(50.0).unwrap(), 1.0)]);
    let args = |when: &'static str| {
        [
            "--caps",
            arg(&file),
            "--prompt",
            "Hello.",
            "--temp",
            "0",
            "--max-tokens",
            "16",
            "--json",
            "--when",
            when,
        ]
        .map(String::from)
    };
    let run = |when, more: &[&str]| {
        let args = args(when);
        axiscap("run", &[&args.each_ref().map(String::as_str)[..], more].concat())
    };
    fail(run("alarm", &[]), &["--when alarm", "axiscap calibrate", "--watch-thresholds"]);
    // Every average lies below these.
    calibrate(&file, [1e5, 2e5, 3e5, 4e5, 5e5]);
    let report = one(run("alarm", &["--watch", "--watch-tokens", "1"]));
    assert_eq!(report["watch"]["thresholds"]["alarm"], json!(2e5));
    assert_eq!(report["watch"]["began"][0]["alarm"], "ewma", "{}", report["watch"]);
    let engagements = report["engagements"].as_array().unwrap();
    assert!(engagements.len() == 1 && engagements[0]["engaged"] == true, "{engagements:?}");
    assert!(report["caps"][0]["engaged"].as_u64().unwrap() > 0);
    // No average lies below these.
    let calm = one(run("alarm", &["--watch-thresholds", "-3e5,-2e5,0", "--watch"]));
    assert_eq!((&calm["watch"]["began"], &calm["caps"][0]["engaged"]), (&json!([]), &json!(0)));
}

#[test]
fn a_signal_keeps_the_lines_that_are_printed() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    caps(&file, &[(12, 2, Bound::NONE, 1.0)]);
    let stdin = format!("{}\n", LINES[0]).repeat(400);
    let model = support::model();
    let args = ["watch", "--model", arg(&model), "--caps", arg(&file), "--jsonl", "-", "--together", "2"];
    let output = support::signalled(&args, &stdin, ("axiscap", 2), &["INT"]);
    let text = support::interrupted(output, &["lines printed", "tail -n +K"]);
    assert!(lines(&text).len() >= 2 && lines(&text).len() < 400);
    // Also where a line is awaited that does not come. The input stays open.
    let one = format!("{}\n", LINES[0]);
    let output = support::signalled(&args, &one.repeat(2), ("axiscap", 2), &["INT"]);
    assert_eq!(lines(&support::interrupted(output, &["2 lines printed"])).len(), 2);
    lines(&text).into_iter().for_each(|line| assert!(parsed(line)["axiscap"]["mean"].is_number(), "{line}"));
}
