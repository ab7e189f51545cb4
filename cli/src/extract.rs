//! `axiscap extract`: the Assistant axis of a model, from its own answers.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use axiscap::file::{CapFile, ModelInfo, write_atomically};
use axiscap::{BlockCap, Bound, Cap, CapSet};
use axiscap_llama::drift_plot::{LineChart, Series};
use axiscap_llama::extract::{BlockAxis, extract};
use axiscap_llama::rollout::{RolloutOptions, generate_rollouts};
use axiscap_llama::rollout_file::{RolloutHeader, Rollouts};
use axiscap_llama::rollout_plan::Plan;
use axiscap_llama::{Model, activations};
use clap::builder::RangedU64ValueParser;
use serde_json::json;

use crate::{output, progress};

/// What a positive projection means on every axis made here.
const ORIENTATION: &str = "more Assistant";

/// Find the Assistant axis of a model: default answers minus role play, per block.
///
/// The model answers every question as itself (under neutral system prompts) and in every role. The axis of a block
/// is the mean of its output over the first answers minus that over the second; it is scored on questions it was not
/// made from. What is written is a cap file without bounds: give it bounds with `axiscap calibrate`.
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

/// The model and its answers, generated or read: shared with `axiscap calibrate`.
#[derive(Debug, clap::Args)]
pub(crate) struct AnswersArgs {
    /// The model, a GGUF file
    #[arg(long, value_name = "FILE", env = "AXISCAP_MODEL")]
    pub(crate) model: PathBuf,

    /// The answers (JSON lines): read if the file exists, else generated and written to it
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) rollouts: Option<PathBuf>,

    /// Roles and neutral system prompts (JSON) instead of the built-in ones
    #[arg(long, value_name = "FILE")]
    roles: Option<PathBuf>,

    /// Questions, one a line, instead of the built-in ones
    #[arg(long, value_name = "FILE")]
    questions: Option<PathBuf>,

    /// Use only the first N roles: for a quick trial
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    limit_roles: Option<usize>,

    /// Use only the first N questions: for a quick trial
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(2..))]
    limit_questions: Option<usize>,

    /// A chat template that llama.cpp knows (chatml, llama3, ...) in place of the model's own
    #[arg(long, value_name = "NAME")]
    chat_template: Option<String>,

    /// Most tokens of an answer
    #[arg(long, default_value_t = 48, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    max_tokens: usize,

    /// Sampling temperature
    #[arg(long, default_value_t = 0.7, value_name = "T")]
    temp: f32,

    /// Seed of the answers
    #[arg(long, default_value_t = 1, value_name = "S")]
    seed: u32,

    /// Answers generated side by side
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=256))]
    slots: usize,

    /// CPU threads
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,

    /// Layers on the GPU
    #[arg(long, value_name = "N")]
    gpu_layers: Option<u32>,
}

impl AnswersArgs {
    pub(crate) fn load_model(&self) -> Result<Model> {
        crate::model::load(&self.model, self.gpu_layers)
    }

    /// Reads the answers, or generates and keeps them.
    pub(crate) fn answers(&self, model: &Model) -> Result<Rollouts> {
        let text = |path: &Option<PathBuf>| -> Result<Option<String>> {
            let Some(path) = path else { return Ok(None) };
            let text = std::fs::read_to_string(path);
            Ok(Some(text.with_context(|| format!("cannot read {}", path.display()))?))
        };
        let (roles, questions) = (text(&self.roles)?, text(&self.questions)?);
        let plan = Plan::from_texts(roles.as_deref(), questions.as_deref())?;
        if let Some(path) = self.rollouts.as_deref().filter(|path| path.exists()) {
            return reuse(path, model, &plan);
        }
        let plan = plan.limited(self.limit_roles, self.limit_questions);
        let requests = plan.requests(self.seed);
        let mut options =
            RolloutOptions { max_tokens: self.max_tokens, slots: self.slots, ..RolloutOptions::default() };
        options.threads = self.threads;
        options.chat_template.clone_from(&self.chat_template);
        options.sampling.temperature = self.temp;
        let bar = progress::bar("answers generated", requests.len());
        let rollouts = generate_rollouts(model, &requests, &options, |done| bar.set_position(done as u64))?;
        bar.finish();
        let shape = model.shape();
        let header = RolloutHeader {
            version: RolloutHeader::VERSION,
            tool: tool(),
            architecture: shape.architecture.clone(),
            model: model.name().unwrap_or_default().to_owned(),
            blocks: shape.blocks,
            width: shape.width,
            vocabulary: model.vocab_size(),
            roles_sha256: plan.roles_sha256,
            questions_sha256: plan.questions_sha256,
            seed: self.seed,
            temperature: self.temp,
            max_tokens: self.max_tokens,
            chat_template: self.chat_template.clone(),
        };
        let rollouts = Rollouts { header, rollouts };
        if let Some(path) = &self.rollouts {
            rollouts.write(path)?;
        }
        Ok(rollouts)
    }

