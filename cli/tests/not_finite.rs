//! A model whose activations are NaN: caps leave such rows alone, and every command says so.

mod support;

use axiscap::Bound;
use support::gguf::Source;
use support::{arg, caps, fail_with, folder, json, program};

#[test]
fn rows_that_cannot_be_capped_are_an_error_and_not_a_text() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (broken, file, free) = (at("nan.gguf"), at("c.gguf"), at("free.gguf"));
    Source::open().with_value(&broken, "blk.10.attn_norm.weight", f32::NAN);
    caps(&file, &[(20, 1, Bound::floor(0.5).unwrap(), 1.0), (25, 2, Bound::NONE, 1.0)]);
    caps(&free, &[(20, 1, Bound::NONE, 1.0), (21, 2, Bound::floor(0.5).unwrap(), 0.0)]);
    let (plot, short) = (at("d.svg"), ["--max-tokens", "4", "--ctx", "256", "--model", arg(&broken)]);
    let run = ["run", "--prompt", "Hello"];
    let drift = ["drift", "--speed-pairs", "0", "--plot", arg(&plot)];
    let bench = [
        "bench",
        "--model",
        arg(&broken),
        "--caps",
        arg(&file),
        "--pairs",
        "1",
        "--prompt-tokens",
        "4",
        "--generate-tokens",
        "4",
    ];
    let says = ["block 20", "no finite projection", "stayed uncapped"];
    for command in [&run[..], &["chat"], &drift] {
        let words = [command, &short, &["--caps", arg(&file)]].concat();
        fail_with(1, &program(&words, "Hello\n"), &says);
    }
    fail_with(1, &program(&bench, ""), &says);
    // Caps that only observe leave every row alone.
    let observed = json(program(&[&run[..], &short, &["--caps", arg(&free), "--json"]].concat(), ""));
    assert_eq!(observed["caps"][0]["non_finite"], observed["caps"][0]["rows"]);
}
