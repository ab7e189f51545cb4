//! `run --trace` against the definition of the operation, row by row, on a real model.

mod support;

use std::path::Path;

use axiscap::Bound;
use serde_json::Value;
use support::{BLOCKS, Entry, arg, axiscap, caps, folder, json, program};

/// One line of a trace.
#[derive(Debug)]
struct Line {
    position: usize,
    token: i64,
    generated: bool,
    block: usize,
    cap: usize,
    before: f32,
    after: f32,
    engaged: bool,
}

fn read(path: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(path).expect("a trace");
    let line = |line: &str| {
        let value: Value = serde_json::from_str(line).expect("a line of JSON");
        let whole = |key: &str| value[key].as_u64().unwrap_or_else(|| panic!("{key} in {line}")) as usize;
        let float = |key: &str| value[key].as_f64().unwrap_or_else(|| panic!("{key} in {line}")) as f32;
        Line {
            position: whole("position"),
            token: value["token"].as_i64().expect("token"),
            generated: match value["phase"].as_str() {
                Some("generated") => true,
                Some("prompt") => false,
                other => panic!("phase {other:?}"),
            },
            block: whole("block"),
            cap: whole("cap"),
            before: float("before"),
            after: float("after"),
            engaged: value["engaged"].as_bool().expect("engaged"),
        }
    };
    text.lines().map(line).collect()
}

/// Returns `after` by the definition (docs/operation.md), with its roundings.
fn defined(before: f32, bound: Bound, strength: f32) -> (f32, bool) {
    let clamped = before.max(bound.lo()).min(bound.hi());
    if clamped == before {
        return (before, false);
    }
    let delta = strength * (clamped - before);
    let after = if delta == 0.0 {
        before
    } else if strength == 1.0 {
        clamped
    } else {
        before + delta
    };
    (after, true)
}

const PROMPT: &str =
    "Once upon a time there was a lighthouse keeper who had not spoken to anyone for years. One day";
const GENERATED: usize = 6;

/// Runs with these caps. Returns the JSON and the trace.
fn run(folder: &Path, entries: &[Entry], more: &[&str]) -> (Value, Vec<Line>) {
    let (caps_file, trace) = (folder.join("test.caps.gguf"), folder.join("trace.jsonl"));
    caps(&caps_file, entries);
    let mut args = vec!["--caps", arg(&caps_file), "--trace", arg(&trace), "--raw", "--prompt", PROMPT];
    args.extend(["--temp", "0", "--max-tokens", "6", "--json", "--ctx", "256"]);
    args.extend(more);
    let report = json(axiscap("run", &args));
    let lines = read(&trace);
    (report, lines)
}

/// Checks that a trace agrees with its report and with the definition.
fn check(entries: &[Entry], report: &Value, lines: &[Line], strength: Option<f32>) {
    let prompt = report["prompt_tokens"].as_u64().expect("prompt_tokens") as usize;
    let tokens: Vec<i64> =
        report["tokens"].as_array().expect("tokens").iter().filter_map(Value::as_i64).collect();
    assert_eq!(tokens.len(), GENERATED, "{report}");

    let order: Vec<_> = lines.iter().map(|line| (line.position, line.cap)).collect();
    assert!(order.is_sorted_by(|a, b| a < b), "lines are ordered by position, then cap, each once");
    let fed_back = tokens.len() - 1;
    for (cap, &(block, _, bound, own)) in entries.iter().enumerate() {
        let positions: Vec<_> = lines.iter().filter(|l| l.cap == cap).map(|l| l.position).collect();
        // The last block computes only rows with logits: the prompt's last one and the generated ones.
        let first = if block == BLOCKS - 1 { prompt - 1 } else { 0 };
        assert_eq!(positions, (first..prompt + fed_back).collect::<Vec<_>>(), "rows of cap {cap}");

        let strength = strength.unwrap_or(own);
        let mut engaged = 0;
        for line in lines.iter().filter(|line| line.cap == cap) {
            assert_eq!(line.block, block);
            assert_eq!(line.generated, line.position >= prompt, "{line:?}");
            if line.generated {
                assert_eq!(line.token, tokens[line.position - prompt], "{line:?}");
            }
            let (after, acts) = defined(line.before, bound, strength);
            assert_eq!((line.after, line.engaged), (after, acts), "{line:?} under {bound} at {strength}");
            engaged += usize::from(line.engaged);
        }
        let stats = &report["caps"][cap];
        assert_eq!(stats["block"].as_u64(), Some(block as u64));
        assert_eq!(stats["rows"].as_u64(), Some(positions.len() as u64));
        assert_eq!(stats["engaged"].as_u64(), Some(engaged as u64));
        let of_cap = || lines.iter().filter(|line| line.cap == cap);
        let mean = of_cap().map(|line| f64::from(line.before)).sum::<f64>() / positions.len() as f64;
        let reported = stats["mean_before"].as_f64().expect("mean_before");
        assert!(
            (reported - mean).abs() <= 1e-6 * mean.abs().max(1.0),
            "mean of cap {cap}: {reported}, {mean}"
        );
        let (min, max) = of_cap().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), line| {
            (min.min(line.after), max.max(line.after))
        });
        assert_eq!(stats["min_after"].as_f64().map(|v| v as f32), Some(min));
        assert_eq!(stats["max_after"].as_f64().map(|v| v as f32), Some(max));
    }
    assert_eq!(report["caps"].as_array().map(Vec::len), Some(entries.len()));
}

