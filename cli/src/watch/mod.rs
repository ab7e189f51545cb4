//! `axiscap watch`: what the answers of transcripts project, and where they drift.

mod line;

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use axiscap::CapSet;
use axiscap_lab::watch::{Prepared, Reader};
use axiscap_llama::{ChatTemplate, Watch};
use clap::builder::RangedU64ValueParser;

use crate::bos::{self, Writer};
use crate::interrupt::{self, Catch, Interrupt};
use crate::levels::{NO_THRESHOLDS, WatchArgs};
use crate::model::LoadArgs;
use crate::output::{self, counted};
use crate::progress::Progress;
use crate::template::TemplateArgs;
use crate::{caps, input};
use line::Line;

/// Read transcripts, and add to each what its answers project on the axis, turn by turn, and the alarms
///
/// The transcripts are JSON Lines, from any tool: {"messages": [{"role": ..., "content": ...}], ...}. Nothing is
/// generated, and no cap acts: the uncapped model reads the answers, many at a time. Every line is printed again as it
/// is, with one more field; rewards and judges' scores stay beside the projections.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  axiscap watch --model model.gguf --caps caps.gguf --jsonl transcripts.jsonl > watched.jsonl
  trainer | axiscap watch --model model.gguf --caps caps.gguf --jsonl - --together 1 | dashboard

docs/watch.md says what a line may hold, what is added, and how the alarms work.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: LoadArgs,
    /// The caps on whose axes the answers are projected, a cap file
    #[arg(long, value_name = "FILE")]
    caps: PathBuf,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    watch: WatchArgs,
    /// The transcripts, a JSON object a line; `-` is stdin
    #[arg(long, value_name = "FILE")]
    jsonl: PathBuf,
    /// Name of the field that is added
    #[arg(long, value_name = "NAME", default_value = "axiscap")]
    field: String,
    /// Add the projection of every token
    #[arg(long)]
    tokens: bool,
    /// Transcripts that are read together. With 1 each is answered before the next line is awaited
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    together: usize,
}

/// Runs the subcommand.
///
/// # Errors
/// Unreadable files, caps of another model, and transcripts that could not be read, after the others.
pub(crate) fn run(args: Args) -> Result<()> {
    let lines = open(&args.jsonl, args.together)?;
    let file = axiscap::file::CapFile::read(&args.caps)?;
    let model = args.model.load()?;
    caps::check_file(&file, &args.caps, &model)?;
    let watch = args.watch.watch(&file, &args.caps)?;
    if args.watch.lacks_thresholds(&watch) {
        output::warning(&format!("{}: {NO_THRESHOLDS}", args.caps.display()));
    }
    let template = args.template.prepare(&model)?;
    let interrupt = Interrupt::new()?;
    let caught = interrupt.catch();
    let mut work = Work {
        args: &args,
        template: &template,
        caps: &file.caps,
        watch,
        caught: &caught,
        counts: Counts::default(),
        first_fault: None,
        is_checked: false,
    };
    let started = Instant::now();
    work.all(&lines)?;
    let Counts { lines, unread, answers, tokens, alarmed } = work.counts;
    let seconds = started.elapsed().as_secs_f64();
    output::note(&format!(
        "[{}, {}, {} in {seconds:.1} s; {} with an alarm]",
        counted(lines, "transcript"),
        counted(answers, "answer"),
        counted(tokens, "token"),
        alarmed
    ));
    match work.first_fault {
        None => Ok(()),
        Some((number, fault)) => Err(anyhow!(
            "{unread} of {} could not be read, and {} why in place of projections; the first is line {number}: {fault}",
            counted(lines, "transcript"),
            if unread == 1 { "its line says" } else { "their lines say" },
        )),
    }
}

/// The lines that are not blank, with their numbers.
type Lines = Receiver<Result<(usize, Vec<u8>)>>;

/// Opens the transcripts. A thread reads their lines, at most `ahead` of them in advance, so that a signal is seen while
/// a line is awaited.
fn open(path: &Path, ahead: usize) -> Result<Lines> {
    let file = match path == Path::new("-") {
        true => None,
        false => Some(File::open(path).with_context(|| format!("cannot read {}", path.display()))?),
    };
    let (sender, lines) = sync_channel(ahead);
    let place = path.display().to_string();
    std::thread::spawn(move || match file {
        Some(file) => send_lines(BufReader::new(file), &place, &sender),
        None => send_lines(io::stdin().lock(), "stdin", &sender),
    });
    Ok(lines)
}

/// Sends lines until their end, a failure, or the end of the work.
fn send_lines(mut from: impl BufRead, place: &str, to: &SyncSender<Result<(usize, Vec<u8>)>>) {
    for number in 1.. {
        let line = match input::line(&mut from, &format!("{place}, line {number}")) {
            Ok(None) => return,
            Ok(Some(bytes)) if bytes.trim_ascii().is_empty() => continue,
            Ok(Some(bytes)) => Ok((number, bytes)),
            Err(error) => Err(error),
        };
        let is_last = line.is_err();
        if to.send(line).is_err() || is_last {
            return;
        }
    }
}

