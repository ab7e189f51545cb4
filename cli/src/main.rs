//! The program `axiscap`: capped generation, benchmarks, and what they need.

mod answers;
mod bench;
mod bind;
mod bos;
mod calibrate;
mod caps;
mod chat;
mod doctor;
mod drift;
mod eval;
mod exec;
mod export;
mod extract;
mod files;
mod fingerprint;
mod gauge;
mod import;
mod input;
mod inspect;
mod interrupt;
mod levels;
mod llama_flags;
mod model;
mod output;
mod progress;
mod prompt;
mod remedy;
mod report;
mod route;
mod run;
mod sampling;
mod schedule;
mod template;
mod watch;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Activation capping for llama.cpp: hold a model on its persona axis while it writes.
#[derive(Debug, Parser)]
#[command(name = "axiscap", version, arg_required_else_help = true, after_help = EXAMPLE)]
struct Cli {
    /// Show llama.cpp's own log and what the hook does, on stderr; twice, every decode as well
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLE: &str = "\
Example:
  axiscap run --model SmolLM2-135M-Instruct.Q4_1.gguf \\
      --caps lab/assets/smollm2-135m-instruct.caps.gguf --prompt \"Who are you, really?\"

Exit status: 0; 1 for a failure, with the reason and the remedy on stderr; 2 for wrong usage; 130 after Ctrl-C or
SIGTERM, with what there was of the work written. A second one ends at once.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Write an answer, or go on with a text, capped or not
    Run(run::Args),
    /// Converse, with the projections of every answer
    Chat(chat::Args),
    /// Measure what capping costs
    Bench(bench::Args),
    /// Find the Assistant axis of a model: default answers minus role play
    Extract(extract::Args),
    /// Give axes their floors, from projections of the model's own answers
    Calibrate(calibrate::Args),
    /// Write into a cap file which model it is for, by digests of the model's norm weights
    Bind(bind::Args),
    /// Make a cap file of axes or caps that another tool wrote
    Import(import::Args),
    /// Write caps or axes in a format of other tools
    Export(export::Args),
    /// Follow the projection over a conversation, uncapped and capped
    Drift(drift::Args),
    /// Measure what caps do to a model, with controls
    Eval(eval::Args),
    /// Read transcripts, and say turn by turn where they drift
    Watch(watch::Args),
    /// Start a program of stock llama.cpp, such as llama-server, with caps
    Exec(exec::Args),
    /// Show what a cap file holds and how it was made
    Inspect(inspect::Args),
    /// Say what this machine can do, what is missing, and how to get it
    Doctor(doctor::Args),
}

impl Command {
    fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Run(args) => run::run(args),
            Self::Chat(args) => chat::run(args),
            Self::Bench(args) => bench::run(args),
            Self::Extract(args) => extract::run(args),
            Self::Calibrate(args) => calibrate::run(args),
            Self::Bind(args) => bind::run(args),
            Self::Import(args) => import::run(args),
            Self::Export(args) => export::run(args),
            Self::Drift(args) => drift::run(args),
            Self::Eval(args) => eval::run(args),
            Self::Watch(args) => watch::run(args),
            Self::Exec(args) => exec::run(args),
            Self::Inspect(args) => inspect::run(args),
            Self::Doctor(args) => doctor::run(args),
        }
    }
}

fn main() -> ExitCode {
    let (cli, files) = match parse() {
        Ok(parsed) => parsed,
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            // A closed stdout has no reader for the help.
            let _ = output::text(&llama_flags::help(&error.render(), llama_flags::is_styled()));
            return ExitCode::SUCCESS;
        }
        Err(error) => error.exit(),
    };
    show_log(cli.verbose);
    // A panic is a bug in this program. It is reported like any other failure, without a backtrace.
    std::panic::set_hook(Box::new(|_| {}));
    let finished = catch_unwind(AssertUnwindSafe(|| files.and_then(|()| cli.command.run())));
    let error = match finished {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        // Broken pipe: the reader has quit.
        Ok(Err(error)) if output::is_closed(&error) => return ExitCode::SUCCESS,
        Ok(Err(error)) if interrupt::is_interrupted(&error) => return ExitCode::from(interrupt::STATUS),
        Ok(Err(error)) if output::is_wrong_usage(&error) => {
            output::error(&error.to_string());
            return ExitCode::from(2);
        }
        Ok(Err(error)) => match exec::status(&error) {
            Some(status) => return ExitCode::from(status),
            None => remedy::describe(&error),
        },
        Err(panic) => {
            let what = panic.downcast_ref::<String>().map(String::as_str);
            let what = what.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
            format!("a bug in axiscap: {what}; please report it with the command that led to it")
        }
    };
    output::error(&error);
    ExitCode::FAILURE
}

