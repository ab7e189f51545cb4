//! `axiscap extract`: the Assistant axis of a model, from its answers.

use std::fmt::{self, Write as _};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use axiscap::file::CapFile;
use axiscap::{BlockCap, Bound, Cap, CapSet};
use axiscap_lab::activations;
use axiscap_lab::charts::{LineChart, Series};
use axiscap_lab::extract::{BlockAxis, ExtractOptions, Extraction, extract};
use axiscap_lab::output::{write_atomically, write_caps};
use axiscap_lab::rollout::Rollout;
use axiscap_llama::Model;
use clap::builder::RangedU64ValueParser;
use serde_json::{Value, json};

use crate::answers::{Answers, AnswersArgs};
use crate::interrupt::{self, Interrupt};
use crate::model::model_info;
use crate::output::{self, counted, file_name, seconds, tool};

mod report;

/// What a positive projection means on the Assistant axis.
const ORIENTATION: &str = "more Assistant";

/// Name of the Assistant axis.
const ASSISTANT: &str = "assistant";

/// Key of the origin with the blocks to cap.
pub(crate) const RECOMMENDED: &str = "extract.recommended_blocks";

/// Find the Assistant axis of a model: default answers minus role play, per block.
///
/// The model answers questions as itself (under neutral system prompts) and in many roles. The axis of a block is
/// the mean of its output over the first answers minus the mean over the roles. It is scored on roles and
/// questions it was not made from. The output is a cap file without bounds: give it bounds with `axiscap
/// calibrate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  axiscap extract --model model.gguf --rollouts answers.jsonl --out axes.gguf --report axes.html
  axiscap calibrate --model model.gguf --rollouts answers.jsonl --axes axes.gguf --out caps.gguf")]
pub(crate) struct Args {
    #[command(flatten)]
    answers: AnswersArgs,

    /// The axis file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Write a page with charts that says how good the axes are, and which blocks to cap
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,

    /// Draw separation and cosines per block
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,

    /// Leave out roles with fewer answers that can be used
    #[arg(long, value_name = "N", default_value_t = ExtractOptions::default().min_answers, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    min_answers: usize,

    /// Take channels with massive activations out of the axes
    #[arg(long)]
    drop_massive: bool,

    /// Make the axis of this trait instead (positive minus negative answers)
    #[arg(long, value_name = "TRAIT", requires = "traits")]
    axis_of: Option<String>,

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
    let (rollouts, compute) = (&answers.rollouts, args.answers.compute());
    let means = answers.measured("answers measured", answers.rollouts.len(), &caught, |go_on| {
        activations::mean_activations(&model, rollouts, &compute, &folder(&args.out), go_on)
    })?;
    let options = ExtractOptions {
        min_answers: args.min_answers,
        drop_massive: args.drop_massive,
        of_trait: args.axis_of.clone(),
    };
    let found = extract(&answers.rollouts, &means, &options)?;
    let measured = started.elapsed() - generated;
    write_caps(&args.out, &axis_file(&args, &model, &answers, &found)?)?;
    let text = |path: &Path, text: String| write_atomically(path, |out| out.write_all(text.as_bytes()));
    if let Some(path) = &args.plot {
        text(path, chart(&found).to_svg()?)?;
    }
    let warnings = report::warnings(&found);
    if let Some(path) = &args.report {
        text(path, report::page(&args, &model, &answers, &found, &warnings).to_html()?)?;
    }
    warnings.iter().for_each(|warning| output::warning(warning));
    let counts = Counts::of(&answers.rollouts);
    if args.json {
        let mut report = json!({ "out": args.out.display().to_string(), "interrupted": false });
        let parts = [counts.json(&answers), report::json(&found)];
        for (name, value) in parts.into_iter().flat_map(|part| part.as_object().cloned().unwrap_or_default())
        {
            report[name] = value;
        }
        report["seconds_generating"] = generated.as_secs_f64().into();
        report["seconds_measuring"] = measured.as_secs_f64().into();
        report["warnings"] = warnings.into();
        answers.done();
        return output::json(&report);
    }
    answers.done();
    let mut text = format!("{counts}\n");
    text += &table(&found)?;
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

/// Returns where mean activations are kept: those of a large model take gigabytes, which are more likely to be free
/// beside the output than in the folder for temporary files. A device has no such place.
fn folder(out: &Path) -> PathBuf {
    let beside = out.parent().map(|folder| if folder == Path::new("") { Path::new(".") } else { folder });
    let is_file = out.is_file() || !out.exists();
    beside.filter(|folder| is_file && folder.is_dir()).map_or_else(std::env::temp_dir, Path::to_owned)
}

/// How many answers are measured.
struct Counts {
    default: usize,
    roles: usize,
    traits: usize,
    tokens: usize,
    thoughts: usize,
}

impl Counts {
    fn of(rollouts: &[Rollout]) -> Self {
        let kind = |kind| rollouts.iter().filter(|rollout| rollout.group.kind() == kind).count();
        Self {
            default: kind("default"),
            roles: kind("role"),
            traits: kind("trait"),
            tokens: rollouts.iter().map(|rollout| rollout.answer().len()).sum(),
            thoughts: rollouts.iter().map(|rollout| rollout.thoughts).sum(),
        }
    }

