//! `axiscap extract`, `calibrate` and `drift` on a real model, with short texts.

mod support;

use std::path::Path;

use axiscap::Bound;
use axiscap::file::CapFile;
use support::{
    BLOCKS, SMALL_DOSE, WIDTH, arg, caps, caps_for, fail, fail_with, folder, json, misuse, notes,
    quick_axiscap as axiscap, quick_model as model, succeed,
};

/// Few and short answers, whatever is wrong with them.
const TINY: [&str; 10] = [
    "--limit-roles",
    "1",
    "--limit-questions",
    "2",
    "--held-out-answers",
    "2",
    "--max-tokens",
    "5",
    "--keep",
    "all",
];

#[test]
fn answers_lead_to_axes_to_caps_and_to_drift() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (answers, axes, out) = (at("answers.jsonl"), at("axes.gguf"), at("caps.gguf"));

    let plot = at("axes.svg");
    let page = at("axes.html");
    let args = ["--rollouts", &answers, "--out", &axes, "--plot", &plot, "--report", &page, "--json"];
    let report = json(axiscap("extract", &[&TINY[..], &args].concat()));
    assert_eq!(report["blocks"].as_array().unwrap().len(), BLOCKS);
    assert_eq!(report["answers"], 14, "2 questions under 5 neutral prompts, and 4 answers in the role");
    assert!(std::fs::read_to_string(&plot).unwrap().contains("</svg>"));
    let page = std::fs::read_to_string(&page).unwrap();
    assert!(page.contains("Cap blocks") && page.contains("</svg>") && page.contains("pirate"), "{page}");
    let recommended: Vec<u64> = report["recommended_blocks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|block| block.as_u64().unwrap())
        .collect();
    assert!(recommended.len() == 6 && recommended[0] >= 15, "{recommended:?}");
    assert_eq!(
        (&report["held_out"], report["judge"]["by"].as_str()),
        (&"questions".into(), Some("likelihood"))
    );
    let file = CapFile::read(Path::new(&axes)).unwrap();
    assert!(file.is_unbounded());
    assert_eq!((file.caps.caps().len(), file.caps.width()), (BLOCKS, WIDTH));
    assert_eq!(file.orientation.as_deref(), Some("more Assistant"));
    assert!(file.caps.caps().iter().all(|entry| entry.cap.axis().norm().unwrap() > 0.0));

    let args = ["--rollouts", &answers, "--axes", &axes, "--out", &out, "--keep", "all", "--json"];
    let args = [&args[..], &SMALL_DOSE, &["--blocks", "20,25-26", "--floor", "25=1.5"]].concat();
    let report = json(axiscap("calibrate", &args));
    let file = CapFile::read(Path::new(&out)).unwrap();
    let found: Vec<_> = file.caps.caps().iter().map(|e| (e.block, e.cap.bound())).collect();
    assert_eq!(found.iter().map(|f| f.0).collect::<Vec<_>>(), [20, 25, 26]);
    assert_eq!(found[1].1, Bound::floor(1.5).unwrap());
    // The first row of this model is an attention sink on every late block.
    assert_eq!((file.caps.policy().skip_positions, &report["skip_positions"]), (1, &1.into()));
    assert_eq!(
        (&report["sinks"]["positions"][0]["position"], &report["sinks"]["elsewhere"]),
        (&0.into(), &0.0.into())
    );
    assert!(report["sinks"]["positions"][0]["norms"][0].as_f64().unwrap() > 10.0, "{report}");
    let capped = json(axiscap("calibrate", &[&args[..], &["--skip-positions", "0"]].concat()));
    assert_eq!(capped["skip_positions"], 0);
    assert_eq!(CapFile::read(Path::new(&out)).unwrap().caps.policy().skip_positions, 0);
    json(axiscap("calibrate", &args));
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
    assert!(std::fs::read_to_string(&plot).unwrap().contains("on alarm"));
    // The alarm watches the lowest block, from whose answers its thresholds come.
    assert_eq!(report["alarm"]["cap"], 0);
    assert!(report["alarm"]["release"].as_f64().unwrap() < report["alarm"]["engage"].as_f64().unwrap());
    assert_eq!(report["on_alarm"].as_array().unwrap().len(), 2);
    let share = |key: &str| report[key]["share"].as_f64().unwrap();
    assert!(share("moved_on_alarm") <= share("moved"), "{report}");
    let off =
        json(axiscap("drift", &[&args[..], &["--speed-pairs", "0", "--alarm", "off", "--json"]].concat()));
    assert!(off["alarm"].is_null() && off["on_alarm"].is_null(), "{off}");
    let given = ["--speed-pairs", "0", "--alarm", "1,-1e9,-2e9", "--json"];
    let given = json(axiscap("drift", &[&args[..], &given].concat()));
    let first = &given["on_alarm"][0]["engagements"][0];
    assert_eq!((first["engaged"].as_bool(), first["threshold"].as_f64()), (Some(true), Some(-1e9)));
    for wrong in ["on", "1,2", "0,0,-1", "1,0,0"] {
        misuse(axiscap("drift", &[&args[..], &["--alarm", wrong]].concat()), &["--alarm", wrong]);
    }
    let text = succeed(axiscap(
        "drift",
        &[&args[..], &["--speed-pairs", "1", "--alarm", "off", "--block", "20"]].concat(),
    ));
    assert!(text.contains("block 20") && text.contains("engagement") && text.contains("speed"), "{text}");
    assert!(text.trim_end().ends_with("drift.svg"), "{text}");
    let few = json(axiscap("drift", &[&args[..], &["--speed-pairs", "1", "--json"]].concat()));
    assert!(few["decode"]["ratio_ci95"].is_null() && few["decode"]["ratio_range"].is_array(), "{few}");

    // Answers to other questions, and answers of another model.
    let questions = at("questions.txt");
    std::fs::write(&questions, "One?\nTwo?\n").unwrap();
    let args = ["--rollouts", &answers, "--out", &axes, "--questions", &questions];
    fail(axiscap("extract", &args), &["answers.jsonl", "other questions", "--questions", "remove the file"]);
    let other = std::fs::read_to_string(&answers).unwrap().replacen("\"blocks\":30", "\"blocks\":32", 1);
    std::fs::write(&answers, other).unwrap();
    fail(axiscap("extract", &args[..4]), &["answers.jsonl", "another model", "32 blocks"]);
}

