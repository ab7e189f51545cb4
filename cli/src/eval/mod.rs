//! `axiscap eval`: what caps do to a model, with controls.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use axiscap::CapSet;
use axiscap_lab::dose::GivenText;
use axiscap_lab::evaluate::{
    Arm, Evaluation, EvaluationOptions, Findings, Material, Records, Size, Suite, judge_pairs, pairs,
};
use axiscap_lab::judge::{Endpoint, Judge};
use axiscap_lab::output::write_atomically;
use axiscap_lab::report::evaluation_page;
use axiscap_llama::{ChatTemplate, Message, Model, Role};
use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use serde_json::{Value, json};

use crate::bos::{self, Writer};
use crate::caps::RequiredCapsArgs;
use crate::interrupt::{self, Catch, Interrupt};
use crate::model::LoadArgs;
use crate::output::{self, file_name, seconds, tool};
use crate::progress::Progress;
use crate::sampling::{self, Seed};
use crate::template::TemplateArgs;
use crate::{input, remedy, report};

mod table;

/// Measure what caps do to a model: uncapped, capped, and under caps on random directions of the same dose
///
/// The suites ask scripted conversations (drift), factual questions of plain, sad and mistaken users (reliability),
/// the same questions early and late in a conversation (consistency), texts and multiple choice (capability), and
/// how much the distributions of the next tokens change (dose). Every arm gets the same questions and seeds.
/// Differences are those of pairs, with intervals of 95 %. What is measured is kept in --out as it goes: a run that
/// was stopped continues with the same command.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  axiscap eval --model model.gguf --caps caps.gguf --report eval.html
  axiscap eval --model model.gguf --caps caps.gguf --size full --out full.jsonl --report full.html --pairs pairs.jsonl
  axiscap eval --model model.gguf --caps caps.gguf --suite reliability,capability --random-directions 0 --json

docs/evaluation.md says what is measured, how, and what it found on a small model.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: LoadArgs,
    #[command(flatten)]
    caps: RequiredCapsArgs,
    #[command(flatten)]
    template: TemplateArgs,
    /// What to measure [default: all]
    #[arg(long, value_name = "SUITE,...", value_delimiter = ',', value_parser = suites())]
    suite: Vec<Suite>,
    /// How much is asked. For a model of 135 million parameters on two cores, quick takes minutes, and full less than
    /// an hour
    #[arg(long, value_enum, default_value_t = SizeArg::Quick)]
    size: SizeArg,
    /// Random directions that the caps are compared with [default: 1, or 2 for full]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(0..=20))]
    random_directions: Option<usize>,
    /// Block whose axis is watched [default: the last capped one]
    #[arg(long, value_name = "BLOCK")]
    block: Option<usize>,
    /// Conversations, facts, probes, choices and system prompts of your own (JSON); what it leaves out is built in
    #[arg(long, value_name = "FILE")]
    material: Option<PathBuf>,
    /// Texts whose perplexity is measured. May be repeated [default: prose, science and code that are built in]
    #[arg(long = "text", value_name = "FILE")]
    texts: Vec<PathBuf>,
    /// Sampling temperature of the answers
    #[arg(long, visible_alias = "temperature", value_name = "T", default_value = "0.7", value_parser = sampling::temperature)]
    temp: f32,
    /// Seed of the answers and of the random directions; -1 draws one and reports it
    #[arg(long, short = 's', value_name = "S", default_value = "1", value_parser = sampling::seed)]
    seed: Seed,
    /// Where the records are kept (JSON lines)
    #[arg(long, value_name = "FILE.jsonl", default_value = "eval.jsonl")]
    out: PathBuf,
    /// Write a page with charts
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Write pairs of lines that should not contradict each other, for outside judges (JSON lines), with the projections
    /// of the drift suite; needs that or the consistency suite
    #[arg(long, value_name = "FILE.jsonl")]
    pairs: Option<PathBuf>,
    /// Have the pairs scored from 0 (contradicts) to 3: the base URL of a server with OpenAI's interface
    /// (http://127.0.0.1:8080/v1; a key in AXISCAP_JUDGE_KEY). Needs the drift or the consistency suite
    #[arg(long, value_name = "URL", value_parser = judge_url, conflicts_with = "judge_command")]
    judge: Option<String>,
    /// The model that --judge asks
    #[arg(long, value_name = "NAME", requires = "judge")]
    judge_model: Option<String>,
    /// A command that scores the pairs: it reads {"index", "kind", "first", "second"} as JSON, one a line, and prints a
    /// score from 0 to 3 for each line
    #[arg(long, value_name = "COMMAND")]
    judge_command: Option<String>,
    /// Print the findings as one JSON object
    #[arg(long)]
    json: bool,
}

