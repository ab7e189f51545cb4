//! Judges of role play: the built-in one, a command, a server.
#![cfg(unix)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;

use serde_json::Value;
use support::{SMALL_DOSE, arg, caps, fail, folder, json, misuse, quick_axiscap as axiscap};

/// Returns the lines of a file of answers: the header, then the answers.
fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Returns the scores of the answers in roles.
fn scores(path: &Path) -> Vec<Option<f64>> {
    let roles = lines(path).into_iter().skip(1).filter(|line| line["group"] != "default");
    roles.map(|line| line["score"].as_f64()).collect()
}

const PLAN: [&str; 12] = [
    "--default-answers",
    "10",
    "--limit-roles",
    "2",
    "--held-out-answers",
    "0",
    "--limit-questions",
    "4",
    "--max-tokens",
    "6",
    "--keep",
    "empty,unfinished,markup,other-turn,cut-off",
];

#[test]
fn a_command_judges_once_and_its_scores_are_kept() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (file, axes, log) = (at("a.jsonl"), at("a.gguf"), at("log"));
    let files = ["--rollouts", arg(&file), "--out", arg(&axes), "--json"];
    let extract = |more: &[&str]| axiscap("extract", &[&PLAN[..], &files, more].concat());
    // It ends with an error after five scores. These are kept.
    let broken = format!("tee -a {} | head -5 | sed 's/.*/3/'; exit 7", log.display());
    fail(extract(&["--judge-command", &broken]), &["exit status: 7", "5 of 8 scores are kept", "a.jsonl"]);
    assert_eq!(scores(&file).iter().flatten().count(), 5);
    assert!(lines(&file)[0]["judge"]["least"].is_null() && !axes.exists());
    // Another judge is not asked by chance: it has to be named.
    fail(extract(&[]), &["3 of the answers in roles are not judged yet", "command: ", "--judge"]);
    // A file may come from anyone: the command that it names is not run, even if it says that all is judged.
    let written = fs::read_to_string(&file).unwrap();
    let ran = at("ran");
    let named = serde_json::json!({ "by": format!("command: touch {}", ran.display()), "least": 3.0 });
    let mut hostile: Vec<Value> = lines(&file);
    hostile[0]["judge"] = named;
    let hostile: Vec<String> = hostile.iter().map(Value::to_string).collect();
    fs::write(&file, hostile.join("\n") + "\n").unwrap();
    fail(extract(&[]), &["3 of the answers in roles are not judged yet", "command: touch"]);
    assert!(!ran.exists());
    fs::write(&file, written).unwrap();
    // Another judge begins again: one answer of each role ignores it.
    let good = format!(
        "tee {} | awk '{{ n += 1; print (n % 4 == 1) ? \"{{\\\"score\\\": 1}}\" : \"3\" }}'",
        log.display()
    );
    let report = json(extract(&["--judge-command", &good]));
    assert_eq!((&report["faults"]["role-ignored"], &report["left_out"]), (&2.into(), &2.into()), "{report}");
    assert_eq!(report["judge"]["least"], 3.0);
    let asked: Vec<Value> = lines(&log);
    assert_eq!(asked.len(), 8);
    assert_eq!((&asked[1]["index"], asked[1]["role"].as_str()), (&1.into(), Some("pirate")));
    assert!(asked[7]["system"].as_str().unwrap().contains("spirit") && asked[7]["question"].is_string());
    assert_eq!(scores(&file)[..2], [Some(1.0), Some(3.0)]);
    // Neither another run nor calibration asks again, and the file is left as it is.
    fs::remove_file(&log).unwrap();
    let before = fs::read(&file).unwrap();
    assert_eq!(json(extract(&["--judge-command", &good]))["left_out"], 2);
    let out = at("c.gguf");
    let calibrate = ["--rollouts", arg(&file), "--axes", arg(&axes), "--out", arg(&out), "--blocks", "20"];
    let calibrate = [&calibrate[..], &PLAN[10..], &SMALL_DOSE, &["--json"]].concat();
    let report = json(axiscap("calibrate", &calibrate));
    assert!(report["judge"]["by"].as_str().unwrap().starts_with("command: ") && report["left_out"] == 2);
    assert!(!log.exists() && fs::read(&file).unwrap() == before);
    // A lower bar takes all of them. Without a judge there is none.
    assert_eq!(json(extract(&["--judge-command", &good, "--judge-min", "1"]))["left_out"], 0);
    assert_eq!(json(extract(&["--judge", "none"]))["judge"], Value::Null);
}

