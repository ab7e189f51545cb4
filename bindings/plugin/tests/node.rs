//! The plugin in the prebuilt binaries of node-llama-cpp, a late version and an old one. They are loaded by node and not
//! by a program that links them.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use axiscap::Bound;
use serde_json::{Value, json};

use support::interface::Metrics;
use support::{
    Host, PROMPTS, caps_with, check_floors, free_port, model, other_model, shipped_caps, with_plugin,
};

/// Completes the prompts with each model on the CPU, and returns the texts and the host, which has ended.
fn complete(models: &[&Path], caps: &[&Path]) -> (Vec<String>, Host) {
    let (seen, host) = run(&json!({ "models": models, "prompts": PROMPTS, "gpu": false }), caps, |_| {});
    (texts(&seen), host)
}

/// Returns the texts that a run of the host wrote.
fn texts(seen: &Value) -> Vec<String> {
    serde_json::from_value(seen["texts"].clone()).expect("texts")
}

/// Runs the host with a task, and returns what it saw and the host, which has ended.
fn run(task: &Value, caps: &[&Path], change: impl FnOnce(&mut Command)) -> (Value, Host) {
    let out = tempfile::tempdir().unwrap();
    let seen = out.path().join("seen.json");
    let mut command = host(&seen, task);
    if !caps.is_empty() {
        with_plugin(&mut command, caps);
    }
    change(&mut command);
    let mut host = Host::start(&mut command);
    let status = host.wait();
    assert!(status.success(), "{status}: {}", host.log());
    (serde_json::from_slice(&std::fs::read(seen).unwrap()).unwrap(), host)
}

fn host(seen: &Path, task: &Value) -> Command {
    let is_old = task["old"].as_bool() == Some(true);
    let mut command = Command::new("node");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/complete.mjs"));
    command.arg(support::path(if is_old { "AXISCAP_TEST_OLD_NODE" } else { "AXISCAP_TEST_NODE" }));
    command.arg(seen).arg(task.to_string());
    command.env_remove("GGML_BACKEND_PATH");
    command
}

#[test]
fn infinite_bounds_change_nothing_and_floors_hold() {
    bounds_hold(false);
}

/// The oldest version with a ggml that the hook supports. Its positions have no name, and the shipped caps need them.
#[test]
fn bounds_hold_in_the_oldest_version() {
    bounds_hold(true);
}

fn bounds_hold(is_old: bool) {
    let folder = tempfile::tempdir().unwrap();
    let infinite = caps_with(folder.path(), "infinite.gguf", |_| Bound::band(f32::MIN, f32::MAX).unwrap());
    let tight = caps_with(folder.path(), "tight.gguf", |_| Bound::band(60.0, 60.0).unwrap());
    let task = json!({ "models": [model()], "prompts": PROMPTS, "gpu": false, "old": is_old });
    let complete = |caps: &[&Path]| {
        let (seen, host) = run(&task, caps, |_| {});
        (self::texts(&seen), host)
    };
    let (plain, host) = complete(&[]);
    assert_eq!((plain.len(), host.events("loaded").len()), (3, 0));
    let (texts, host) = complete(&[&infinite]);
    assert_eq!(texts, plain, "{}", host.log());
    let (_, host) = complete(&[&shipped_caps()]);
    check_floors(&host.events("ended")[0], &shipped_caps());
    let (texts, host) = complete(&[&tight]);
    assert!(texts.iter().zip(&plain).all(|(capped, plain)| capped != plain), "{texts:?}");
    for stats in host.events("ended")[0]["stats"].as_array().unwrap() {
        assert_eq!((stats["min_after"].as_f64(), stats["max_after"].as_f64()), (Some(60.0), Some(60.0)));
    }
}

/// ggml's Vulkan backend, here on Mesa's software driver.
#[test]
fn a_second_backend() {
    let Some(driver) = std::env::var_os("AXISCAP_TEST_LAVAPIPE") else {
        eprintln!("left out: AXISCAP_TEST_LAVAPIPE names no Vulkan driver");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let infinite = caps_with(folder.path(), "infinite.gguf", |_| Bound::band(f32::MIN, f32::MAX).unwrap());
    let tight = caps_with(folder.path(), "tight.gguf", |_| Bound::band(60.0, 60.0).unwrap());
    let task = json!({ "models": [model()], "prompts": PROMPTS[..1], "gpu": "vulkan" });
    let on_vulkan = |caps: &[&Path]| {
        let (seen, host) = run(&task, caps, |command| {
            // ggml leaves out software drivers unless they are named. Waiting threads sleep.
            command.env("VK_DRIVER_FILES", &driver).env("VK_ICD_FILENAMES", &driver);
            command.env("GGML_VK_VISIBLE_DEVICES", "0").env("OMP_WAIT_POLICY", "passive");
        });
        (texts(&seen), host)
    };
    let (plain, _) = on_vulkan(&[]);
    let (texts, host) = on_vulkan(&[&infinite]);
    assert_eq!(texts, plain, "{}", host.log());
    assert_eq!(host.events("loaded")[0]["devices"], json!(["Vulkan0", "CPU"]));
    assert!(host.log().contains("device=\"Vulkan0\""), "{}", host.log());
    let (texts, host) = on_vulkan(&[&tight]);
    assert!(texts.iter().zip(&plain).all(|(capped, plain)| capped != plain), "{texts:?}");
    for stats in host.events("ended")[0]["stats"].as_array().unwrap() {
        assert_eq!((stats["min_after"].as_f64(), stats["max_after"].as_f64()), (Some(60.0), Some(60.0)));
        assert!(stats["rows"].as_u64() >= Some(12), "{stats}");
    }
}

/// A second model of the process, of the same shape: it is left alone, or gets the caps that are for it.
#[test]
fn two_models_in_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let (model, other) = (model(), other_model(folder.path()));
    let (plain, _) = complete(&[&model, &other], &[]);
    let one_of = |texts: &[String], index: usize| -> Vec<String> {
        texts.iter().skip(index).step_by(2).cloned().collect()
    };
    let tight = caps_with(folder.path(), "tight.gguf", |_| Bound::band(60.0, 60.0).unwrap());
    let (texts, host) = complete(&[&model, &other], &[&tight]);
    assert_eq!(one_of(&texts, 1), one_of(&plain, 1), "the other model is left alone: {}", host.log());
    assert_ne!(one_of(&texts, 0), one_of(&plain, 0));
    assert_eq!(host.events("not_capped").len(), 1);

    let caps_of_other: PathBuf = support::caps_for(folder.path(), "other-caps.gguf", &other, &tight);
    let (texts, host) = complete(&[&model, &other], &[&tight, &caps_of_other]);
    assert!(texts.iter().zip(&plain).all(|(capped, plain)| capped != plain), "{texts:?}");
    assert_eq!((host.events("ended").len(), host.events("not_capped").len()), (2, 0), "{}", host.log());
    assert!(!host.log().contains("does not say which model"), "{}", host.log());
}

