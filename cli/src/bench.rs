//! `axiscap bench`: what capping costs.

use std::fmt::Write;

use anyhow::Result;
use axiscap_lab::bench::{BenchOptions, BenchReport, Comparison, ProfileComparison, Ratio, bench};
use axiscap_llama::{GraphCounts, MAX_CTX, RouteChoice, default_threads, devices};
use clap::builder::RangedU64ValueParser;
use clap::{ValueEnum, value_parser};
use serde::Serialize;

use crate::caps::RequiredCapsArgs;
use crate::interrupt::{self, Interrupt};
use crate::model::ModelArgs;
use crate::output::{self, counted};
use crate::progress::Progress;
use crate::report::{self, EngineReport, FusedNormReport};
use crate::route::RouteArg;

/// Measure what capping costs: the same tokens, capped and uncapped, in lock-step in one process. The
/// baseline is a context that the hook has never touched. A ratio of 0.99 means that capped generation has 99
/// % of the speed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  axiscap bench --model M.gguf --caps C.gguf
  axiscap bench --model M.gguf --caps C.gguf --pairs 40 --compare idle,cb-eval --json
  axiscap bench --model M.gguf --caps C.gguf --sequences 16 --profiles 4")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    caps: RequiredCapsArgs,
    /// Pairs of measurements; more of them narrow the interval; with fewer than 6 it assumes a normal
    /// distribution
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = at_least_one())]
    pairs: usize,
    /// Tokens of the prompt
    #[arg(long, value_name = "P", default_value_t = 512, value_parser = tokens())]
    prompt_tokens: usize,
    /// How often each pair decodes the prompt
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one())]
    prompts: usize,
    /// Tokens decoded one by one
    #[arg(long, value_name = "G", default_value_t = 64, value_parser = tokens())]
    generate_tokens: usize,
    /// Sequences decoded at once; tokens per second are of all of them together
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..=256))]
    sequences: u32,
    /// Also measure the sequences under N profiles in turn, against the same sequences under one profile; each
    /// profile needs a sequence. 1 measures nothing more
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one())]
    profiles: usize,
    /// Do not count what the caps do
    #[arg(long)]
    no_statistics: bool,
    /// Also measure: the hook with its caps switched off; the same caps through llama.cpp's cb_eval, or
    /// through a chain of ggml's own operations, which counts nothing
    #[arg(long, value_name = "WHAT", value_enum, value_delimiter = ',')]
    compare: Vec<Compare>,
    /// How graphs are computed with their caps
    #[arg(long, alias = "engine", value_name = "HOW", value_enum, default_value_t = RouteArg::Auto)]
    route: RouteArg,
    /// Caps on a GPU do the norm after their block too, where the graph allows it
    #[arg(long)]
    fused_norm: bool,
    /// Print one JSON object in place of the table
    #[arg(long)]
    json: bool,
}

fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// Returns the parser of numbers of tokens that a context can hold.
fn tokens() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=u64::from(MAX_CTX))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Compare {
    Idle,
    CbEval,
    StockChain,
}

#[derive(Debug, Serialize)]
pub(crate) struct RatioReport<'a> {
    ratio_median: f64,
    /// `null` for a single pair.
    ratio_ci95: Option<[f64; 2]>,
    /// How the interval of few pairs was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio_ci95_note: Option<String>,
    ratio_range: [f64; 2],
    #[serde(flatten)]
    speeds: Speeds<'a>,
    pairs: usize,
    ratios: &'a [f64],
    /// By total time: every interruption counts.
    total_ratio_median: f64,
    total_ratio_ci95: Option<[f64; 2]>,
}

/// Tokens per second of a baseline and of what is compared with it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Speeds<'a> {
    /// Against the context that the hook never touched. Those of every pair are in the order of its ratios.
    Capped { uncapped_tps: f64, capped_tps: f64, uncapped_tps_pairs: &'a [f64], capped_tps_pairs: &'a [f64] },
    /// Against the capped context.
    Profiles { one_profile_tps: f64, this_tps: f64 },
}

