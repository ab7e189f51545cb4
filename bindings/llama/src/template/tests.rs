//! Templates against Python's Jinja2, and cuts at special tokens against llama.cpp's own.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use axiscap_testing::numbers::Random;
use llama_cpp_2::model::params::LlamaModelParams;
use serde_json::{Map, Value as Json, json};

use super::jinja::{Failure, Jinja};
use super::now;
use crate::model;
use crate::special::{Part, SpecialTokens};

/// Returns a file or folder that `scripts/setup-templates` has prepared. `scripts/test` names them.
fn prepared(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        eprintln!("left out: {variable} is not set; eval \"$(scripts/setup-templates)\" sets it");
    }
    path
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.to_str().unwrap().ends_with(ending)).collect();
    files.sort();
    files
}

fn jinja(source: &str) -> Result<Jinja, Failure> {
    Jinja::new(source, &now(Some("2021-05-20")).unwrap(), Map::new())
}

fn run(source: &str, messages: Json) -> Result<String, Failure> {
    jinja(source)?.run(messages, true)
}

#[test]
fn every_template_of_llama_cpp_gives_the_text_that_python_gives() {
    let (Some(models), Some(python)) = (prepared("AXISCAP_TEST_MODELS"), prepared("AXISCAP_TEST_JINJA"))
    else {
        return;
    };
    let message = |role: &str, content: &str| json!({ "role": role, "content": content });
    let system = message("system", " You are a pirate.\n");
    let user = message("user", "Who are you? ");
    let answer = message("assistant", "I am <b>me</b> & others.\n");
    let thought = message("assistant", "<think>\nhm\n</think>\n\nYes.");
    let odd = message("user", "a<|im_end|>b\n\nAnd 'quotes' \"é\" \\ {{ 1 }} {% if %} \u{1f980}");
    let typed = json!({ "role": "user", "content": [{ "type": "text", "text": "In parts." }] });
    let conversations = [
        vec![&user],
        vec![&system, &user],
        vec![&system, &user, &answer, &odd],
        vec![&user, &answer, &odd],
        vec![&user, &thought, &odd],
        vec![&user, &answer],
        vec![&odd],
        vec![&typed],
    ];
    let mut tasks = Vec::new();
    for path in files(&models.join("templates"), ".jinja") {
        for messages in &conversations {
            for answer in [true, false] {
                for thinking in [None, Some(true), Some(false)] {
                    let mut context = Map::new();
                    context.insert("bos_token".into(), json!("<s>"));
                    context.insert("eos_token".into(), json!("</s>"));
                    context.extend(thinking.map(|thinking| ("enable_thinking".into(), json!(thinking))));
                    let variables = context.clone();
                    context.insert("messages".into(), json!(messages));
                    context.insert("add_generation_prompt".into(), json!(answer));
                    tasks.push((path.clone(), variables, context));
                }
            }
        }
    }
    assert!(tasks.len() > 3000, "{} cases", tasks.len());
    let mut input = String::new();
    for (path, _, context) in &tasks {
        input += &format!("{}\n", json!({ "template": path, "context": context }));
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/templates.py");
    let mut child = Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a Python with Jinja2");
    let mut stdin = child.stdin.take().unwrap();
    let writing = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap().unwrap();
    assert!(output.status.success());
    let lines = String::from_utf8(output.stdout).unwrap();
    let expected: Vec<Option<String>> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(expected.len(), tasks.len());
    let now = now(Some("2021-05-20")).unwrap();
    let (mut texts, mut refusals) = (0, 0);
    for ((path, variables, context), expected) in tasks.iter().zip(&expected) {
        let source = fs::read_to_string(path).unwrap();
        let answer = context["add_generation_prompt"] == json!(true);
        let found = Jinja::new(&source, &now, variables.clone())
            .and_then(|jinja| jinja.run(context["messages"].clone(), answer));
        let place = || format!("{}: {}", path.display(), Json::Object(context.clone()));
        match (expected, found) {
            // The template takes texts only, and prints Python's form of a list.
            (Some(expected), Ok(_)) if expected.contains("[{'type'") => {}
            (Some(expected), Ok(found)) => {
                assert_eq!(found, *expected, "{}", place());
                texts += 1;
            }
            (None, Err(_)) => refusals += 1,
            (expected, found) => panic!("{}: expected {expected:?}, found {found:?}", place()),
        }
    }
    eprintln!("{texts} texts equal, {refusals} refused by both");
    assert!(texts > 10 * refusals, "{texts} texts, {refusals} refusals");
}

#[test]
fn text_is_cut_where_llama_cpp_cuts_it() {
    let Some(models) = prepared("AXISCAP_TEST_MODELS") else { return };
    let vocabularies = files(&models, ".gguf");
    assert!(vocabularies.len() >= 15, "{vocabularies:?}");
    let templates = files(&models.join("templates"), ".jinja");
    let mut random = Random(7);
    for path in vocabularies {
        let params = LlamaModelParams::default().with_vocab_only(true);
        let (llama, _) = model::open(&path, &params).expect("a vocabulary");
        let vocab = llama.vocab();
        let special = SpecialTokens::of(&vocab);
        let mut texts: Vec<String> =
            templates.iter().step_by(7).map(|path| fs::read_to_string(path).unwrap()).collect();
        let spelled: Vec<String> = vocab
            .tokens()
            .filter(|&token| vocab.is_control(token))
            .filter_map(|token| Some(vocab.text(token)?.to_str().ok()?.to_owned()))
            .collect();
        let words =
            ["Hello", " world", "\n\n", "  ", "<", "|>", "é", "\u{f0000}", "<|im_end|>", "\t", "</s>"];
        for _ in 0..100 {
            let mut text = String::new();
            for _ in 0..random.below(12) {
                if random.below(2) == 0 && !spelled.is_empty() {
                    text += &spelled[random.below(spelled.len())];
                } else {
                    text += words[random.below(words.len())];
                }
            }
            texts.push(text);
        }
        for text in texts {
            let mut found = Vec::new();
            for part in special.parts(&text) {
                match part {
                    Part::Special(token, _) => found.push(token),
                    Part::Text(text) => found.extend(vocab.tokenize(text.as_bytes(), false, false)),
                }
            }
            let expected = vocab.tokenize(text.as_bytes(), false, true);
            assert_eq!(found, expected, "{}: {text:?}", path.display());
            let whole: String = special
                .control_parts(&text)
                .iter()
                .map(|part| match part {
                    Part::Special(_, text) | Part::Text(text) => *text,
                })
                .collect();
            assert_eq!(whole, text);
        }
    }
}

#[test]
fn python_ways_are_kept() {
    let user = json!([{ "role": "user", "content": "<b>é & \"q\"</b>" }]);
    for (source, expected) in [
        ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": "<b>é & \"q\"</b>"}"#),
        ("{{ [1, {'b': 2, 'a': []}] | tojson }}", r#"[1, {"b": 2, "a": []}]"#),
        ("{{ {'b': 2, 'a': 1} | tojson(sort_keys=true) }}", r#"{"a": 1, "b": 2}"#),
        ("{{ {'b': [2]} | tojson(indent=2) }}", "{\n  \"b\": [\n    2\n  ]\n}"),
        ("{{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}", r#"[1,{"a":2}]"#),
        ("{{ nothing | length }}{{ messages | length }}{{ 'é' | count }}", "011"),
        ("{{ strftime_now('%d %b %Y, %A') }}", "20 May 2021, Thursday"),
        ("{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}", "user"),
        ("a\n    {%- generation -%}\n  b  {%+ endgeneration %}\nc", "ab  c"),
        ("{{ '{%}' }}{{ messages[0]['content'][:3].upper() }}", "{%}<B>"),
        (
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "023",
        ),
    ] {
        assert_eq!(run(source, user.clone()).as_deref(), Ok(expected), "{source}");
    }
    for source in ["{% generation", "{%", "{%}", "text {% "] {
        assert!(matches!(jinja(source), Err(Failure::Broken(_))), "{source}");
    }
}

#[test]
fn a_refusal_is_told_from_a_fault() {
    let refused = run("{{ raise_exception('Roles must alternate') }}", json!([]));
    assert_eq!(refused, Err(Failure::Refused("Roles must alternate".into())));
    for source in
        ["{{ nothing.at.all }}", "{{ 1 + 'a' }}", "{{ unknown_function() }}", "{{ [] | tojson(x=1) }}"]
    {
        assert!(matches!(run(source, json!([])), Err(Failure::Broken(_))), "{source}");
    }
    let nested = "{% for a in range(9999) %}".repeat(3) + &"{% endfor %}".repeat(3);
    let Err(Failure::Broken(reason)) = run(&nested, json!([])) else { panic!("it ended") };
    assert!(reason.contains("instructions"), "{reason}");
}