fn judge_url(text: &str) -> Result<String, String> {
    if text.starts_with("http://") || text.starts_with("https://") {
        return Ok(text.into());
    }
    Err("expected a URL that begins with http:// or https://; a program is given with --judge-command".into())
}

fn suites() -> impl TypedValueParser<Value = Suite> {
    PossibleValuesParser::new(Suite::ALL.map(Suite::name)).map(|name| {
        let found = Suite::ALL.into_iter().find(|suite| suite.name() == name);
        found.expect("the name was checked")
    })
}

/// A size, on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SizeArg {
    Quick,
    Full,
}

impl Args {
    fn suites(&self) -> Vec<Suite> {
        let is_asked = |suite: &Suite| self.suite.is_empty() || self.suite.contains(suite);
        Suite::ALL.into_iter().filter(is_asked).collect()
    }

    fn size(&self) -> Size {
        let size = if self.size == SizeArg::Full { Size::FULL } else { Size::QUICK };
        Size { controls: self.random_directions.unwrap_or(size.controls), ..size }
    }

    fn material(&self) -> Result<Material> {
        let Some(path) = &self.material else { return Ok(Material::builtin()) };
        let text = input::text_file(path)?;
        Material::parse(&text).with_context(|| path.display().to_string())
    }

    fn judge(&self) -> Option<Judge> {
        if let Some(command) = &self.judge_command {
            return Some(Judge::Command(command.clone()));
        }
        let (key, model) = (std::env::var("AXISCAP_JUDGE_KEY").ok(), self.judge_model.clone());
        self.judge.as_ref().map(|url| Judge::Endpoint(Endpoint { model, key, ..Endpoint::new(url) }))
    }

    fn texts(&self, model: &Model) -> Result<Vec<GivenText>> {
        let pieces = self.size().pieces;
        if self.texts.is_empty() {
            return Ok(GivenText::builtin(model, pieces)?);
        }
        let text = |path: &PathBuf| {
            let text = input::text_file(path)?;
            Ok(GivenText::cut(model, &file_name(path), &text, pieces)?)
        };
        self.texts.iter().map(text).collect()
    }
}

/// Runs the subcommand.
///
/// # Errors
/// Unreadable files, caps of another model, records of another evaluation.
pub(crate) fn run(args: Args) -> Result<()> {
    let json = args.json;
    interrupt::report(work(&args), json)
}

fn work(args: &Args) -> Result<()> {
    let started = Instant::now();
    let suites = args.suites();
    let talks = suites.contains(&Suite::Drift) || suites.contains(&Suite::Consistency);
    for (flag, is_given) in [("--pairs", args.pairs.is_some()), ("a judge", args.judge().is_some())] {
        if is_given && !talks {
            return Err(output::wrong_usage(format!(
                "{flag} needs the answers of the drift or the consistency suite; name one with --suite"
            )));
        }
    }
    let material = args.material()?;
    let caps = args.caps.read()?;
    let model = args.model.load()?;
    let caps = caps.check(&model)?.acting()?;
    args.seed.report();
    let template = args.template.prepare(&model)?;
    warn_of_two_bos(&template);
    let evaluation = Evaluation::new(&template, &caps, material, args.texts(&model)?, options(args, &caps)?);
    let header = evaluation.header(tool(), args.model.compute.words().trim().into())?;
    let mut records = Records::open(&args.out, header)?;
    let interrupt = Interrupt::new()?;
    let caught = interrupt.catch();
    measure(args, &evaluation, &suites, &mut records, &caught)?;
    if let Some(judge) = args.judge() {
        judge_all(args, &judge, evaluation.material(), &mut records, &caught)?;
    }
    drop(caught);
    let findings = Findings::of(evaluation.material(), &records);
    let took = started.elapsed();
    let printed = if args.json {
        output::json(&found(&findings, took.as_secs_f64())?)
    } else {
        output::text(&table::text(&findings))
    };
    if let Some(path) = &args.pairs {
        write_pairs(path, evaluation.material(), &records)?;
    }
    if let Some(path) = &args.report {
        let page = evaluation_page(&findings, &command(args, &suites))?;
        write_atomically(path, |out| out.write_all(page.as_bytes()))?;
    }
    printed?;
    if !args.json {
        let report = args.report.iter().map(|path| format!("; report: {}", path.display()));
        let pairs = args.pairs.iter().map(|path| format!("; pairs: {}", path.display()));
        let more: String = report.chain(pairs).collect();
        output::text(&format!("took {}; records: {}{more}\n", seconds(took), args.out.display()))?;
    }
    Ok(())
}

