//! `axiscap chat`: a conversation.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::{Result, anyhow};
use axiscap::{BlockCap, CapSet};
use axiscap_llama::{
    Chat, Context, Engagement, Error, GenerateOptions, Level, Message, Role, Stop, TraceRow, Turn, Watch,
    Watcher, answer_means,
};
use serde::Serialize;

use crate::bos::{self, Writer};
use crate::caps::CapsArgs;
use crate::gauge::{Gauge, Scale, Shown};
use crate::interrupt::{self, Interrupt, is_interrupted};
use crate::levels::{self, AnswerLevels, NO_THRESHOLDS, WatchReport};
use crate::model::ModelArgs;
use crate::sampling::SamplingArgs;
use crate::schedule::{self, EngagementReport};
use crate::template::TemplateArgs;
use crate::{input, output, remedy, report};

/// Converse with the model. One line is one turn. After every answer stderr says where its projections were
/// and how often the caps engaged. If stdin is no terminal, its lines are the turns, without prompts.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  axiscap chat --model M.gguf --caps C.gguf
  axiscap chat --model M.gguf --caps C.gguf --temp 0 --json < turns.txt

Commands within a conversation:
  /caps on|off    hold the projections, or only observe them (initially off with --observe)
  /strength S     how strongly caps hold, from 0 to 1
  /undo           take back the last turn
  /reset          start again
  /help           show these
  /quit           leave (or end of file)
At a terminal, Ctrl-C stops the answer being written and keeps its beginning. Between answers, and without a \
terminal after the answer being written, it leaves the program.
After a change of the caps the whole conversation is decoded again under them.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    caps: CapsArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// The system prompt
    #[arg(long, visible_alias = "system-prompt", value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    #[command(flatten)]
    template: TemplateArgs,
    /// Print one JSON object per turn, as a line, in place of the text
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let caps = args.caps.read()?;
    let model = args.model.load()?;
    let caps = caps.map(|caps| caps.check(&model)).transpose()?;
    let observe = caps.as_ref().is_some_and(|caps| caps.observe);
    let watch = caps.as_ref().map(|caps| args.caps.watch(caps)).transpose()?;
    let caps = caps.map(|caps| caps.caps);
    // A template that is missing or unknown is reported also where no turn follows.
    let system = args.system.iter().map(|text| Message::new(Role::System, text));
    let beginning: Vec<_> = system.chain([Message::new(Role::User, "")]).collect();
    let template = args.template.prepare(&model)?;
    template.render(&beginning, true)?;
    let mut context = Context::new(&model, &args.model.context(&model))?;
    context.set_caps(caps.as_ref())?;
    if let (Some(caps), Some(watch)) = (&caps, &watch) {
        args.caps.schedule(&mut context, caps, Some(watch))?;
        context.set_watch(0, Some(Watcher::new(watch)?))?;
    }
    context.set_tracing(caps.is_some())?;
    let interactive = io::stdin().is_terminal() && !args.json;
    let mut repl = Repl {
        chat: Chat::new(&template, args.system.as_deref()),
        context,
        caps,
        watch,
        options: args.sampling.options(),
        json: args.json,
        turn: 0,
        interrupt: Interrupt::new()?,
        interactive,
        is_checked: false,
    };
    if observe {
        repl.set_strength(Some(0.0))?;
    }
    args.sampling.report_seed();
    if interactive {
        output::note(&format!("One line is one turn; Ctrl-C stops an answer. {COMMANDS}"));
        if repl.watch.is_some_and(|watch| args.caps.watch.lacks_thresholds(&watch)) {
            output::note(NO_THRESHOLDS);
        }
    }
    let (mut lines, mut number) = (io::stdin().lock(), 0);
    loop {
        if interactive {
            output::text("> ")?;
        }
        number += 1;
        let Some(line) = input::line(&mut lines, &format!("line {number} of the conversation"))? else {
            // The shell's prompt begins on a new line.
            return if interactive { output::text("\n") } else { Ok(()) };
        };
        let taken = match String::from_utf8(line) {
            Ok(line) if line.trim().is_empty() => continue,
            Ok(line) => repl.take(line.trim()),
            Err(error) => Err(anyhow!(
                "line {number} is not UTF-8: its byte {} begins no character; write it again in UTF-8",
                error.utf8_error().valid_up_to() + 1
            )),
        };
        match taken {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => return Ok(()),
            // A person can continue after most errors. The rest of a script may depend on the turn that
            // failed.
            Err(error) if interactive && !output::is_closed(&error) && !is_interrupted(&error) => {
                output::error(&remedy::describe(&error));
            }
            Err(error) => return Err(error),
        }
    }
}

const COMMANDS: &str = "/caps on|off, /strength S, /undo, /reset, /help, /quit";

struct Repl<'m> {
    chat: Chat<'m>,
    context: Context<'m>,
    caps: Option<CapSet>,
    /// What is watched, where there are caps.
    watch: Option<Watch>,
    options: GenerateOptions,
    json: bool,
    turn: usize,
    interrupt: Interrupt,
    interactive: bool,
    /// Whether the beginning of the conversation was looked at.
    is_checked: bool,
}

