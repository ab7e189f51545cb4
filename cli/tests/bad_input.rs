//! Bad input: exit 1, and a message with what, where and the remedy. No model is run here for long.

mod support;

use std::fs::{self, File};
use std::io::Read;

use axiscap::Bound;
use support::{BLOCKS, WIDTH, arg, axiscap, caps, caps_for, fail, folder, model, program, with_stdin};

fn prompted<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["--prompt", "Hello", "--temp", "0", "--max-tokens", "2", "--ctx", "64"], args].concat()
}

#[test]
fn models_that_are_none() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let run = |model: &str| program(&["run", "--model", model, "--prompt", "Hello"], "");

    fs::write(path("text.gguf"), "# A readme\n").unwrap();
    fail(run(arg(&path("text.gguf"))), &["text.gguf", "magic", "GGUF file"]);

    fs::write(path("empty.gguf"), "").unwrap();
    fail(run(arg(&path("empty.gguf"))), &["empty.gguf", "empty", "fetch"]);

    // Cut within the metadata, and within the weights.
    for length in [1 << 20, 50 << 20] {
        let mut bytes = Vec::new();
        File::open(model()).unwrap().take(length).read_to_end(&mut bytes).unwrap();
        fs::write(path("cut.gguf"), bytes).unwrap();
        fail(run(arg(&path("cut.gguf"))), &["cut.gguf", "incomplete", "checksum"]);
    }

    fail(run(arg(&path("absent.gguf"))), &["absent.gguf", "No such file", "path"]);
    fail(run(arg(folder.path())), &["directory", "path"]);

    let caps_file = path("c.caps.gguf");
    caps(&caps_file, &[(3, 1, Bound::NONE, 1.0)]);
    fail(run(arg(&caps_file)), &["c.caps.gguf", "controlvector", "--caps"]);
}

#[test]
fn caps_that_do_not_fit_or_are_not_there() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    let run = || axiscap("run", &prompted(&["--caps", arg(&file)]));

    fail(run(), &["c.gguf", "check the path"]);

    caps_for(&file, &[(3, 1, Bound::NONE, 1.0)], WIDTH * 2, BLOCKS);
    fail(run(), &["c.gguf", "width", "1152", "576"]);

    caps_for(&file, &[(BLOCKS, 1, Bound::NONE, 1.0)], WIDTH, BLOCKS + 1);
    fail(run(), &["c.gguf", "30"]);

    fs::write(&file, "not a cap file").unwrap();
    fail(run(), &["c.gguf", "GGUF"]);

    caps(&file, &[(3, 1, Bound::NONE, 1.0)]);
    fail(axiscap("run", &prompted(&["--caps", arg(&file), "--strength", "1.5"])), &["1.5", "[0, 1]"]);
}

#[test]
fn a_plain_control_vector_has_no_bounds() {
    use axiscap::file::gguf::{Value, to_bytes};
    let folder = folder();
    let file = folder.path().join("vector.gguf");
    let metadata = [
        ("general.architecture".into(), Value::from("controlvector")),
        ("controlvector.model_hint".into(), Value::from("llama")),
        ("controlvector.layer_count".into(), Value::from(BLOCKS as i32)),
    ];
    let direction = [0.5; WIDTH];
    fs::write(&file, to_bytes(&metadata, &[("direction.7".into(), &direction)]).unwrap()).unwrap();
    fail(
        axiscap("run", &prompted(&["--caps", arg(&file)])),
        &["vector.gguf", "control vector", "axiscap calibrate"],
    );
}

#[test]
fn prompts_that_cannot_be_run() {
    let folder = folder();
    let long = "word ".repeat(300);
    let run = |args: &[&str], stdin: &str| with_stdin("run", args, stdin);
    fail(run(&["--raw", "--prompt", &long, "--ctx", "128"], ""), &["prompt has 30", "128", "--ctx", "8192"]);
    fail(run(&["--raw", "--prompt", ""], ""), &["empty"]);
    fail(run(&["--prompt-file", arg(&folder.path().join("no.txt"))], ""), &["no.txt", "No such file"]);
    fs::write(folder.path().join("latin1.txt"), b"caf\xe9").unwrap();
    fail(run(&["--prompt-file", arg(&folder.path().join("latin1.txt"))], ""), &["UTF-8", "byte 3"]);
    fail(run(&["--prompt", "Hello", "--chat-template", "nonsense"], ""), &["nonsense", "chatml", "--raw"]);
    fail(run(&["--prompt-file", "-"], "nul \0 inside"), &["NUL", "4"]);
}

