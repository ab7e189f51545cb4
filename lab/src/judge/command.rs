//! A judge that is a program: a line of JSON per answer goes in, a line with a score comes out.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::process::{ChildStdin, ExitStatus};
use std::thread::{self, ScopedJoinHandle};

use serde::Serialize;

use super::process::{Group, Process};
use super::{Case, JudgeError, OnScore, score};

/// Maximum bytes of a line with a score.
const MAX_LINE: usize = 64 << 10;

/// Lines of a command's stderr that a message quotes, and how many bytes of them.
const LAST_LINES: usize = 5;
const LAST_BYTES: usize = 1000;

/// What goes in for one answer.
#[derive(Serialize)]
struct Input<'a> {
    index: usize,
    #[serde(flatten)]
    case: &'a Case<'a>,
}

/// How the reading of scores ended.
#[derive(PartialEq, Eq)]
enum Scores {
    /// The output ended after as many scores.
    Ended(usize),
    /// The caller stopped.
    Stopped,
}

/// Scores every case with a command. See [`super::Judge::judge`].
pub(super) fn judge(line: &str, cases: &[Case<'_>], on_score: OnScore<'_>) -> Result<bool, JudgeError> {
    let (process, (stdin, stdout, stderr)) =
        Process::start(line).map_err(|error| JudgeError::Start { error })?;
    let group = process.group();
    let (scores, written, stderr) = thread::scope(|scope| {
        // The threads end with the process. This also holds if `on_score` panics.
        let mut kill = KillOnDrop(Some(group));
        // A program may read everything before it prints, or print more than a pipe holds before it reads on.
        let writer = scope.spawn(|| write_cases(stdin, cases));
        let last_words = scope.spawn(|| end_of(stderr));
        scope.spawn(move || group.end_with_shell());
        let scores = read_scores(stdout, cases.len(), on_score);
        if let Ok(Scores::Ended(_)) = scores {
            // It may still have something to do, and its exit status counts.
            kill.0 = None;
        }
        drop(kill);
        (scores, join(writer), join(last_words))
    });
    let Scores::Ended(found) = scores? else { return Ok(false) };
    let status = process.wait().map_err(|error| JudgeError::Pipe { error })?;
    check_end(status, written, found, cases.len(), stderr).map(|()| true)
}

/// Kills a group when it is dropped, unless it is taken out.
struct KillOnDrop(Option<Group>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            group.kill();
        }
    }
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Writes the cases, and closes the pipe, which tells the program that there are no more.
fn write_cases(mut stdin: ChildStdin, cases: &[Case<'_>]) -> io::Result<()> {
    for (index, case) in cases.iter().enumerate() {
        let mut line = serde_json::to_vec(&Input { index, case })?;
        line.push(b'\n');
        stdin.write_all(&line)?;
    }
    Ok(())
}

/// Reads one score per case, and the end of the output.
fn read_scores(stdout: impl Read, expected: usize, on_score: OnScore<'_>) -> Result<Scores, JudgeError> {
    let mut stdout = BufReader::new(stdout);
    for index in 0..expected {
        let Some(line) = read_line(&mut stdout, index + 1)? else { return Ok(Scores::Ended(index)) };
        if on_score(index, score::from_line(&line, index)?).is_break() {
            return Ok(Scores::Stopped);
        }
    }
    match read_line(&mut stdout, expected + 1)? {
        Some(line) => Err(JudgeError::ManyLines { expected, text: score::cut(&line) }),
        None => Ok(Scores::Ended(expected)),
    }
}

/// Reads a line of bounded length. `None` at the end of the output.
fn read_line(output: &mut impl BufRead, line: usize) -> Result<Option<String>, JudgeError> {
    let mut bytes = Vec::new();
    let limit = MAX_LINE as u64 + 1;
    output.by_ref().take(limit).read_until(b'\n', &mut bytes).map_err(|error| JudgeError::Pipe { error })?;
    if bytes.len() > MAX_LINE {
        return Err(JudgeError::LongLine { line, maximum: MAX_LINE });
    }
    Ok((!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Reads a stream to its end and returns its last lines.
fn end_of(mut stream: impl Read) -> String {
    let mut last = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => last.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // What there is of it is enough.
            Err(_) => break,
        }
        last.drain(..last.len().saturating_sub(LAST_BYTES));
    }
    let text = String::from_utf8_lossy(&last);
    let lines: Vec<&str> = text.trim().lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

/// Checks that a command which ended by itself did its work.
fn check_end(
    status: ExitStatus,
    written: io::Result<()>,
    found: usize,
    expected: usize,
    stderr: String,
) -> Result<(), JudgeError> {
    if !status.success() {
        let remedy = match status.code() {
            // As shells say it.
            Some(126 | 127) => "give the path of a program that can be run",
            _ => "run it by hand with one answer to see why",
        };
        return Err(JudgeError::Exit { status, found, expected, stderr, remedy });
    }
    if found < expected {
        return Err(JudgeError::FewLines { found, expected, stderr });
    }
    match written {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(JudgeError::Unread { expected, stderr }),
        Err(error) => Err(JudgeError::Pipe { error }),
    }
}

#[cfg(all(test, unix))]
mod tests;
