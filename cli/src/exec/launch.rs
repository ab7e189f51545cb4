//! Starts the host, and follows it to its end.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Signal;

use super::environment::variables;
use super::host::{Change, Host};
use super::report::{Event, Report};
use super::signals::Signals;
use super::socket::Socket;
use super::status::HostStatus;
use super::watch::{Action, Failure, Watch};
use super::{Args, Strict};
use crate::inspect::printable;
use crate::output::{self, counted};

/// Exit status of a shell for a program that is not there.
const NOT_FOUND: u8 = 127;
/// Exit status of a shell for a program that cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// How often the launcher looks whether the rest of a group has ended, of which no signal tells it.
const INTERVAL: Duration = Duration::from_millis(50);

/// Starts the host and returns when it has ended with success.
pub(super) fn launch(args: &Args, plugin: &Path) -> Result<()> {
    let name = printable(&args.program[0].to_string_lossy());
    let socket = Socket::new()?;
    let variables = variables(args, plugin, &socket.path())?;
    // Before the host is there: a signal that comes now is passed on as soon as it is.
    let signals = Signals::new()?;
    let now = Instant::now();
    let host = match Host::start(&args.program, &variables) {
        Ok(host) => host,
        Err(error) => {
            let is_absent = error.kind() == ErrorKind::NotFound;
            let remedy =
                if is_absent { "check its name, and PATH" } else { "name a program that can be executed" };
            output::error(&format!("cannot start {name}: {error}; {remedy}"));
            return Err(HostStatus(if is_absent { NOT_FOUND } else { NOT_EXECUTABLE }).into());
        }
    };
    let cap = args.until_capped.map(Duration::from_secs);
    let mut watch = Watch::new(now, Duration::from_secs(args.timeout), cap);
    let status = follow(host, signals, socket, &mut watch)?;
    match watch.failure() {
        Some(failure) => Err(explained(failure, &name, plugin, args)),
        None if status == 0 => match uncapped(&watch, &name) {
            Some(reason) if args.strict == Strict::Abort => Err(anyhow!("{reason}")),
            reason => {
                reason.iter().for_each(|reason| output::warning(reason));
                Ok(())
            }
        },
        None => Err(HostStatus(status).into()),
    }
}

/// Returns why what a host computed may be uncapped, though it ended with success.
fn uncapped(watch: &Watch, name: &str) -> Option<String> {
    if !watch.is_loaded() {
        return Some(format!(
            "{name} ended before it loaded the plugin, so nothing that it computed was capped\n\
             hint: a llama.cpp with static backends loads no plugin: build it with -DBUILD_SHARED_LIBS=ON -DGGML_BACKEND_DL=ON\n\
             hint: for its version or its help, start it without axiscap exec\n\
             hint: --strict warn makes this a warning"
        ));
    }
    watch.lacks_cap().then(|| {
        format!(
            "{name} ended without a capped model, which --until-capped asks for\n\
             hint: check that a cap file is for the model (axiscap inspect shows the digests that it is known by, axiscap bind writes them)\n\
             hint: --strict warn makes this a warning"
        )
    })
}

/// Passes signals on, takes reports, and ends the host if it is time. Returns the host's status.
fn follow(mut host: Host, mut signals: Signals, mut socket: Socket, watch: &mut Watch) -> Result<u8> {
    let mut ended = None;
    loop {
        wait(&signals, &socket, watch.next(), ended.is_some())?;
        for signal in signals.arrived() {
            host.pass_on(signal);
        }
        for change in host.changes().context("cannot wait for the program")? {
            match change {
                Change::Ended(status) => ended = Some(status),
                Change::Stopped(signal) => watch.postpone(host.stop_with(signal)),
            }
        }
        // After the changes: what a process reported before it ended has arrived by now.
        for report in socket.reports()? {
            say(&report);
            watch.report(&report.event, Instant::now());
        }
        if let Some(status) = ended
            && !(watch.is_ending_others() && host.has_group())
        {
            return Ok(status);
        }
        match watch.due(Instant::now(), ended.is_some()) {
            None => {}
            Some(Action::Terminate) => {
                host.signal_group(Signal::TERM);
                // A stopped process gets it when it continues.
                host.signal_group(Signal::CONT);
            }
            Some(Action::Kill) => host.signal_group(Signal::KILL),
        }
    }
}

/// Waits for a signal, a report, or a time.
fn wait(signals: &Signals, socket: &Socket, until: Option<Instant>, has_ended: bool) -> Result<()> {
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    let left = if has_ended { Some(left.map_or(INTERVAL, |left| left.min(INTERVAL))) } else { left };
    // A time that is too long for the system is none.
    let timeout = left.and_then(|left| Timespec::try_from(left).ok());
    let descriptors = std::iter::once(signals.descriptor()).chain(socket.descriptors());
    let mut polled: Vec<_> =
        descriptors.map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN)).collect();
    match poll(&mut polled, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("cannot wait for the program"),
    }
}

/// Says on stderr what a process reported.
fn say(Report { process, event }: &Report) {
    match event {
        Event::Loaded { versions } => tracing::debug!("process {process} loaded the plugin ({versions})"),
        Event::Capped { caps, model, blocks } => output::note(&format!(
            "note: process {process}: {model} is capped on {} by {caps}",
            counted(*blocks, "block")
        )),
        Event::NotCapped { model } => {
            output::warning(&format!("process {process}: {model} is not capped: no cap file is for it"));
        }
        Event::Warning { text } => output::warning(&format!("process {process}: {text}")),
        // The last thing that is said.
        Event::Fatal { .. } => {}
    }
}

/// Returns the error of a host that was ended.
fn explained(failure: &Failure, name: &str, plugin: &Path, args: &Args) -> anyhow::Error {
    match failure {
        Failure::Fatal(reason) => anyhow!("{name} cannot go on with caps: {reason}"),
        Failure::NotLoaded => anyhow!(
            "{name} did not load the plugin {} within {}, so nothing would have been capped; it was ended\n\
             hint: a llama.cpp with static backends loads no plugin: build it with -DBUILD_SHARED_LIBS=ON -DGGML_BACKEND_DL=ON\n\
             hint: a program that never calls ggml_backend_load_all, or whose llama.cpp does not know GGML_BACKEND_PATH, loads none either\n\
             hint: the plugin is for other versions of ggml, if the program's own log says that it cannot be loaded\n\
             hint: a wrapper (sudo, env -i) may have dropped the variables: start axiscap exec within it\n\
             hint: --timeout SECONDS gives a slow start more time",
            plugin.display(),
            counted(usize::try_from(args.timeout).unwrap_or(usize::MAX), "second"),
        ),
        Failure::NotCapped => anyhow!(
            "{name} had no capped model after {}; it was ended\n\
             hint: check that a cap file is for the model (axiscap inspect shows the digests that it is known by, axiscap bind writes them)\n\
             hint: --until-capped SECONDS gives a large model more time",
            counted(
                args.until_capped.map_or(0, |seconds| usize::try_from(seconds).unwrap_or(usize::MAX)),
                "second"
            ),
        ),
    }
}