fn options(args: &Args, caps: &CapSet) -> Result<EvaluationOptions> {
    Ok(EvaluationOptions {
        watched: report::shown_cap(caps, args.block)?,
        size: args.size(),
        temperature: args.temp,
        seed: args.seed.number,
        compute: args.model.compute.options(),
    })
}

/// Looks at the beginning of a conversation.
fn warn_of_two_bos(template: &ChatTemplate<'_>) {
    if let Ok(prompt) = template.prompt(&[Message::new(Role::User, "Hello")]) {
        bos::check(template.model(), &prompt, Writer::Template);
    }
}

/// Runs the jobs whose records are not there.
fn measure(
    args: &Args,
    evaluation: &Evaluation<'_>,
    suites: &[Suite],
    records: &mut Records,
    caught: &Catch,
) -> Result<()> {
    let jobs = evaluation.jobs(suites);
    let steps: usize = jobs.iter().map(axiscap_lab::evaluate::Job::steps).sum();
    let progress = Progress::new("steps", steps);
    let mut done = 0;
    let kept = |records: &Records| {
        format!(
            "{} of {} pieces of work are kept in {}, and the same command goes on from there",
            jobs.iter().filter(|job| records.has(&job.name())).count(),
            jobs.len(),
            args.out.display()
        )
    };
    for job in &jobs {
        if !records.has(&job.name()) {
            let found = evaluation.run(job, records, |now| {
                progress.set(done + now.min(job.steps()));
                caught.go_on()
            });
            let Some(found) = found.with_context(|| job.name())? else {
                progress.clear();
                return Err(interrupt::error(&kept(records)));
            };
            records.add(job.name(), found)?;
        }
        done += job.steps();
        progress.set(done);
        if caught.stopped() && done < steps {
            progress.clear();
            return Err(interrupt::error(&kept(records)));
        }
    }
    progress.clear();
    Ok(())
}

/// Has a judge score the pairs of every arm that it has not scored yet.
fn judge_all(
    args: &Args,
    judge: &Judge,
    material: &Material,
    records: &mut Records,
    caught: &Catch,
) -> Result<()> {
    for arm in Arm::all(args.size().controls) {
        let job = format!("judged {arm} by {}", judge.name());
        if records.has(&job) {
            continue;
        }
        let count = pairs(material, records.all()).iter().filter(|pair| pair.arm == arm).count();
        let progress = Progress::new("pairs judged", count);
        let found = judge_pairs(judge, material, records, arm, |done| {
            progress.set(done);
            caught.go_on()
        });
        progress.clear();
        let kept =
            || format!("all answers are kept in {}, and the same command judges them", args.out.display());
        match found {
            Ok(Some(found)) => records.add(job, found)?,
            Ok(None) => return Err(interrupt::error(&kept())),
            Err(error) => return Err(remedy::noted(error, kept())),
        }
    }
    Ok(())
}

fn write_pairs(path: &Path, material: &Material, records: &Records) -> Result<()> {
    let mut lines = Vec::new();
    for pair in pairs(material, records.all()) {
        serde_json::to_writer(&mut lines, &pair)?;
        lines.push(b'\n');
    }
    Ok(write_atomically(path, |out| out.write_all(&lines))?)
}

/// Returns the findings as JSON, without what stands in the records.
fn found(findings: &Findings, took: f64) -> Result<Value> {
    let mut found = serde_json::to_value(findings)?;
    found["seconds"] = json!(took);
    Ok(found)
}

/// Returns the command line, without folders.
fn command(args: &Args, suites: &[Suite]) -> String {
    let mut words = format!("axiscap eval --model {} {}", file_name(&args.model.model), args.caps.words());
    words += &args.model.compute.words();
    if suites.len() < Suite::ALL.len() {
        words +=
            &format!(" --suite {}", suites.iter().map(|suite| suite.name()).collect::<Vec<_>>().join(","));
    }
    words += if args.size == SizeArg::Full { " --size full" } else { " --size quick" };
    words += &format!(" --random-directions {}", args.size().controls);
    if let Some(block) = args.block {
        words += &format!(" --block {block}");
    }
    if let Some(path) = &args.material {
        words += &format!(" --material {}", file_name(path));
    }
    for path in &args.texts {
        words += &format!(" --text {}", file_name(path));
    }
    if let Some(judge) = args.judge() {
        // A command line may hold secrets.
        words += &match judge {
            Judge::Command(_) => " --judge-command ...".into(),
            Judge::Endpoint(_) => format!(" --judge {}", judge.name().replacen(' ', " --judge-model ", 1)),
        };
    }
    words + &format!(" --temp {} --seed {}", args.temp, args.seed.number)
}
