//! `axiscap run`: one text.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Result;
use axiscap_llama::{
    Context, GenerateOptions, Generated, Level, Message, Model, ProfileId, Role, Stop, Watcher, generate,
};
use serde::Serialize;

use crate::bos::{self, Writer};
use crate::caps::{CapsArgs, CheckedCaps};
use crate::interrupt::{self, Interrupt};
use crate::levels::{AnswerLevels, NO_THRESHOLDS, WatchReport};
use crate::model::ModelArgs;
use crate::output::{self, counted};
use crate::prompt::PromptArgs;
use crate::report::{self, CapReport, EngineReport, FusedNormReport};
use crate::route::RouteArg;
use crate::sampling::SamplingArgs;
use crate::schedule::{self, EngagementReport};
use crate::template::{self, TemplateArgs};

/// Write an answer, or with --raw go on with a text. The text goes to stdout as it is written, statistics to
/// stderr.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  axiscap run --model M.gguf --caps C.gguf --prompt \"Who are you, really?\"
  axiscap run --model M.gguf --caps C.gguf --raw --temp 0 --prompt-file story.txt --json --trace trace.jsonl")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    caps: CapsArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// The system prompt
    #[arg(
        long,
        visible_alias = "system-prompt",
        value_name = "TEXT",
        conflicts_with = "raw",
        allow_hyphen_values = true
    )]
    system: Option<String>,
    /// Feed the prompt as it is: no chat template; special tokens in it are parsed, BOS is added as the model
    /// asks
    #[arg(long, conflicts_with_all = template::IDS)]
    raw: bool,
    #[command(flatten)]
    template: TemplateArgs,
    /// How graphs are computed with their caps; no effect without caps
    #[arg(long, alias = "engine", value_name = "HOW", value_enum, default_value_t = RouteArg::Auto)]
    route: RouteArg,
    /// Write what every cap did to every row to this file, as JSON lines
    #[arg(long, value_name = "FILE", requires = "caps")]
    trace: Option<PathBuf>,
    /// Watch how far the text drifts, and say where an alarm begins
    #[arg(long, requires = "caps")]
    watch: bool,
    /// Caps on a GPU do the norm after their block too, where the graph allows it
    #[arg(long, requires = "caps")]
    fused_norm: bool,
    /// Print one JSON object in place of the text
    #[arg(long)]
    json: bool,
    /// With --json: by how much the likeliest token led, in logits, for each token
    #[arg(long, requires = "json")]
    margins: bool,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    text: &'a str,
    tokens: Vec<i32>,
    /// The prompt with the markup of its template, without a BOS that the tokenizer adds.
    prompt: &'a str,
    prompt_tokens: usize,
    /// Of the random numbers, also if it was drawn.
    seed: u32,
    stop: &'static str,
    /// Whether a signal cut the text short.
    interrupted: bool,
    /// The token that ended the text. It is not among `tokens`.
    stop_token: Option<i32>,
    /// By how many logits the likeliest token led, for each token and for `stop_token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    margins: Option<&'a [f32]>,
    decode_tokens_per_second: f64,
    prefill_tokens_per_second: f64,
    caps: Vec<CapReport<'a>>,
    /// After which capped blocks the norm ran with the caps, with --fused-norm.
    #[serde(skip_serializing_if = "Option::is_none")]
    fused_norm: Option<FusedNormReport>,
    /// What the alarm of --when did.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    engagements: Vec<EngagementReport>,
    /// What was watched, with --watch.
    #[serde(skip_serializing_if = "Option::is_none")]
    watch: Option<WatchReport>,
    backend: String,
    engines: Vec<EngineReport<'a>>,
    model: ModelReport<'a>,
}