#[test]
fn every_row_of_every_cap_follows_the_definition() {
    let folder = folder();
    // The projections without caps.
    let places: [(usize, u64); 8] = [(12, 1), (0, 2), (29, 3), (12, 4), (12, 1), (5, 5), (28, 6), (29, 7)];
    let open: Vec<Entry> = places.iter().map(|&(block, seed)| (block, seed, Bound::NONE, 1.0)).collect();
    let (observed, lines) = run(folder.path(), &open, &[]);
    check(&open, &observed, &lines, None);
    assert!(
        lines.iter().all(|line| !line.engaged && line.after == line.before),
        "infinite bounds engage nowhere"
    );
    let mean = |cap: usize| observed["caps"][cap]["mean_before"].as_f64().expect("mean_before") as f32;

    // Floors, ceilings and bands at the mean, on block 0, the last block and thrice on one block, in a mixed
    // order and at several strengths.
    let band = |cap: usize| Bound::band(mean(cap) - 0.1, mean(cap) + 0.1).expect("a band");
    let capped: Vec<Entry> = vec![
        (12, 1, Bound::floor(mean(0)).expect("a floor"), 1.0),
        (0, 2, Bound::ceiling(mean(1)).expect("a ceiling"), 1.0),
        (29, 3, band(2), 1.0),
        (12, 4, band(3), 0.5),
        (12, 1, Bound::ceiling(mean(4) + 0.3).expect("a ceiling"), 0.25),
        (5, 5, Bound::NONE, 1.0),
        (28, 6, band(6), 0.0),
        (29, 7, Bound::floor(mean(7)).expect("a floor"), 1.0),
    ];
    let (report, lines) = run(folder.path(), &capped, &[]);
    check(&capped, &report, &lines, None);
    for cap in [0, 1, 2, 3] {
        let engaged = report["caps"][cap]["engaged"].as_u64().expect("engaged");
        let rows = report["caps"][cap]["rows"].as_u64().expect("rows");
        assert!(engaged > 0 && engaged <= rows, "cap {cap} engaged on {engaged} of {rows} rows");
    }
    // The caps of a block act one after the other. Caps 0 and 4 have the same axis. Cap 3 between them has a
    // nearly orthogonal axis and a short step.
    let at = |cap: usize| lines.iter().filter(move |line| line.cap == cap);
    for (first, (between, last)) in at(0).zip(at(3).zip(at(4))) {
        let leak = (between.after - between.before).abs() * 0.2 + 1e-3;
        assert!((last.before - first.after).abs() <= leak, "{first:?} {between:?} {last:?}");
    }
    // No block before block 0 is capped: its projections of the prompt equal those of the observed run, bit
    // for bit.
    let (_, observed_lines) = run(folder.path(), &open, &[]);
    let prompt_of = |lines: &[Line]| -> Vec<f32> {
        lines.iter().filter(|line| line.block == 0 && !line.generated).map(|line| line.before).collect()
    };
    assert_eq!(prompt_of(&lines), prompt_of(&observed_lines));
}

#[test]
fn strength_and_observe_replace_the_files_strength() {
    let folder = folder();
    let entries: Vec<Entry> = vec![
        (7, 1, Bound::band(-0.05, 0.05).expect("a band"), 1.0),
        (7, 2, Bound::floor(0.5).expect("a floor"), 0.5),
    ];
    let (half, lines) = run(folder.path(), &entries, &["--strength", "0.5"]);
    check(&entries, &half, &lines, Some(0.5));
    let (observed, lines) = run(folder.path(), &entries, &["--observe"]);
    check(&entries, &observed, &lines, Some(0.0));
    assert!(lines.iter().any(|line| line.engaged), "rows outside the bounds are counted");
    assert!(lines.iter().all(|line| line.after == line.before), "but none is moved");

    // Caps that observe leave the text unchanged.
    let args = ["--raw", "--prompt", PROMPT, "--temp", "0", "--max-tokens", "6", "--json", "--ctx", "256"];
    let plain = json(axiscap("run", &args));
    assert_eq!(plain["tokens"], observed["tokens"]);
    assert_eq!(plain["caps"].as_array().map(Vec::len), Some(0));
}