/// How long a line is awaited before it is asked whether there was a signal.
const PATIENCE: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct Counts {
    lines: usize,
    unread: usize,
    answers: usize,
    tokens: usize,
    alarmed: usize,
}

/// The transcripts' way through the model.
struct Work<'a> {
    args: &'a Args,
    template: &'a ChatTemplate<'a>,
    caps: &'a CapSet,
    watch: Watch,
    caught: &'a Catch,
    counts: Counts,
    /// Number and fault of the first line that could not be read.
    first_fault: Option<(usize, String)>,
    /// Whether the beginning of a transcript was looked at.
    is_checked: bool,
}

impl Work<'_> {
    fn all(&mut self, lines: &Lines) -> Result<()> {
        let mut is_over = false;
        while !is_over {
            let mut group = Vec::new();
            let mut failure = None;
            while group.len() < self.args.together && !is_over {
                match lines.recv_timeout(PATIENCE) {
                    Ok(Ok((number, bytes))) => {
                        group.push(Line::new(number, bytes, &self.args.field, self.template));
                    }
                    Ok(Err(error)) => (failure, is_over) = (Some(error), true),
                    Err(RecvTimeoutError::Disconnected) => is_over = true,
                    Err(RecvTimeoutError::Timeout) => {}
                }
                if self.caught.stopped() {
                    return Err(self.cut_short());
                }
            }
            if !group.is_empty() {
                self.group(group)?;
            }
            if let Some(error) = failure {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Reads some transcripts and prints their lines.
    fn group(&mut self, group: Vec<Line>) -> Result<()> {
        self.check(&group);
        let prepared: Vec<&Prepared> = group.iter().filter_map(|line| line.prepared().ok()).collect();
        let answers = prepared.iter().map(|one| one.answers()).sum();
        let reader = Reader {
            template: self.template,
            caps: self.caps,
            watched: self.watch.watched(self.caps),
            acts: false,
            compute: &self.args.model.compute.options(),
        };
        let progress = Progress::new("answers", answers);
        let mut done = 0;
        let mut read = |some: &[&Prepared]| {
            let read = reader.read(some, |now| {
                progress.set(done + now);
                self.caught.go_on()
            });
            done += some.iter().map(|one| one.answers()).sum::<usize>();
            read
        };
        // One that cannot be read does not take the others with it.
        let found: Vec<Result<Option<_>, axiscap_lab::Error>> = match read(&prepared) {
            Ok(Some(all)) => all.into_iter().map(|answers| Ok(Some(answers))).collect(),
            Ok(None) => vec![Ok(None)],
            Err(error) if prepared.len() == 1 => vec![Err(error)],
            Err(_) => prepared.iter().map(|&one| Ok(read(&[one])?.and_then(|mut all| all.pop()))).collect(),
        };
        progress.clear();
        let mut found = found.into_iter();
        for line in &group {
            let answers = match line.prepared() {
                Ok(_) => match found.next() {
                    Some(Ok(Some(answers))) => Ok(answers),
                    Some(Err(error)) => Err(format!("{:#}", anyhow::Error::from(error))),
                    // A signal.
                    Some(Ok(None)) | None => return Err(self.cut_short()),
                },
                Err(fault) => Err(fault.to_owned()),
            };
            self.print(line, answers)?;
        }
        Ok(())
    }

    fn print(&mut self, line: &Line, answers: Result<Vec<axiscap_lab::watch::Answer>, String>) -> Result<()> {
        self.counts.lines += 1;
        let text = match answers {
            Ok(answers) => {
                self.counts.answers += answers.len();
                self.counts.tokens += answers.iter().map(|answer| answer.tokens.len()).sum::<usize>();
                let field = line::found(&self.watch, self.caps, line, &answers, self.args.tokens)?;
                self.counts.alarmed += usize::from(field.has_alarm());
                line.with(&self.args.field, &field)?
            }
            Err(fault) => {
                self.counts.unread += 1;
                let text = line.with_fault(&self.args.field, &fault)?;
                self.first_fault.get_or_insert((line.number(), fault));
                text
            }
        };
        output::text(&text)
    }

    /// Looks at the beginning of the first transcript.
    fn check(&mut self, group: &[Line]) {
        let first = group.iter().find_map(|line| line.prepared().ok());
        if let Some(first) = first.filter(|_| !self.is_checked) {
            self.is_checked = true;
            bos::check(self.template.model(), &first.first_prompt(), Writer::Template);
        }
    }

    fn cut_short(&self) -> anyhow::Error {
        interrupt::error(&format!(
            "{} printed; `tail -n +K` gives the rest of a file, from its line K on",
            counted(self.counts.lines, "line")
        ))
    }
}