#[test]
fn options_out_of_range() {
    for (option, value) in [
        ("--threads", "0"),
        ("--threads", "100000"),
        ("--ctx", "0"),
        ("--ctx", "4000000000"),
        ("--ubatch", "0"),
    ] {
        fail(axiscap("run", &["--prompt", "Hello", option, value]), &[option, value, "must be"]);
    }
    for (option, value) in [("--temp", "-1"), ("--temp", "nan"), ("--top-p", "1.5"), ("--min-p", "inf")] {
        let pair = format!("{option}={value}");
        fail(axiscap("run", &["--prompt", "Hello", &pair]), &[option, "must be"]);
    }
    fail(axiscap("bench", &["--pairs", "0"]), &["--caps"]);
    let output = axiscap("run", &["--prompt", "Hello", "--max-tokens", "-1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("invalid value '-1' for '--max-tokens"));
    // 690 GiB of KV cache; the system would kill the process rather than refuse.
    #[cfg(target_os = "linux")]
    fail(
        axiscap("run", &["--prompt", "Hello", "--ctx", "16000000", "--kv-type", "f32"]),
        &["16000000", "GiB", "--ctx"],
    );
}

#[test]
fn drift_needs_answers_and_a_script_that_is_one() {
    let folder = folder();
    let (file, script) = (folder.path().join("c.gguf"), folder.path().join("script.json"));
    caps(&file, &[(3, 1, Bound::NONE, 1.0)]);
    let drift = |args: &[&str]| axiscap("drift", &[&["--caps", arg(&file)], args].concat());
    for tokens in ["0", "1"] {
        fail(drift(&["--max-tokens", tokens]), &["--max-tokens", tokens, "2 or more"]);
    }
    fs::write(&script, "").unwrap();
    let output = drift(&["--script", arg(&script)]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(errors.matches("EOF while parsing").count(), 1, "{errors}");
    fail(output, &["script.json", "\"turns\""]);
}

#[test]
fn options_without_their_effect_are_told() {
    let told = |args: &[&str], parts: &[&str]| {
        let output = axiscap("run", &[&["--prompt", "Hello", "--max-tokens", "1"], args].concat());
        let notes = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{notes}");
        for part in parts {
            assert!(notes.contains(part), "no {part:?} in: {notes}");
        }
    };
    told(&["--ctx", "8193"], &["warning: --ctx 8193", "8192"]);
    #[cfg(not(feature = "cuda"))]
    told(&["--gpu-layers", "99", "--ctx", "64"], &["warning: --gpu-layers 99", "axiscap doctor"]);
}

#[test]
fn outputs_that_cannot_be_written() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    caps(&file, &[(3, 1, Bound::NONE, 1.0)]);
    let trace = |path: &str| axiscap("run", &prompted(&["--json", "--caps", arg(&file), "--trace", path]));
    fail(trace(arg(&folder.path().join("no/such/t.jsonl"))), &["t.jsonl", "no folder"]);
    fail(trace(arg(folder.path())), &["folder", "name a file"]);
    #[cfg(target_os = "linux")]
    {
        fail(trace("/dev/full"), &["/dev/full", "space"]);
        fail(trace("/proc/t.jsonl"), &["/proc/t.jsonl"]);
        let full = File::options().write(true).open("/dev/full").unwrap();
        let child = std::process::Command::new(env!("CARGO_BIN_EXE_axiscap"))
            .args(["run", "--model", arg(&model())])
            .args(prompted(&["--json"]))
            .stdout(full)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        fail(child.wait_with_output().unwrap(), &["stdout", "space"]);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no half-written files are left");
}
