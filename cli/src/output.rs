//! The program's output: stdout and stderr, closed or not, and checks of the files it will write.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
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

/// Fails before the work if an output cannot be written, or would replace an input or another output. Files
/// come with the options that name them.
pub(crate) fn check_files(inputs: &[(&str, &Path)], outputs: &[(&str, &Path)]) -> Result<()> {
    for (index, &(flag, path)) in outputs.iter().enumerate() {
        for &(other, read) in inputs {
            ensure!(
                !is_same(path, read),
                "{flag} and {other} are one file, {}: it would be overwritten; name another file with {flag}",
                path.display()
            );
        }
        for &(other, written) in &outputs[..index] {
            ensure!(!is_same(path, written), "{flag} and {other} are one file, {}; name two", path.display());
        }
        check_place(path).with_context(|| format!("{flag}: cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Checks that a file can be put there.
fn check_place(path: &Path) -> Result<()> {
    ensure!(!path.is_dir(), "it is a folder; name a file");
    let folder = folder(path);
    ensure!(folder.is_dir(), "there is no folder {}; create it, or name another place", folder.display());
    // A device or a pipe is written to directly. A link to a file that does not exist yet is followed.
    let is_replaced = path.is_file() || path.symlink_metadata().is_err();
    if is_replaced {
        let target = path.canonicalize();
        let folder = target.as_deref().ok().and_then(Path::parent).unwrap_or(folder);
        tempfile::Builder::new().prefix(".axiscap-").tempfile_in(folder).map_err(|error| {
            anyhow!("no file can be made in its folder: {}; name another place", error.kind())
        })?;
    }
    Ok(())
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns whether two paths lead to one regular file, through any names and links, or to one place without a
/// file.
fn is_same(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a_is), Ok(b_is)) => a_is.is_file() && b_is.is_file() && is_same_file((a, &a_is), (b, &b_is)),
        (Err(_), Err(_)) => place(a).is_some_and(|a| Some(a) == place(b)),
        _ => false,
    }
}

#[cfg(unix)]
fn is_same_file((_, a): (&Path, &fs::Metadata), (_, b): (&Path, &fs::Metadata)) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn is_same_file((a, _): (&Path, &fs::Metadata), (b, _): (&Path, &fs::Metadata)) -> bool {
    a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
}

fn place(path: &Path) -> Option<PathBuf> {
    Some(folder(path).canonicalize().ok()?.join(path.file_name()?))
}

/// Returns name and version of this program, for the origin of files.
pub(crate) fn tool() -> String {
    concat!("axiscap ", env!("CARGO_PKG_VERSION")).into()
}

/// Returns the last part of a path. The origin of a file does not disclose folders.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_same_under_all_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("a"), "x").unwrap();
        fs::write(at("b"), "x").unwrap();
        fs::hard_link(at("a"), at("hard")).unwrap();
        assert!(!is_same(&at("a"), &at("b")));
        assert!(is_same(&at("a"), &folder.path().join(".").join("a")) && is_same(&at("hard"), &at("a")));
        assert!(is_same(&at("new"), &folder.path().join(".").join("new")) && !is_same(&at("new"), &at("a")));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(at("a"), at("soft")).unwrap();
            assert!(is_same(&at("soft"), &at("hard")));
            assert!(!is_same(Path::new("/dev/null"), Path::new("/dev/null")), "a device is not replaced");
        }
        let (a, hard) = (at("a"), at("hard"));
        let error = check_files(&[("--model", &a)], &[("--out", &hard)]).unwrap_err().to_string();
        assert!(error.contains("--out and --model are one file"), "{error}");
        let new = at("new");
        let error = check_files(&[], &[("--out", &new), ("--plot", &new)]).unwrap_err().to_string();
        assert!(error.contains("--plot and --out are one file"), "{error}");
        check_files(&[("--model", &a)], &[("--out", &new)]).unwrap();
        assert!(!new.exists());
    }
}
