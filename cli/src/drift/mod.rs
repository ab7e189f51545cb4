//! `axiscap drift`: the projection over a conversation, uncapped and capped.

mod transcripts;

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Error, Result};
use axiscap::CapSet;
use axiscap_lab::bench::{BenchOptions, Ratio, bench};
use axiscap_lab::charts::{LineChart, Series};
use axiscap_lab::drift::{Conversation, DriftTurn, Mode, Moved, Script, TurnProjection, default_alarm};
use axiscap_lab::output::write_atomically;
use axiscap_llama::{
    Alarm, AlarmRule, ChatTemplate, Context, GenerateOptions, Message, Model, Role, Stop, Watch,
};
use serde_json::json;

use crate::bos::{self, Writer};
use crate::caps::RequiredCapsArgs;
use crate::interrupt::{self, Catch, Interrupt};
use crate::levels::WatchArgs;
use crate::model::ModelArgs;
use crate::output::{self, counted};
use crate::progress::Progress;
use crate::sampling::SamplingArgs;
use crate::schedule::{EngagementReport, alarm_rule};
use crate::template::TemplateArgs;
use crate::{input, report};

/// Have a scripted conversation uncapped, capped, and capped on alarm, and follow the projection of the answers
///
/// The user's messages are fixed. The model answers each of them, first with caps that only observe, then with caps
/// that always hold, then with caps that hold from an alarm until its end. The projection of a turn is the mean over its
/// response tokens, at the last capped block unless another is named. Plotted and compared is the projection after that
/// block's cap, which is what the rest of the model sees.
///
/// With --transcripts the answers are given: nothing is generated, and they are read uncapped and capped.
#[derive(Debug, clap::Args)]
// scripts/demo sets some options, and its caller may set them again.
#[command(args_override_self = true)]
#[command(after_help = "Examples:
  axiscap drift --model model.gguf --caps caps.gguf --plot drift.svg
  axiscap drift --model model.gguf --caps caps.gguf --transcripts talks.jsonl

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
    /// Conversations with their answers (JSON Lines, see docs/watch.md), which are read and not answered; `-` is stdin
    #[arg(long, value_name = "FILE", conflicts_with_all = GENERATING)]
    transcripts: Option<PathBuf>,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    watch: WatchArgs,
    /// Block to look at [default: the last capped one]
    #[arg(long, value_name = "BLOCK")]
    block: Option<usize>,
    /// Where to draw the projections
    #[arg(long, value_name = "FILE.svg", default_value = "drift.svg")]
    plot: PathBuf,
    /// The alarm of the third conversation: an exponentially weighted average, per generated token, of how far
    /// the projection before the first cap of the lowest capped block lies beyond the bound. A weight, the
    /// average at which the caps engage, and the lower one at which they let go; `watch` takes the alarm of the watched
    /// average, `off` leaves the conversation out [default: 0.1, one standard deviation beyond the bound, and the bound]
    #[arg(long, value_name = "WEIGHT,ENGAGE,RELEASE|watch|off", value_parser = alarm, allow_hyphen_values = true)]
    alarm: Option<AlarmArg>,
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

/// Options about answers that are generated.
const GENERATING: [&str; 17] = [
    "script",
    "alarm",
    "speed_pairs",
    "all_answers",
    "ctx",
    "batch",
    "ubatch",
    "max_tokens",
    "temp",
    "top_k",
    "top_p",
    "min_p",
    "repeat_penalty",
    "repeat_last_n",
    "presence_penalty",
    "frequency_penalty",
    "seed",
];

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
    let script = match &args.script {
        Some(path) => {
            let text = input::text_file(path)?;
            Script::parse(&text).with_context(|| path.display().to_string())?
        }
        None => Script::emotional(),
    };
    let caps = args.caps.read()?;
    let model = args.model.load()?;
    let caps = caps.check(&model)?;
    let watch = args.watch.watch(&caps.file, &args.caps.caps)?;
    let caps = caps.acting()?;
    let cap = report::shown_cap(&caps, args.block)?;
    let template = args.template.prepare(&model)?;
    let interrupt = Interrupt::new()?;
    let caught = interrupt.catch();
    if let Some(path) = &args.transcripts {
        let read = transcripts::run(&args, path, &template, &caps, &watch, &caught);
        return interrupt::report(read, args.json);
    }
    args.sampling.report_seed();
    warn_of_two_bos(&template, &script);
    let alarm = args.alarm(&caps, &watch)?;
    let Turns { uncapped, capped, on_alarm, alarm, unfinished, interrupted } =
        converse(&args, &template, &script, &caps, &options, alarm, &caught)?;
    let speed = if interrupted { None } else { speed(&args, &model, &caps, &caught)? };
    let measured = speed.as_ref().map_or(0, |speed| speed.pairs.len());
    let interrupted = interrupted || caught.stopped() && measured < args.speed_pairs;
    let report = Report {
        script: &script,
        caps: &caps,
        cap,
        uncapped,
        capped,
        on_alarm,
        alarm,
        speed,
        unfinished,
        interrupted,
    };
    for cut in report.cut_short() {
        output::warning(&cut);
    }
    // The table comes before the plot, which may fail. The plot is drawn even if stdout is closed.
    let printed =
        if args.json { output::json(&report.json(&args)) } else { output::text(&report.text(&args)?) };
    if report.has_points() {
        let svg = report.chart().to_svg()?;
        write_atomically(&args.plot, |out| out.write_all(svg.as_bytes()))?;
    }
    if interrupted {
        if let Some(error) = &report.unfinished {
            output::warning(&format!("the conversation ended early: {error:#}"));
        }
        return interrupt::end(printed, &report.kept(&args));
    }
    printed?;
    if !args.json {
        output::text(&format!("plot: {}\n", args.plot.display()))?;
    }
    match report.unfinished {
        Some(error) => Err(error.context("the conversation ended early")),
        None => Ok(()),
    }
}

