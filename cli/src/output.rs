//! stdout and stderr, also when nobody reads them any more.

use std::fmt;
use std::io::{self, ErrorKind, Write};

use anyhow::{Result, anyhow};
use serde::Serialize;

/// The reader of our stdout has gone away (`axiscap run ... | head`).
#[derive(Debug)]
struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads the output")
    }
}

impl std::error::Error for Closed {}

/// Whether the failure is only that nobody reads our output.
pub(crate) fn is_closed(error: &anyhow::Error) -> bool {
    error.is::<Closed>()
}

/// Writes text to stdout at once.
pub(crate) fn text(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| {
        if error.kind() == ErrorKind::BrokenPipe {
            anyhow::Error::new(Closed)
        } else {
            anyhow!("cannot write to stdout: {error}; check where it leads to, and the space there")
        }
    })
}

/// Writes one line of JSON to stdout.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_string(value)?;
    line.push('\n');
    text(&line)
}

/// A line on stderr. It is lost where stderr is closed: there is nobody left to tell.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// `warning: ...` on stderr.
pub(crate) fn warning(text: &str) {
    note(&format!("warning: {text}"));
}

/// `error: ...` on stderr.
pub(crate) fn error(text: &str) {
    note(&format!("error: {text}"));
}
