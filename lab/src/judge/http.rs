//! One question to a model on a server, with what is asked again and what is not.

use std::io::ErrorKind;
use std::time::Duration;

use serde_json::Value;
use ureq::http::{HeaderValue, Response, Uri};
use ureq::{Agent, Body, Timeout};

use super::endpoint::Stop;
use super::score::{self, NoScore};
use super::{Case, Endpoint, JudgeError, prompt};

/// How often a request is made again.
const RETRIES: usize = 3;
/// Pause before the first of them. It doubles with each.
const PAUSE: Duration = Duration::from_secs(1);
/// Maximum pause that a server may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Maximum bytes of a reply.
const MAX_REPLY: u64 = 1 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum time for a reply. A model on a CPU that thinks for all its tokens needs minutes.
const REPLY_TIMEOUT: Duration = Duration::from_secs(600);

const LOOK: &str = "check the URL, and that the server runs";

/// Asks one endpoint.
pub(super) struct Client<'a> {
    agent: Agent,
    endpoint: &'a Endpoint,
    url: String,
    /// Key without white space around it, if it is not empty.
    key: Option<&'a str>,
    authorization: Option<HeaderValue>,
    pause: Duration,
}

/// Why a request gave no score.
struct Failure {
    error: JudgeError,
    again: Again,
}

/// Whether to make a request again.
enum Again {
    No,
    /// After a pause, of the length that the server asks for if it does.
    After(Option<Duration>),
}