/// Looks at the beginning of the conversation. What is wrong with its template, the first turn says.
fn warn_of_two_bos(template: &ChatTemplate<'_>, script: &Script) {
    let system = script.system.iter().map(|text| Message::new(Role::System, text));
    let first = script.turns.iter().take(1).map(|text| Message::new(Role::User, text));
    let messages: Vec<_> = system.chain(first).collect();
    if let Ok(prompt) = template.prompt(&messages) {
        bos::check(template.model(), &prompt, Writer::Template);
    }
}

/// The alarm of the third conversation.
#[derive(Debug, Clone, Copy)]
enum AlarmArg {
    Off,
    Watch,
    Rule(AlarmRule),
}

fn alarm(text: &str) -> Result<AlarmArg, String> {
    match text {
        "off" => Ok(AlarmArg::Off),
        "watch" => Ok(AlarmArg::Watch),
        _ => alarm_rule(text).map(AlarmArg::Rule),
    }
}

impl Args {
    /// Returns the alarm that was given. `None` for the one by default.
    fn alarm(&self, caps: &CapSet, watch: &Watch) -> Result<Option<Alarm>> {
        match self.alarm {
            Some(AlarmArg::Rule(rule)) => Ok(Some(Alarm { cap: None, rule })),
            Some(AlarmArg::Watch) => watch.alarm(caps).map(Some).context(
                "--alarm watch: there are no thresholds, or the watched cap has no floor; the cap file holds those of a calibration by `axiscap calibrate`, --watch-thresholds sets others",
            ),
            Some(AlarmArg::Off) | None => Ok(None),
        }
    }
}

/// The turns of the conversations.
struct Turns {
    uncapped: Vec<DriftTurn>,
    capped: Vec<DriftTurn>,
    on_alarm: Vec<DriftTurn>,
    /// The alarm, if there was a third conversation.
    alarm: Option<Alarm>,
    /// Where and why they ended early, if they did.
    unfinished: Option<Error>,
    /// Whether a signal ended them early.
    interrupted: bool,
}

/// Has the conversations one after the other in one context. Each has at most as many turns as the one before.
/// They are compared turn by turn: unless there was a signal, they have equally many.
fn converse(
    args: &Args,
    template: &ChatTemplate<'_>,
    script: &Script,
    caps: &CapSet,
    options: &GenerateOptions,
    given: Option<Alarm>,
    caught: &Catch,
) -> Result<Turns> {
    let model = template.model();
    let mut context = Context::new(model, &args.model.context(model))?;
    let turns = script.turns.len();
    let conversations = if matches!(args.alarm, Some(AlarmArg::Off)) { 2 } else { 3 };
    let progress = Progress::new("turns", conversations * turns);
    let mut script = script.clone();
    let mut held: [Vec<DriftTurn>; 3] = Default::default();
    let (mut alarm, mut unfinished, mut interrupted) = (None, None, false);
    for (index, which) in ["uncapped", "capped", "on alarm"].into_iter().enumerate().take(conversations) {
        let mode = match index {
            0 => Mode::Observe,
            1 => Mode::Cap,
            _ => {
                alarm = given.or_else(|| default_alarm(caps, &held[0]));
                // Caps that only measure need no alarm.
                let Some(alarm) = alarm else { break };
                Mode::OnAlarm(alarm)
            }
        };
        let conversation = Conversation { script: &script, template, caps, mode, options: *options };
        let (had, ended) = conversation.run(&mut context, |done| {
            progress.set(index * turns + done);
            caught.go_on()
        })?;
        if let Some(end) = ended {
            let place = format!("{which}, turn {} of {turns}", end.turn);
            unfinished = Some(Error::from(end.error).context(place));
        } else {
            let cut = had.last().is_some_and(|turn| turn.stop == Stop::Caller);
            interrupted = caught.stopped() && (had.len() < script.turns.len() || cut);
        }
        script.turns.truncate(had.len());
        held[index] = had;
        if interrupted || script.turns.is_empty() {
            break;
        }
    }
    progress.clear();
    let [mut uncapped, mut capped, on_alarm] = held;
    if !interrupted {
        uncapped.truncate(script.turns.len());
        capped.truncate(script.turns.len());
    }
    match unfinished {
        Some(error) if script.turns.is_empty() && !interrupted => Err(error),
        unfinished => Ok(Turns { uncapped, capped, on_alarm, alarm, unfinished, interrupted }),
    }
}

