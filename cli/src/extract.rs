//! `axiscap extract`: the Assistant axis of a model, from its answers.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use axiscap::file::CapFile;
use axiscap::{BlockCap, Bound, Cap, CapSet};
use axiscap_lab::activations;
use axiscap_lab::charts::{LineChart, Series};
use axiscap_lab::extract::{BlockAxis, extract};
use axiscap_lab::output::{write_atomically, write_caps};
use axiscap_llama::Model;
use serde_json::json;

use crate::answers::{Answers, AnswersArgs};
use crate::interrupt::{self, Interrupt};
use crate::model::model_info;
use crate::output::{self, counted, file_name, seconds, tool};
use crate::progress::Progress;

/// What a positive projection means on every axis made here.
const ORIENTATION: &str = "more Assistant";

/// Find the Assistant axis of a model: default answers minus role play, per block.
///
/// The model answers every question as itself (under neutral system prompts) and in every role. The axis of a
/// block is the mean of its output over the first answers minus the mean over the second. It is scored on
/// questions it was not made from. The output is a cap file without bounds: give it bounds with `axiscap
/// calibrate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  axiscap extract --model model.gguf --rollouts answers.jsonl --out axes.gguf
  axiscap calibrate --model model.gguf --rollouts answers.jsonl --axes axes.gguf --out caps.gguf")]
pub(crate) struct Args {
    #[command(flatten)]
    answers: AnswersArgs,

    /// The axis file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Draw separation and neighbour cosines per block
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// Unreadable files, a file that is no model, groups of answers that do not differ.
pub(crate) fn run(args: Args) -> Result<()> {
    let json = args.json;
    interrupt::report(work(args), json)
}

fn work(args: Args) -> Result<()> {
    let started = Instant::now();
    let model = args.answers.load_model()?;
    let interrupt = Interrupt::new()?;
    let caught = interrupt.catch();
    let answers = args.answers.answers(&model, &args.out, &caught)?;
    let generated = started.elapsed();
    let count = answers.rollouts.len();
    let progress = Progress::new("answers measured", count);
    let means = activations::mean_activations(&model, &answers.rollouts, args.answers.threads, |done| {
        progress.set(done);
        caught.go_on()
    })?;
    let Some(means) = means else {
        progress.clear();
        return Err(answers.interrupted());
    };
    progress.finish();
    let axes = extract(&answers.rollouts, &means)?;
    let measured = started.elapsed() - generated;
    write_caps(&args.out, &axis_file(&args, &model, &answers, &axes)?)?;
    if let Some(path) = &args.plot {
        let svg = chart(&axes).to_svg()?;
        write_atomically(path, |out| out.write_all(svg.as_bytes()))?;
    }
    let tokens: usize = answers.rollouts.iter().map(|r| r.response.len()).sum();
    let defaults = answers.rollouts.iter().filter(|r| r.role.is_none()).count();
    let seed = answers.header.seed;
    let (faults, left_out) = (answers.faults(), answers.counts.answers - count);
    answers.done();
    if args.json {
        let blocks: Vec<_> = axes
            .iter()
            .map(|axis| {
                json!({
                    "block": axis.block,
                    "norm": axis.axis.norm(),
                    "auc": axis.held_out.auc,
                    "cohens_d": axis.held_out.cohens_d,
                    "cosine_next": axis.cosine_next,
                    "peak_channel": axis.peak.0,
                    "peak_value": axis.peak.1,
                })
            })
            .collect();
        let report = json!({
            "out": args.out.display().to_string(),
            "interrupted": false,
            "answers": count,
            "left_out": left_out,
            "faults": faults,
            "seed": seed,
            "default_answers": defaults,
            "role_answers": count - defaults,
            "response_tokens": tokens,
            "seconds_generating": generated.as_secs_f64(),
            "seconds_measuring": measured.as_secs_f64(),
            "blocks": blocks,
        });
        return output::json(&report);
    }
    let mut text = format!(
        "{} ({defaults} default, {} in roles), {}\n",
        counted(count, "answer"),
        count - defaults,
        counted(tokens, "response token")
    );
    text += &table(&axes)?;
    writeln!(
        text,
        "{} written in {}: {} for the answers, {} for the axes",
        args.out.display(),
        seconds(started.elapsed()),
        seconds(generated),
        seconds(measured)
    )?;
    output::text(&text)
}

fn table(axes: &[BlockAxis]) -> Result<String> {
    let mut text = String::from("block    norm  held-out AUC  Cohen's d  cosine to next  largest channel\n");
    for axis in axes {
        writeln!(
            text,
            "{:>5} {:>7.3} {:>13.3} {:>10.2} {:>15} {:>9} {:+.2}",
            axis.block,
            axis.axis.norm().unwrap_or(f32::NAN),
            axis.held_out.auc,
            axis.held_out.cohens_d,
            axis.cosine_next.map_or("-".into(), |cosine| format!("{cosine:.3}")),
            axis.peak.0,
            axis.peak.1
        )?;
    }
    if let Some(best) = axes.iter().max_by(|a, b| a.held_out.auc.total_cmp(&b.held_out.auc)) {
        writeln!(text, "separates best: block {} (AUC {:.3})", best.block, best.held_out.auc)?;
    }
    Ok(text)
}

fn axis_file(args: &Args, model: &Model, answers: &Answers, axes: &[BlockAxis]) -> Result<CapFile> {
    let caps = CapSet::new(axes.iter().map(|axis| BlockCap {
        block: axis.block,
        cap: Cap::new(axis.axis.clone(), Bound::NONE).with_name("assistant"),
    }))?;
    let mut file = CapFile::new(caps, model_info(model)?);
    file.orientation = Some(ORIENTATION.into());
    let (header, command) = (&answers.header, args.answers.command(&answers.header));
    let defaults = answers.rollouts.iter().filter(|r| r.role.is_none()).count();
    let tokens: usize = answers.rollouts.iter().map(|r| r.response.len()).sum();
    file.origin
        .set("tool", tool())
        .set("extract.command", format!("axiscap extract {command} --out {}", file_name(&args.out)))
        .set("extract.roles_sha256", header.roles_sha256.as_str())
        .set("extract.questions_sha256", header.questions_sha256.as_str())
        .set("extract.default_answers", defaults as u32)
        .set("extract.role_answers", (answers.rollouts.len() - defaults) as u32)
        .set("extract.left_out", (answers.counts.answers - answers.rollouts.len()) as u32)
        .set("extract.faults", answers.counts.to_string())
        .set("extract.response_tokens", tokens as u32)
        .set("extract.max_tokens", header.max_tokens as u32)
        .set("extract.temperature", header.temperature)
        .set("extract.seed", header.seed)
        .set("extract.held_out_auc", axes.iter().map(|a| a.held_out.auc as f32).collect::<Vec<_>>());
    Ok(file)
}

fn chart(axes: &[BlockAxis]) -> LineChart {
    let line = |name: &str, value: &dyn Fn(&BlockAxis) -> f64| Series {
        name: name.into(),
        points: axes.iter().map(|axis| (axis.block as f64, value(axis))).collect(),
    };
    LineChart {
        title: "Assistant axis per block".into(),
        x_label: "block".into(),
        y_label: "held-out AUC, cosine".into(),
        series: vec![
            line("held-out AUC, default against role play", &|axis| axis.held_out.auc),
            line("cosine to the next block's axis", &|axis| axis.cosine_next.unwrap_or(f64::NAN)),
        ],
        level: None,
    }
}