#[test]
fn floors_are_found_within_a_budget_and_their_dose_is_told() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (answers, axes, out) = (at("answers.jsonl"), at("axes.gguf"), at("caps.gguf"));
    let again_caps = &at("again.gguf");
    succeed(axiscap("extract", &[&TINY[..], &["--rollouts", &answers, "--out", &axes]].concat()));
    let args = ["--rollouts", &answers, "--axes", &axes, "--out", &out, "--keep", "all", "--blocks", "24,26"];
    let calibrate = |more: &[&str]| axiscap("calibrate", &[&args[..], more].concat());
    let free = json(calibrate(&[&SMALL_DOSE[..2], &["--random-directions", "1", "--json"]].concat()));
    assert_eq!((&free["percentile_from_role_end"], &free["strength"]), (&75.0.into(), &1.0.into()));
    assert_eq!((&free["held_out_answers"], &free["answers"]), (&2.into(), &14.into()));
    let kl = free["dose"]["answers"]["kl_p95"].as_f64().unwrap();
    assert!(kl > 0.0, "{free}");
    assert_eq!(free["dose"]["texts"][0]["name"], "short.txt");
    let rise = free["dose"]["texts"][0]["perplexity_rise"].as_f64().unwrap();
    let random = &free["dose"]["random_directions"];
    assert_eq!(
        (random.as_array().unwrap().len(), &random[0]["tokens"]),
        (1, &free["dose"]["answers"]["tokens"])
    );
    // Every system prompt has its quantiles.
    let prompts = free["blocks"][1]["system_prompts"].as_array().unwrap();
    let of_default = prompts.iter().filter(|prompt| prompt["group"] == "default").count();
    assert_eq!((of_default, prompts.len()), (5, 5 + 3), "{prompts:?}");
    assert!(prompts.iter().all(|prompt| prompt["token_quantiles"][5].is_f64()), "{prompts:?}");
    let file = CapFile::read(Path::new(&out)).unwrap();
    assert!(file.origin.get("calibrate.dose.kl_p95").is_some(), "the file holds its dose");

    // Half of the dose.
    let most = format!("{}", kl / 2.0);
    let budget = json(calibrate(&[&SMALL_DOSE[..], &["--max-kl", &most, "--json"]].concat()));
    let found = budget["dose"]["answers"]["kl_p95"].as_f64().unwrap();
    assert!(found <= kl / 2.0, "{found} of {kl}");
    let setting = (budget["percentile_from_role_end"].as_f64(), budget["strength"].as_f64());
    assert!(setting < (Some(75.0), Some(1.0)), "{setting:?}");
    let caps = CapFile::read(Path::new(&out)).unwrap().caps;
    assert_eq!(Some(f64::from(caps.caps()[0].cap.strength())), setting.1);
    if rise > 0.0 {
        let most = format!("{}", 50.0 * rise);
        let text = succeed(calibrate(&[&SMALL_DOSE[..], &["--max-perplexity", &most]].concat()));
        assert!(text.contains("short.txt") && text.contains("by neutral system prompt"), "{text}");
    }
    let error = calibrate(&[&SMALL_DOSE[..], &["--max-kl", "1e-12", "--floor", "26=500"]].concat());
    fail(error, &["beyond the budget", "KL", "--max-kl", "--blocks"]);

    // The file says how llama.cpp computed, and nothing of an earlier calibration of the same axes.
    let made = origin(&out, "calibrate.command");
    assert!(!made.contains("--cache-type-k") && !made.contains("--flash-attn"), "{made}");
    let again =
        ["--axes", &out, "--rollouts", &answers, "--out", again_caps, "--keep", "all", "--blocks", "26"];
    let quantised = ["-ctk", "q8_0", "-ctv", "q8_0", "-fa", "on"];
    succeed(axiscap("calibrate", &[&again[..], &quantised, &SMALL_DOSE].concat()));
    let made = origin(again_caps, "calibrate.command");
    assert!(made.contains("--cache-type-k q8_0 --cache-type-v q8_0 --flash-attn on"), "{made}");

    // Answers without any that are held out.
    let (bare, axes) = (at("bare.jsonl"), at("bare.gguf"));
    let none = TINY.map(|word| if word == "2" { "0" } else { word });
    let none = [&none[..2], &["--limit-questions", "2"], &none[4..], &["--rollouts", &bare, "--out", &axes]];
    succeed(axiscap("extract", &none.concat()));
    let args = ["--rollouts", &bare, "--axes", &axes, "--out", &out, "--keep", "all", "--blocks", "26"];
    let args = [&args[..], &SMALL_DOSE].concat();
    fail(
        axiscap("calibrate", &[&args[..], &["--max-kl", "1"]].concat()),
        &["--max-kl", "--held-out-answers 16"],
    );
    // Axes that were calibrated with a dose before.
    let args = [&["--rollouts", &bare, "--axes", again_caps, "--out", &out], &args[6..]].concat();
    let output = axiscap("calibrate", &args);
    assert!(CapFile::read(Path::new(&out)).unwrap().origin.get("calibrate.dose.kl_p95").is_none());
    assert!(notes(&output).contains("none that are held out"), "{}", notes(&output));
    for (flag, wrong) in [("--max-kl", "0"), ("--max-perplexity", "nan"), ("--random-directions", "101")] {
        misuse(calibrate(&[flag, wrong]), &[flag, wrong]);
    }
    fail(calibrate(&["--text", "nowhere.txt"]), &["nowhere.txt"]);
    let empty = at("empty.txt");
    std::fs::write(&empty, "").unwrap();
    fail(calibrate(&["--text", &empty]), &["empty.txt", "longer text"]);
}

