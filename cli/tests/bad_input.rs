//! Bad input: status 1, and a message that says what is wrong, where, and what to do.

mod support;

use std::fs::{self, File};
use std::io::Read;

use axiscap::Bound;
use support::{
    BLOCKS, WIDTH, arg, axiscap, caps, caps_for, fail, folder, misuse, model, notes, program, with_stdin,
};

fn prompted<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["--prompt", "Hello", "--temp", "0", "--max-tokens", "2", "--ctx", "64"], args].concat()
}

#[test]
fn a_file_that_is_no_model_is_refused() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let run = |model: &str| program(&["run", "--model", model, "--prompt", "Hello"], "");

    fs::write(path("text.gguf"), "# A readme\n").unwrap();
    fail(run(arg(&path("text.gguf"))), &["text.gguf", "magic", "GGUF file"]);

    fs::write(path("empty.gguf"), "").unwrap();
    fail(run(arg(&path("empty.gguf"))), &["empty.gguf", "empty", "fetch"]);

    // Cut within the metadata, then within the weights.
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
fn caps_that_are_missing_or_do_not_fit_are_refused() {
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
    misuse(axiscap("run", &prompted(&["--caps", arg(&file), "--strength", "1.5"])), &["1.5", "[0, 1]"]);

    // A cap file that cannot be used is refused before the model is loaded.
    fs::write(&file, "not a cap file").unwrap();
    let no_model = ["run", "--model", "no-model.gguf", "--caps", arg(&file), "--prompt", "Hello"];
    fail(program(&no_model, ""), &["c.gguf", "GGUF"]);
}

