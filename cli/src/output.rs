//! The program's output: stdout and stderr, closed or not.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, anyhow};
use serde::Serialize;

/// The reader of stdout has quit (`axiscap run ... | head`).
#[derive(Debug)]
struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stdout is closed")
    }
}

impl std::error::Error for Closed {}

/// Returns whether the failure is only that stdout is closed.
pub(crate) fn is_closed(error: &anyhow::Error) -> bool {
    error.is::<Closed>()
}

/// Wrong usage that the parser of the command line cannot see.
#[derive(Debug)]
struct WrongUsage(String);

impl fmt::Display for WrongUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongUsage {}

/// Makes an error that ends the program with the status of wrong usage.
pub(crate) fn wrong_usage(what: String) -> anyhow::Error {
    WrongUsage(what).into()
}

/// Returns whether the failure is wrong usage.
pub(crate) fn is_wrong_usage(error: &anyhow::Error) -> bool {
    error.is::<WrongUsage>()
}

/// Writes text to stdout and flushes it.
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

/// Writes a line to stderr. If stderr is closed, the line is lost.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes `warning: ...` to stderr.
pub(crate) fn warning(text: &str) {
    note(&format!("warning: {text}"));
}

/// Writes `error: ...` to stderr.
pub(crate) fn error(text: &str) {
    note(&format!("error: {text}"));
}

/// Returns name and version of this program, for the origin of files.
pub(crate) fn tool() -> String {
    concat!("axiscap ", env!("CARGO_PKG_VERSION")).into()
}

/// Returns the last part of a path. The origin of a file does not disclose folders.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Returns a number of things in words: `1 pair`, `2 pairs`.
pub(crate) fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_not_several() {
        let words = [0, 1, 2].map(|count| counted(count, "cap"));
        assert_eq!(words, ["0 caps", "1 cap", "2 caps"]);
    }
}