#[derive(Debug, Serialize)]
struct ComparisonReport<'a> {
    decode: RatioReport<'a>,
    prefill: RatioReport<'a>,
}

/// Sequences under several profiles in turn against the same sequences under one profile, both capped.
#[derive(Debug, Serialize)]
struct ProfilesReport<'a> {
    count: usize,
    baseline: &'static str,
    #[serde(flatten)]
    mixed: ComparisonReport<'a>,
    /// Of the several profiles. That of the baseline is the report's own. Equal ones mean equal work per row.
    engagement: Option<f64>,
    /// One profile, with an index per row as several profiles need it.
    indexed: IndexedReport<'a>,
}

#[derive(Debug, Serialize)]
struct IndexedReport<'a> {
    #[serde(flatten)]
    comparison: ComparisonReport<'a>,
    engagement: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    capped: ComparisonReport<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle: Option<ComparisonReport<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cb_eval: Option<ComparisonReport<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stock_chain: Option<ComparisonReport<'a>>,
    /// With --profiles 2 or more.
    #[serde(skip_serializing_if = "Option::is_none")]
    profiles: Option<ProfilesReport<'a>>,
    /// Whether a signal ended the measurement before all pairs were measured.
    interrupted: bool,
    pairs_planned: usize,
    baseline: &'static str,
    backend: String,
    device: String,
    engine: Option<String>,
    engines: Vec<EngineReport<'a>>,
    /// How the capped context's graphs were run on a GPU, if it was asked to capture them.
    #[serde(skip_serializing_if = "Option::is_none")]
    graphs: Option<GraphReport>,
    /// After which capped blocks the norm ran with the caps, with --fused-norm.
    #[serde(skip_serializing_if = "Option::is_none")]
    fused_norm: Option<FusedNormReport>,
    /// `null` with --no-statistics.
    engagement: Option<f64>,
    caps: usize,
    blocks_capped: usize,
    blocks: usize,
    prompt_tokens: usize,
    prompts: usize,
    generate_tokens: usize,
    sequences: u32,
    statistics: bool,
    threads: usize,
    model: String,
}

#[derive(Debug, Serialize)]
struct GraphReport {
    captures: u64,
    updates: u64,
    replays: u64,
    eager: u64,
    resets: u64,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    if args.profiles > args.sequences as usize {
        return Err(output::wrong_usage(format!(
            "--profiles {0} with --sequences {1}: each profile needs a sequence; give --sequences {0} or more, or fewer profiles",
            args.profiles, args.sequences
        )));
    }
    let caps = args.caps.read()?;
    let model = args.model.load()?;
    let caps = caps.check(&model)?.acting()?;
    let options = BenchOptions {
        pairs: args.pairs,
        prompt_tokens: args.prompt_tokens,
        prompts: args.prompts,
        generate_tokens: args.generate_tokens,
        sequences: args.sequences,
        profiles: args.profiles,
        statistics: !args.no_statistics,
        context: args.model.context(&model),
        route: args.route.into(),
        fused_norm: args.fused_norm,
        idle: args.compare.contains(&Compare::Idle),
        eval_callback: args.compare.contains(&Compare::CbEval),
        ggml_ops: args.compare.contains(&Compare::StockChain),
    };
    let needed = options.needed_context();
    if let Some(ctx) = options.context.ctx.filter(|&ctx| (ctx as usize) < needed) {
        output::warning(&format!("--ctx {ctx}: raised to {needed}, the tokens that are decoded"));
    }
    let interrupt = Interrupt::new()?;
    let measuring = interrupt.catch();
    let progress = Progress::new("pairs", args.pairs);
    let measured = bench(&model, &caps, &options, |done, _| {
        progress.set(done);
        measuring.go_on()
    });
    progress.clear();
    let Some(measured) = measured? else {
        let none = serde_json::json!({
            "interrupted": true,
            "pairs": 0,
            "pairs_planned": args.pairs,
            "model": model.path().display().to_string(),
        });
        let printed = if args.json { output::json(&none) } else { Ok(()) };
        return interrupt::end(printed, "no pair was complete, so there is no ratio");
    };
    let pairs = measured.capped.decode.pairs.len();
    let interrupted = pairs < args.pairs;