#[derive(Debug, Serialize)]
struct ModelReport<'a> {
    path: String,
    architecture: &'a str,
    name: Option<&'a str>,
    file_type: Option<&'a str>,
    blocks: usize,
    width: usize,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let caps = args.caps.read()?;
    let text = args.prompt.read(args.raw)?;
    let model = args.model.load()?;
    let caps = caps.map(|caps| caps.check(&model)).transpose()?;
    let is_watched = args.watch || args.caps.wait_for_watch();
    let watch = caps.as_ref().filter(|_| is_watched).map(|caps| args.caps.watch(caps)).transpose()?;
    let caps = caps.map(CheckedCaps::acting).transpose()?;
    let (rendered, prompt, writer) = if args.raw {
        let prompt = model.tokenize(&text, true)?;
        (text, prompt, Writer::Prompt)
    } else {
        let system = args.system.iter().map(|text| Message::new(Role::System, text));
        let messages: Vec<_> = system.chain([Message::new(Role::User, text)]).collect();
        let markup = args.template.prepare(&model)?.render(&messages, true)?;
        (markup.text(), markup.tokens(&model, true)?, Writer::Template)
    };
    bos::check(&model, &prompt, writer);
    let interrupt = Interrupt::new()?;
    let writing = interrupt.catch();

    let mut context = Context::new(&model, &args.model.context(&model))?;
    context.update(|session| {
        session.update(|settings| {
            (settings.route, settings.fused_norm) = (args.route.into(), args.fused_norm);
        });
        session.set_caps(caps.as_ref())
    })?;
    if let Some(caps) = &caps {
        args.caps.schedule(&mut context, caps, watch.as_ref())?;
    }
    let watch = watch.filter(|_| args.watch);
    if let Some(watch) = &watch {
        context.set_watch(0, Some(Watcher::new(watch)?))?;
        if args.caps.watch.lacks_thresholds(watch) {
            output::warning(NO_THRESHOLDS);
        }
    }
    context.set_tracing(args.trace.is_some())?;
    let mut written = Ok(());
    let options = GenerateOptions { margins: args.margins, ..args.sampling.options() };
    let generated = generate(&mut context, &prompt, &options, |piece| {
        if !args.json && !piece.is_empty() {
            written = output::text(piece);
        }
        if written.is_ok() { writing.go_on() } else { ControlFlow::Break(()) }
    })?;
    let interrupted = generated.stop == Stop::Caller && writing.stopped();
    // Even if stdout is closed.
    if let Some(path) = &args.trace {
        report::write_trace(path, &context.take_trace(), prompt.len())?;
    }
    if !interrupted {
        written?;
    }
    let engagements = context.take_engagements();
    let seen: Vec<Level> = generated.readings.iter().map(|reading| reading.level).collect();
    let watched = AnswerLevels::of(&seen);
    let stats = context.profile_stats(ProfileId::DEFAULT)?.unwrap_or_default();
    let session = context.session()?;
    let routes = session.routes_used();
    let fused_norm = args.fused_norm.then(|| FusedNormReport::from(&session.fused_norms()));
    if args.json {
        let printed = output::json(&Report {
            text: &generated.text,
            tokens: generated.tokens.iter().map(|token| token.0).collect(),
            prompt: &rendered,
            prompt_tokens: prompt.len(),
            seed: options.sampling.seed,
            stop: stop_name(generated.stop),
            interrupted,
            stop_token: match generated.stop {
                Stop::End(token) => Some(token.0),
                _ => None,
            },
            margins: args.margins.then_some(&generated.margins),
            decode_tokens_per_second: generated.timings.decode_tokens_per_second(),
            prefill_tokens_per_second: generated.timings.prefill_tokens_per_second(),
            caps: caps.as_ref().map(|set| report::caps(set, &stats)).unwrap_or_default(),
            fused_norm,
            engagements: engagements.iter().map(EngagementReport::from).collect(),
            watch: watch
                .as_ref()
                .zip(caps.as_ref())
                .map(|(watch, caps)| WatchReport::new(watch, caps, watched)),
            backend: report::backend(&context)?,
            engines: report::engines(&routes),
            model: describe(&model),
        });
        return if interrupted { interrupt::end(printed, KEPT) } else { printed };
    }
    let ended = if generated.text.ends_with('\n') { Ok(()) } else { output::text("\n") };
    if ended.is_err() && !interrupted {
        return ended;
    }
    summarise(&generated, prompt.len(), report::engagement(&stats), stats.len());
    schedule::note(&engagements);
    if let (Some(watch), Some(caps)) = (&watch, &caps) {
        output::note(&watched.summary(watch, caps));
    }
    args.sampling.report_seed();
    if args.route != RouteArg::Auto {
        for used in routes {
            output::note(&format!("[route on {used}]"));
        }
    }
    if let Some(fused) = fused_norm {
        output::note(&format!("[fused norm: {fused}]"));
    }
    if interrupted { interrupt::end(ended, KEPT) } else { ended }
}

/// What is kept of a text that was cut short.
const KEPT: &str = "the text is cut short";

fn describe(model: &Model) -> ModelReport<'_> {
    let shape = model.shape();
    ModelReport {
        path: model.path().display().to_string(),
        architecture: &shape.architecture,
        name: model.name(),
        file_type: model.file_type(),
        blocks: shape.blocks,
        width: shape.width,
    }
}

pub(crate) fn stop_name(stop: Stop) -> &'static str {
    match stop {
        Stop::End(_) => "end",
        Stop::MaxTokens => "max_tokens",
        Stop::ContextFull => "context_full",
        Stop::Caller => "interrupted",
    }
}

fn summarise(generated: &Generated, prompt: usize, engagement: Option<f64>, caps: usize) {
    let timings = &generated.timings;
    let capped = match engagement {
        Some(share) => format!("{}, engaged on {:.1} % of rows", counted(caps, "cap"), 100.0 * share),
        None => "uncapped".into(),
    };
    output::note(&format!(
        "[{} of prompt at {:.0}/s, {} generated at {:.1}/s; {capped}]",
        counted(prompt, "token"),
        timings.prefill_tokens_per_second(),
        generated.tokens.len(),
        timings.decode_tokens_per_second(),
    ));
    if generated.stop == Stop::ContextFull {
        output::warning("stopped because the context is full; raise --ctx for a longer text");
    }
}