/// Caps change between two texts, and a wrong file leaves them as they are.
#[test]
fn caps_change_while_the_host_runs() {
    let folder = tempfile::tempdir().unwrap();
    let tight = caps_with(folder.path(), "tight.gguf", |_| Bound::band(60.0, 60.0).unwrap());
    let other = caps_with(folder.path(), "other.gguf", |_| Bound::band(-40.0, -40.0).unwrap());
    let model = model();
    let [plain, by_tight, by_other] =
        [&[][..], &[&*tight], &[&*other]].map(|caps| complete(&[&model], caps).0.remove(0));
    let port = free_port();
    let task = json!({
        "models": [model], "prompts": vec![PROMPTS[0]; 5], "gpu": false, "port": port,
        "changes": [null, { "file": "/absent.gguf" }, { "file": other }, { "enabled": false }, { "enabled": true }],
    });
    let (seen, host) = run(&task, &[&tight], |command| {
        command.env("AXISCAP_LISTEN", format!("127.0.0.1:{port}"));
    });
    assert_eq!(
        texts(&seen),
        [&by_tight, &by_tight, &by_other, &plain, &by_other].map(String::as_str),
        "{}",
        host.log()
    );
    let statuses: Vec<_> =
        seen["answers"].as_array().unwrap().iter().map(|answer| &answer["status"]).collect();
    assert_eq!(statuses, [422, 200, 200, 200]);
    let metrics = Metrics::parse(seen["metrics"].as_str().unwrap());
    for (caps, value) in [(&tight, 60.0), (&other, -40.0)] {
        let labels = [("caps", caps.to_str().unwrap())];
        assert!(metrics.sum("axiscap_rows_total", &labels) > 0.0);
        // Every row is on the bound.
        for metric in ["axiscap_projection_after_min", "axiscap_projection_after_max"] {
            let found = metrics.values(metric, &labels);
            assert!(found.len() >= 6 && found.iter().all(|&found| found == value), "{metric}: {found:?}");
        }
    }
    assert_eq!(metrics.get("axiscap_faults_total"), 0.0);
}

/// A draft of other weights is left alone, and its model writes what it writes without a draft.
#[test]
fn a_draft_model() {
    let folder = tempfile::tempdir().unwrap();
    let (model, draft) = (model(), other_model(folder.path()));
    let (expected, _) = complete(&[&model], &[&shipped_caps()]);
    let task = json!({ "models": [model], "draft": draft, "prompts": PROMPTS, "gpu": false });
    let (seen, host) = run(&task, &[&shipped_caps()], |_| {});
    assert!(seen["predictions"]["validated"].as_u64() > Some(0), "{seen}");
    // Products of several rows at once differ in last bits, which may show later in a text.
    let starts = |texts: &[String]| -> Vec<String> {
        texts.iter().map(|text| text.chars().take(12).collect()).collect()
    };
    assert_eq!(starts(&texts(&seen)), starts(&expected), "{}", host.log());
    assert_eq!((host.events("not_capped").len(), host.events("ended").len()), (1, 1), "{}", host.log());
    check_floors(&host.events("ended")[0], &shipped_caps());
}

/// node-llama-cpp tries its binaries in a process of its own first, and takes that process' end for a binary that
/// does not suit the system. Text is not written either way.
#[test]
fn a_fault_at_load_ends_the_process() {
    let out = tempfile::tempdir().unwrap();
    let seen = out.path().join("seen.json");
    let mut command = host(&seen, &json!({ "models": [model()], "prompts": PROMPTS, "gpu": false }));
    with_plugin(&mut command, &[Path::new("/absent/caps.gguf")]);
    let mut host = Host::start(&mut command);
    assert!(!host.wait().success());
    assert!(!seen.exists());
    let fatal = host.events("fatal");
    assert!(fatal[0]["reason"].as_str().unwrap().contains("/absent/caps.gguf"), "{fatal:?}");
}
