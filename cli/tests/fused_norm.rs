//! `--fused-norm` without a GPU: it reports that it has no effect, and has none.

mod support;

use axiscap::Bound;
use support::{arg, axiscap, caps, folder, json, model, succeed};

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn run_and_bench_report_that_the_fused_norm_has_no_effect_without_a_gpu() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    caps(&file, &[(9, 1, Bound::band(-0.2, 0.2).unwrap(), 1.0), (10, 2, Bound::NONE, 1.0)]);
    let caps = ["--caps", arg(&file), "--gpu-layers", "0"];

    let run = [&caps[..], &["--prompt", "Say hello.", "--temp", "0", "--max-tokens", "6"]].concat();
    let plain = json(axiscap("run", &[&run[..], &["--json"]].concat()));
    assert!(plain.get("fused_norm").is_none());
    let output = axiscap("run", &[&run[..], &["--json", "--fused-norm"]].concat());
    let complaints = stderr(&output);
    assert_eq!(complaints.matches("the fused norm has no effect here").count(), 1, "{complaints}");
    let fused = json(output);
    assert_eq!(fused["tokens"], plain["tokens"]);
    for report in [&fused, &json(axiscap("bench", &[&caps[..], &SHORT, &["--json"]].concat()))] {
        assert_eq!(report["fused_norm"]["fused"].as_array().unwrap().len(), 0);
        for (i, block) in [9, 10].into_iter().enumerate() {
            let refused = &report["fused_norm"]["refused"][i];
            assert_eq!(refused["block"], block);
            assert_eq!(refused["reason"], "the block is not capped on a GPU");
        }
    }

    let text = stderr(&axiscap("run", &[&run[..], &["--fused-norm"]].concat()));
    let line = "fused norm: after no block; not after 9, 10: the block is not capped on a GPU";
    assert!(text.contains(line), "{text}");
    let table = succeed(axiscap("bench", &[&caps[..], &SHORT].concat()));
    assert!(table.contains(line), "{table}");
}

const SHORT: [&str; 7] = ["--fused-norm", "--pairs", "1", "--prompt-tokens", "8", "--generate-tokens", "2"];

#[test]
fn the_fused_norm_needs_caps() {
    let output = support::program(&["run", "--model", arg(&model()), "--fused-norm", "--prompt", "x"], "");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--caps"));
}
