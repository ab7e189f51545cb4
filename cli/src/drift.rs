//! `axiscap drift`: the projection over a conversation, uncapped and capped.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Error, Result};
use axiscap::CapSet;
use axiscap_lab::bench::{BenchOptions, Ratio, bench};
use axiscap_lab::charts::{LineChart, Series};
use axiscap_lab::drift::{Conversation, DriftTurn, Mode, Script, TurnProjection};
use axiscap_lab::output::write_atomically;
use axiscap_llama::{Context, GenerateOptions, Model, Stop};
use serde_json::json;

use crate::caps::RequiredCapsArgs;
use crate::model::ModelArgs;
use crate::progress::Progress;
use crate::sampling::SamplingArgs;
use crate::{output, report};

/// Have a scripted conversation twice, uncapped and capped, and follow the projection of the answers
///
/// The user's messages are fixed. The model answers each of them, first with caps that only observe, then
/// with caps that hold. The projection of a turn is the mean over its response tokens, at the last capped
/// block unless another is named. Plotted and compared is the projection after that block's cap, which is
/// what the rest of the model sees.
#[derive(Debug, clap::Args)]
// scripts/demo sets some options, and its caller may set them again.
#[command(args_override_self = true)]
#[command(after_help = "Example:
  axiscap drift --model model.gguf --caps caps.gguf --plot drift.svg

A script of your own is JSON: {\"name\": \"...\", \"system\": null, \"turns\": [\"first message\", \"second\", ...]}")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    caps: RequiredCapsArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// The user's messages (JSON) [default: a built-in emotional conversation of 8 turns]
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// A chat template that llama.cpp knows (chatml, llama3, ...) in place of the model's own
    #[arg(long, value_name = "NAME")]
    chat_template: Option<String>,
    /// Block to look at [default: the last capped one]
    #[arg(long, value_name = "BLOCK")]
    block: Option<usize>,
    /// Where to draw the projections
    #[arg(long, value_name = "FILE.svg", default_value = "drift.svg")]
    plot: PathBuf,
    /// Pairs of the short speed comparison; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 7)]
    speed_pairs: usize,
    /// Print all answers, not only the last ones
    #[arg(long)]
    all_answers: bool,
    /// Print one JSON object in place of the table
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// Unreadable files, caps of another model, a conversation longer than the context.
pub(crate) fn run(args: Args) -> Result<()> {
    let options = args.sampling.options();
    if options.max_tokens < 2 {
        return Err(output::wrong_usage(format!(
            "--max-tokens is {}; give 2 or more: the last token of an answer that is cut off has no projection",
            options.max_tokens
        )));
    }
    let mut inputs = vec![("--model", args.model.model.as_path()), ("--caps", &args.caps.caps)];
    inputs.extend(args.script.as_deref().map(|path| ("--script", path)));
    output::check_files(&inputs, &[("--plot", &args.plot)])?;
    let script = match &args.script {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Script::parse(&text).with_context(|| path.display().to_string())?
        }
        None => Script::emotional(),
    };
    let caps = args.caps.read()?;
    let model = args.model.load()?;
    args.sampling.report_seed();
    let caps = caps.check(&model)?.acting()?;
    let cap = report::shown_cap(&caps, args.block)?;
    let (uncapped, capped, unfinished) = both(&args, &model, &script, &caps, &options)?;
    let speed = speed(&args, &model, &caps)?;
    let report = Report { script: &script, caps: &caps, cap, uncapped, capped, speed, unfinished };
    for cut in report.cut_short() {
        output::warning(&cut);
    }
    // The table comes before the plot, which may fail. The plot is drawn even if stdout is closed.
    let printed =
        if args.json { output::json(&report.json(&args)) } else { output::text(&report.text(&args)?) };
    let svg = report.chart().to_svg()?;
    write_atomically(&args.plot, |out| out.write_all(svg.as_bytes()))?;
    printed?;
    if !args.json {
        output::text(&format!("plot: {}\n", args.plot.display()))?;
    }
    match report.unfinished {
        Some(error) => Err(error.context("the conversation ended early")),
        None => Ok(()),
    }
}

