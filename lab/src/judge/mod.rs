//! Finds answers that ignore their role, and texts that contradict each other.
//!
//! A [`Judge`] outside this crate scores how well an answer plays its role, on a scale after that of *The Assistant
//! Axis* (arXiv 2601.10387, [`SCALE`]), or how well two texts agree ([`PAIR_SCALE`]): a program of the user's, or a
//! model that a server answers for. Without one, [`likelihoods`] compare each answer with itself outside its role.

mod command;
mod endpoint;
mod error;
mod http;
mod likelihood;
mod process;
mod prompt;
mod score;

use std::fmt;
use std::ops::ControlFlow;

use serde::Serialize;

pub use error::JudgeError;
pub use likelihood::{LEAST_LIKELIHOOD, likelihoods};
pub use prompt::{PAIR_SCALE, SCALE};

/// The highest score: the answer plays the role fully. The lowest is 0.
pub const MAX_SCORE: u8 = 3;

/// What is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Case<'a> {
    /// Whether an answer plays its role ([`SCALE`]).
    Role(RoleCase<'a>),
    /// Whether a text contradicts another ([`PAIR_SCALE`]).
    Pair(PairCase<'a>),
}

/// Two texts of one conversation (after arXiv 2511.00222).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PairCase<'a> {
    /// What the first one is: `prompt-to-line` if it says what the speaker is, `line-to-line` if the same speaker said
    /// it.
    pub kind: &'a str,
    /// The first text.
    pub first: &'a str,
    /// What was said later.
    pub second: &'a str,
}

/// One answer to be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RoleCase<'a> {
    /// Name of the role, e.g. `pirate`.
    pub role: &'a str,
    /// System prompt that gave the model the role. Empty if there was none.
    pub system: &'a str,
    /// What the model was asked.
    pub question: &'a str,
    /// What it answered.
    pub answer: &'a str,
}

/// Who scores answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judge {
    /// A command line for the shell (`sh -c`, or `cmd /C` on Windows).
    ///
    /// The command is started once and ends with its shell. It reads one line of JSON per answer, `{"index":
    /// 0, "role": "pirate", "system": "...", "question": "...", "answer": "..."}`, or for a pair of texts `{"index": 0,
    /// "kind": "line-to-line", "first": "...", "second": "..."}`, and prints one line for each in the same order: `2`, or `{"score": 2}` with any other fields. It may read everything before
    /// it prints. On Unix it has a process group of its own: Ctrl-C does not reach it, and it cannot read
    /// from the terminal.
    Command(String),
    /// A model on a server.
    Endpoint(Endpoint),
}

/// A model on a server with OpenAI's interface (`POST {url}/chat/completions`).
///
/// Redirections are not followed. A proxy from the environment (`HTTPS_PROXY` and others) is used, except for
/// a server on this machine.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Base URL, e.g. `http://127.0.0.1:8080/v1`.
    pub url: String,
    /// Name of the model. `None` if the server has only one.
    pub model: Option<String>,
    /// Bearer key. `None`, or an empty one, for a server that needs none.
    pub key: Option<String>,
    /// Maximum number of requests at once, 1 to [`Endpoint::MAX_PARALLEL`].
    pub parallel: usize,
}

impl Endpoint {
    /// Requests at once by default.
    pub const DEFAULT_PARALLEL: usize = 4;
    /// Maximum of [`Endpoint::parallel`]. Each request has a thread.
    pub const MAX_PARALLEL: usize = 64;

    /// Returns an endpoint without a model name and without a key.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), model: None, key: None, parallel: Self::DEFAULT_PARALLEL }
    }

    /// Returns the URL without a password or a key that stands in it.
    fn shown_url(&self) -> String {
        let plain = self.url.split(['?', '#']).next().unwrap_or_default();
        match plain.rsplit_once('@') {
            Some((before, host)) => {
                let scheme = before.split_once("://").map_or(String::new(), |(s, _)| format!("{s}://"));
                scheme + host
            }
            None => plain.trim_end_matches('/').to_owned(),
        }
    }
}