    let devices = devices();
    let (name, engine) = match measured.routes.last() {
        Some(last) => (last.device.as_str(), Some(last.route.to_string())),
        None => ("CPU", None),
    };
    let device = devices.iter().find(|device| device.name == name);
    let report = Report {
        capped: comparison(&measured.capped),
        idle: measured.idle.as_ref().map(comparison),
        cb_eval: measured.eval_callback.as_ref().map(comparison),
        stock_chain: measured.ggml_ops.as_ref().map(comparison),
        profiles: measured.profiles.as_ref().map(profiles),
        interrupted,
        pairs_planned: args.pairs,
        baseline: "a context of the same llama.cpp that the hook never touched",
        backend: name.trim_end_matches(|c: char| c.is_ascii_digit()).to_lowercase(),
        device: device.map_or_else(|| name.to_owned(), |device| device.description.clone()),
        engine,
        engines: report::engines(&measured.routes),
        graphs: (options.route == RouteChoice::OneGraph || measured.graphs != GraphCounts::default()).then(
            || {
                let GraphCounts { captures, updates, replays, eager, resets } = measured.graphs;
                GraphReport { captures, updates, replays, eager, resets }
            },
        ),
        fused_norm: args.fused_norm.then(|| FusedNormReport::from(&measured.fused_norms)),
        engagement: measured.engagement,
        caps: caps.caps().len(),
        blocks_capped: caps.blocks().len(),
        blocks: model.shape().blocks,
        prompt_tokens: args.prompt_tokens,
        prompts: args.prompts,
        generate_tokens: args.generate_tokens,
        sequences: args.sequences,
        statistics: options.statistics,
        threads: options.context.threads.unwrap_or_else(default_threads),
        model: model.path().display().to_string(),
    };
    let printed = if args.json { output::json(&report) } else { output::text(&table(&measured, &report)) };
    if !interrupted {
        return printed;
    }
    let few = few(&measured.capped.decode).map_or(String::new(), |note| format!("; {note}"));
    interrupt::end(printed, &format!("{pairs} of {} pairs were measured{few}", args.pairs))
}

fn comparison(measured: &Comparison) -> ComparisonReport<'_> {
    ComparisonReport { decode: ratio(&measured.decode), prefill: ratio(&measured.prefill) }
}

fn profiles(measured: &ProfileComparison) -> ProfilesReport<'_> {
    ProfilesReport {
        count: measured.count,
        baseline: "the capped context, whose sequences are all under one profile",
        mixed: of_profiles(&measured.mixed),
        engagement: measured.mixed_engagement,
        indexed: IndexedReport {
            comparison: of_profiles(&measured.indexed),
            engagement: measured.indexed_engagement,
        },
    }
}

fn of_profiles(measured: &Comparison) -> ComparisonReport<'_> {
    let [decode, prefill] = [&measured.decode, &measured.prefill].map(|ratio| {
        let (one_profile_tps, this_tps) = (ratio.baseline_tps, ratio.tps);
        with_speeds(ratio, Speeds::Profiles { one_profile_tps, this_tps })
    });
    ComparisonReport { decode, prefill }
}

pub(crate) fn ratio(measured: &Ratio) -> RatioReport<'_> {
    let speeds = Speeds::Capped {
        uncapped_tps: measured.baseline_tps,
        capped_tps: measured.tps,
        uncapped_tps_pairs: &measured.baseline_tps_pairs,
        capped_tps_pairs: &measured.tps_pairs,
    };
    with_speeds(measured, speeds)
}

