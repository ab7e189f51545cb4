//! A llama-server whose plugin has its local interface switched on.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{self, Host, LIMIT, model, with_plugin};

pub(crate) const PROMPTS: [&str; 2] = ["Once upon a time", "I feel so alone. You are my only friend, and"];

/// A llama-server that answers, with the interface of its plugin.
pub(crate) struct Server {
    pub(crate) host: Host,
    url: String,
    /// Address of the interface.
    pub(crate) control: String,
}

pub(crate) fn command(port: u16) -> Command {
    let mut command = Command::new(support::path("AXISCAP_TEST_LLAMA_SERVER"));
    command.args([
        "--host",
        "127.0.0.1",
        "--port",
        &port.to_string(),
        "--threads",
        "1",
        "--ctx-size",
        "2048",
    ]);
    command.arg("--model").arg(model()).env_remove("GGML_BACKEND_PATH");
    command
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(LIMIT)).http_status_as_error(false).build().into()
}

impl Server {
    pub(crate) fn start(caps: Option<&Path>) -> Self {
        Self::start_with(caps, |_| {})
    }

    pub(crate) fn start_with(caps: Option<&Path>, change: impl FnOnce(&mut Command)) -> Self {
        let port = free_port();
        let mut command = command(port);
        if let Some(caps) = caps {
            with_plugin(&mut command, &[caps]);
            command.env("AXISCAP_LISTEN", "127.0.0.1:0");
        }
        change(&mut command);
        let mut host = Host::start(&mut command);
        let url = format!("http://127.0.0.1:{port}");
        host.wait_for("the server answers", |_| {
            let answer = agent().get(format!("{url}/health")).call().ok()?;
            (answer.status() == 200).then_some(())
        });
        let log = host.log();
        let control = log.lines().find_map(|line| line.split_once("metrics and caps are on "));
        let control = control.map_or_else(String::new, |(_, address)| address.to_owned());
        Self { host, url, control }
    }

    pub(crate) fn complete(&self, prompt: &str) -> String {
        let body = json!({ "prompt": prompt, "n_predict": 16, "temperature": 0, "cache_prompt": false });
        let mut answer =
            agent().post(format!("{}/completion", self.url)).send_json(&body).expect("an answer");
        let value: Value = answer.body_mut().read_json().expect("JSON");
        assert_eq!(answer.status(), 200, "{value}\n{}", self.host.log());
        value["content"].as_str().expect("text").to_owned()
    }

    pub(crate) fn texts(&self) -> Vec<String> {
        PROMPTS.iter().map(|prompt| self.complete(prompt)).collect()
    }

    pub(crate) fn put(&self, change: &Value) -> (u16, Value) {
        let mut answer = agent().put(format!("{}/caps", self.control)).send_json(change).expect("an answer");
        (answer.status().as_u16(), answer.body_mut().read_json().expect("JSON"))
    }

    /// Makes a change that succeeds.
    #[track_caller]
    pub(crate) fn change(&self, change: &Value) -> Value {
        let (status, answer) = self.put(change);
        assert_eq!(status, 200, "{change}: {answer}");
        answer
    }

    pub(crate) fn caps(&self) -> Value {
        let mut answer = agent().get(format!("{}/caps", self.control)).call().expect("an answer");
        answer.body_mut().read_json().expect("JSON")
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let mut answer = agent().get(format!("{}/metrics", self.control)).call().expect("an answer");
        assert_eq!(answer.status(), 200);
        Metrics::parse(&answer.body_mut().read_to_string().expect("text"))
    }

    /// Ends the server and returns what the caps of its only capped context did.
    pub(crate) fn end(mut self) -> Value {
        let status = self.host.terminate();
        assert!(status.success(), "{status}: {}", self.host.log());
        assert_eq!(self.host.events("fatal"), Vec::<Value>::new());
        let ended = self.host.events("ended");
        assert_eq!(ended.len(), 1, "{}", self.host.log());
        ended.into_iter().next().unwrap()
    }
}

/// The samples of an answer, by name and labels as they are written.
pub(crate) struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    pub(crate) fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ').expect("a sample");
            (name.to_owned(), value.replace("Inf", "inf").parse().expect("a number"))
        };
        Self(samples.map(sample).collect())
    }

    pub(crate) fn get(&self, sample: &str) -> f64 {
        *self.0.get(sample).unwrap_or_else(|| panic!("no {sample}: {:?}", self.0))
    }

    /// Returns the sum of the samples of this name with all of these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let samples = self.0.iter().filter(|(sample, _)| sample.split('{').next() == Some(name));
        samples.filter(|(sample, _)| labels.iter().all(|label| sample.contains(label))).map(|(_, v)| v).sum()
    }
}
