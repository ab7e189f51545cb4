//! What can go wrong between an answer and its score.

use std::io;
use std::process::ExitStatus;

use super::MAX_SCORE;

/// Why an answer has no score. Every message says what is wrong, where, and what to do. None holds the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JudgeError {
    /// The shell of a command cannot be started.
    // The messages hold the cause, which as a source would be printed twice.
    #[error("the judge's command cannot be started: {error}; it needs a shell (sh, or cmd on Windows)")]
    Start {
        /// What the system says.
        error: io::Error,
    },
    /// The pipes to a command failed for another reason than its end.
    #[error("the pipes to the judge's command failed: {error}; start it again")]
    Pipe {
        /// What the system says.
        error: io::Error,
    },
    /// A command ended with an error.
    #[error(
        "the judge's command ended with an error ({status}) after {found} of {expected} scores{}; {remedy}",
        said(.stderr)
    )]
    Exit {
        /// How it ended.
        status: ExitStatus,
        /// Number of scores that it gave.
        found: usize,
        /// Number of answers.
        expected: usize,
        /// Its last lines on stderr.
        stderr: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A command gave too few scores.
    #[error(
        "the judge's command ended after {found} of {expected} scores{}; it must print one line for each answer",
        said(.stderr)
    )]
    FewLines {
        /// Number of scores that it gave.
        found: usize,
        /// Number of answers.
        expected: usize,
        /// Its last lines on stderr.
        stderr: String,
    },
    /// A command printed more lines than there are answers.
    #[error(
        "the judge's command printed {text:?} after the scores of all {expected} answers; it must print one line for each answer, and everything else on stderr"
    )]
    ManyLines {
        /// Number of answers.
        expected: usize,
        /// Beginning of the first line too many.
        text: String,
    },
    /// A command stopped reading before the last answer. Its scores are not about the answers.
    #[error(
        "the judge's command gave {expected} scores, but closed its input before it had read all {expected} answers{}; it must read the answer that it scores",
        said(.stderr)
    )]
    Unread {
        /// Number of answers.
        expected: usize,
        /// Its last lines on stderr.
        stderr: String,
    },
    /// A line of a command is not a score.
    #[error(
        "line {line} of the judge's command is {text:?}; it must be a score from 0 to {MAX_SCORE}, as in 2 or {{\"score\": 2}}, and everything else must go to stderr"
    )]
    Line {
        /// Line, counted from 1.
        line: usize,
        /// Beginning of the line.
        text: String,
    },
    /// A line of a command is too long for a score.
    #[error(
        "line {line} of the judge's command is longer than {maximum} bytes; it must be a score, as in 2 or {{\"score\": 2}}"
    )]
    LongLine {
        /// Line, counted from 1.
        line: usize,
        /// Maximum length in bytes.
        maximum: usize,
    },
    /// A score of a command outside the scale.
    #[error(
        "line {line} of the judge's command has the score {score}; scores are whole numbers from 0 (refuses the role) to {MAX_SCORE} (plays it fully)"
    )]
    Range {
        /// Line, counted from 1.
        line: usize,
        /// The score.
        score: String,
    },
    /// A command gives an index in its line, and it is that of another answer.
    #[error(
        "line {line} of the judge's command has the index {found}, but belongs to the answer with index {expected}; print the scores in the order of the answers"
    )]
    Order {
        /// Line, counted from 1.
        line: usize,
        /// The index in the line.
        found: String,
        /// Index of the answer, counted from 0.
        expected: usize,
    },
    /// The number of requests at once is outside its range.
    #[error("parallel is {found}; it must be 1 to {maximum}")]
    Parallel {
        /// The value given.
        found: usize,
        /// The maximum.
        maximum: usize,
    },
    /// An endpoint's URL that requests cannot be made from.
    #[error("the judge's URL {url:?} {problem}; give a base URL, e.g. http://127.0.0.1:8080/v1")]
    Url {
        /// The URL without secrets.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A key that a request cannot carry.
    #[error("the judge's key has characters that no HTTP header can carry; look for line breaks in it")]
    Key,
    /// No answer from the endpoint.
    #[error("{url} gives no score for answer {answer} (tries: {tries}): {problem}; {remedy}")]
    Connection {
        /// The URL without secrets.
        url: String,
        /// Answer, counted from 1.
        answer: usize,
        /// Number of requests.
        tries: usize,
        /// What failed.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The endpoint refuses a request.
    #[error("{url} refuses answer {answer} with HTTP {status} (tries: {tries}): {message:?}; {remedy}")]
    Status {
        /// The URL without secrets.
        url: String,
        /// Answer, counted from 1.
        answer: usize,
        /// HTTP status.
        status: u16,
        /// Number of requests.
        tries: usize,
        /// Beginning of the endpoint's message.
        message: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The endpoint's reply holds no score.
    #[error("the reply of {url} to answer {answer} {problem}: {reply:?}; {remedy}")]
    Reply {
        /// The URL without secrets.
        url: String,
        /// Answer, counted from 1.
        answer: usize,
        /// What is wrong with it.
        problem: &'static str,
        /// Beginning of the reply.
        reply: String,
        /// What to do.
        remedy: &'static str,
    },
}

/// Returns a part of a message for what a command printed on stderr, if anything.
fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(", with {stderr:?} at the end of its stderr") }
}