/// One turn as JSON.
#[derive(Debug, Serialize)]
struct TurnReport<'a> {
    turn: usize,
    user: &'a str,
    text: &'a str,
    tokens: Vec<i32>,
    stop: &'static str,
    /// Whether a signal cut the answer short.
    interrupted: bool,
    /// Of the random numbers of every turn, also if it was drawn.
    seed: u32,
    prompt_tokens: usize,
    reused_tokens: usize,
    decode_tokens_per_second: f64,
    caps: Vec<CapTurn>,
    /// What the alarm of --when did.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    engagements: Vec<EngagementReport>,
    /// What was watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    watch: Option<WatchReport>,
}

/// What one cap saw in one answer.
#[derive(Debug, Serialize)]
struct CapTurn {
    cap: usize,
    block: usize,
    /// Mean projection of the answer's tokens before the cap.
    mean_before: Option<f64>,
    mean_after: Option<f64>,
    rows: usize,
    engaged: usize,
}

impl Repl<'_> {
    fn take(&mut self, line: &str) -> Result<ControlFlow<()>> {
        let Some(command) = line.strip_prefix('/') else {
            self.say(line)?;
            return Ok(ControlFlow::Continue(()));
        };
        let mut words = command.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("quit" | "exit"), None, _) => return Ok(ControlFlow::Break(())),
            (Some("help"), None, _) => output::note(COMMANDS),
            (Some("reset"), None, _) => {
                self.chat.reset();
                self.turn = 0;
                output::note("[started again]");
            }
            (Some("undo"), None, _) => {
                let undone = self.chat.undo();
                self.turn = self.turn.saturating_sub(usize::from(undone));
                output::note(if undone {
                    "[took back the last turn]"
                } else {
                    "[there is no turn to take back]"
                });
            }
            (Some("caps"), Some("on"), None) => {
                let max = self.set_strength(None)?;
                output::note(if max > 0.0 {
                    "[caps hold]"
                } else {
                    "[caps only observe: their strength is 0; /strength 1 has them hold]"
                });
            }
            (Some("caps"), Some("off"), None) => {
                self.set_strength(Some(0.0))?;
                output::note("[caps only observe]");
            }
            (Some("strength"), Some(word), None) => {
                let strength = word
                    .parse()
                    .map_err(|_| anyhow!("/strength {word}: not a number; give one from 0 to 1"))?;
                self.set_strength(Some(strength))?;
                output::note(&format!("[strength {strength}]"));
            }
            _ => {
                return Err(anyhow!("unknown command /{command}; there are {COMMANDS}"));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Sets the strength of every cap. `None` restores those of the file or of --strength. Returns the
    /// largest strength.
    fn set_strength(&mut self, strength: Option<f32>) -> Result<f32> {
        let Some(caps) = &self.caps else {
            return Err(anyhow!("there are no caps in this conversation; start it with --caps FILE"));
        };
        let of = |entry: &BlockCap| strength.unwrap_or(entry.cap.strength());
        self.context.update(|session| {
            caps.caps().iter().enumerate().try_for_each(|(cap, entry)| session.set_strength(cap, of(entry)))
        })?;
        Ok(caps.caps().iter().map(of).fold(0.0, f32::max))
    }

    fn say(&mut self, text: &str) -> Result<()> {
        // Rows of a turn that failed belong to no answer.
        drop(self.context.take_trace());
        let json = self.json;
        let mut written = Ok(());
        let watch = self.watch.zip(self.caps.as_ref());
        let mut gauge = watch.filter(|_| self.interactive).and_then(|_| Gauge::at_stdout());
        let mut shown = None;
        let answering = self.interrupt.catch();
        let said = self.chat.say_watched(&mut self.context, text, &self.options, |step| {
            if let (Some((watch, caps)), Some(reading)) = (&watch, step.readings.last()) {
                shown = Some(on_gauge(watch, caps, &reading.level));
            }
            let piece = match &mut gauge {
                Some(gauge) => &gauge.text(step.text, shown.as_ref(), Instant::now()),
                None => step.text,
            };
            if !json && !piece.is_empty() {
                written = output::text(piece);
            }
            if written.is_ok() { answering.go_on() } else { ControlFlow::Break(()) }
        });
        if let Some(rest) = gauge.map(|mut gauge| gauge.end()).filter(|rest| !rest.is_empty()) {
            let removed = output::text(&rest);
            written = written.and(removed);
        }
        let turn = said.map_err(|error| match error {
            Error::PromptTooLong { .. } if self.chat.messages().iter().any(|m| m.role == Role::Assistant) => {
                remedy::noted(error, "/undo takes back the last turn, /reset starts again")
            }
            error => error.into(),
        })?;
        let interrupted = turn.generated.stop == Stop::Caller && answering.stopped();
        if !interrupted {
            written?;
        }
        if !self.is_checked {
            self.is_checked = true;
            bos::check(self.context.model(), self.chat.tokens(), Writer::Template);
        }
        // At a terminal Ctrl-C ends the answer. SIGTERM, and Ctrl-C elsewhere, end the program after it.
        let ends = if self.interactive { answering.terminated() } else { answering.stopped() };
        let shown = if turn.is_unanswered() {
            if !ends {
                output::note("[stopped before the answer began; the turn is not kept]");
            }
            Ok(())
        } else {
            self.show(text, &turn)
        };
        if ends { interrupt::end(shown, "the conversation is cut short") } else { shown }
    }

    /// Prints a turn: its answer as JSON, or what the caps did in it.
    fn show(&mut self, text: &str, turn: &Turn) -> Result<()> {
        self.turn += 1;
        let trace = self.context.take_trace();
        let caps = self.caps.as_ref().map(|caps| caps_of_answer(caps, &trace, turn.prompt_tokens));
        let engagements = self.context.take_engagements();
        if self.json {
            self.print_json(text, turn, caps.unwrap_or_default(), &engagements)
        } else {
            self.print(turn, caps)?;
            schedule::note(&engagements);
            Ok(())
        }
    }

    fn print(&self, turn: &Turn, caps: Option<Vec<CapTurn>>) -> Result<()> {
        output::text("\n")?;
        let timings = &turn.generated.timings;
        let mut line = format!("[turn {}: {:.1} tokens/s", self.turn, timings.decode_tokens_per_second());
        if let Some(caps) = caps {
            let rows: usize = caps.iter().map(|cap| cap.rows).sum();
            let engaged: usize = caps.iter().map(|cap| cap.engaged).sum();
            let shown = self.caps.as_ref().map(|set| report::shown_cap(set, None)).transpose()?;
            if let Some(CapTurn { block, mean_before: Some(before), mean_after: Some(after), .. }) =
                shown.and_then(|cap| caps.get(cap))
            {
                line += &format!("; projection at block {block}: {before:.3}, capped {after:.3}");
            }
            line += &format!("; engaged on {:.1} % of rows", 100.0 * engaged as f64 / rows.max(1) as f64);
        }
        output::note(&(line + "]"));
        if let (Some(watch), Some(caps)) = (&self.watch, &self.caps) {
            output::note(&watched(turn).summary(watch, caps));
        }
        match turn.generated.stop {
            Stop::ContextFull => output::warning(
                "the context is full; /undo takes back the last turn, /reset starts again, --ctx N sets the size of the context",
            ),
            Stop::MaxTokens => output::note("[cut off by --max-tokens]"),
            Stop::Caller => output::note("[stopped]"),
            Stop::End(_) => {}
        }
        Ok(())
    }

    fn print_json(
        &self,
        user: &str,
        turn: &Turn,
        caps: Vec<CapTurn>,
        engagements: &[Engagement],
    ) -> Result<()> {
        let generated = &turn.generated;
        output::json(&TurnReport {
            turn: self.turn,
            user,
            text: &generated.text,
            tokens: generated.tokens.iter().map(|token| token.0).collect(),
            stop: crate::run::stop_name(generated.stop),
            interrupted: generated.stop == Stop::Caller,
            seed: self.options.sampling.seed,
            prompt_tokens: turn.prompt_tokens,
            reused_tokens: generated.timings.reused,
            decode_tokens_per_second: generated.timings.decode_tokens_per_second(),
            caps,
            watch: self
                .watch
                .as_ref()
                .zip(self.caps.as_ref())
                .map(|(watch, caps)| WatchReport::new(watch, caps, watched(turn))),
            engagements: engagements.iter().map(EngagementReport::from).collect(),
        })
    }
}

