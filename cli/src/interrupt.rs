//! Ctrl-C during an answer: it stops the answer and not the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use signal_hook::consts::SIGINT;
use signal_hook::flag;

/// Ctrl-C. It ends the program as usual, except while a [`Catch`] lives.
#[derive(Debug)]
pub(crate) struct Interrupt {
    /// Whether the next Ctrl-C ends the program.
    fatal: Arc<AtomicBool>,
}

/// While this lives, the first Ctrl-C is only recorded. A second one ends the program, even if the record is
/// not read.
#[derive(Debug)]
pub(crate) struct Catch<'a>(&'a Interrupt);

impl Interrupt {
    pub(crate) fn new() -> Result<Self> {
        let fatal = Arc::new(AtomicBool::new(true));
        // In this order: the first Ctrl-C passes the first handler and arms it for the second one.
        flag::register_conditional_default(SIGINT, Arc::clone(&fatal))
            .and_then(|_| flag::register(SIGINT, Arc::clone(&fatal)))
            .context("cannot take over Ctrl-C")?;
        Ok(Self { fatal })
    }

    pub(crate) fn catch(&self) -> Catch<'_> {
        self.fatal.store(false, Ordering::SeqCst);
        Catch(self)
    }
}

impl Catch<'_> {
    /// Returns whether there was a Ctrl-C.
    pub(crate) fn stopped(&self) -> bool {
        self.0.fatal.load(Ordering::SeqCst)
    }
}

impl Drop for Catch<'_> {
    fn drop(&mut self) {
        self.0.fatal.store(true, Ordering::SeqCst);
    }
}
