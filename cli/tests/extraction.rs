//! `axiscap extract`, `calibrate` and `drift` on a real model, with as little text as possible.

mod support;

use std::path::Path;

use axiscap::Bound;
use axiscap::file::CapFile;
use support::{BLOCKS, WIDTH, arg, axiscap, caps, caps_for, fail, folder, json, succeed};

const TINY: [&str; 6] = ["--limit-roles", "1", "--limit-questions", "2", "--max-tokens", "5"];

#[test]
fn from_answers_to_axes_to_caps_to_drift() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (answers, axes, out) = (at("answers.jsonl"), at("axes.gguf"), at("caps.gguf"));

    let plot = at("axes.svg");
    let args = ["--rollouts", &answers, "--out", &axes, "--plot", &plot, "--json"];
    let report = json(axiscap("extract", &[&TINY[..], &args].concat()));
    assert_eq!(report["blocks"].as_array().unwrap().len(), BLOCKS);
    assert_eq!(report["answers"], 14, "5 neutral prompts and 2 of the role, 2 questions");
    assert!(std::fs::read_to_string(&plot).unwrap().contains("</svg>"));
    let file = CapFile::read(Path::new(&axes)).unwrap();
    assert!(file.is_unbounded());
    assert_eq!((file.caps.caps().len(), file.caps.width()), (BLOCKS, WIDTH));
    assert_eq!(file.orientation.as_deref(), Some("more Assistant"));
    assert!(file.caps.caps().iter().all(|entry| entry.cap.axis().norm().unwrap() > 0.0));

    let args = ["--rollouts", &answers, "--axes", &axes, "--out", &out, "--json"];
    let args = [&args[..], &["--blocks", "20,25-26", "--floor", "25=1.5"]].concat();
    let report = json(axiscap("calibrate", &args));
    let file = CapFile::read(Path::new(&out)).unwrap();
    let found: Vec<_> = file.caps.caps().iter().map(|e| (e.block, e.cap.bound())).collect();
    assert_eq!(found.iter().map(|f| f.0).collect::<Vec<_>>(), [20, 25, 26]);
    assert_eq!(found[1].1, Bound::floor(1.5).unwrap());
    let block = &report["blocks"][0];
    assert_eq!(block["floor"].as_f64().unwrap() as f32, found[0].1.lo());
    assert_eq!(block["floor"].as_f64().unwrap() as f32, block["quantiles"][6].as_f64().unwrap() as f32);
    assert!(block["default_mean"].as_f64().unwrap() > block["role_mean"].as_f64().unwrap());
    let command = file.origin.get("calibrate.command").map(|value| format!("{value:?}")).unwrap();
    assert!(command.contains("--percentile 75") && !command.contains(folder.path().to_str().unwrap()));
    assert!(file.origin.get("extract.roles_sha256").is_some(), "the axes' origin is kept");

    let script = at("script.json");
    std::fs::write(&script, r#"{"name": "two", "turns": ["Hi.", "Who are you?"]}"#).unwrap();
    let plot = at("drift.svg");
    let args = ["--caps", &out, "--script", &script, "--plot", &plot, "--max-tokens", "5", "--temp", "0"];
    let report = json(axiscap("drift", &[&args[..], &["--speed-pairs", "0", "--json"]].concat()));
    assert_eq!(report["block"], 26);
    let floor = f64::from(found[2].1.lo());
    for (turns, capped) in [(&report["uncapped"], false), (&report["capped"], true)] {
        assert_eq!(turns.as_array().unwrap().len(), 2);
        for turn in turns.as_array().unwrap() {
            let last = &turn["projections"][2];
            let (before, after) = (last["before"].as_f64().unwrap(), last["after"].as_f64().unwrap());
            if capped {
                assert!(after >= floor - 1e-3 * floor.abs(), "{after} under {floor}");
            } else {
                assert_eq!((before, last["engaged"].as_f64()), (after, Some(0.0)));
            }
        }
    }
    assert!(std::fs::read_to_string(&plot).unwrap().contains("capped"));
    let text = succeed(axiscap("drift", &[&args[..], &["--speed-pairs", "1", "--block", "20"]].concat()));
    assert!(text.contains("block 20") && text.contains("engagement") && text.contains("speed"), "{text}");

    // Answers to other questions, and answers of another model.
    let questions = at("questions.txt");
    std::fs::write(&questions, "One?\nTwo?\n").unwrap();
    let args = ["--rollouts", &answers, "--out", &axes, "--questions", &questions];
    fail(axiscap("extract", &args), &["answers.jsonl", "other questions", "remove the file"]);
    let other = std::fs::read_to_string(&answers).unwrap().replacen("\"blocks\":30", "\"blocks\":32", 1);
    std::fs::write(&answers, other).unwrap();
    fail(axiscap("extract", &args[..4]), &["answers.jsonl", "another model", "32 blocks"]);
}

#[test]
fn bad_input_ends_with_the_reason_and_without_output() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (axes, out) = (at("axes.gguf"), at("out.gguf"));
    caps(&axes, &[(3, 1, Bound::NONE, 1.0)]);
    let calibrate =
        |extra: &[&str]| axiscap("calibrate", &[&["--axes", arg(&axes), "--out", arg(&out)], extra].concat());
    fail(calibrate(&[]), &["no axis for block 21", "only for 3", "--blocks"]);
    fail(calibrate(&["--percentile", "101"]), &["--percentile is 101", "role end"]);
    fail(calibrate(&["--blocks", "3", "--floor", "4=1"]), &["block 4 is not among the capped blocks"]);
    fail(calibrate(&["--blocks", "3", "--rollouts", arg(&axes)]), &["axes.gguf", "line 1"]);
    caps_for(&axes, &[(3, 1, Bound::NONE, 1.0)], 64, BLOCKS);
    fail(calibrate(&["--blocks", "3"]), &["width"]);

    let roles = at("roles.json");
    std::fs::write(&roles, r#"{"default": [null], "roles": []}"#).unwrap();
    let args = ["--roles", arg(&roles), "--out", arg(&out)];
    fail(axiscap("extract", &args), &["\"roles\"", "is empty"]);
    fail(axiscap("extract", &["--roles", "nowhere.json", "--out", arg(&out)]), &["nowhere.json"]);
    fail(axiscap("extract", &["--out", "/nowhere/axes.gguf"]), &["/nowhere/axes.gguf", "create it"]);
    assert!(!out.exists());

    caps(&axes, &[(3, 1, Bound::NONE, 1.0)]);
    let drift = |extra: &[&str]| axiscap("drift", &[&["--plot", arg(&at("d.svg"))], extra].concat());
    fail(drift(&[]), &["--caps"]);
    fail(drift(&["--caps", arg(&axes), "--block", "4"]), &["block 4 is not capped", "3"]);
    fail(drift(&["--caps", arg(&axes), "--script", arg(&roles)]), &["roles.json", "not as expected"]);
}

#[test]
fn the_shipped_caps_are_for_the_small_model() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/smollm2-135m-instruct.caps.gguf");
    let file = CapFile::read(&path).unwrap();
    assert_eq!(file.check_model("llama", WIDTH, BLOCKS).unwrap(), []);
    assert_eq!(file.warnings(), []);
    assert!(file.is_control_vector());
    assert!(file.caps.caps().iter().all(|e| e.cap.bound().lo().is_finite() && e.cap.strength() == 1.0));
    assert_eq!(file.orientation.as_deref(), Some("more Assistant"));
    for key in ["tool", "extract.command", "extract.roles_sha256", "calibrate.command", "calibrate.quantiles"]
    {
        assert!(file.origin.get(key).is_some(), "{key}");
    }
}
