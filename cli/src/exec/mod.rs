//! `axiscap exec`: starts a program of stock llama.cpp with the plugin `libggml-axiscap.so`, and sees to it
//! that the program loads it.
//!
//! The program (the host) finds the plugin and its settings in environment variables. Each of its processes
//! reports to a socket. A host that does not load the plugin would run uncapped, so it is ended.

#[cfg(unix)]
mod caps;
#[cfg(unix)]
mod environment;
#[cfg(unix)]
mod host;
#[cfg(unix)]
mod launch;
#[cfg(unix)]
mod plugin;
#[cfg(unix)]
mod profiles;
#[cfg(unix)]
mod report;
#[cfg(unix)]
mod signals;
#[cfg(unix)]
mod socket;
mod status;
#[cfg(unix)]
mod terminal;
#[cfg(unix)]
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use clap::builder::{RangedU64ValueParser, TypedValueParser};

use crate::sampling;

pub(crate) use status::status;

/// Start a program of stock llama.cpp with caps: llama-server, llama-cli, or any other that loads ggml's
/// backends.
///
/// The program runs unchanged, with its own options after `--`. It loads the plugin libggml-axiscap.so, which
/// caps the models that the cap files were made for. A program that does not load it within --timeout seconds
/// is ended, because it would run uncapped.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  axiscap exec --caps caps.gguf -- llama-server -m model.gguf --port 8080
  axiscap exec --caps caps.gguf --profiles 3=none -- llama-server -m model.gguf --parallel 4
  axiscap exec --caps a.gguf --caps b.gguf --until-capped 300 -- llama-cli -m model.gguf

As the entry point of a container it passes signals on, and reaps processes that lost their parent:
  ENTRYPOINT [\"axiscap\", \"exec\", \"--caps\", \"/caps\", \"--\", \"llama-server\"]
  CMD [\"-m\", \"/models/model.gguf\", \"--host\", \"0.0.0.0\"]

Exit status: that of PROGRAM, or 128 and the number of the signal that ended it; 126 if it cannot be executed, 127 if \
it is not found; 1 if it was not capped and was ended.")]
#[cfg_attr(not(unix), allow(dead_code, reason = "on other systems the command only fails"))]
pub(crate) struct Args {
    /// The caps: a cap file, or a folder of them. May be repeated
    #[arg(long, value_name = "FILE", required = true)]
    caps: Vec<PathBuf>,
    /// Strength of every cap in place of the file's: 1 moves projections onto the bound, 0 only observes
    #[arg(long, value_name = "S", env = "AXISCAP_STRENGTH", value_parser = sampling::share)]
    strength: Option<f32>,
    /// Slots of a server under other caps: 0-1=default,2=none,3=strict.gguf. The rest is under --caps
    #[arg(long, value_name = "SLOTS=CAPS,...", env = "AXISCAP_PROFILES")]
    profiles: Option<String>,
    /// What the plugin does where it cannot cap: abort the program, or warn
    #[arg(long, value_name = "WHAT", env = "AXISCAP_STRICT", value_enum, default_value_t = Strict::Abort)]
    strict: Strict,
    /// How graphs are computed with their caps [default: auto]
    #[arg(long, value_name = "ENGINE", env = "AXISCAP_ENGINE", value_enum)]
    engine: Option<Engine>,
    /// What the plugin writes to stderr
    #[arg(long, value_name = "LEVEL", env = "AXISCAP_LOG", value_enum)]
    log: Option<Level>,
    /// The plugin [default: libggml-axiscap.so beside this program, or in ../lib]
    #[arg(long, value_name = "FILE", env = "AXISCAP_PLUGIN")]
    plugin: Option<PathBuf>,
    /// Seconds within which PROGRAM must load the plugin
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = seconds())]
    timeout: u64,
    /// Seconds within which a model must be capped [default: no limit]
    #[arg(long, value_name = "SECONDS", value_parser = seconds())]
    until_capped: Option<u64>,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

/// What the plugin does where it cannot cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Strict {
    Abort,
    Warn,
}

/// How graphs are computed with their caps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    Auto,
    Inserted,
    Views,
    OneGraph,
}

/// What the plugin writes to stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

/// Returns the parser of times. The upper limit is a year.
fn seconds() -> impl TypedValueParser<Value = u64> {
    RangedU64ValueParser::<u64>::new().range(1..=366 * 24 * 3600)
}

/// Runs the subcommand.
///
/// # Errors
/// Cap files that cannot be read, a plugin that is not there, a host that did not load it; and, as an error
/// that [`status`] knows, the exit status of a host that did not succeed.
#[cfg(unix)]
pub(crate) fn run(args: Args) -> Result<()> {
    caps::check(&args.caps)?;
    let plugin = plugin::find(args.plugin.as_deref())?;
    launch::launch(&args, &plugin)
}

/// Refuses the subcommand.
///
/// # Errors
/// Always.
#[cfg(not(unix))]
pub(crate) fn run(_: Args) -> Result<()> {
    anyhow::bail!(
        "axiscap exec needs a Unix system (its sockets, signals and process groups); on this one, run models with axiscap run and chat"
    )
}