/// Compares the decode speeds shortly. `axiscap bench` measures them properly.
fn speed(args: &Args, model: &Model, caps: &CapSet, caught: &Catch) -> Result<Option<Ratio>> {
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
    let report = bench(model, caps, &options, |done, _| {
        progress.set(done);
        caught.go_on()
    })?;
    progress.clear();
    Ok(report.map(|report| report.capped.decode))
}

struct Report<'a> {
    script: &'a Script,
    caps: &'a CapSet,
    /// Index of the cap that is shown.
    cap: usize,
    uncapped: Vec<DriftTurn>,
    capped: Vec<DriftTurn>,
    on_alarm: Vec<DriftTurn>,
    alarm: Option<Alarm>,
    speed: Option<Ratio>,
    /// Where and why the conversation ended before the script did.
    unfinished: Option<Error>,
    /// Whether a signal ended the work early.
    interrupted: bool,
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
        let which = [("uncapped", &self.uncapped), ("capped", &self.capped), ("on alarm", &self.on_alarm)];
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

    /// Returns whether there is anything to draw.
    fn has_points(&self) -> bool {
        !self.interrupted || self.chart().series.iter().any(|line| !line.points.is_empty())
    }

    /// Returns what is kept of conversations that a signal ended.
    fn kept(&self, args: &Args) -> String {
        let all = self.script.turns.len();
        let (uncapped, capped) = (self.uncapped.len(), self.capped.len());
        let mut text = format!("{uncapped} of {all} turns uncapped, {capped} capped");
        if self.alarm.is_some() {
            text += &format!(", {} on alarm", self.on_alarm.len());
        }
        let which = [("uncapped", &self.uncapped), ("capped", &self.capped), ("on-alarm", &self.on_alarm)];
        for (which, turns) in which {
            if turns.last().is_some_and(|turn| turn.stop == Stop::Caller) {
                text += &format!("; the last {which} answer is cut short");
            }
        }
        match self.has_points() {
            true => text + &format!("; plot: {}", args.plot.display()),
            false => text + "; nothing to plot",
        }
    }

    /// Returns the share of response tokens, over all turns and caps, on which caps acted. `None` without
    /// tokens.
    fn engagement(turns: &[DriftTurn]) -> Option<f64> {
        let all = || turns.iter().flat_map(|turn| turn.projections.iter().map(|p| (p, turn.tokens as f64)));
        let tokens: f64 = all().map(|(_, tokens)| tokens).sum();
        let engaged = all().map(|(projection, tokens)| projection.engaged * tokens).sum::<f64>();
        (tokens > 0.0).then(|| engaged / tokens)
    }

    /// Returns the mean over the turns of the shown projection after the caps. `None` without tokens.
    fn mean_after(&self, turns: &[DriftTurn]) -> Option<f64> {
        let shown: Vec<f64> = turns.iter().filter_map(|turn| Some(self.shown(turn)?.after)).collect();
        (!shown.is_empty()).then(|| shown.iter().sum::<f64>() / shown.len() as f64)
    }

    fn text(&self, args: &Args) -> Result<String> {
        let mut text = String::new();
        // The last turn that both have, or else the last one.
        let last = self.capped.len().checked_sub(1).unwrap_or(self.uncapped.len().saturating_sub(1));
        for (index, (user, uncapped)) in self.script.turns.iter().zip(&self.uncapped).enumerate() {
            if !args.all_answers && index != last {
                continue;
            }
            writeln!(text, "Turn {}, user:\n{}", index + 1, indented(user))?;
            writeln!(text, "uncapped:\n{}", indented(&uncapped.answer))?;
            if let Some(capped) = self.capped.get(index) {
                writeln!(text, "capped:\n{}", indented(&capped.answer))?;
            }
            if let Some(on_alarm) = self.on_alarm.get(index) {
                writeln!(text, "capped on alarm:\n{}", indented(&on_alarm.answer))?;
            }
            writeln!(text)?;
        }
        let bound = self.caps.caps()[self.cap].cap.bound();
        writeln!(
            text,
            "Mean projection of each answer on the axis of block {} (positive = more Assistant; cap: {bound})",
            self.block()
        )?;
        let alarm = if self.alarm.is_some() { "  on alarm: after  engaged" } else { "" };
        writeln!(text, "turn  uncapped  capped: before   after  engaged{alarm}")?;
        for (index, uncapped) in self.uncapped.iter().enumerate() {
            let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
            let capped = self.capped.get(index).and_then(|capped| self.shown(capped));
            let share = |seen: Option<TurnProjection>| {
                seen.map_or("-".into(), |p| format!("{:.0} %", 100.0 * p.engaged))
            };
            write!(
                text,
                "{:>4} {:>9} {:>15} {:>7} {:>8}",
                index + 1,
                number(self.shown(uncapped).map(|p| p.after)),
                number(capped.map(|p| p.before)),
                number(capped.map(|p| p.after)),
                share(capped),
            )?;
            if self.alarm.is_some() {
                let seen = self.on_alarm.get(index).and_then(|turn| self.shown(turn));
                write!(text, " {:>16} {:>8}", number(seen.map(|p| p.after)), share(seen))?;
            }
            writeln!(text)?;
        }
        if let Some(share) = Self::engagement(&self.capped) {
            let caps = counted(self.caps.caps().len(), "cap");
            writeln!(text, "engagement, all {caps}: {:.0} % of the response tokens", 100.0 * share)?;
        }
        if self.alarm.is_some() {
            let names = ["always", "on alarm"];
            for (name, turns) in names.into_iter().zip([&self.capped, &self.on_alarm]) {
                if let (Some((share, distance)), Some(mean)) =
                    (Moved::over(turns).means(), self.mean_after(turns))
                {
                    writeln!(
                        text,
                        "capped {name}: {:.0} % of all rows moved, prompts included, by {distance:.3} on the mean over all; mean of the answers {mean:.3}",
                        100.0 * share
                    )?;
                }
            }
        }
        if let Some(speed) = &self.speed {
            writeln!(
                text,
                "speed, capped / uncapped: {:.3} ({:.0} / {:.0} tokens per second; {}; axiscap bench measures it properly)",
                speed.median,
                speed.tps,
                speed.baseline_tps,
                counted(speed.pairs.len(), "short pair")
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
                    "moved": turn.moved,
                    "engagements": turn.engagements.iter().map(EngagementReport::from).collect::<Vec<_>>(),
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
            "on_alarm": self.alarm.map(|_| turns(&self.on_alarm)),
            "alarm": self.alarm.map(|alarm| alarm_json(&alarm, self.caps)),
            "engagement": Self::engagement(&self.capped),
            "engagement_on_alarm": Self::engagement(&self.on_alarm),
            "moved": moved(&self.capped),
            "moved_on_alarm": moved(&self.on_alarm),
            "decode": self.speed.as_ref().map(crate::bench::ratio),
            "plot": self.has_points().then(|| args.plot.display().to_string()),
            "interrupted": self.interrupted,
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
            series: [("uncapped", &self.uncapped), ("capped", &self.capped), ("on alarm", &self.on_alarm)]
                .into_iter()
                .filter(|(name, _)| *name != "on alarm" || self.alarm.is_some())
                .map(|(name, turns)| line(name, turns))
                .collect(),
            band: None,
            level: floor.is_finite().then(|| (format!("floor {floor:.3}"), f64::from(floor))),
        }
    }
}

/// Returns what caps moved over a conversation, `null` without rows.
fn moved(turns: &[DriftTurn]) -> serde_json::Value {
    let sum = Moved::over(turns);
    let means = sum.means();
    json!(means.map(|(share, distance)| json!({"rows": sum.rows, "share": share, "mean_distance": distance})))
}

fn alarm_json(alarm: &Alarm, caps: &CapSet) -> serde_json::Value {
    let cap = alarm.watched(caps);
    match alarm.rule {
        AlarmRule::Ewma { weight, start, engage, release } => {
            json!({"cap": cap, "weight": weight, "start": start, "engage": engage, "release": release})
        }
        AlarmRule::Cusum { slack, engage, release } => {
            json!({"cap": cap, "slack": slack, "engage": engage, "release": release})
        }
    }
}

fn indented(text: &str) -> String {
    text.trim().lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
