//! `axiscap exec` with programs that report as the plugin does (`support/host.py`), and with others that do
//! not.
#![cfg(unix)]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use axiscap::Bound;
use axiscap::file::gguf;
use serde_json::{Value, json};
use support::launcher::{Place, finish, host, loaded, run_to_end};
use support::{arg, caps, fail, fail_with, misuse, notes};

#[test]
fn a_host_has_its_variables_its_streams_and_its_status() {
    let place = Place::new();
    caps(&place.at("d.gguf"), &[(4, 1, Bound::floor(0.5).unwrap(), 1.0)]);
    let options = ["--caps", "d.gguf", "--strength", "0.25", "--strict", "warn", "--engine", "one-graph"];
    let steps =
        [json!(["environment", "variables"]), loaded(), json!(["copy"]), json!(["stderr", "from the host"])];
    let mut command = place.command(&[&options[..], &["--log", "debug"]].concat());
    let mut child = command
        .current_dir(place.0.path())
        .stdin(Stdio::piped())
        .arg("--")
        .args(host(&[&steps[..], &[json!(["exit", 7])]].concat()))
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"through the host").unwrap();
    let output = finish(child);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(output.stdout, b"through the host");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        errors.contains("from the host\n") && errors.contains("warning: d.gguf: the file has no digests"),
        "{errors}"
    );

    let variables: Value = serde_json::from_str(&fs::read_to_string(place.at("variables")).unwrap()).unwrap();
    let caps = format!("{}:{}", place.step("c.gguf"), place.step("d.gguf"));
    for (name, value) in [
        ("GGML_BACKEND_PATH", place.step("plugin.so").as_str()),
        ("AXISCAP_CAPS", &caps),
        ("AXISCAP_STRENGTH", "0.25"),
        ("AXISCAP_STRICT", "warn"),
        ("AXISCAP_ENGINE", "one-graph"),
        ("AXISCAP_LOG", "debug"),
    ] {
        assert_eq!(variables[name], value, "{name}");
    }
    let socket = variables["AXISCAP_REPORT"].as_str().unwrap();
    assert!(!Path::new(socket).parent().unwrap().exists(), "the socket and its folder are removed");

    // Without options, and with settings from the environment.
    let variables = |command: &mut Command| -> Value {
        let steps = [json!(["environment", place.step("variables")]), loaded()];
        notes(&run_to_end(command.arg("--").args(host(&steps))));
        serde_json::from_str(&fs::read_to_string(place.at("variables")).unwrap()).unwrap()
    };
    let plain = variables(&mut place.command(&[]));
    assert_eq!(plain["AXISCAP_STRICT"], "abort");
    for name in ["STRENGTH", "ENGINE", "LOG", "PROFILES"] {
        assert!(plain.get(format!("AXISCAP_{name}")).is_none(), "{name}");
    }
    let settings = [("AXISCAP_STRICT", "warn"), ("AXISCAP_STRENGTH", "0.5"), ("AXISCAP_LOG", "error")];
    let given = variables(place.command(&["--log", "info"]).envs(settings));
    let found = ["STRICT", "STRENGTH", "LOG"].map(|name| given[format!("AXISCAP_{name}")].as_str());
    assert_eq!(found, [Some("warn"), Some("0.5"), Some("info")]);
    misuse(run_to_end(place.command(&["--", "true"]).env("AXISCAP_STRENGTH", "2")), &["2", "[0, 1]"]);

    // Profiles need the plugin before all other libraries. The loader leaves out files that are none.
    let folder = place.0.path();
    let profiles =
        variables(place.command(&["--profiles", "0-1=default,2=none,3=d.gguf"]).current_dir(folder));
    let expected = format!("0-1=default,2=none,3={}", place.step("d.gguf"));
    assert_eq!(profiles["AXISCAP_PROFILES"], expected.as_str());
    assert_eq!(profiles["LD_PRELOAD"], place.step("plugin.so").as_str());
    let after = variables(place.command(&["--profiles", "0=none"]).env("LD_PRELOAD", "/other.so"));
    assert_eq!(after["LD_PRELOAD"], format!("{}:/other.so", place.step("plugin.so")).as_str());
}