    /// The options that shape the answers, as they go into a file's origin: without folders.
    pub(crate) fn command(&self) -> String {
        let mut words = format!("--model {}", file_name(&self.model));
        for (flag, path) in
            [("--rollouts", &self.rollouts), ("--roles", &self.roles), ("--questions", &self.questions)]
        {
            if let Some(path) = path {
                words += &format!(" {flag} {}", file_name(path));
            }
        }
        for (flag, limit) in
            [("--limit-roles", self.limit_roles), ("--limit-questions", self.limit_questions)]
        {
            if let Some(limit) = limit {
                words += &format!(" {flag} {limit}");
            }
        }
        if let Some(name) = &self.chat_template {
            words += &format!(" --chat-template {name}");
        }
        let Self { max_tokens, temp, seed, slots, .. } = self;
        words + &format!(" --max-tokens {max_tokens} --temp {temp} --seed {seed} --slots {slots}")
    }
}

/// Reads answers made before, if they are this model's to the questions asked.
fn reuse(path: &Path, model: &Model, plan: &Plan) -> Result<Rollouts> {
    let rollouts = Rollouts::read(path)?;
    let header = &rollouts.header;
    let again = "remove the file to generate the answers anew, or name another";
    let shape = model.shape();
    ensure!(
        (header.architecture.as_str(), header.blocks, header.width, header.vocabulary)
            == (shape.architecture.as_str(), shape.blocks, shape.width, model.vocab_size()),
        "{}: these answers are from another model ({}, {} blocks, width {}, {} tokens; this one: {}, {}, {}, {}); {again}",
        path.display(),
        header.architecture,
        header.blocks,
        header.width,
        header.vocabulary,
        shape.architecture,
        shape.blocks,
        shape.width,
        model.vocab_size()
    );
    for (what, found, expected) in [
        ("roles", &header.roles_sha256, &plan.roles_sha256),
        ("questions", &header.questions_sha256, &plan.questions_sha256),
    ] {
        if found != expected {
            bail!("{}: these answers were made from other {what}; {again}", path.display());
        }
    }
    output::note(&format!("{} answers read from {}", rollouts.rollouts.len(), path.display()));
    Ok(rollouts)
}

/// Runs the subcommand.
///
/// # Errors
/// What went wrong and what to do: unreadable files, a model that is none, groups of answers that do not differ.
pub(crate) fn run(args: Args) -> Result<()> {
    let started = Instant::now();
    for path in [Some(&args.out), args.plot.as_ref(), args.answers.rollouts.as_ref()].into_iter().flatten() {
        check_output(path)?;
    }
    let model = args.answers.load_model()?;
    let answers = args.answers.answers(&model)?;
    let generated = started.elapsed();
    let count = answers.rollouts.len();
    let bar = progress::bar("answers measured", count);
    let means = activations::mean_activations(&model, &answers.rollouts, args.answers.threads, |done| {
        bar.set_position(done as u64);
    })?;
    bar.finish();
    let axes = extract(&answers.rollouts, &means)?;
    let measured = started.elapsed() - generated;
    axis_file(&args, &model, &answers, &axes)?.write(&args.out)?;
    if let Some(path) = &args.plot {
        let svg = chart(&axes).to_svg()?;
        write_atomically(path, |out| out.write_all(svg.as_bytes()))?;
    }
    let tokens: usize = answers.rollouts.iter().map(|r| r.response.len()).sum();
    let defaults = answers.rollouts.iter().filter(|r| r.role.is_none()).count();
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
            "out": args.out,
            "answers": count,
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
        "{count} answers ({defaults} default, {} in roles), {tokens} response tokens\n",
        count - defaults
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

fn axis_file(args: &Args, model: &Model, answers: &Rollouts, axes: &[BlockAxis]) -> Result<CapFile> {
    let caps = CapSet::new(axes.iter().map(|axis| BlockCap {
        block: axis.block,
        cap: Cap::new(axis.axis.clone(), Bound::NONE).with_name("assistant"),
    }))?;
    let mut file = CapFile::new(caps, model_info(model));
    file.orientation = Some(ORIENTATION.into());
    let (header, command) = (&answers.header, args.answers.command());
    let defaults = answers.rollouts.iter().filter(|r| r.role.is_none()).count();
    let tokens: usize = answers.rollouts.iter().map(|r| r.response.len()).sum();
    file.origin
        .set("tool", tool())
        .set("extract.command", format!("axiscap extract {command} --out {}", file_name(&args.out)))
        .set("extract.roles_sha256", header.roles_sha256.as_str())
        .set("extract.questions_sha256", header.questions_sha256.as_str())
        .set("extract.default_answers", defaults as u32)
        .set("extract.role_answers", (answers.rollouts.len() - defaults) as u32)
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

/// Fails before the work rather than after it when an output has no folder to lie in.
pub(crate) fn check_output(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ensure!(folder.is_dir(), "{}: there is no folder {}; create it first", path.display(), folder.display());
    ensure!(!path.is_dir(), "{} is a folder; name a file", path.display());
    Ok(())
}

/// The model's fingerprint in a file.
pub(crate) fn model_info(model: &Model) -> ModelInfo {
    let mut info = ModelInfo::new(model.shape().architecture.clone(), model.shape().blocks);
    info.name = model.name().map(Into::into);
    info.file_type = model.metadata("general.file_type").and_then(|number| number.parse().ok());
    info
}

/// Name and version of this program, for the origin of files.
pub(crate) fn tool() -> String {
    concat!("axiscap ", env!("CARGO_PKG_VERSION")).into()
}

/// The last part of a path: origins do not tell where things lay on someone's disk.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