/// Has the two conversations one after the other in one context. Returns them, and where and why they ended
/// early, if they did. The capped one has at most as many turns as the uncapped one, because the two are
/// compared turn by turn.
fn both(
    args: &Args,
    model: &Model,
    script: &Script,
    caps: &CapSet,
    options: &GenerateOptions,
) -> Result<(Vec<DriftTurn>, Vec<DriftTurn>, Option<Error>)> {
    let mut context = Context::new(model, &args.model.context(model))?;
    let turns = script.turns.len();
    let progress = Progress::new("turns", 2 * turns);
    let template = args.chat_template.as_deref();
    let observed = Conversation { script, template, caps, mode: Mode::Observe, options: *options };
    let (mut uncapped, first) = observed.run(&mut context, |done| progress.set(done))?;
    let mut script = script.clone();
    script.turns.truncate(uncapped.len());
    let held = Conversation { script: &script, mode: Mode::Cap, ..observed };
    let (capped, second) = held.run(&mut context, |done| progress.set(turns + done))?;
    progress.clear();
    uncapped.truncate(capped.len());
    let ended = second.map(|end| ("capped", end)).or(first.map(|end| ("uncapped", end)));
    let unfinished = ended.map(|(which, end)| {
        let place = format!("{which}, turn {} of {turns}", end.turn);
        Error::from(end.error).context(place)
    });
    match unfinished {
        Some(error) if capped.is_empty() => Err(error),
        unfinished => Ok((uncapped, capped, unfinished)),
    }
}

/// Compares the decode speeds shortly. `axiscap bench` measures them properly.
fn speed(args: &Args, model: &Model, caps: &CapSet) -> Result<Option<Ratio>> {
    if args.speed_pairs == 0 {
        return Ok(None);
    }
    let options = BenchOptions {
        pairs: args.speed_pairs,
        prompt_tokens: 8,
        prompts: 1,
        generate_tokens: 16,
        context: args.model.context(model),
        ..BenchOptions::default()
    };
    let progress = Progress::new("speed", args.speed_pairs);
    let report = bench(model, caps, &options, |done, _| progress.set(done))?;
    progress.clear();
    Ok(Some(report.capped.decode))
}

struct Report<'a> {
    script: &'a Script,
    caps: &'a CapSet,
    /// Index of the cap that is shown.
    cap: usize,
    uncapped: Vec<DriftTurn>,
    capped: Vec<DriftTurn>,
    speed: Option<Ratio>,
    /// Where and why the conversation ended before the script did.
    unfinished: Option<Error>,
}