#[test]
fn a_prompt_in_many_passes_gives_the_same_rows() {
    let folder = folder();
    let bound = Bound::band(-0.2, 0.2).expect("a band");
    let entries: Vec<Entry> = vec![(0, 1, bound, 1.0), (14, 2, bound, 1.0), (29, 3, bound, 1.0)];
    let (whole, lines) = run(folder.path(), &entries, &[]);
    check(&entries, &whole, &lines, None);
    let (parts, pieces) =
        run(folder.path(), &entries, &["--ubatch", "7", "--kv-type", "f32", "--flash-attn", "off"]);
    check(&entries, &parts, &pieces, None);
    // Block 0 depends on no cap, and on the passes only through roundings of other matrix shapes.
    for (a, b) in lines.iter().zip(&pieces).filter(|(a, _)| a.block == 0 && !a.generated) {
        assert!((a.before - b.before).abs() < 0.05, "{a:?} {b:?}");
    }
}

/// Rows at skipped positions are shown, and left alone.
#[test]
fn skipped_positions_are_traced_as_left_alone() {
    let folder = folder();
    let bound = Bound::floor(1e4).unwrap();
    let entries: [Entry; 2] = [(7, 1, bound, 1.0), (3, 2, bound, 1.0)];
    let (report, lines) = run(folder.path(), &entries, &["--skip-positions", "2"]);
    let text = std::fs::read_to_string(folder.path().join("trace.jsonl")).unwrap();
    let skipped: Vec<bool> = text.lines().map(|line| line.contains("\"skipped\":true")).collect();
    assert_eq!(skipped.len(), lines.len());
    for (line, skipped) in lines.iter().zip(skipped) {
        assert_eq!(skipped, line.position < 2, "{line:?}");
        assert_eq!(line.after != line.before, !skipped, "{line:?}");
        assert_eq!(line.engaged, !skipped, "{line:?}");
    }
    for cap in report["caps"].as_array().unwrap() {
        let rows = cap["rows"].as_u64().unwrap();
        assert_eq!((cap["skipped"].as_u64(), cap["min_after"].as_f64()), (Some(2), Some(1e4)));
        assert_eq!(rows + 2, lines.iter().filter(|line| line.cap == 0).count() as u64);
    }
    // As a policy of the file, which is shown.
    let file = folder.path().join("test.caps.gguf");
    let mut caps = axiscap::file::CapFile::read(&file).unwrap();
    caps.caps = caps.caps.with_policy(axiscap::Policy::default().with_skip_positions(2));
    caps.write(&file).unwrap();
    let shown = json(program(&["inspect", arg(&file), "--json"], ""));
    assert_eq!(shown["skip_positions"], 2);
    let args =
        ["--caps", arg(&file), "--raw", "--prompt", PROMPT, "--temp", "0", "--max-tokens", "6", "--json"];
    let of_file = json(axiscap("run", &[&args[..], &["--ctx", "256"]].concat()));
    assert_eq!((&of_file["tokens"], &of_file["caps"]), (&report["tokens"], &report["caps"]));
}

#[test]
fn a_schedule_says_which_rows_are_capped() {
    let folder = folder();
    let bound = Bound::floor(1e4).unwrap();
    let moved = |when: &str| {
        let (report, lines) = run(folder.path(), &[(7, 1, bound, 1.0)], &["--when", when]);
        let moved = lines.iter().filter(|line| line.after != line.before).map(|line| line.position);
        (moved.collect::<Vec<_>>(), report)
    };
    let (all, report) = moved("always");
    let prompt = report["prompt_tokens"].as_u64().unwrap() as usize;
    assert_eq!(all, (0..prompt + GENERATED - 1).collect::<Vec<_>>());
    assert!(report["engagements"].is_null());
    assert_eq!(moved("generated").0, (prompt..prompt + GENERATED - 1).collect::<Vec<_>>());
    assert_eq!(moved("ramp=4..8").0, (5..prompt + GENERATED - 1).collect::<Vec<_>>());
    let (rows, report) = moved("alarm=1,0,-1");
    assert_eq!(rows, (prompt + 1..prompt + GENERATED - 1).collect::<Vec<_>>());
    let engagement = &report["engagements"][0];
    assert_eq!(
        (engagement["position"].as_u64(), engagement["engaged"].as_bool()),
        (Some(prompt as u64 + 1), Some(true))
    );
    assert_eq!(report["caps"][0]["engaged"].as_u64(), Some(GENERATED as u64 - 2));
}
