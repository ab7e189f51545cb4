//! llama.cpp's command lines, given to axiscap.

mod support;

use axiscap_testing::llama::{Description, TestModel};
use serde_json::Value;
use support::{arg, axiscap, fail, folder, json, misuse, model, notes, program, succeed, with_stdin};

/// Runs `axiscap run` with llama.cpp's options, without the model's.
fn run(line: &str) -> Value {
    json(axiscap("run", &words(line)))
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

#[test]
fn a_command_line_of_llama_cpp_writes_what_ours_does() {
    let folder = folder();
    let prompt = folder.path().join("prompt.txt");
    std::fs::write(&prompt, "Once upon a time").unwrap();
    let model = model();
    let theirs = [
        "run",
        "-m",
        arg(&model),
        "-f",
        arg(&prompt),
        "-sys",
        "Be brief.",
        "-n",
        "6",
        "-c",
        "256",
        "-t",
        "1",
        "-ngl",
        "0",
        "-ctk",
        "f32",
        "-ctv",
        "f32",
        "-fa",
        "off",
        "-b",
        "64",
        "-ub",
        "16",
        "-s",
        "7",
        "--temp",
        "0.9",
        "--json",
    ];
    let ours = [
        "run",
        "--model",
        arg(&model),
        "--prompt-file",
        arg(&prompt),
        "--system",
        "Be brief.",
        "--max-tokens",
        "6",
        "--ctx",
        "256",
        "--threads",
        "1",
        "--gpu-layers",
        "0",
        "--kv-type",
        "f32",
        "--flash-attn",
        "off",
        "--batch",
        "64",
        "--ubatch",
        "16",
        "--seed",
        "7",
        "--temp",
        "0.9",
        "--json",
    ];
    let long = [
        "run",
        "--model",
        arg(&model),
        "--file",
        arg(&prompt),
        "--system-prompt",
        "Be brief.",
        "--n-predict",
        "6",
        "--ctx-size",
        "256",
        "--threads",
        "1",
        "--n-gpu-layers",
        "0",
        "--cache_type_k",
        "f32",
        "--cache-type-v=f32",
        "--flash-attn",
        "off",
        "--batch-size",
        "64",
        "--ubatch_size",
        "16",
        "--seed",
        "7",
        "--temperature",
        "0.9",
        "--json",
    ];
    let [theirs, ours, long] = [&theirs[..], &ours[..], &long[..]].map(|args| json(program(args, "")));
    assert_eq!(theirs["tokens"].as_array().unwrap().len(), 6, "{theirs}");
    for report in [&ours, &long] {
        assert_eq!((&report["tokens"], &report["seed"]), (&theirs["tokens"], &7.into()));
    }
}

#[test]
fn a_bare_fa_turns_flash_attention_on() {
    // A quantised V needs flash attention, so `off` fails where `on` does not.
    let line = "-p Hello -n 1 -c 64 -ctv q8_0 --json";
    for fa in ["-fa", "-fa on", "-fa auto", "-fa -1", "-fa 1", "--flash-attn"] {
        run(&format!("{fa} {line}"));
        run(&format!("{line} {fa}"));
    }
    for fa in ["-fa off", "-fa 0", "-fa=off"] {
        let line = format!("{line} {fa}");
        fail(
            axiscap("run", &words(&line)),
            &[
                "cannot keep K as f16 and V as q8_0",
                "quantized V cache requires flash_attn",
                "--cache-type-v",
                "--flash-attn",
            ],
        );
    }
    misuse(axiscap("run", &words("-p Hello -fa maybe")), &["'maybe'", "--flash-attn", "on, off, auto"]);
}

#[test]
fn keys_and_values_are_kept_in_every_type_of_llama_cpp() {
    let text = |types: &str| run(&format!("-p Hello. -n 4 -c 128 --temp 0 --json {types}"))["text"].clone();
    for kind in ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"] {
        assert!(text(&format!("-ctk {kind} -ctv f16")).is_string());
        assert!(text(&format!("-ctk f32 -ctv {kind}")).is_string());
        assert_eq!(text(&format!("--kv-type {kind}")), text(&format!("-ctk {kind} -ctv {kind}")));
    }
    misuse(axiscap("run", &words("-p Hello -ctk q2_k")), &["'q2_k'", "--cache-type-k", "iq4_nl"]);
}

#[test]
fn heads_that_are_no_multiple_of_a_block_are_refused() {
    let folder = folder();
    // Two heads of 24. What else its metadata says, windows among it, changes nothing.
    let mut windows = Description::new("llama", false);
    windows.set(".embedding_length", 48u32);
    let mut plain = windows.clone();
    for key in [
        ".attention.sliding_window",
        ".attention.sliding_window_pattern",
        ".attention.kv_lora_rank",
        ".ssm.state_size",
        ".wkv.head_size",
    ] {
        plain.remove(key);
    }
    for (name, description) in [("windows.gguf", windows), ("plain.gguf", plain)] {
        let model = folder.path().join(name);
        TestModel::write(&description, &model).expect("llama.cpp takes it");
        let run = |types: &str| {
            let line = format!("--raw -p Once -n 1 -c 64 --json {types}");
            program(&[&["run", "-m", arg(&model)], &words(&line)[..]].concat(), "")
        };
        json(run("-ctk bf16 -ctv f32"));
        json(run("-ctk bf16 -ctv f32 -fa off"));
        fail(
            run("-ctk q8_0"),
            &["K cache type q8_0 with block size 32 does not divide n_embd_head_k=24", "f16"],
        );
        fail(run("-ctv q5_1"), &["V cache type q5_1 with block size 32 does not divide n_embd_head_v=24"]);
        // Without flash attention llama.cpp does not check it.
        fail(
            run("-ctk q4_0 -fa off"),
            &["the key of a head has 24 numbers, no multiple of the 32 of a block"],
        );
    }
}