#[test]
fn bad_input_is_refused_and_leaves_no_output() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (axes, out) = (at("axes.gguf"), at("out.gguf"));
    caps(&axes, &[(3, 1, Bound::NONE, 1.0)]);
    let calibrate =
        |extra: &[&str]| axiscap("calibrate", &[&["--axes", arg(&axes), "--out", arg(&out)], extra].concat());
    fail(calibrate(&[]), &["no axis for block 21", "only for 3", "--blocks"]);
    misuse(calibrate(&["--percentile", "101"]), &["--percentile", "101", "role end"]);
    fail(
        calibrate(&["--blocks", "3", "--max-tokens", "9000"]),
        &["answer of up to 9000", "8192", "--max-tokens"],
    );
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
    misuse(drift(&[]), &["--caps"]);
    fail(drift(&["--caps", arg(&axes), "--block", "4"]), &["block 4 is not capped", "3"]);
    fail(drift(&["--caps", arg(&axes), "--script", arg(&roles)]), &["roles.json", "not as expected"]);
}

/// Returns the value of a key of a file's origin as text.
fn origin(path: &str, key: &str) -> String {
    let file = CapFile::read(Path::new(path)).unwrap();
    format!("{:?}", file.origin.get(key).unwrap_or_else(|| panic!("no {key}")))
}

