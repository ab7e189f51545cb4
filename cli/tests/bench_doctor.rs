//! `axiscap bench` and `axiscap doctor`: their JSON and their tables.

mod support;

use axiscap::Bound;
use support::{arg, axiscap, caps, folder, json, misuse, notes, program, succeed};

#[test]
fn bench_measures_pairs_against_an_untouched_context() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    let entries: Vec<_> =
        (10..18).map(|block| (block, block as u64, Bound::band(-0.2, 0.2).unwrap(), 1.0)).collect();
    caps(&file, &entries);
    let args = ["--caps", arg(&file), "--pairs", "2", "--prompt-tokens", "16", "--generate-tokens", "4"];
    let report =
        json(axiscap("bench", &[&args[..], &["--json", "--compare", "idle,cb-eval,stock-chain"]].concat()));
    let compared = ["idle", "cb_eval", "stock_chain"].map(|name| &report[name]);
    for phase in [&report].into_iter().chain(compared).flat_map(|r| [&r["decode"], &r["prefill"]]) {
        assert_eq!(phase["pairs"], 2);
        check_interval(phase, "ratio_range");
        // The range of two pairs misses the true median in half of all cases.
        check_interval(phase, "ratio_ci95");
        let ends = |name: &str| [0, 1].map(|end| phase[name][end].as_f64().unwrap());
        let ([low, high], [min, max]) = (ends("ratio_ci95"), ends("ratio_range"));
        assert!(low <= min && max <= high && phase["total_ratio_ci95"].is_array(), "{phase}");
        assert!(phase["ratio_ci95_note"].as_str().unwrap().contains("Student's t"), "{phase}");
        assert!(phase["uncapped_tps"].as_f64().unwrap() > 0.0 && phase["capped_tps"].as_f64().unwrap() > 0.0);
        check_speeds(phase, "uncapped_tps", 2);
        check_speeds(phase, "capped_tps", 2);
    }
    assert_eq!(report["backend"], "cpu");
    assert!(report["device"].is_string());
    assert_eq!((&report["caps"], &report["blocks_capped"]), (&8.into(), &8.into()));
    assert!(
        report["engagement"].as_f64().unwrap() > 0.0,
        "caps that never engage cost less than caps that do"
    );

    assert_eq!((&report["sequences"], &report["statistics"]), (&1.into(), &true.into()));
    let on_cpu = |engine: &serde_json::Value| engine["device"] == "CPU" && engine["how"].is_string();
    assert!(report["engines"].as_array().unwrap().iter().all(on_cpu), "{report}");

    let several = ["--sequences", "3", "--no-statistics", "--compare", "cb-eval", "--json"];
    let report = json(axiscap("bench", &[&args[..], &several].concat()));
    assert_eq!((&report["sequences"], &report["statistics"]), (&3.into(), &false.into()));
    assert!(report["engagement"].is_null());
    assert_eq!(report["cb_eval"]["decode"]["pairs"], 2);
    misuse(axiscap("bench", &[&args[..], &["--sequences", "0"]].concat()), &["--sequences"]);
    misuse(axiscap("bench", &["--caps", arg(&file), "--pairs", "0"]), &["--pairs"]);

    let table = succeed(axiscap("bench", &[&args[..], &["--route", "views"]].concat()));
    assert!(table.contains("decode, capped") && table.contains("prefill, capped"), "{table}");
    assert!(table.contains("2 pairs, 1 sequence\n"), "{table}");
    assert!(table.contains("95 % interval (fewer than 6 pairs: by Student's t"), "{table}");
}

/// Checks that every pair has its speed, and that the speed of all lies among them.
fn check_speeds(phase: &serde_json::Value, name: &str, pairs: usize) {
    let speeds = phase[format!("{name}_pairs")].as_array().unwrap_or_else(|| panic!("{name} in {phase}"));
    let speeds: Vec<f64> = speeds.iter().map(|speed| speed.as_f64().unwrap()).collect();
    let speed = phase[name].as_f64().unwrap();
    assert_eq!(speeds.len(), pairs, "{phase}");
    let (least, most) =
        (speeds.iter().copied().fold(f64::MAX, f64::min), speeds.iter().copied().fold(0.0, f64::max));
    assert!(0.0 < least && least <= speed && speed <= most, "{phase}");
}

/// Checks that the median of a ratio lies in its interval.
fn check_interval(phase: &serde_json::Value, name: &str) {
    let median = phase["ratio_median"].as_f64().unwrap();
    let interval = phase[name].as_array().unwrap_or_else(|| panic!("{name} in {phase}"));
    let interval: Vec<f64> = interval.iter().map(|v| v.as_f64().unwrap()).collect();
    assert!(interval[0] <= median && median <= interval[1] && interval[0] > 0.0, "{phase}");
}