// By hand, because the key is a secret.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key.as_ref().map(|_| "***");
        f.debug_struct("Endpoint")
            .field("url", &self.shown_url())
            .field("model", &self.model)
            .field("key", &key)
            .field("parallel", &self.parallel)
            .finish()
    }
}

impl Judge {
    /// Scores every case. `on_score` gets the index and the score, in the order of the cases and as soon as
    /// known. It may stop the work.
    ///
    /// Returns whether all cases are scored: `Ok(false)` if `on_score` stopped. The command is then killed;
    /// requests to an endpoint that are under way are waited for. After an error the scores that `on_score`
    /// got are valid, unless the error says that the command did not read its answers, or ended with an
    /// error of its own.
    ///
    /// # Errors
    /// [`JudgeError`]: the judge cannot be asked, or what it says is not a score. An endpoint is asked again
    /// up to 3 times after a failed connection, HTTP 429 and 5xx.
    pub fn judge(
        &self,
        cases: &[Case<'_>],
        mut on_score: impl FnMut(usize, u8) -> ControlFlow<()>,
    ) -> Result<bool, JudgeError> {
        match self {
            Self::Endpoint(endpoint) => endpoint::judge(endpoint, cases, &mut on_score),
            Self::Command(_) if cases.is_empty() => Ok(true),
            Self::Command(line) => command::judge(line, cases, &mut on_score),
        }
    }

    /// Returns a name for files: `command: ...`, or the URL and the model. It never holds the key.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Command(line) => format!("command: {line}"),
            Self::Endpoint(endpoint) => {
                let model = endpoint.model.as_ref().map_or(String::new(), |model| format!(" {model}"));
                endpoint.shown_url() + &model
            }
        }
    }
}

/// What gets the scores.
type OnScore<'a> = &'a mut dyn FnMut(usize, u8) -> ControlFlow<()>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_keys_that_cannot_be_used_are_refused_without_quoting_secrets() {
        for url in
            ["", "localhost:8080", "ftp://a/v1", "http://", "http://u:hidden@a/v1", "http://a/v1?key=hidden"]
        {
            let failed = Judge::Endpoint(Endpoint::new(url)).judge(&[], |_, _| ControlFlow::Continue(()));
            let failed = failed.expect_err(url);
            assert!(matches!(failed, JudgeError::Url { .. }), "{failed}");
            assert!(!failed.to_string().contains("hidden"), "{failed}");
        }
        let broken = Endpoint { key: Some("hid\nden".into()), ..Endpoint::new("http://127.0.0.1:1") };
        let failed = Judge::Endpoint(broken).judge(&[], |_, _| ControlFlow::Continue(())).unwrap_err();
        assert!(matches!(failed, JudgeError::Key), "{failed}");
        for parallel in [0, 65] {
            let endpoint = Endpoint { parallel, ..Endpoint::new("http://127.0.0.1:1") };
            let failed = Judge::Endpoint(endpoint).judge(&[], |_, _| ControlFlow::Continue(())).unwrap_err();
            assert!(matches!(failed, JudgeError::Parallel { maximum: 64, .. }), "{failed}");
        }
    }

    #[test]
    fn names_and_debug_output_hold_no_key() {
        let plain = Endpoint {
            model: Some("small".into()),
            key: Some("hidden".into()),
            ..Endpoint::new("http://a:1/v1/")
        };
        let judge = Judge::Endpoint(plain);
        assert_eq!(judge.name(), "http://a:1/v1 small");
        assert!(!format!("{judge:?}").contains("hidden"));
        let secret = Judge::Endpoint(Endpoint::new("https://u:hidden@a/v1?key=hidden"));
        assert_eq!(secret.name(), "https://a/v1");
        assert!(!format!("{secret:?}").contains("hidden"));
        assert_eq!(Judge::Command("./judge --fast".into()).name(), "command: ./judge --fast");
    }
}