#[test]
fn a_plain_control_vector_is_refused_and_calibrate_named() {
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
fn a_prompt_that_cannot_be_run_is_refused() {
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

#[cfg(target_os = "linux")]
#[test]
fn an_input_without_an_end_is_refused() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    caps(&file, &[(3, 1, Bound::NONE, 1.0)]);
    let endless = ["/dev/zero", "256 MiB"];
    fail(axiscap("run", &["--prompt-file", "/dev/zero"]), &endless);
    fail(axiscap("drift", &["--caps", arg(&file), "--script", "/dev/zero", "--plot", "/dev/null"]), &endless);
    let out = folder.path().join("a.gguf");
    fail(axiscap("extract", &["--roles", "/dev/zero", "--out", arg(&out)]), &endless);
    fail(axiscap("extract", &["--questions", "/dev/zero", "--out", arg(&out)]), &endless);
    fail(
        axiscap("extract", &["--rollouts", "/dev/zero", "--out", arg(&out)]),
        &["/dev/zero, line 1", "too long"],
    );
    fail(axiscap("run", &["--prompt", "Hello", "--caps", "/dev/zero"]), &["/dev/zero", "GGUF"]);
    let stdin = |args: &[&str]| {
        let child = std::process::Command::new(env!("CARGO_BIN_EXE_axiscap"))
            .args(args)
            .args(["--model", arg(&model())])
            .stdin(File::open("/dev/zero").unwrap())
            .output();
        child.unwrap()
    };
    fail(stdin(&["run", "--prompt", "-"]), &["stdin", "256 MiB"]);
    fail(stdin(&["chat"]), &["line 1 of the conversation", "256 MiB"]);
}

#[test]
fn a_name_longer_than_a_column_can_be_is_inspected() {
    use axiscap::file::{CapFile, ModelInfo};
    use axiscap::{BlockCap, Cap, CapSet};
    let folder = folder();
    let file = folder.path().join("c.gguf");
    let cap = |block: usize, name: String| {
        let cap = Cap::new(support::axis(block as u64, WIDTH), Bound::floor(0.0).unwrap()).with_name(name);
        BlockCap { block, cap }
    };
    let set = CapSet::new([cap(3, "n".repeat(70_000)), cap(4, "short".into())]).unwrap();
    CapFile::new(set, ModelInfo::new("llama", BLOCKS)).write(&file).unwrap();
    let table = support::succeed(program(&["inspect", arg(&file)], ""));
    assert!(table.contains("nnn... (70000 bytes)") && table.contains("short"), "{table}");
    let report = support::json(program(&["inspect", "--json", arg(&file)], ""));
    assert_eq!(report["caps"][0]["name"].as_str().unwrap().len(), 70_000);
}

#[test]
fn an_option_out_of_range_is_refused() {
    for (option, value) in [("--threads", "0"), ("--threads", "100000"), ("--batch", "0"), ("--ubatch", "0")]
    {
        misuse(axiscap("run", &["--prompt", "Hello", option, value]), &[option, value, "is not in 1"]);
    }
    misuse(
        axiscap("run", &["--prompt", "Hello", "--ctx", "4000000000"]),
        &["--ctx", "is not in 0..=16777216"],
    );
    for (option, value) in [
        ("--temp", "-inf"),
        ("--temp", "nan"),
        ("--top-k", "1.5"),
        ("--top-p", "1.5"),
        ("--min-p", "inf"),
        ("--repeat-penalty", "0"),
        ("--presence-penalty", "nan"),
        ("--frequency-penalty", "inf"),
        ("--gpu-layers", "many"),
    ] {
        let pair = format!("{option}={value}");
        misuse(axiscap("run", &["--prompt", "Hello", &pair]), &[option, value, "must be"]);
    }
    misuse(
        axiscap("run", &["--prompt", "Hello", "--max-tokens", "-3"]),
        &["invalid value '-3'", "--max-tokens", "-1: until the text ends"],
    );
    // llama.cpp would take this seed as a request for a random one.
    misuse(axiscap("run", &["--prompt", "Hello", "--seed", "4294967295"]), &["--seed", "4294967294"]);
    for command in ["bench", "drift"] {
        misuse(axiscap(command, &[]), &["required", "--caps"]);
        misuse(axiscap(command, &["--caps", "c.gguf", "--threads", "0"]), &["--threads"]);
        let help = support::succeed(program(&[command, "--help"], ""));
        assert!(help.contains("--caps") && !help.contains("runs uncapped"), "{help}");
    }
    for option in ["--pairs", "--prompts", "--prompt-tokens", "--generate-tokens", "--sequences"] {
        misuse(axiscap("bench", &["--caps", "c.gguf", option, "0"]), &[option, "0 is not in 1"]);
    }
    let far = ["--caps", "c.gguf", "--generate-tokens", "3000000000"];
    misuse(axiscap("bench", &far), &["--generate-tokens", "3000000000"]);
    misuse(axiscap("calibrate", &["--percentile", "101"]), &["--percentile", "role end"]);
    // 690 GiB of KV cache. The system would kill the process and not refuse the memory.
    #[cfg(target_os = "linux")]
    fail(
        axiscap("run", &["--prompt", "Hello", "--ctx", "16000000", "--kv-type", "f32"]),
        &["16000000", "GiB", "--ctx"],
    );
}

#[test]
fn drift_refuses_short_answers_and_a_file_that_is_no_script() {
    let folder = folder();
    let (file, script) = (folder.path().join("c.gguf"), folder.path().join("script.json"));
    caps(&file, &[(3, 1, Bound::NONE, 1.0)]);
    let drift = |args: &[&str]| axiscap("drift", &[&["--caps", arg(&file)], args].concat());
    for tokens in ["0", "1"] {
        misuse(drift(&["--max-tokens", tokens]), &["--max-tokens", tokens, "2 or more"]);
    }
    fs::write(&script, "").unwrap();
    let output = drift(&["--script", arg(&script)]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(errors.matches("EOF while parsing").count(), 1, "{errors}");
    fail(output, &["script.json", "\"turns\""]);
}

#[test]
fn options_without_effect_are_warned_of() {
    let warned = |args: &[&str], parts: &[&str]| {
        let output = axiscap("run", &[&["--prompt", "Hello", "--max-tokens", "1"], args].concat());
        let notes = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{notes}");
        for part in parts {
            assert!(notes.contains(part), "no {part:?} in: {notes}");
        }
    };
    warned(&["--ctx", "8193"], &["warning: --ctx 8193", "8192"]);
    let folder = folder();
    let file = folder.path().join("axes.gguf");
    caps(&file, &[(3, 1, Bound::NONE, 1.0)]);
    warned(&["--caps", arg(&file)], &["warning:", "axes.gguf: no cap has a bound", "axiscap calibrate"]);
    let observed = axiscap("run", &prompted(&["--caps", arg(&file), "--observe"]));
    assert!(!notes(&observed).contains("warning"), "{}", notes(&observed));
    caps(&file, &[(3, 1, Bound::NONE, 1.0), (4, 1, Bound::floor(0.0).unwrap(), 1.0)]);
    assert!(!notes(&axiscap("run", &prompted(&["--caps", arg(&file)]))).contains("warning"));
    #[cfg(not(feature = "cuda"))]
    warned(&["--gpu-layers", "99", "--ctx", "64"], &["warning: --gpu-layers 99", "axiscap doctor"]);
}

#[test]
fn caps_of_another_model_or_quantisation_are_warned_of() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    let mut info = axiscap::file::ModelInfo::new("llama", BLOCKS);
    let cap = axiscap::Cap::new(support::axis(1, WIDTH), Bound::floor(0.0).unwrap());
    let set = axiscap::CapSet::new([axiscap::BlockCap { block: 3, cap }]).unwrap();
    (info.name, info.file_type) = (Some("Somebody else".into()), Some(15));
    let mut other = axiscap::file::CapFile::new(set, info);
    other.write(&file).unwrap();
    let errors = notes(&axiscap("run", &prompted(&["--caps", arg(&file)])));
    for part in ["c.gguf: made for the model \"Somebody else\"", "file type 15", "calibrate on this"] {
        assert!(errors.contains(part), "no {part:?} in: {errors}");
    }
    (other.model.name, other.model.file_type) = (None, None);
    other.write(&file).unwrap();
    assert!(!notes(&axiscap("run", &prompted(&["--caps", arg(&file)]))).contains("warning"));
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../lab/assets/smollm2-135m-instruct.caps.gguf");
    assert!(!notes(&axiscap("run", &prompted(&["--caps", shipped]))).contains("warning"));

    // Warnings about the file itself are printed too.
    use axiscap::file::gguf::{Gguf, to_bytes};
    let bytes = fs::read(&file).unwrap();
    let metadata = Gguf::parse(&bytes).unwrap().metadata;
    let axis = support::axis(1, WIDTH);
    let tensors = [("direction.3".into(), axis.values()), ("direction.9".into(), axis.values())];
    fs::write(&file, to_bytes(&metadata, &tensors).unwrap()).unwrap();
    let errors = notes(&axiscap("run", &prompted(&["--caps", arg(&file)])));
    assert!(errors.contains("c.gguf: tensor direction.9 is used by no cap"), "{errors}");
}

#[test]
fn an_output_never_replaces_an_input() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (model, link, caps_file) = (at("model.gguf"), at("link.gguf"), at("c.gguf"));
    fs::write(&model, "weights").unwrap();
    fs::hard_link(&model, &link).unwrap();
    fs::write(at("roles.json"), "roles").unwrap();
    caps(&caps_file, &[(3, 1, Bound::floor(0.0).unwrap(), 1.0)]);
    let refuse = |command: &str, args: &[&str], flags: [&str; 2]| {
        let all = [&[command, "--model", arg(&model)], args].concat();
        fail(program(&all, ""), &[flags[0], flags[1], "one file"]);
    };
    let (roles, answers) = (at("roles.json"), at("answers.jsonl"));
    let (roles, answers, link, caps_file) = (arg(&roles), arg(&answers), arg(&link), arg(&caps_file));
    for output in [arg(&model), link] {
        refuse("extract", &["--out", output], ["--out", "--model"]);
        refuse("extract", &["--out", answers, "--plot", output], ["--plot", "--model"]);
        refuse("calibrate", &["--axes", caps_file, "--out", output], ["--out", "--model"]);
        refuse("drift", &["--caps", caps_file, "--plot", output], ["--plot", "--model"]);
        refuse("run", &["--prompt", "x", "--caps", caps_file, "--trace", output], ["--trace", "--model"]);
    }
    refuse("extract", &["--out", roles, "--roles", roles], ["--out", "--roles"]);
    refuse("calibrate", &["--out", caps_file, "--axes", caps_file], ["--out", "--axes"]);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(caps_file, at("soft.gguf")).unwrap();
        refuse("calibrate", &["--out", arg(&at("soft.gguf")), "--axes", caps_file], ["--out", "--axes"]);
        fs::remove_file(at("soft.gguf")).unwrap();
    }
    refuse("extract", &["--out", answers, "--rollouts", answers], ["--rollouts", "--out"]);
    refuse("extract", &["--out", answers, "--plot", answers], ["--plot", "--out"]);
    refuse("run", &["--prompt", "x", "--caps", caps_file, "--trace", caps_file], ["--trace", "--caps"]);
    let prompt = ["--prompt-file", roles, "--caps", caps_file, "--trace", roles];
    refuse("run", &prompt, ["--trace", "--prompt-file"]);
    refuse("drift", &["--caps", caps_file, "--plot", caps_file], ["--plot", "--caps"]);
    refuse("drift", &["--caps", caps_file, "--script", roles, "--plot", roles], ["--plot", "--script"]);
    assert_eq!(fs::read(&model).unwrap(), b"weights");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "nothing was written");
}

