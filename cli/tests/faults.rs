//! Answers that are not what they are taken for: counted, reported, left out, and refused when they are most.

mod support;

use std::fs;
use std::path::Path;

use serde_json::Value;
use support::{arg, fail, folder, json, notes, quick_axiscap as axiscap};

/// Returns the answers of a file: their texts and their faults.
fn answers(path: &Path) -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(path).unwrap();
    let answer = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let faults = line["faults"].as_array().cloned().unwrap_or_default();
        let names = faults.iter().map(|fault| fault.as_str().unwrap().to_owned()).collect();
        (line["text"].as_str().unwrap().to_owned(), names)
    };
    text.lines().skip(1).map(answer).collect()
}

/// In a template of another model, this one writes the user's turns as well.
#[test]
fn scripts_for_both_sides_are_left_out() {
    let folder = folder();
    let (file, axes) = (folder.path().join("a.jsonl"), folder.path().join("a.gguf"));
    let plan = ["--limit-roles", "2", "--limit-questions", "2", "--held-out-answers", "0"];
    let plan = [&plan[..], &["--max-tokens", "64", "--chat-template", "vicuna"]].concat();
    let files = ["--rollouts", arg(&file), "--out", arg(&axes), "--json"];
    // Chance may have most of the answers of a group go on with the user's turn.
    json(axiscap("extract", &[&plan[..], &files, &["--keep", "all"]].concat()));
    let all = answers(&file);
    assert_eq!(all.len(), 18);
    let (mut others, mut left_out) = (0, 0);
    for (text, faults) in &all {
        let goes_on = text.lines().any(|line| {
            let line = line.trim_start().to_lowercase();
            line.starts_with("user:") || line.starts_with("assistant:")
        });
        assert_eq!(goes_on, faults.iter().any(|fault| fault == "other-turn"), "{text}");
        others += usize::from(goes_on);
        left_out += usize::from(faults.iter().any(|fault| fault != "cut-off"));
    }
    assert!(others > 0, "{all:?}");
    let measured = axiscap("extract", &[&files[..], &["--keep", "cut-off,role-ignored"]].concat());
    if measured.status.success() {
        let said = notes(&measured);
        assert!(said.contains(&format!("{others} with somebody else's turn")), "{said}");
        let report = json(measured);
        assert_eq!((&report["left_out"], &report["answers"]), (&left_out.into(), &(18 - left_out).into()));
        assert_eq!(report["faults"]["other-turn"], others);
    } else {
        fail(measured, &["somebody else's turn", "--chat-template"]);
    }
}

#[test]
fn thoughts_without_an_end_are_refused() {
    let folder = folder();
    let (file, axes) = (folder.path().join("a.jsonl"), folder.path().join("a.gguf"));
    let opens = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}";
    let plan =
        ["--limit-roles", "1", "--limit-questions", "2", "--max-tokens", "6", "--chat-template", opens];
    let files = ["--rollouts", arg(&file), "--out", arg(&axes)];
    let extract = |more: &[&str]| axiscap("extract", &[&plan[..], &files, more].concat());
    fail(
        extract(&[]),
        &["10 of 10 default answers", "never out of its thoughts", "--thinking off", "a.jsonl"],
    );
    assert!(!axes.exists());
    assert!(answers(&file).iter().all(|(_, faults)| faults[0] == "unfinished"));
    let report = json(extract(&["--keep", "all", "--json"]));
    assert_eq!((&report["answers"], &report["left_out"]), (&14.into(), &0.into()));
    fail(extract(&["--thinking", "off"]), &["without --thinking", "another file"]);
    fs::remove_file(&file).unwrap();
    let report = json(extract(&["--thinking", "off", "--keep", "cut-off,role-ignored", "--json"]));
    assert_eq!((&report["answers"], &report["faults"]["unfinished"]), (&14.into(), &Value::Null));
}