#[test]
fn a_server_judges() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (file, axes) = (at("a.jsonl"), at("a.gguf"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || serve(stream));
        }
    });
    let files = ["--rollouts", arg(&file), "--out", arg(&axes)];
    let extract = |more: &[&str]| axiscap("extract", &[&PLAN[..], &files, more].concat());
    let report = json(extract(&["--judge", &url, "--judge-model", "small", "--judge-min", "2", "--json"]));
    assert_eq!((&report["left_out"], &report["judge"]["least"]), (&0.into(), &2.0.into()), "{report}");
    assert_eq!(report["judge"]["by"], format!("{url} small"));
    assert!(scores(&file).iter().all(|score| *score == Some(2.0)));
    let origin = axiscap::file::CapFile::read(&axes).unwrap().origin;
    let command = format!("{:?}", origin.get("extract.command"));
    assert!(command.contains("--judge-model") && command.contains("--judge-min 2"), "{command}");
    // A bar that most answers miss.
    let strict = ["--judge", &url, "--judge-model", "small", "--judge-min", "3"];
    fail(extract(&strict), &["8 of 8 role answers", "ignore their role"]);
    // Another server is another judge.
    fail(extract(&["--judge", "http://127.0.0.1:1/v1"]), &["127.0.0.1:1", "a.jsonl is as it was"]);
    assert!(scores(&file).iter().all(|score| *score == Some(2.0)), "the scores of the first one are kept");
}

/// Answers every request with the score 2.
fn serve(stream: std::net::TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let (mut length, mut line) = (0, String::new());
        loop {
            line.clear();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["model"], "small");
        let reply = r#"{"choices": [{"message": {"content": "Score: 2"}}]}"#;
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{reply}", reply.len());
        if (&stream).write_all(head.as_bytes()).is_err() {
            return;
        }
    }
}

#[test]
fn answers_that_ignore_their_role_are_left_out_and_refused_when_they_are_most() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (file, axes, roles) = (at("a.jsonl"), at("a.gguf"), at("roles.json"));
    // A system prompt that is the template's own changes nothing.
    fs::write(
        &roles,
        r#"{"default": [null], "roles": [{"name": "none", "prompts": ["You are a helpful AI assistant named SmolLM, trained by Hugging Face"]}]}"#,
    )
    .unwrap();
    let files = ["--rollouts", arg(&file), "--out", arg(&axes), "--roles", arg(&roles)];
    fail(
        axiscap("extract", &[&PLAN[4..], &files].concat()),
        &["4 of 4 role answers", "4 that ignore their role", "--keep", "a.jsonl"],
    );
    assert!(scores(&file).iter().all(|score| score.unwrap().abs() < 1.0), "{:?}", scores(&file));
    let kept = axiscap("extract", &[&PLAN[4..10], &files, &["--keep", "all", "--json"]].concat());
    assert_eq!(json(kept)["left_out"], 0);
}

#[test]
fn wrong_options_are_refused() {
    let folder = folder();
    let axes = folder.path().join("a.gguf");
    caps(&axes, &[(3, 1, axiscap::Bound::NONE, 1.0)]);
    let extract = |more: &[&str]| axiscap("extract", &[&["--out", arg(&axes)], more].concat());
    misuse(extract(&["--judge", "likelyhood"]), &["likelihood, none, or a URL", "--judge-command"]);
    misuse(extract(&["--judge", "none", "--judge-command", "x"]), &["--judge-command"]);
    misuse(extract(&["--judge-command", "x", "--judge-min", "4"]), &["--judge-min", "4"]);
    misuse(extract(&["--keep", "cutoff"]), &["cut-off", "role-ignored", "or all"]);
    misuse(extract(&["--answers-per-role", "0"]), &["--answers-per-role", "or all"]);
    misuse(extract(&["--axis-of", "warm"]), &["--traits"]);
    let few = ["--limit-roles", "1", "--limit-questions", "2", "--max-tokens", "2", "--keep", "all"];
    fail(extract(&[&few[..], &["--judge-min", "2"]].concat()), &["--judge-min", "--judge-command"]);
    let few = extract(&[&few[..], &["--judge", "none", "--min-answers", "9"]].concat());
    fail(few, &["0 of 1 roles have 9 answers", "--answers-per-role"]);
}

#[test]
fn traits_are_compared_and_can_be_the_axis() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (file, axes, traits, page) = (at("a.jsonl"), at("a.gguf"), at("traits.json"), at("a.html"));
    fs::write(
        &traits,
        r#"{"traits": [{"name": "warm", "positive": ["You are warm."], "negative": ["You are cold."]}]}"#,
    )
    .unwrap();
    let files = ["--rollouts", arg(&file), "--out", arg(&axes), "--traits", arg(&traits), "--json"];
    let plan = ["--limit-roles", "2", "--limit-questions", "2", "--max-tokens", "4", "--keep", "all"];
    let extract = |more: &[&str]| json(axiscap("extract", &[&plan[..], &files, more].concat()));
    let report = extract(&["--report", arg(&page)]);
    assert_eq!((&report["trait_answers"], &report["traits"][0]), (&4.into(), &"warm".into()));
    let cosine = report["blocks"][20]["trait_cosines"][0].as_f64().unwrap();
    assert!(cosine.abs() <= 1.0 && fs::read_to_string(&page).unwrap().contains("warm"));
    let report = extract(&["--axis-of", "warm"]);
    assert_eq!(report["blocks"][20]["trait_cosines"][0].as_f64().unwrap() as f32, 1.0);
    let found = axiscap::file::CapFile::read(&axes).unwrap();
    assert_eq!(found.orientation.as_deref(), Some("more warm"));
    assert_eq!(found.caps.caps()[0].cap.name(), Some("warm"));
    fail(
        axiscap("extract", &[&plan[..], &files, &["--axis-of", "cold"]].concat()),
        &["\"cold\"", "only for [\"warm\"]"],
    );
}