#[test]
fn six_pairs_have_an_interval_without_assumptions() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    caps(&file, &[(12, 1, Bound::band(-0.2, 0.2).unwrap(), 1.0)]);
    let args = ["--caps", arg(&file), "--pairs", "6", "--prompt-tokens", "8", "--generate-tokens", "4"];
    let output = axiscap("bench", &[&args[..], &["--json", "--ctx", "8"]].concat());
    assert!(notes(&output).contains("--ctx 8: raised to 12"), "{}", notes(&output));
    let report = json(output);
    for phase in [&report["decode"], &report["prefill"]] {
        for name in ["ratio_ci95", "ratio_range"] {
            check_interval(phase, name);
        }
        assert!(phase.get("ratio_ci95_note").is_none() && phase["total_ratio_ci95"].is_array(), "{phase}");
    }
    let table = succeed(axiscap("bench", &args));
    assert!(table.contains("   95 % interval\n"), "{table}");
}

#[test]
fn several_profiles_are_measured_against_one() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    let entries: Vec<_> =
        (10..14).map(|block| (block, block as u64, Bound::band(-0.2, 0.2).unwrap(), 1.0)).collect();
    caps(&file, &entries);
    let args = ["--caps", arg(&file), "--pairs", "1", "--prompts", "1", "--prompt-tokens", "8"];
    let args = [&args[..], &["--generate-tokens", "4", "--sequences", "2"]].concat();
    let report = json(axiscap("bench", &[&args[..], &["--profiles", "2", "--json"]].concat()));
    let profiles = &report["profiles"];
    assert_eq!((&profiles["count"], &report["sequences"]), (&2.into(), &2.into()));
    assert!(profiles["baseline"].as_str().unwrap().contains("one profile"), "{profiles}");
    for comparison in [profiles, &profiles["indexed"]] {
        for phase in [&comparison["decode"], &comparison["prefill"]] {
            assert_eq!(phase["pairs"], 1);
            check_interval(phase, "ratio_range");
            assert!(phase["one_profile_tps"].as_f64().unwrap() > 0.0, "{phase}");
            assert!(phase["this_tps"].as_f64().unwrap() > 0.0, "{phase}");
            assert!(phase.get("uncapped_tps").is_none() && phase.get("capped_tps").is_none(), "{phase}");
        }
        // The profiles do the same to a row.
        assert_eq!(comparison["engagement"], report["engagement"]);
    }
    assert!(report["engagement"].as_f64().unwrap() > 0.0 && report["decode"]["uncapped_tps"].is_number());

    let table = succeed(axiscap("bench", &[&args[..], &["--profiles", "2"]].concat()));
    for what in
        ["decode, capped", "1 profile ", "decode, 2 profiles in turn", "prefill, one profile, indexed"]
    {
        assert!(table.contains(what), "no {what:?} in {table}");
    }
    let one = json(axiscap("bench", &[&args[..], &["--profiles", "1", "--json"]].concat()));
    assert!(one.get("profiles").is_none() && one["decode"]["pairs"] == 1, "{one}");

    let refused = axiscap("bench", &[&args[..], &["--profiles", "3"]].concat());
    misuse(refused, &["--profiles 3 with --sequences 2", "give --sequences 3 or more"]);
    misuse(axiscap("bench", &["--caps", arg(&file), "--profiles", "0"]), &["--profiles"]);
}

#[test]
fn doctor_lists_what_the_machine_has_and_what_is_missing() {
    let report = json(program(&["doctor", "--json"], ""));
    assert!(report["cpu"]["path"].is_string());
    assert_eq!(report["hook"]["ready"], true);
    assert!(report["hook"]["slots"].as_object().unwrap().len() >= 3);
    assert!(report["llama"]["system_info"].as_str().unwrap().contains("CPU"));
    assert!(report["devices"].as_array().unwrap().iter().any(|device| device["kind"] == "cpu"));
    let kernels = &report["kernels"];
    assert_eq!(kernels["nvcc"].is_string(), !kernels["archs"].as_array().unwrap().is_empty(), "{kernels}");
    let driver = &report["driver"];
    assert!(
        driver["present"].as_bool().unwrap() != driver["missing"].is_string(),
        "present, or missing with a remedy"
    );
    let text = succeed(program(&["doctor"], ""));
    for what in ["cpu", "llama.cpp", "hook", "device", "driver", "kernels", "models"] {
        assert!(text.lines().any(|line| line.starts_with(what)), "no {what} in {text}");
    }
}