fn with_speeds<'a>(measured: &'a Ratio, speeds: Speeds<'a>) -> RatioReport<'a> {
    RatioReport {
        ratio_median: measured.median,
        ratio_ci95: measured.ci95.map(Into::into),
        ratio_ci95_note: few(measured),
        ratio_range: measured.range.into(),
        speeds,
        pairs: measured.pairs.len(),
        ratios: &measured.pairs,
        total_ratio_median: measured.total_median,
        total_ratio_ci95: measured.total_ci95.map(Into::into),
    }
}

/// Returns how the interval was made, if the pairs are too few for one that makes no assumption.
fn few(measured: &Ratio) -> Option<String> {
    let min = Ratio::MIN_PAIRS;
    match measured.pairs.len() {
        pairs if pairs >= min => None,
        1 => Some("one pair has no interval".into()),
        _ => Some(format!("fewer than {min} pairs: by Student's t, as if normally distributed")),
    }
}

fn table(measured: &BenchReport, report: &Report<'_>) -> String {
    let rows = [
        ("capped", Some(&measured.capped)),
        ("hooked, caps off", measured.idle.as_ref()),
        ("capped through cb_eval", measured.eval_callback.as_ref()),
        ("capped by ggml's own operations", measured.ggml_ops.as_ref()),
    ];
    let mut text = format!(
        "{} on {} ({}), {}\n{} on {} of {}{}; {}, {}\n\n",
        report.model,
        report.device,
        report.engine.as_deref().unwrap_or("uncapped"),
        counted(report.threads, "thread"),
        counted(report.caps, "cap"),
        report.blocks_capped,
        counted(report.blocks, "block"),
        report
            .engagement
            .map(|share| format!(", engaged on {:.1} % of rows", 100.0 * share))
            .unwrap_or_default(),
        counted(measured.capped.decode.pairs.len(), "pair"),
        counted(report.sequences as usize, "sequence"),
    );
    if let Some(fused) = &report.fused_norm {
        let _ = writeln!(text, "fused norm: {fused}\n");
    }
    let interval = few(&measured.capped.decode)
        .map_or_else(|| "95 % interval".into(), |note| format!("95 % interval ({note})"));
    text += &part("uncapped", &rows, &interval);
    if let Some(profiles) = &measured.profiles {
        let mixed = format!("{} profiles in turn", profiles.count);
        let rows =
            [(mixed.as_str(), Some(&profiles.mixed)), ("one profile, indexed", Some(&profiles.indexed))];
        let engaged = |share: f64| format!(", engaged on {:.1} % of rows", 100.0 * share);
        let _ = writeln!(
            text,
            "\ncapped in both, against one profile for all sequences{}",
            profiles.mixed_engagement.map(engaged).unwrap_or_default(),
        );
        text += &part("1 profile", &rows, &interval);
    }
    text
}

/// Returns the table of comparisons with one baseline.
fn part(baseline: &str, rows: &[(&str, Option<&Comparison>)], interval: &str) -> String {
    let mut text = format!("{:<41}{baseline:>11}{:>11}{:>9}   {interval}\n", "", "this", "ratio");
    for (phase, part) in [("decode", decode as fn(&Comparison) -> &Ratio), ("prefill", prefill)] {
        for &(name, comparison) in rows {
            let Some(ratio) = comparison.map(part) else { continue };
            let interval =
                ratio.ci95.map_or_else(|| "-".into(), |(low, high)| format!("[{low:.4}, {high:.4}]"));
            let _ = writeln!(
                text,
                "{:<41}{:>9.1}/s{:>9.1}/s{:>9.4}   {interval}",
                format!("{phase}, {name}"),
                ratio.baseline_tps,
                ratio.tps,
                ratio.median,
            );
        }
    }
    text
}

fn decode(comparison: &Comparison) -> &Ratio {
    &comparison.decode
}

fn prefill(comparison: &Comparison) -> &Ratio {
    &comparison.prefill
}