    fn json(&self, answers: &Answers) -> Value {
        let count = answers.rollouts.len();
        json!({
            "answers": count,
            "left_out": answers.counts.left_out,
            "faults": answers.faults(),
            "judge": answers.header.judge,
            "seed": answers.header.seed,
            "default_answers": self.default,
            "role_answers": self.roles,
            "trait_answers": self.traits,
            "response_tokens": self.tokens,
            "thought_tokens": self.thoughts,
        })
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { default, roles, traits, tokens, thoughts } = self;
        write!(f, "{} ({default} default, {roles} in roles", counted(default + roles + traits, "answer"))?;
        if *traits > 0 {
            write!(f, ", {traits} with traits")?;
        }
        write!(f, "), {}", counted(*tokens, "response token"))?;
        if *thoughts > 0 {
            write!(f, ", {} of thoughts", counted(*thoughts, "token"))?;
        }
        Ok(())
    }
}

fn table(found: &Extraction) -> Result<String> {
    let mut text = String::from(
        "block    norm    AUC     d'  cosine to next  half the roles  first component  largest channel\n",
    );
    let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
    for axis in &found.blocks {
        writeln!(
            text,
            "{:>5} {:>7.3} {:>6.3} {:>6.2} {:>15} {:>15} {:>16} {:>9} {:+.2}",
            axis.block,
            axis.axis.norm().unwrap_or(f32::NAN),
            axis.held_out.auc,
            axis.held_out.d_prime,
            number(axis.cosine_next),
            number(axis.cosine_halves),
            number(axis.components.as_ref().map(|components| components.cosine_first)),
            axis.peak.0,
            axis.peak.1
        )?;
    }
    let best = found.best_block();
    writeln!(
        text,
        "cap {}: of middle and late blocks these tell the groups apart as well as any (AUC {:.3} on block {}, on {} that its axis was not made from)",
        blocks_named(&found.recommended),
        best.held_out.auc,
        best.block,
        found.held_out
    )?;
    Ok(text)
}

/// Returns blocks in words.
fn blocks_named(blocks: &RangeInclusive<usize>) -> String {
    if blocks.start() == blocks.end() {
        format!("block {}", blocks.start())
    } else {
        format!("blocks {} to {}", blocks.start(), blocks.end())
    }
}

fn axis_file(args: &Args, model: &Model, answers: &Answers, found: &Extraction) -> Result<CapFile> {
    let name = args.axis_of.as_deref().unwrap_or(ASSISTANT);
    let caps = CapSet::new(found.blocks.iter().map(|axis| BlockCap {
        block: axis.block,
        cap: Cap::new(axis.axis.clone(), Bound::NONE).with_name(name),
    }))?;
    let mut file = CapFile::new(caps, model_info(model)?);
    file.orientation = Some(args.axis_of.as_ref().map_or(ORIENTATION.into(), |name| format!("more {name}")));
    let (header, counts) = (&answers.header, Counts::of(&answers.rollouts));
    let each = |value: &dyn Fn(&BlockAxis) -> f64| -> Vec<f32> {
        found.blocks.iter().map(|axis| value(axis) as f32).collect()
    };
    file.origin
        .set("tool", tool())
        .set("extract.command", args.command(answers))
        .set("extract.roles_sha256", header.roles_sha256.as_str())
        .set("extract.questions_sha256", header.questions_sha256.as_str())
        .set("extract.default_answers", counts.default as u32)
        .set("extract.role_answers", counts.roles as u32)
        .set("extract.left_out", answers.counts.left_out as u32)
        .set("extract.faults", answers.counts.to_string())
        .set("extract.response_tokens", counts.tokens as u32)
        .set("extract.max_tokens", header.max_tokens as u32)
        .set("extract.temperature", header.temperature)
        .set("extract.seed", header.seed)
        .set("extract.held_out", found.held_out.to_string())
        .set("extract.held_out_auc", each(&|axis| axis.held_out.auc))
        .set("extract.held_out_d_prime", each(&|axis| axis.held_out.d_prime))
        .set("extract.cosine_halves", each(&|axis| axis.cosine_halves.unwrap_or(f64::NAN)))
        .set(RECOMMENDED, found.recommended.clone().map(|block| block as u32).collect::<Vec<_>>());
    if let Some(digest) = &header.traits_sha256 {
        file.origin.set("extract.traits_sha256", digest.as_str());
    }
    if let Some(judged) = &header.judge {
        file.origin.set("extract.judge", judged.by.as_str());
    }
    Ok(file)
}

fn chart(found: &Extraction) -> LineChart {
    let line = |name: &str, value: &dyn Fn(&BlockAxis) -> f64| Series {
        name: name.into(),
        points: found.blocks.iter().map(|axis| (axis.block as f64, value(axis))).collect(),
    };
    let (first, last) = (*found.recommended.start() as f64, *found.recommended.end() as f64);
    LineChart {
        title: "Assistant axis per block".into(),
        x_label: "block".into(),
        y_label: "AUC, cosine".into(),
        series: vec![
            line("held-out AUC", &|axis| axis.held_out.auc),
            line("cosine to the next block's axis", &|axis| axis.cosine_next.unwrap_or(f64::NAN)),
            line("cosine of the axes of half the roles each", &|axis| axis.cosine_halves.unwrap_or(f64::NAN)),
        ],
        level: None,
        band: Some(("blocks to cap".into(), first, last)),
    }
}

impl Args {
    /// Returns the command line for the origin of a file, without folders.
    fn command(&self, answers: &Answers) -> String {
        let command = self.answers.command(&answers.header);
        let mut words = format!("axiscap extract {command} --min-answers {}", self.min_answers);
        if self.drop_massive {
            words += " --drop-massive";
        }
        if let Some(name) = &self.axis_of {
            words += &format!(" --axis-of {name:?}");
        }
        words + &format!(" --out {}", file_name(&self.out))
    }
}