#[test]
fn a_host_that_ends_has_its_own_status() {
    let place = Place::new();
    let output = place.run(&[], &[loaded()]);
    assert_eq!(notes(&output), "");
    for steps in [vec![json!(["exit", 3])], vec![loaded(), json!(["exit", 3])]] {
        let output = place.run(&[], &steps);
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(3), &b""[..]));
    }
    for (signal, status) in [("SIGKILL", 137), ("SIGSEGV", 139), ("SIGTERM", 143)] {
        assert_eq!(
            place.run(&[], &[loaded(), json!(["kill", signal])]).status.code(),
            Some(status),
            "{signal}"
        );
    }
    assert_eq!(run_to_end(&mut place.command(&["--", "sh", "-c", "exit 255"])).status.code(), Some(255));
}

/// A static build that answers and ends within the time that it has to load the plugin.
#[test]
fn a_host_that_ends_with_success_but_uncapped_is_an_error() {
    let place = Place::new();
    let reason = "python3 ended before it loaded the plugin";
    fail(place.run(&[], &[]), &[reason, "-DGGML_BACKEND_DL=ON", "--strict warn"]);
    fail(place.run(&["--until-capped", "100"], &[]), &[reason]);
    fail(place.run(&["--until-capped", "100"], &[loaded()]), &["without a capped model", "axiscap bind"]);
    for (options, steps) in
        [(&["--strict", "warn"][..], vec![]), (&["--strict", "warn", "--until-capped", "9"], vec![loaded()])]
    {
        let errors = notes(&place.run(options, &steps));
        assert!(errors.contains("warning: python3 ended "), "{errors}");
    }
}

#[test]
fn reports_are_said_and_texts_in_them_are_printable() {
    let place = Place::new();
    let capped =
        json!({"event": "capped", "pid": 8, "caps": "c.gguf", "model": "a\u{1b}[2Jb", "blocks": [3, 4]});
    let steps = [
        json!(["raw", "no json\n{\"event\":\"tomorrow\"}\n"]),
        loaded(),
        json!(["report", capped]),
        json!(["report", {"event": "not_capped", "pid": 8, "model": "draft"}]),
        json!(["report", {"event": "warning", "pid": 8, "text": "slow"}]),
    ];
    let errors = notes(&place.run(&["--until-capped", "100"], &steps));
    for line in [
        "note: process 8: a\\u{1b}[2Jb is capped on 2 blocks by c.gguf\n",
        "warning: process 8: draft is not capped",
        "warning: process 8: slow\n",
    ] {
        assert!(errors.contains(line), "no {line:?} in {errors}");
    }
    assert!(!errors.contains('\u{1b}') && errors.lines().count() == 3, "{errors}");
    // A process that the host starts may be the one that reports.
    let other = json!([loaded(), ["touch", place.step("reported")]]);
    let steps = [json!(["fork", other]), json!(["wait", place.step("reported")])];
    assert_eq!(notes(&place.run(&[], &steps)), "");
}

#[test]
fn a_host_that_does_not_load_the_plugin_is_ended_with_its_processes() {
    let place = Place::new();
    let steps = [
        json!(["fork", [["touch", place.step("other")], ["sleep", 1000]]]),
        json!(["record", place.step("signals"), "SIGTERM"]),
        json!(["wait", place.step("signals")]),
        json!(["exit", 0]),
    ];
    let output = place.run(&["--timeout", "10"], &steps);
    let parts = [
        "python3 did not load the plugin",
        "plugin.so within 10 seconds",
        "hint: ",
        "BUILD_SHARED_LIBS",
        "--timeout",
    ];
    fail(output, &parts);
    assert_eq!(place.recorded("signals"), ["SIGTERM"]);
    place.has_ended("other");
    fail(
        run_to_end(&mut place.command(&["--timeout", "1", "--", "sleep", "1000"])),
        &["sleep did not load", "1 second,"],
    );
}

