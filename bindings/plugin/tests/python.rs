//! The plugin in Python, where llama.cpp's libraries are loaded by ctypes.

mod support;

use std::path::Path;
use std::process::{Command, Output};

use axiscap::Bound;

use support::{caps_with, model, plugin, shipped_caps};

fn decode(caps: Option<&Path>) -> Output {
    let server = support::path("AXISCAP_TEST_LLAMA_SERVER");
    let mut command = Command::new("python3");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/decode.py"));
    command.arg(server.parent().expect("a folder"));
    match caps {
        Some(caps) => command.arg(plugin()).env("AXISCAP_CAPS", caps),
        None => command.arg(""),
    };
    command.arg(model()).env_remove("GGML_BACKEND_PATH").output().expect("Python starts")
}

fn tokens(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn one_call_attaches_the_plugin() {
    let folder = tempfile::tempdir().unwrap();
    let tight = caps_with(folder.path(), "tight.gguf", |_| Bound::band(60.0, 60.0).unwrap());
    let infinite = caps_with(folder.path(), "infinite.gguf", |_| Bound::band(f32::MIN, f32::MAX).unwrap());
    let plain = tokens(&decode(None));
    assert_eq!(tokens(&decode(Some(&infinite))), plain);
    let capped = decode(Some(&tight));
    assert_ne!(tokens(&capped), plain);
    let log = String::from_utf8(capped.stderr).unwrap();
    assert!(log.contains("axiscap: capped: the first 12 rows were computed with"), "{log}");
    assert!(log.contains("rows and caps, 100.0 % moved"), "{log}");
}

#[test]
fn what_is_wrong_ends_the_process_in_the_call() {
    let absent = decode(Some(Path::new("/absent/caps.gguf")));
    assert!(!absent.status.success() && absent.stdout.is_empty());
    let log = String::from_utf8(absent.stderr).unwrap();
    assert!(log.contains("/absent/caps.gguf"), "{log}");
    assert!(!log.contains("Traceback"), "the call does not return: {log}");
}

/// The hook is in one ggml. Models of another one would be uncapped.
#[test]
fn a_second_ggml_is_a_fault() {
    let server = support::path("AXISCAP_TEST_LLAMA_SERVER");
    let first = server.parent().expect("a folder");
    let second =
        support::path("AXISCAP_TEST_OLD_NODE").join("node_modules/@node-llama-cpp/linux-x64/bins/linux-x64");
    let load = |is_attached: bool, strict: &str, named: Option<&str>| {
        let mut command = Command::new("python3");
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/second_ggml.py"));
        command.arg(if is_attached { plugin() } else { Path::new("").into() });
        command.args([first, Path::new("libggml.so"), &*second, Path::new("libggml.b7347.so")]);
        if is_attached {
            command.env_remove("GGML_BACKEND_PATH");
        } else {
            command.env("GGML_BACKEND_PATH", plugin());
        }
        command.envs(named.map(|named| ("AXISCAP_GGML", first.join(named))));
        command
            .env("AXISCAP_CAPS", shipped_caps())
            .env("AXISCAP_STRICT", strict)
            .output()
            .expect("Python starts")
    };
    for is_attached in [false, true] {
        let fault = load(is_attached, "abort", None);
        let log = String::from_utf8(fault.stderr).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&fault.stdout).lines().count(),
            1,
            "it ends with the second one: {log}"
        );
        assert!(!fault.status.success() && log.contains("a second ggml of this process"), "{log}");
        assert!(log.contains("AXISCAP_GGML"), "{log}");
        for (strict, named, line) in [
            ("warn", None, "NOT CAPPED: a second ggml"),
            ("abort", Some("libggml.so"), "not capped: a second ggml"),
        ] {
            // A call of the program's that names the first one asks for no other.
            if is_attached && named.is_some() {
                continue;
            }
            let goes_on = load(is_attached, strict, named);
            let log = String::from_utf8(goes_on.stderr).unwrap();
            assert!(goes_on.status.success() && log.contains(line), "{log}");
        }
    }
}

/// A process without ggml: there is nothing to attach to.
#[test]
fn a_process_without_ggml_is_told_so() {
    let load = format!("import ctypes, sys; sys.exit(ctypes.CDLL({:?}).axiscap_attach())", plugin());
    let attach = |strict: &str| {
        let mut command = Command::new("python3");
        command.args(["-c", &load]).env("AXISCAP_CAPS", shipped_caps()).env("AXISCAP_STRICT", strict);
        command.output().unwrap()
    };
    let aborted = attach("abort");
    assert_eq!(aborted.status.code(), None, "a signal");
    let warned = attach("warn");
    assert_eq!(warned.status.code(), Some(1));
    for output in [aborted, warned] {
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(log.contains("no library of this process has ggml's functions"), "{log}");
    }
}
