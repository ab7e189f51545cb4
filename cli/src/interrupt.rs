//! Ctrl-C and SIGTERM: the first one ends the work in progress, and what there is of it is written.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::output;

/// Exit status of work that was cut short, as the shell has it for programs that SIGINT ends.
pub(crate) const STATUS: u8 = 130;

/// Ctrl-C and SIGTERM. They end the program as usual, except while a [`Catch`] lives.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    /// Whether the next signal ends the program.
    fatal: Arc<AtomicBool>,
    /// Whether there was a SIGTERM.
    terminated: Arc<AtomicBool>,
}

/// While this lives, the first signal is only recorded. A second one ends the program, even if the record is
/// not read.
#[derive(Debug)]
pub(crate) struct Catch(Interrupt);

impl Interrupt {
    pub(crate) fn new() -> Result<Self> {
        let (fatal, terminated) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal passes the first handler and arms it for the second one.
            flag::register_conditional_default(signal, Arc::clone(&fatal))
                .and_then(|_| flag::register(signal, Arc::clone(&fatal)))
                .context("cannot take over Ctrl-C and SIGTERM")?;
        }
        flag::register(SIGTERM, Arc::clone(&terminated)).context("cannot take over SIGTERM")?;
        Ok(Self { fatal, terminated })
    }

    pub(crate) fn catch(&self) -> Catch {
        self.fatal.store(false, Ordering::SeqCst);
        Catch(self.clone())
    }
}

impl Catch {
    /// Returns whether there was a signal.
    pub(crate) fn stopped(&self) -> bool {
        self.0.fatal.load(Ordering::SeqCst)
    }

    /// Returns whether there was a SIGTERM, which asks the program to end and not only its work.
    pub(crate) fn terminated(&self) -> bool {
        self.0.terminated.load(Ordering::SeqCst)
    }

    /// Returns how work goes on that asks between its steps.
    pub(crate) fn go_on(&self) -> ControlFlow<()> {
        if self.stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Drop for Catch {
    fn drop(&mut self) {
        self.0.fatal.store(true, Ordering::SeqCst);
    }
}

/// The work was cut short by a signal. What there was of it is written, and the user knows.
#[derive(Debug)]
struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Returns whether the failure is only that a signal cut the work short.
pub(crate) fn is_interrupted(error: &anyhow::Error) -> bool {
    error.is::<Interrupted>()
}

/// Ends a command that was cut short, after its output was written: says on stderr what is kept, and returns
/// an error that [`is_interrupted`] knows. A pipe counts as written if the same Ctrl-C ended its reader.
pub(crate) fn end(written: Result<()>, kept: &str) -> Result<()> {
    match written {
        Err(error) if !output::is_closed(&error) => Err(error),
        _ => Err(error(kept)),
    }
}

/// Says on stderr what is kept of work that was cut short, and returns an error that [`is_interrupted`]
/// knows.
pub(crate) fn error(kept: &str) -> anyhow::Error {
    output::note(&format!("[interrupted: {kept}]"));
    Interrupted.into()
}

/// Prints a JSON object for a command that was cut short before it had a report.
pub(crate) fn report(ended: Result<()>, json: bool) -> Result<()> {
    match ended {
        Err(error) if json && is_interrupted(&error) => {
            match output::json(&serde_json::json!({ "interrupted": true })) {
                Err(failure) if !output::is_closed(&failure) => Err(failure),
                _ => Err(error),
            }
        }
        ended => ended,
    }
}
