//! `axiscap eval`: records that are kept and continued, findings, the page and the pairs.

mod support;

use std::fs;
use std::path::Path;

use axiscap::Bound;
use serde_json::Value;
use support::{arg, caps, fail, folder, json, misuse, notes, quick_axiscap as axiscap, succeed};

const MATERIAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/material.json");
const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/short.txt");

/// Returns the options of a small evaluation.
fn options<'a>(caps: &'a Path, out: &'a Path) -> Vec<&'a str> {
    vec!["--caps", arg(caps), "--material", MATERIAL, "--text", TEXT, "--threads", "2", "--out", arg(out)]
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(String::from).collect()
}

#[test]
fn an_evaluation_is_kept_continued_and_reported() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (file, out, page, pairs) = (at("c.gguf"), at("e.jsonl"), at("e.html"), at("p.jsonl"));
    caps(&file, &[(20, 5, Bound::floor(1.0).unwrap(), 1.0), (22, 6, Bound::floor(1.0).unwrap(), 1.0)]);
    let all = options(&file, &out);
    let more = ["--report", arg(&page), "--pairs", arg(&pairs), "--json"];
    let mut first = json(axiscap("eval", &[&all[..], &more].concat()));
    first["seconds"] = Value::Null;
    for suite in ["drift", "reliability", "consistency", "capability", "dose"] {
        assert!(!first[suite].is_null(), "{suite}: {first}");
    }
    assert_eq!(first["header"]["block"], 22);
    assert!(first["controls"][0]["kl"].as_f64().is_some_and(|kl| kl > 0.0), "{first}");
    assert!(first["statements"].as_array().is_some_and(|all| !all.is_empty()));
    let html = fs::read_to_string(&page).unwrap();
    assert!(
        html.contains("<svg") && html.contains("axiscap eval --model") && !html.contains(arg(folder.path()))
    );
    let pairs = lines(&pairs);
    // Two conversations of two turns in three arms: two prompts and an earlier line each.
    assert_eq!(pairs.len(), 2 * 3 * 3);
    let pair: Value = serde_json::from_str(&pairs[0]).unwrap();
    for key in ["kind", "arm", "conversation", "domain", "first", "second", "second_projection"] {
        assert!(!pair[key].is_null(), "{key}: {pair}");
    }

    // The same again has nothing to do. After a loss it does what is lost, and comes to the same records.
    let whole = fs::read_to_string(&out).unwrap();
    let kept = lines(&out);
    let mut again = json(axiscap("eval", &[&all[..], &["--json"]].concat()));
    again["seconds"] = Value::Null;
    assert_eq!(first, again);
    fs::write(&out, kept[..kept.len() / 2].join("\n") + "\n{\"job\": \"cut").unwrap();
    let text = succeed(axiscap("eval", &all));
    assert_eq!(fs::read_to_string(&out).unwrap(), whole);
    for part in ["capped - random", "reliability", "[caution]", "records: "] {
        assert!(text.contains(part), "{part}: {text}");
    }

    // A judge scores each pair once.
    let judge = "while read -r line; do case $line in *prompt-to-line*) echo 3;; *) echo 1;; esac; done";
    let judged = json(axiscap("eval", &[&all[..], &["--judge-command", judge, "--json"]].concat()));
    let score = |of: &str| {
        let measures = judged["consistency"]["measures"].as_array().unwrap();
        let found = measures.iter().find(|measure| measure["name"] == "judged" && measure["of"] == of);
        found.unwrap()["arms"]["capped"]["value"].as_f64()
    };
    assert_eq!((score("prompt-to-line"), score("line-to-line")), (Some(3.0), Some(1.0)));
    let with_scores = fs::read_to_string(&out).unwrap();
    succeed(axiscap("eval", &[&all[..], &["--judge-command", judge]].concat()));
    assert_eq!(fs::read_to_string(&out).unwrap(), with_scores, "nothing is asked twice");
    fail(axiscap("eval", &[&all[..], &["--judge-command", "exit 3"]].concat()), &["answers are kept in"]);

    // Records of another evaluation are not mixed with these.
    fail(axiscap("eval", &[&all[..], &["--seed", "9"]].concat()), &["seed 1, not 9", "e.jsonl"]);
    fail(axiscap("eval", &[&all[..], &["--strength", "0.5"]].concat()), &["caps_sha256"]);
    assert_eq!(fs::read_to_string(&out).unwrap(), with_scores, "and are left as they are");
}