impl Report<'_> {
    /// Returns the block of the cap that is shown.
    fn block(&self) -> usize {
        self.caps.caps()[self.cap].block
    }

    /// Returns what the shown cap saw in a turn, `None` for an answer without tokens.
    fn shown(&self, turn: &DriftTurn) -> Option<TurnProjection> {
        let block = self.block();
        turn.projections.iter().rfind(|projection| projection.block == block).copied()
    }

    /// Returns a warning for each answer that ended because the context was full.
    fn cut_short(&self) -> Vec<String> {
        let which = [("uncapped", &self.uncapped), ("capped", &self.capped)];
        let cut = which.into_iter().flat_map(|(name, turns)| {
            let full = turns.iter().zip(1..).filter(|(turn, _)| turn.stop == Stop::ContextFull);
            full.map(move |(_, number)| {
                format!(
                    "{name}, turn {number}: the answer was cut off because the context is full; raise --ctx"
                )
            })
        });
        cut.collect()
    }

    /// Returns the share of response tokens, over all turns and caps, that were outside the bounds.
    fn engagement(&self) -> f64 {
        let all =
            || self.capped.iter().flat_map(|turn| turn.projections.iter().map(|p| (p, turn.tokens as f64)));
        let tokens: f64 = all().map(|(_, tokens)| tokens).sum();
        all().map(|(projection, tokens)| projection.engaged * tokens).sum::<f64>() / tokens
    }

    fn text(&self, args: &Args) -> Result<String> {
        let mut text = String::new();
        let pairs = self.script.turns.iter().zip(self.uncapped.iter().zip(&self.capped)).enumerate();
        let last = self.capped.len() - 1;
        for (index, (user, (uncapped, capped))) in
            pairs.filter(|(index, _)| args.all_answers || *index == last)
        {
            writeln!(text, "Turn {}, user:\n{}", index + 1, indented(user))?;
            writeln!(text, "uncapped:\n{}", indented(&uncapped.answer))?;
            writeln!(text, "capped:\n{}\n", indented(&capped.answer))?;
        }
        let bound = self.caps.caps()[self.cap].cap.bound();
        writeln!(
            text,
            "Mean projection of each answer on the axis of block {} (positive = more Assistant; cap: {bound})",
            self.block()
        )?;
        writeln!(text, "turn  uncapped  capped: before   after  engaged")?;
        for (index, (uncapped, capped)) in self.uncapped.iter().zip(&self.capped).enumerate() {
            let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
            let capped = self.shown(capped);
            writeln!(
                text,
                "{:>4} {:>9} {:>15} {:>7} {:>8}",
                index + 1,
                number(self.shown(uncapped).map(|p| p.after)),
                number(capped.map(|p| p.before)),
                number(capped.map(|p| p.after)),
                capped.map_or("-".into(), |p| format!("{:.0} %", 100.0 * p.engaged)),
            )?;
        }
        writeln!(
            text,
            "engagement, all {} caps: {:.0} % of the response tokens",
            self.caps.caps().len(),
            100.0 * self.engagement()
        )?;
        if let Some(speed) = &self.speed {
            writeln!(
                text,
                "speed, capped / uncapped: {:.3} ({:.0} / {:.0} tokens per second; {} short pairs; axiscap bench measures it properly)",
                speed.median,
                speed.capped_tps,
                speed.uncapped_tps,
                speed.pairs.len()
            )?;
        }
        Ok(text)
    }

    fn json(&self, args: &Args) -> serde_json::Value {
        let turns = |turns: &[DriftTurn]| -> Vec<serde_json::Value> {
            let turn = |turn: &DriftTurn| {
                json!({
                    "user": turn.user,
                    "answer": turn.answer,
                    "tokens": turn.tokens,
                    "stop": crate::run::stop_name(turn.stop),
                    "projections": turn.projections,
                    "decode_tokens_per_second": turn.timings.decode_tokens_per_second(),
                })
            };
            turns.iter().map(turn).collect()
        };
        json!({
            "script": self.script.name,
            "block": self.block(),
            "seed": args.sampling.options().sampling.seed,
            "uncapped": turns(&self.uncapped),
            "capped": turns(&self.capped),
            "engagement": self.engagement(),
            "decode": self.speed.as_ref().map(crate::bench::ratio),
            "plot": args.plot.display().to_string(),
            "unfinished": self.unfinished.as_ref().map(|error| format!("{error:#}")),
        })
    }

    fn chart(&self) -> LineChart {
        let line = |name: &str, turns: &[DriftTurn]| Series {
            name: name.into(),
            points: (1..)
                .zip(turns)
                .filter_map(|(turn, t)| Some((f64::from(turn), self.shown(t)?.after)))
                .collect(),
        };
        let floor = self.caps.caps()[self.cap].cap.bound().lo();
        LineChart {
            title: format!("Projection on the Assistant axis, block {}", self.block()),
            x_label: "turn".into(),
            y_label: "mean projection of the answer".into(),
            series: vec![line("uncapped", &self.uncapped), line("capped", &self.capped)],
            level: floor.is_finite().then(|| (format!("floor {floor:.3}"), f64::from(floor))),
        }
    }
}

fn indented(text: &str) -> String {
    text.trim().lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