/// Returns what the gauge shows of a level.
fn on_gauge(watch: &Watch, caps: &CapSet, level: &Level) -> Shown {
    Shown {
        block: levels::block(watch, caps),
        projection: level.projection.into(),
        average: level.average,
        alarm: watch.thresholds.map(|thresholds| Scale { alarm: thresholds.alarm, usual: thresholds.usual }),
        is_raised: level.is_alarm(),
    }
}

/// Returns what was watched in an answer.
fn watched(turn: &Turn) -> AnswerLevels {
    let levels: Vec<Level> = turn.generated.readings.iter().map(|reading| reading.level).collect();
    AnswerLevels::of(&levels)
}

/// Returns what every cap saw in the rows from position `prompt` on, the generated tokens that were decoded.
fn caps_of_answer(caps: &CapSet, trace: &[TraceRow], prompt: usize) -> Vec<CapTurn> {
    let seen = answer_means(trace, prompt, caps.caps().len());
    let caps = caps.caps().iter().zip(seen).enumerate();
    caps.map(|(cap, (entry, seen))| CapTurn {
        cap,
        block: entry.block,
        mean_before: seen.means.map(|means| means.0),
        mean_after: seen.means.map(|means| means.1),
        rows: seen.rows,
        engaged: seen.engaged,
    })
    .collect()
}