#[test]
fn a_host_that_ignores_sigterm_is_killed() {
    let place = Place::new();
    let deaf = |name: &str| {
        [json!(["ignore", "SIGTERM"]), json!(["touch", place.step(name)]), json!(["sleep", 1000])]
    };
    let steps = [&[json!(["fork", deaf("other")])], &deaf("host")[..]].concat();
    fail(place.run(&["--timeout", "10"], &steps), &["did not load the plugin"]);
    place.has_ended("host");
    place.has_ended("other");
}

#[test]
fn a_fatal_report_is_the_reason_of_the_failure() {
    let place = Place::new();
    let fatal = json!(["report", {"event": "fatal", "pid": 7, "reason": "block 3 has other rows"}]);
    let says = ["python3 cannot go on with caps: block 3 has other rows"];
    // The host ends at once, as one that aborts does: with any status.
    for end in [json!(["exit", 0]), json!(["exit", 3]), json!(["kill", "SIGABRT"])] {
        fail(place.run(&[], &[loaded(), fatal.clone(), end]), &says);
    }
    // Before the plugin was loaded.
    fail(place.run(&[], &[fatal.clone(), json!(["exit", 1])]), &says);
    // It goes on.
    let steps = [loaded(), fatal.clone(), json!(["touch", place.step("host")]), json!(["sleep", 1000])];
    fail(place.run(&[], &steps), &says);
    place.has_ended("host");
    // One of its processes goes on.
    let other = json!([["touch", place.step("other")], ["sleep", 1000]]);
    let steps =
        [json!(["fork", other]), json!(["wait", place.step("other")]), loaded(), fatal, json!(["exit", 0])];
    fail(place.run(&[], &steps), &says);
    place.has_ended("other");
}

#[test]
fn a_host_without_a_capped_model_is_ended_if_asked() {
    let place = Place::new();
    let steps = [loaded(), json!(["report", {"event": "not_capped", "model": "m"}]), json!(["sleep", 1000])];
    let errors = ["no capped model after 2 seconds", "axiscap bind", "--until-capped"];
    fail(place.run(&["--until-capped", "2"], &steps), &errors);
    // Without the option it goes on.
    let steps = [&steps[..2], &[json!(["sleep", 3]), json!(["exit", 5])]].concat();
    assert_eq!(place.run(&["--timeout", "1000"], &steps).status.code(), Some(5));
}

#[test]
fn a_program_that_cannot_be_started_has_the_status_of_a_shell() {
    let place = Place::new();
    let run = |program: &str| run_to_end(&mut place.command(&["--", program]));
    fail_with(127, &run("no-such-program"), &["cannot start no-such-program", "PATH"]);
    fail_with(127, &run("/no/such/program"), &["cannot start /no/such/program"]);
    fail_with(126, &run(arg(&place.at("plugin.so"))), &["cannot start", "can be executed"]);
    fail_with(126, &run(arg(place.0.path())), &["cannot start"]);
    misuse(run_to_end(&mut place.command(&[])), &["PROGRAM"]);
    misuse(
        run_to_end(&mut place.command(&["--timeout", "0", "--", "true"])),
        &["--timeout", "0 is not in 1"],
    );
}

