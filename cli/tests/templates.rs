//! Models without a chat template, and with one that llama.cpp does not know.

mod support;

use std::fs;
use std::ops::Range;

use axiscap::Bound;
use support::{arg, caps, fail, folder, model, program, succeed};

const KEY: &[u8] = b"tokenizer.chat_template";

/// Finds the key of the chat template in the model file, and its text. The 12 bytes between the two hold the
/// text's type and length.
fn key_and_text(bytes: &[u8]) -> (usize, Range<usize>) {
    let at = bytes.windows(KEY.len()).position(|bytes| bytes == KEY).expect("a chat template");
    let text = at + KEY.len() + 12;
    let length = u64::from_le_bytes(bytes[text - 8..text].try_into().unwrap());
    (at, text..text + usize::try_from(length).unwrap())
}

#[test]
fn every_command_that_converses_takes_another_template() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let (none, unknown, cap_file) = (path("none.gguf"), path("unknown.gguf"), path("c.gguf"));
    let mut bytes = fs::read(model()).unwrap();
    let (key, text) = key_and_text(&bytes);
    bytes[text].fill(b'?');
    fs::write(&unknown, &bytes).unwrap();
    bytes[key..key + KEY.len()].fill(b'x');
    fs::write(&none, &bytes).unwrap();
    caps(&cap_file, &[(20, 1, Bound::NONE, 1.0)]);
    let (plot, axes) = (path("d.svg"), path("axes.gguf"));
    let run = ["run", "--prompt", "Hello", "--max-tokens", "2", "--ctx", "64"];
    let chat = ["chat", "--max-tokens", "2", "--ctx", "64"];
    let drift =
        ["drift", "--caps", arg(&cap_file), "--max-tokens", "2", "--speed-pairs", "0", "--plot", arg(&plot)];
    let extract = [
        "extract",
        "--out",
        arg(&axes),
        "--limit-roles",
        "1",
        "--limit-questions",
        "2",
        "--max-tokens",
        "2",
        "--keep",
        "all",
    ];
    for (file, says) in [(&none, "no chat template"), (&unknown, "cannot be used: it cannot be run")] {
        for command in [&run[..], &chat, &drift, &extract] {
            let given = [command, &["--model", arg(file)]].concat();
            fail(program(&given, "Hello\n"), &[says, "--chat-template", "chatml", "run --raw"]);
        }
    }
    // A conversation without a turn needs a template too.
    fail(program(&[&chat[..], &["--model", arg(&none)]].concat(), ""), &["no chat template"]);
    fail(
        program(&[&chat[..], &["--model", arg(&unknown)]].concat(), ""),
        &["cannot be used: it cannot be run"],
    );
    for command in [&run[..], &chat, &drift, &extract] {
        let given = [command, &["--model", arg(&none), "--chat-template", "chatml"]].concat();
        succeed(program(&given, "Hello\n"));
    }
    let raw = [&run[..], &["--model", arg(&none), "--raw"]].concat();
    succeed(program(&raw, ""));
}
