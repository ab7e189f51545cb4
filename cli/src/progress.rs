//! Progress on stderr: a bar at a terminal, elsewhere a line now and then.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output;

/// Time between two lines where stderr is no terminal. Shorter work is silent there.
const INTERVAL: Duration = Duration::from_secs(10);

/// The progress of a number of steps.
#[derive(Debug)]
pub(crate) struct Progress {
    name: &'static str,
    length: usize,
    /// At a terminal.
    bar: Option<ProgressBar>,
    /// When the work began or the last line was written.
    last: Cell<Instant>,
}

impl Progress {
    /// Begins `length` steps under a name.
    pub(crate) fn new(name: &'static str, length: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| bar(name, length));
        Self { name, length, bar, last: Cell::new(Instant::now()) }
    }

    /// Shows how many steps are done.
    pub(crate) fn set(&self, done: usize) {
        match &self.bar {
            // A bar that is drawn for every step would slow down what is measured.
            Some(bar) if bar.position() != done as u64 => bar.set_position(done as u64),
            Some(_) => {}
            None if self.last.get().elapsed() >= INTERVAL => {
                output::note(&format!("{}: {done} of {}", self.name, self.length));
                self.last.set(Instant::now());
            }
            None => {}
        }
    }

    /// Leaves the bar as it is.
    pub(crate) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish();
        }
    }

    /// Removes the bar.
    pub(crate) fn clear(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(name: &'static str, length: usize) -> ProgressBar {
    let bar = ProgressBar::new(length as u64).with_prefix(name);
    if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:40}] {pos}/{len} {elapsed} (left {eta})")
    {
        bar.set_style(style.progress_chars("=> "));
    }
    // The first step may take long. The bar is there from the beginning, and its time runs.
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}