#[test]
fn nothing_is_started_without_caps_and_plugin() {
    let place = Place::new();
    let at = |name: &str| place.step(name);
    let started = |options: &[&str], change: &dyn Fn(&mut Command)| {
        let mut command = place.command(options);
        change(&mut command);
        let output = run_to_end(command.arg("--").args(host(&[loaded(), json!(["touch", at("started")])])));
        (output, place.at("started").exists())
    };
    let refuse = |options: &[&str], change: &dyn Fn(&mut Command), parts: &[&str]| {
        let (output, was_started) = started(options, change);
        fail(output, parts);
        assert!(!was_started);
    };
    let nothing = |_: &mut Command| ();
    fs::write(place.at("text.gguf"), "no caps").unwrap();
    refuse(&["--caps", &at("text.gguf")], &nothing, &["text.gguf", "GGUF"]);
    let values = [("general.architecture".to_owned(), "llama".into())];
    fs::write(place.at("model.gguf"), gguf::to_bytes(&values, &[]).unwrap()).unwrap();
    refuse(&["--caps", &at("model.gguf")], &nothing, &["found \"llama\"", "the program after -- its model"]);
    refuse(&["--caps", &at("absent.gguf")], &nothing, &["absent.gguf", "check the path"]);
    fs::create_dir(place.at("empty")).unwrap();
    refuse(&["--caps", &at("empty")], &nothing, &["empty: folder: expected files whose names end in .gguf"]);
    caps(&place.at("axes.gguf"), &[(4, 1, Bound::NONE, 1.0)]);
    refuse(&["--caps", &at("axes.gguf")], &nothing, &["axes.gguf: no cap has a bound", "calibrate"]);
    fs::copy(place.at("text.gguf"), place.at("empty/text.gguf")).unwrap();
    refuse(&["--caps", &at("empty")], &nothing, &["text.gguf", "GGUF"]);
    fs::create_dir(place.at("co:lon")).unwrap();
    fs::copy(place.at("c.gguf"), place.at("co:lon/c.gguf")).unwrap();
    refuse(&["--caps", &at("co:lon")], &nothing, &["colon"]);

    for wrong in ["", "0", "=none", "0="] {
        refuse(&["--profiles", wrong], &nothing, &["expected SLOT=PROFILE"]);
    }
    refuse(&["--profiles", "0=absent.gguf"], &nothing, &["absent.gguf", "check the path"]);
    refuse(&["--profiles", &format!("0={}", at("axes.gguf"))], &nothing, &["no cap has a bound"]);

    let other = |command: &mut Command| {
        command.env("GGML_BACKEND_PATH", "/other/libggml-vulkan.so");
    };
    refuse(&[], &other, &["GGML_BACKEND_PATH names /other/libggml-vulkan.so", "unset"]);
    // The plugin itself, by another name.
    std::os::unix::fs::symlink(place.at("plugin.so"), place.at("link.so")).unwrap();
    let same = |command: &mut Command| {
        command.env("GGML_BACKEND_PATH", at("link.so"));
    };
    let (output, was_started) = started(&[], &same);
    notes(&output);
    assert!(was_started);
    fs::remove_file(place.at("started")).unwrap();
    let no_folder = |command: &mut Command| {
        command.env("TMPDIR", "/no/such/folder");
    };
    refuse(&[], &no_folder, &["TMPDIR"]);
    let long = place.at(&"x".repeat(120));
    fs::create_dir(&long).unwrap();
    let long_folder = |command: &mut Command| {
        command.env("TMPDIR", &long);
    };
    refuse(&[], &long_folder, &["TMPDIR", "short"]);

    fs::remove_file(place.at("plugin.so")).unwrap();
    refuse(&[], &nothing, &["plugin.so is not there", "--plugin"]);
}

#[test]
fn the_plugin_is_looked_for_beside_the_program() {
    let place = Place::new();
    let program = place.at("axiscap");
    fs::copy(env!("CARGO_BIN_EXE_axiscap"), &program).unwrap();
    let run = |plugin: Option<&Path>| {
        let mut command = Command::new(&program);
        command.args(["exec", "--caps", arg(&place.at("c.gguf")), "--"]);
        command.args(host(&[json!(["environment", place.step("variables")]), loaded()]));
        command.env_remove("AXISCAP_PLUGIN").env_remove("GGML_BACKEND_PATH");
        run_to_end(command.envs(plugin.map(|plugin| ("AXISCAP_PLUGIN", plugin))))
    };
    let found = || -> String {
        let variables: Value =
            serde_json::from_str(&fs::read_to_string(place.at("variables")).unwrap()).unwrap();
        let path = Path::new(variables["GGML_BACKEND_PATH"].as_str().unwrap()).canonicalize().unwrap();
        path.file_name().unwrap().to_str().unwrap().to_owned()
    };
    fail(run(None), &["libggml-axiscap.so is neither in", "scripts/build-plugin", "--plugin"]);
    notes(&run(Some(&place.at("plugin.so"))));
    assert_eq!(found(), "plugin.so");
    fs::write(place.at("libggml-axiscap.so"), "").unwrap();
    notes(&run(None));
    assert_eq!(found(), "libggml-axiscap.so");
}
