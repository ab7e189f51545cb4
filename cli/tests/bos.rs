//! Prompts that begin with two BOS tokens.

mod support;

use std::path::Path;

use axiscap::Bound;
use support::{arg, axiscap, caps, folder, gguf::Source, notes, program};

const WARNING: &str = "two BOS tokens (<|im_start|>) begin the prompt";

/// Returns how often a run warns.
fn warnings(model: &Path, args: &[&str], stdin: &str) -> (usize, String) {
    let few = ["--max-tokens", "2", "--model", arg(model)];
    let notes = notes(&program(&[&args[..1], &few, &args[1..]].concat(), stdin));
    (notes.matches(WARNING).count(), notes)
}

#[test]
fn a_second_bos_is_warned_of_once_with_the_remedy() {
    let folder = folder();
    let (adds, file) = (folder.path().join("adds-bos.gguf"), folder.path().join("c.gguf"));
    // The real model's template begins with its BOS, and its tokenizer adds none. In the copy it does.
    Source::open().with_metadata(&adds, |part| part.set("tokenizer.ggml.add_bos_token", &true.into()));
    caps(&file, &[(20, 1, Bound::NONE, 1.0)]);
    let (plot, axes) = (folder.path().join("d.svg"), folder.path().join("a.gguf"));

    let (count, text) = warnings(&adds, &["run", "-c", "64", "--raw", "-p", "<|im_start|>user\nHi"], "");
    assert_eq!(count, 1, "{text}");
    assert!(text.contains("leave <|im_start|> out of the prompt"), "{text}");
    let plain = ["run", "-c", "64", "--raw", "-p", "user"];
    assert_eq!(warnings(&adds, &plain, "").0, 0);

    let drift = ["drift", "-c", "2048", "--caps", arg(&file), "--plot", arg(&plot), "--speed-pairs", "0"];
    let extract =
        ["extract", "--limit-roles", "1", "--limit-questions", "2", "--keep", "all", "--out", arg(&axes)];
    // The BOS that the template writes is the one that the tokenizer adds.
    let twice = "{{ bos_token * 2 }}user\n{% for message in messages %}{{ message.content }}\n{% endfor %}";
    for args in [&["run", "-c", "64", "-p", "Hi"][..], &["chat", "-c", "128"], &drift, &extract] {
        let (count, text) = warnings(&adds, args, "Hi.\nYes.\n");
        assert_eq!(count, 0, "{args:?}: {text}");
        let args = [args, &["--chat-template", twice]].concat();
        let (count, text) = warnings(&adds, &args, "Hi.\nYes.\n");
        assert_eq!(count, 1, "{args:?}: {text}");
        assert!(text.contains("--chat-template") && text.contains("run --raw"), "{text}");
    }
    let tokens = |model: &Path| {
        let args = ["run", "-c", "64", "-n", "1", "--json", "-p", "Hi", "--model", arg(model)];
        support::json(program(&args, ""))["prompt_tokens"].clone()
    };
    assert_eq!(tokens(&adds), tokens(&support::model()));
    // The model as it is.
    let output = axiscap("run", &["-c", "64", "-n", "1", "-p", "Hi"]);
    assert!(!notes(&output).contains("BOS"));
    let raw = ["-c", "64", "-n", "1", "--raw", "-p", "<|im_start|><|im_start|>user"];
    assert!(!notes(&axiscap("run", &raw)).contains("BOS"), "what is written twice is meant");
}