#[test]
fn one_suite_without_controls_needs_no_conversation() {
    let folder = folder();
    let (file, out) = (folder.path().join("c.gguf"), folder.path().join("e.jsonl"));
    caps(&file, &[(20, 5, Bound::floor(1.0).unwrap(), 1.0)]);
    let more = ["--suite", "reliability,capability", "--random-directions", "0", "--json"];
    let found = json(axiscap("eval", &[&options(&file, &out)[..], &more].concat()));
    assert!(found["drift"].is_null() && !found["reliability"].is_null() && !found["capability"].is_null());
    assert!(lines(&out).iter().all(|line| !line.contains("\"conversation\"")));
    let observed = axiscap("eval", &[&options(&file, &out)[..], &more, &["--observe"]].concat());
    fail(observed, &["caps_sha256"]);
}

#[test]
fn other_templates_go_through() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    caps(&file, &[(20, 5, Bound::floor(1.0).unwrap(), 1.0)]);
    // One without system prompts, and two whose turns are no markup.
    for template in ["gemma", "llama2", "vicuna"] {
        let out = folder.path().join(template);
        let more = [
            "--suite",
            "drift,consistency",
            "--random-directions",
            "0",
            "--chat-template",
            template,
            "--json",
        ];
        let found = json(axiscap("eval", &[&options(&file, &out)[..], &more].concat()));
        for (suite, name) in [("drift", "projection"), ("consistency", "agreement")] {
            let measures = found[suite]["measures"].as_array().unwrap();
            let measure = measures.iter().find(|one| one["name"] == name && one["of"] == "all").unwrap();
            assert_eq!(measure["arms"]["capped"]["units"], 2, "{template} {name}: {measure}");
        }
    }
}

#[test]
fn wrong_input_is_refused_before_the_work() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (file, out, bad) = (at("c.gguf"), at("e.jsonl"), at("bad.json"));
    caps(&file, &[(20, 5, Bound::floor(1.0).unwrap(), 1.0)]);
    let base = ["--caps", arg(&file), "--out", arg(&out)];
    let with = |more: &[&str]| axiscap("eval", &[&base[..], more].concat());
    misuse(with(&["--suite", "happiness"]), &["happiness"]);
    misuse(with(&["--suite", "dose", "--pairs", arg(&at("p.jsonl"))]), &["--pairs", "drift"]);
    misuse(with(&["--suite", "dose", "--judge-command", "cat"]), &["judge", "drift"]);
    misuse(with(&["--judge", "localhost:80"]), &["http://"]);
    fail(with(&["--block", "3"]), &["3"]);
    for (text, part) in [
        ("[]", "not as expected"),
        ("{\"facts\": []}", "facts"),
        ("{\"conversations\": [], \"x\": 1}", "unknown field"),
        ("{\"sad\": [\"\"]}", "sad"),
    ] {
        fs::write(&bad, text).unwrap();
        fail(with(&["--material", arg(&bad)]), &["bad.json", part]);
    }
    fail(with(&["--material", arg(&at("absent.json"))]), &["absent.json"]);
    fs::write(&out, "a letter\n").unwrap();
    fail(with(&[]), &["e.jsonl", "no file of records"]);
    assert_eq!(fs::read_to_string(&out).unwrap(), "a letter\n");
}

#[cfg(unix)]
#[test]
fn an_evaluation_that_is_interrupted_goes_on() {
    use support::{interrupted, quick_model as model, signalled};
    let folder = folder();
    let (file, out) = (folder.path().join("c.gguf"), folder.path().join("e.jsonl"));
    caps(&file, &[(20, 5, Bound::floor(1.0).unwrap(), 1.0)]);
    let model = model();
    let mut all = vec![
        "eval",
        "--model",
        arg(&model),
        "-vv",
        "--random-directions",
        "0",
        "--suite",
        "reliability,dose",
    ];
    all.extend(options(&file, &out));
    // The third context is that of the second job.
    let stopped = signalled(&all, "", ("llama_context: constructing", 2), &["INT"]);
    interrupted(stopped, &["pieces of work are kept in", "goes on from there"]);
    let kept = lines(&out).len();
    let again: Vec<&str> = all[3..].iter().copied().filter(|word| *word != "-vv").collect();
    notes(&axiscap("eval", &again));
    assert!(lines(&out).len() > kept);
}
