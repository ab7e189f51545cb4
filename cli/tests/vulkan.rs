//! The program on ggml's Vulkan backend, whose first device is `Vulkan0`.

mod support;

use std::process::Command;

use axiscap::Bound;
use support::{arg, axiscap, caps, folder, json, program, succeed};

const HOST_VIEWS: &str = "the graph is cut at capped blocks, caps run on the host";

#[test]
fn doctor_names_the_backend_and_its_route() {
    let report = json(program(&["doctor", "--json"], ""));
    assert_eq!((&report["hook"]["ready"], &report["llama"]["gpu_offload"]), (&true.into(), &true.into()));
    let device = |name: &str| {
        let devices = report["devices"].as_array().unwrap();
        devices.iter().find(|device| device["name"] == name).unwrap_or_else(|| panic!("no {name}: {report}"))
    };
    let vulkan = device("Vulkan0");
    assert_eq!((&vulkan["backend"], &vulkan["capping"]), (&"Vulkan".into(), &HOST_VIEWS.into()));
    let cpu = device("CPU");
    assert_eq!((&cpu["backend"], &cpu["kind"]), (&"CPU".into(), &"cpu".into()));
    assert!(cpu["capping"].as_str().unwrap().contains("nodes in the backend's own graph"), "{cpu}");
    let text = succeed(program(&["doctor"], ""));
    let line = text.lines().find(|line| line.contains("Vulkan0")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains("ggml's Vulkan backend") && line.ends_with(HOST_VIEWS), "{line}");

    // ggml leaves a software driver out unless its device is named.
    let without = Command::new(env!("CARGO_BIN_EXE_axiscap"))
        .arg("doctor")
        .env_remove("GGML_VK_VISIBLE_DEVICES")
        .env("VK_DRIVER_FILES", "/nowhere.json")
        .env("VK_ICD_FILENAMES", "/nowhere.json")
        .output()
        .expect("the program starts");
    let text = succeed(without);
    assert!(!text.contains("Vulkan0") && text.contains("GGML_VK_VISIBLE_DEVICES"), "{text}");
}

#[test]
fn run_says_on_which_device_the_caps_ran() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    let band = Bound::band(-0.2, 0.2).unwrap();
    caps(&file, &[(4, 1, band, 1.0), (25, 2, band, 1.0)]);
    let run = |layers: &[&str]| {
        let args =
            ["--caps", arg(&file), "--prompt", "Say hello.", "--temp", "0", "--max-tokens", "4", "--json"];
        let report = json(axiscap("run", &[&args[..], layers].concat()));
        assert!(report["caps"].as_array().unwrap().iter().all(|cap| cap["engaged"].as_u64() > Some(0)));
        let engines = report["engines"].as_array().unwrap().clone();
        let on = |device: &str, how: &str| {
            engines.iter().any(|e| e["device"] == device && e["how"].as_str().unwrap().contains(how))
        };
        (on("CPU", "nodes in the backend's own graph"), on("Vulkan0", HOST_VIEWS))
    };
    assert_eq!(run(&[]), (false, true));
    assert_eq!(run(&["--gpu-layers", "16"]), (true, true));
    assert_eq!(run(&["--gpu-layers", "0", "--ubatch", "8"]), (true, false));
}