/// Parses the command line. Returns with it whether its files may be read and written as it says.
fn parse() -> Result<(Cli, anyhow::Result<()>), clap::Error> {
    let command = command();
    let arguments = llama_flags::arguments(&command);
    let matches = command.clone().try_get_matches_from(arguments)?;
    let files = files::check(&command, &matches);
    Ok((Cli::from_arg_matches(&matches)?, files))
}

/// Returns the command line. A negative number is a value: it is refused as out of range and not as an
/// unknown option.
fn command() -> clap::Command {
    Cli::command().mut_subcommands(|command| {
        command.mut_args(|arg| {
            let takes_values = arg.get_action().takes_values();
            if takes_values { arg.allow_negative_numbers(true) } else { arg }
        })
    })
}

/// Sends the warnings of the axiscap crates to stderr, and llama.cpp's log if `verbose` is not 0. Errors quote
/// the lines of that log that explain them.
fn show_log(verbose: u8) {
    let (ours, llama) = match verbose {
        0 => (LevelFilter::WARN, LevelFilter::OFF),
        1 => (LevelFilter::DEBUG, LevelFilter::INFO),
        _ => (LevelFilter::TRACE, LevelFilter::INFO),
    };
    let targets =
        Targets::new().with_default(ours).with_target("llama.cpp", llama).with_target("llama_cpp_2", llama);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .with_target(verbose > 0);
    tracing_subscriber::registry().with(targets).with(lines).init();
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::fs;
    use std::path::Path;

    #[test]
    fn the_command_line_is_consistent_and_every_command_has_an_example() {
        let cli = super::command();
        cli.clone().debug_assert();
        for command in cli.get_subcommands() {
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("Example"), "{} has no example", command.get_name());
        }
    }

    /// Splits a command line as a shell does, up to its end, a comment, or where its output goes.
    fn words(line: &str) -> Vec<OsString> {
        let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
        for c in line.chars() {
            match (quote, c) {
                (Some(mark), _) if c == mark => quote = None,
                (None, '\'' | '"') => {
                    quote = Some(c);
                    word.get_or_insert_default();
                }
                (None, '#' | '>' | '|') if word.is_none() => break,
                (None, c) if c.is_whitespace() => words.extend(word.take().map(OsString::from)),
                _ => word.get_or_insert_default().push(c),
            }
        }
        words.extend(word.map(OsString::from));
        words
    }

    #[test]
    fn every_command_in_the_documentation_is_accepted() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let pages = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
        let pages = pages.filter(|path| path.extension().is_some_and(|end| end == "md"));
        let command = super::command();
        let mut seen = 0;
        for page in pages.chain([root.join("README.md")]) {
            let text = fs::read_to_string(&page).unwrap().replace("\\\n", " ");
            for line in text.lines().map(str::trim).filter(|line| line.starts_with("axiscap ")) {
                let words = words(line);
                let is_command = words.get(1).and_then(|word| command.find_subcommand(word)).is_some();
                let is_placeholder = |word: &OsString| {
                    word == "..."
                        || word == "OPTIONS"
                        || word == "N"
                        || word.to_string_lossy().starts_with('$')
                };
                // Output that quotes the program, and forms of commands.
                if !is_command || words.iter().any(is_placeholder) {
                    continue;
                }
                let parsed =
                    command.clone().try_get_matches_from(crate::llama_flags::expand(&command, words));
                assert!(parsed.is_ok(), "{}: {line}\n{}", page.display(), parsed.unwrap_err());
                seen += 1;
            }
        }
        assert!(seen > 30, "{seen} commands");
    }
}