#[cfg(target_os = "linux")]
#[test]
fn a_path_need_not_be_unicode() {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::OsStrExt;
    let folder = folder();
    let at = |name: &[u8]| folder.path().join(OsStr::from_bytes(name));
    let (caps_file, axes, plot) = (at(b"caps\xff.gguf"), at(b"axes\xff.gguf"), at(b"drift\xff.svg"));
    caps(&caps_file, &[(3, 1, Bound::floor(0.0).unwrap(), 1.0)]);
    let run = |command: &str, args: &[&OsStr]| -> serde_json::Value {
        let mut all: Vec<OsString> = vec![command.into(), "--json".into()];
        if command != "inspect" {
            all.extend(["--model".into(), model().into()]);
        }
        all.extend(args.iter().map(|&arg| arg.to_owned()));
        support::json(program(&all, ""))
    };
    let report = run("inspect", &[caps_file.as_os_str()]);
    assert!(report["file"].as_str().unwrap().ends_with("caps\u{fffd}.gguf"), "{report}");
    let few =
        ["--limit-roles", "1", "--limit-questions", "2", "--held-out-answers", "1", "--max-tokens", "2"];
    let few = [&few[..], &["--keep", "all", "--out"]].concat();
    let few: Vec<_> = few.into_iter().map(OsStr::new).collect();
    let report = run("extract", &[&few[..], &[axes.as_os_str()]].concat());
    assert!(report["out"].as_str().unwrap().ends_with("axes\u{fffd}.gguf"), "{report}");
    let blocks = [OsStr::new("--blocks"), OsStr::new("9"), OsStr::new("--axes"), axes.as_os_str()];
    let out = at(b"out\xff.gguf");
    let dose = support::SMALL_DOSE.map(OsStr::new);
    let report = run("calibrate", &[&few[..], &[out.as_os_str()], &blocks, &dose].concat());
    assert!(report["out"].is_string());
    let script = at(b"script.json");
    fs::write(&script, r#"{"name": "one", "turns": ["Hi."]}"#).unwrap();
    let short = ["--max-tokens", "2", "--speed-pairs", "0", "--caps"].map(OsStr::new);
    let files = [
        caps_file.as_os_str(),
        OsStr::new("--script"),
        script.as_os_str(),
        OsStr::new("--plot"),
        plot.as_os_str(),
    ];
    assert!(run("drift", &[&short[..], &files].concat())["plot"].is_string());
}

#[test]
fn an_output_that_cannot_be_written_is_refused() {
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
        let full = File::options().write(true).open("/dev/full").unwrap();
        let child = std::process::Command::new(env!("CARGO_BIN_EXE_axiscap"))
            .args(["inspect", arg(&file)])
            .stdout(full)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        fail(child.wait_with_output().unwrap(), &["stdout", "space"]);
        // The output is checked before the conversations.
        let plot = ["drift", "--model", "no-model.gguf", "--caps", arg(&file), "--plot", "/proc/d.svg"];
        fail(program(&plot, ""), &["--plot", "/proc/d.svg"]);
        let default = std::process::Command::new(env!("CARGO_BIN_EXE_axiscap"))
            .args(&plot[..5])
            .current_dir("/proc")
            .output();
        fail(default.unwrap(), &["--plot: cannot write drift.svg", "another place"]);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no half-written files are left");
}