#[test]
fn minus_one_tokens_go_on_until_the_context_is_full() {
    let report = run("--raw -p One,two,three -n -1 -c 24 --temp 0 --json");
    assert_eq!(report["stop"], "context_full");
    let (prompt, written) = (report["prompt_tokens"].as_u64().unwrap(), report["tokens"].as_array().unwrap());
    assert_eq!(prompt + written.len() as u64, 25);
}

#[test]
fn context_zero_is_what_the_model_was_trained_on() {
    let long = "word ".repeat(8300);
    let output = with_stdin("run", &words("--raw -p - -c 0 -n 1"), long);
    fail(output, &["but the context holds 8192;"]);
}

#[test]
fn a_drawn_seed_is_reported_and_draws_the_same_again() {
    let line = "--raw -p Once -n 8 -c 64 --temp 1.5 --json";
    let drawn = run(&format!("{line} -s -1"));
    let seed = drawn["seed"].as_u64().unwrap();
    assert_eq!(run(&format!("{line} -s {seed}"))["tokens"], drawn["tokens"]);
    assert_ne!(run(&format!("{line} --seed=-1"))["seed"], drawn["seed"]);
    let plain = notes(&axiscap("run", &words("--raw -p Once -n 1 -c 64 --seed -1")));
    assert!(plain.contains("[seed ") && plain.contains("draws the same again]"), "{plain}");
    let turn = json(with_stdin("chat", &words("-n 1 -c 64 -s -1 --json"), "Hello.\n"));
    assert!(turn["seed"].is_u64(), "{turn}");
}

#[test]
fn penalties_keep_a_greedy_text_from_repeating_itself() {
    let line = "--raw -p sea,sea,sea,sea,sea,sea,sea,sea, -n 12 -c 64 --temp 0 --json";
    let free = run(line);
    for none in [
        "--repeat-penalty 1.0",
        "--repeat-penalty 9 --repeat-last-n 0",
        "--presence-penalty 0 --frequency-penalty 0",
    ] {
        assert_eq!(run(&format!("{line} {none}"))["tokens"], free["tokens"], "{none}");
    }
    let distinct = |report: &Value| {
        let mut tokens: Vec<_> = report["tokens"].as_array().unwrap().iter().map(|t| t.as_i64()).collect();
        tokens.sort();
        tokens.dedup();
        tokens.len()
    };
    assert!(distinct(&free) < 12, "the model repeats itself: {free}");
    for held in ["--repeat-penalty 50", "--presence-penalty 60", "--frequency-penalty 60"] {
        let report = run(&format!("{line} {held} --repeat-last-n 2000000000"));
        assert!(distinct(&report) > distinct(&free), "{held}: {report}");
        assert!(!report["text"].as_str().unwrap().starts_with("sea"), "the prompt counts: {report}");
    }
}

#[test]
fn numbers_below_zero_mean_what_they_mean_in_llama_cpp() {
    let line = "--raw -p Once -n 6 -c 64 --json";
    assert_eq!(run(&format!("{line} --temp -1"))["tokens"], run(&format!("{line} --temp 0"))["tokens"]);
    assert_eq!(run(&format!("{line} --top-k -1"))["tokens"], run(&format!("{line} --top-k 0"))["tokens"]);
}

#[test]
fn all_layers_and_auto_are_accepted() {
    for layers in ["all", "auto", "-1", "-2"] {
        let output = axiscap("run", &words(&format!("--raw -p Once -n 1 -c 64 -ngl {layers}")));
        let warns = notes(&output).contains("llama.cpp sees no GPU");
        if warns {
            assert!(layers == "all" || layers == "-2", "{layers}: {}", notes(&output));
        }
    }
    misuse(axiscap("run", &words("-p Hello -ngl many")), &["'many'", "--gpu-layers", "all, or auto"]);
}

#[test]
fn a_small_batch_limits_the_pass_as_in_llama_cpp() {
    let line = "--raw -p One,two,three,four,five,six -n 4 -c 64 --temp 0 --json";
    let whole = run(line)["tokens"].clone();
    assert_eq!(run(&format!("{line} -b 4"))["tokens"].as_array().unwrap().len(), 4);
    assert_eq!(run(&format!("{line} -b 64 -ub 512"))["tokens"], whole);
    assert_eq!(run(&format!("{line} -ub 4096"))["tokens"], whole);
}

#[test]
fn help_shows_the_short_forms_and_errors_name_the_option() {
    let help = succeed(program(&["run", "--help"], ""));
    for part in [
        "-ngl, --gpu-layers",
        "-ctk, --cache-type-k",
        "-ctv, --cache-type-v",
        "-fa, --flash-attn",
        "-ub, --ubatch",
        "-sys, --system",
        "-m, --model",
        "-p, --prompt",
        "-n, --max-tokens",
        "-c, --ctx",
        "-t, --threads",
        "-b, --batch",
        "-s, --seed",
        "-f, --prompt-file",
        "--n-predict",
        "--ctx-size",
    ] {
        assert!(help.contains(part), "no {part} in {help}");
    }
    assert_eq!(succeed(program(&["help", "run"], "")), help);
    misuse(axiscap("bench", &words("--caps c.gguf -sys x")), &["unexpected argument '--system'"]);
    misuse(axiscap("run", &words("-p x -ngl")), &["value is required", "--gpu-layers"]);
    misuse(axiscap("run", &words("-p x --threads -ngl 3")), &["value is required", "--threads"]);
    // A prompt may look like an option.
    let report = run("--raw -p -ngl -n 1 -c 64 --json");
    assert!(report["prompt_tokens"].as_u64().unwrap() > 1, "{report}");
}