#[test]
fn existing_answers_record_how_they_were_made() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (answers, axes, out) = (at("answers.jsonl"), at("axes.gguf"), at("caps.gguf"));
    let made = ["--rollouts", &answers, "--out", &axes, "--seed", "5", "--temp", "0.9", "--slots", "3"];
    succeed(axiscap("extract", &[&TINY[..], &made].concat()));
    let words = "--limit-roles 1 --limit-questions 2 --answers-per-role 4 --default-answers 48 --held-out-answers 2 --keep empty,unfinished,markup,other-turn,cut-off,role-ignored --max-tokens 5 --temp 0.9 --seed 5 --slots 3 --judge likelihood";
    assert!(origin(&axes, "extract.command").contains(words));

    let reused = ["--rollouts", &answers, "--axes", &axes, "--out", &out, "--blocks", "20", "--keep", "all"];
    let reused = [&reused[..], &SMALL_DOSE].concat();
    succeed(axiscap("calibrate", &reused));
    assert!(origin(&out, "calibrate.command").contains(words), "{}", origin(&out, "calibrate.command"));
    // Options that agree with the file are accepted. Others are refused, because they would have no effect.
    succeed(axiscap("calibrate", &[&reused[..], &["--seed", "5", "--temp", "0.9"]].concat()));
    for (flag, given, found) in [
        ("--seed", "6", "with --seed 5"),
        ("--temp", "0.7", "with --temp 0.9"),
        ("--max-tokens", "48", "with --max-tokens 5"),
        ("--slots", "16", "with --slots 3"),
        ("--limit-roles", "2", "with --limit-roles 1"),
        ("--limit-questions", "3", "with --limit-questions 2"),
        ("--answers-per-role", "all", "with --answers-per-role 4"),
        ("--default-answers", "7", "with --default-answers 48"),
        ("--held-out-answers", "24", "with --held-out-answers 2"),
        ("--chat-template", "chatml", "without --chat-template"),
    ] {
        let given = axiscap("calibrate", &[&reused[..], &[flag, given]].concat());
        fail(given, &["answers.jsonl", found, "leave", "another file"]);
    }

    let whole = std::fs::read_to_string(&answers).unwrap();
    let other = whole.replacen("\"model\":\"", "\"model\":\"Not ", 1).replacen(
        "\"file_type\":",
        "\"file_type\":1",
        1,
    );
    std::fs::write(&answers, other).unwrap();
    let errors = notes(&axiscap("calibrate", &reused));
    assert!(
        errors.contains("from the model \"Not ") && errors.contains("from weights of file type 1"),
        "{errors}"
    );

    let lines: Vec<_> = whole.lines().collect();
    std::fs::write(&answers, lines[..lines.len() - 3].join("\n")).unwrap();
    fail(axiscap("calibrate", &reused), &["answers.jsonl", "3 of the 16 answers are missing"]);
}