impl<'a> Client<'a> {
    /// Checks the URL and the key of an endpoint.
    ///
    /// # Errors
    /// [`JudgeError::Url`], [`JudgeError::Key`].
    pub(super) fn new(endpoint: &'a Endpoint) -> Result<Self, JudgeError> {
        let url = endpoint.shown_url();
        let host = host(endpoint).map_err(|problem| JudgeError::Url { url: url.clone(), problem })?;
        let key = endpoint.key.as_deref().map(str::trim).filter(|key| !key.is_empty());
        let authorization = key.map(bearer).transpose()?;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // A redirection would take the answers to another server, and as a GET without them.
            .max_redirects(0)
            .max_idle_connections_per_host(endpoint.parallel)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(REPLY_TIMEOUT))
            .user_agent("axiscap");
        if matches!(host.as_str(), "localhost" | "[::1]") || host.starts_with("127.") {
            config = config.proxy(None);
        }
        let agent = config.build().into();
        Ok(Self { agent, endpoint, url, key, authorization, pause: PAUSE })
    }

    /// Sets the pause before the first repetition.
    #[cfg(test)]
    pub(super) fn with_pause(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// Asks for the score of one case. `None` if the work was stopped in a pause.
    ///
    /// # Errors
    /// [`JudgeError::Connection`], [`JudgeError::Status`], [`JudgeError::Reply`].
    pub(super) fn ask(&self, index: usize, case: &Case<'_>, stop: &Stop) -> Result<Option<u8>, JudgeError> {
        let body = prompt::request(self.endpoint.model.as_deref(), case).to_string();
        let (mut tries, mut pause) = (1, self.pause);
        loop {
            let Failure { error, again } = match self.request(&body, index + 1, tries) {
                Ok(score) => return Ok(Some(score)),
                Err(failure) => failure,
            };
            let Again::After(asked) = again else { return Err(error) };
            if tries > RETRIES {
                return Err(error);
            }
            if stop.pause(asked.unwrap_or(pause).min(MAX_PAUSE)) {
                return Ok(None);
            }
            tries += 1;
            pause *= 2;
        }
    }

    /// Makes one request.
    fn request(&self, body: &str, answer: usize, tries: usize) -> Result<u8, Failure> {
        let mut request = self.agent.post(format!("{}/chat/completions", self.url));
        request = request.header("content-type", "application/json").header("accept", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let failed = |error| self.connection(&error, answer, tries);
        let mut response = request.send(body).map_err(failed)?;
        let text = response.body_mut().with_config().limit(MAX_REPLY).lossy_utf8(true).read_to_string();
        if !response.status().is_success() {
            return Err(self.refused(&response, &text.unwrap_or_default(), answer, tries));
        }
        let text = text.map_err(failed)?;
        self.score(&text, answer).map_err(|error| Failure { error, again: Again::No })
    }

    /// Reads the score in a reply.
    fn score(&self, body: &str, answer: usize) -> Result<u8, JudgeError> {
        let wrong = |problem, text: &str, remedy| {
            Err(JudgeError::Reply { url: self.url.clone(), answer, problem, reply: self.quote(text), remedy })
        };
        let reply: Value = serde_json::from_str(body).unwrap_or_default();
        let choice = &reply["choices"][0];
        let text = match &choice["message"]["content"] {
            Value::String(text) => text,
            // So servers write a reply of nothing but thoughts.
            Value::Null if choice["message"].is_object() => "",
            _ => {
                let remedy = "give the base URL of a server with OpenAI's interface, which often ends in /v1";
                return wrong("is not a chat completion", &message(body), remedy);
            }
        };
        let thinks_less = "turn the judging model's thoughts off, or ask another model";
        match score::from_reply(text) {
            Ok(score) => Ok(score),
            Err(NoScore::Unfinished) => wrong("never leaves its thoughts", text, thinks_less),
            Err(NoScore::Empty) if choice["finish_reason"] == "length" => {
                wrong("has used up its tokens for thoughts", text, thinks_less)
            }
            Err(NoScore::Empty) => wrong("has no text", text, "ask another model"),
            Err(NoScore::Unclear) => wrong(
                "does not hold exactly one number, from 0 to 3",
                text,
                "ask a model that follows the scale",
            ),
        }
    }

    /// Makes the failure of a request that got no whole reply.
    fn connection(&self, error: &ureq::Error, answer: usize, tries: usize) -> Failure {
        let usual = Again::After(None);
        let (problem, remedy, again) = match error {
            ureq::Error::Timeout(Timeout::Global) => {
                let problem = format!("there was no reply within {} seconds", REPLY_TIMEOUT.as_secs());
                (problem, "ask for fewer scores at once, or ask a faster model", Again::No)
            }
            ureq::Error::BodyExceedsLimit(limit) => {
                (format!("the reply is longer than {limit} bytes"), LOOK, Again::No)
            }
            // So TLS says it.
            ureq::Error::Io(error) if error.kind() == ErrorKind::InvalidData => {
                let remedy = "ask a server whose certificate a public authority has signed, or use http://";
                (error.to_string(), remedy, Again::No)
            }
            ureq::Error::Io(_)
            | ureq::Error::Timeout(_)
            | ureq::Error::ConnectionFailed
            | ureq::Error::HostNotFound => (error.to_string(), LOOK, usual),
            _ => (error.to_string(), LOOK, Again::No),
        };
        let (url, problem) = (self.url.clone(), self.quote(&problem));
        Failure { error: JudgeError::Connection { url, answer, tries, problem, remedy }, again }
    }

    /// Makes the failure of a request with a status other than 2xx.
    fn refused(&self, response: &Response<Body>, body: &str, answer: usize, tries: usize) -> Failure {
        let status = response.status().as_u16();
        let header = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let mut text = message(body);
        let remedy = match status {
            300..=399 => {
                text = format!("redirection to {}", header("location").unwrap_or("nowhere"));
                "give the URL that it redirects to, if you trust it with the answers"
            }
            401 | 403 => "give a key that this server accepts",
            404 | 405 => "check the URL, which often ends in /v1, and the name of the model",
            429 => "ask for fewer scores at once, or wait until the server's limit allows more",
            500.. => "look at the server's log, or try again later",
            _ => "the message says what the server does not accept; ask another model or server",
        };
        let again = match status {
            429 | 500.. => {
                let seconds = header("retry-after").and_then(|value| value.trim().parse().ok());
                Again::After(seconds.map(Duration::from_secs))
            }
            _ => Again::No,
        };
        let (url, message) = (self.url.clone(), self.quote(&text));
        Failure { error: JudgeError::Status { url, answer, status, tries, message, remedy }, again }
    }

    /// Returns the beginning of a server's text for a message. Some servers repeat the key.
    fn quote(&self, text: &str) -> String {
        match self.key {
            Some(key) => score::cut(&text.replace(key, "***")),
            None => score::cut(text),
        }
    }
}

/// Returns the host of an endpoint's URL, or what is wrong with the URL.
fn host(endpoint: &Endpoint) -> Result<String, &'static str> {
    if endpoint.url.contains(['@', '?', '#']) {
        // Such parts may be secrets, and the URL is written to files.
        return Err("has a user name, a query or a fragment");
    }
    let uri: Uri = endpoint.url.parse().map_err(|_| "is not a URL")?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("does not begin with http:// or https://");
    }
    uri.host().filter(|host| !host.is_empty()).map(str::to_owned).ok_or("has no host")
}

/// Returns the value of the header that carries a key.
fn bearer(key: &str) -> Result<HeaderValue, JudgeError> {
    let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| JudgeError::Key)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Returns the message in the body of an error, in one of the usual shapes, or else the whole body.
fn message(body: &str) -> String {
    let Ok(value) = serde_json::from_str::<Value>(body) else { return body.to_owned() };
    let places = ["/error/message", "/error", "/message", "/detail"];
    let found = places.iter().find_map(|place| value.pointer(place)?.as_str());
    found.map_or_else(|| value.to_string(), str::to_owned)
}