#[test]
fn a_run_that_was_stopped_continues_to_the_same_bytes() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (whole, cut, axes) = (at("whole.jsonl"), at("cut.jsonl"), at("axes.gguf"));
    let part = format!("{cut}.part");
    let extract = |answers: &str, more: &[&str]| {
        axiscap(
            "extract",
            &[
                &TINY[..],
                // Scores are not part of a file in progress.
                &["--judge", "none", "--slots", "2", "--rollouts", answers, "--out", &axes],
                more,
            ]
            .concat(),
        )
    };
    succeed(extract(&whole, &[]));
    let text = std::fs::read(&whole).unwrap();
    let lines: Vec<usize> = (0..text.len()).filter(|&at| text[at] == b'\n').map(|at| at + 1).collect();
    assert_eq!(lines.len(), 1 + 16);
    // 8 answers are a group of 2 slots.
    for (length, kept) in [(lines[8] + 40, 8), (lines[8] - 1, 0), (lines[16], 16)] {
        std::fs::write(&part, &text[..length]).unwrap();
        let output = extract(&cut, &[]);
        let errors = notes(&output);
        assert_eq!(errors.contains(&format!("({kept} of 16 answers)")), kept > 0, "{errors}");
        assert!(std::fs::read(&cut).unwrap() == text, "{kept} answers kept: the rest came out otherwise");
        assert!(!Path::new(&part).exists());
        std::fs::remove_file(&cut).unwrap();
    }
    // Answers of another run are refused and kept.
    std::fs::write(&part, &text[..lines[8]]).unwrap();
    fail(extract(&cut, &["--seed", "2"]), &["cut.jsonl.part", "another seed (1, now 2)", "remove the file"]);
    assert_eq!(std::fs::read(&part).unwrap(), text[..lines[8]]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_the_answers_and_the_same_command_continues() {
    use std::process::{Command, Stdio};
    let folder = folder();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (stopped, through) = (at("stopped.gguf"), at("through.gguf"));
    let args = ["--limit-roles", "1", "--limit-questions", "6", "--max-tokens", "8", "--slots", "1"];
    let args = [&args[..], &["--held-out-answers", "0", "--keep", "all"]].concat();
    let part = format!("{stopped}.answers.part");
    let mut child = Command::new(env!("CARGO_BIN_EXE_axiscap"))
        .args(["extract", "--model", arg(&model()), "--out", &stopped])
        .args(&args)
        .env("OMP_WAIT_POLICY", "passive")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = || std::fs::read(&part).unwrap_or_default().iter().filter(|&&byte| byte == b'\n').count();
    while lines() < 5 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be stopped");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    support::interrupted(
        output,
        &["of 34 answers are kept in", ".answers.part", "the same command continues"],
    );
    assert!(!Path::new(&stopped).exists());
    let out = |path: &str| axiscap("extract", &[&args[..], &["--out", path]].concat());
    assert!(notes(&out(&stopped)).contains("going on with"));
    succeed(out(&through));
    let name = |path: &str| std::fs::read(path).unwrap();
    let same = name(&through).len() == name(&stopped).len();
    let (one, other) =
        (CapFile::read(Path::new(&stopped)).unwrap(), CapFile::read(Path::new(&through)).unwrap());
    assert!(same && one.caps == other.caps, "stopped and gone on with, the axes are the same");
    assert!(!Path::new(&part).exists());
}

#[test]
fn a_conversation_longer_than_the_context_is_reported_up_to_its_end() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (file, script, plot) = (at("c.gguf"), at("script.json"), at("d.svg"));
    caps(Path::new(&file), &[(20, 1, Bound::NONE, 1.0)]);
    let long = "word ".repeat(200);
    let turns = serde_json::json!({"name": "long", "turns": ["Hi.", "Who are you?", long]});
    std::fs::write(&script, turns.to_string()).unwrap();
    let args = ["--caps", &file, "--script", &script, "--plot", &plot, "--temp", "0", "--speed-pairs", "0"];
    let drift = |more: &[&str]| axiscap("drift", &[&args[..], more].concat());
    let output = drift(&["--max-tokens", "4", "--ctx", "128", "--json"]);
    fail_with(1, &output, &["uncapped, turn 3 of 3", "128", "--ctx"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for which in ["uncapped", "capped"] {
        let stops: Vec<_> = report[which].as_array().unwrap().iter().map(|turn| &turn["stop"]).collect();
        assert_eq!(stops, ["max_tokens", "max_tokens"]);
    }
    assert!(report["unfinished"].as_str().unwrap().contains("turn 3"), "{report}");
    assert!(std::fs::read_to_string(&plot).unwrap().contains("</svg>"));

    // A conversation without a complete turn is only an error.
    fail(drift(&["--max-tokens", "4", "--ctx", "8"]), &["uncapped, turn 1 of 3", "--ctx"]);

    // An answer that a full context cut off has a warning.
    std::fs::write(&script, r#"{"name": "story", "turns": ["Write a very long story."]}"#).unwrap();
    let output = drift(&["--max-tokens", "400", "--ctx", "64"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("the answer was cut off because the context is full; raise --ctx"), "{errors}");
}

#[test]
fn the_shipped_caps_are_for_the_small_model() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lab/assets/smollm2-135m-instruct.caps.gguf");
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
