//! A llama-server whose plugin has its local interface switched on.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::agent;
use super::server::Server;

/// A llama-server, with the interface of its plugin.
pub(crate) struct Served {
    pub(crate) server: Server,
    /// Address of the interface.
    pub(crate) control: String,
}

impl Deref for Served {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Served {
    pub(crate) fn start(caps: &Path) -> Self {
        Self::start_with(caps, |_| {})
    }

    pub(crate) fn start_with(caps: &Path, change: impl FnOnce(&mut Command)) -> Self {
        let server = Server::start_with(&[caps], &["--ctx-size", "2048"], |command| {
            command.env("AXISCAP_LISTEN", "127.0.0.1:0");
            change(command);
        });
        let log = server.host.log();
        let control = log.lines().find_map(|line| line.split_once("metrics and caps are on "));
        let control = control.map_or_else(String::new, |(_, address)| address.to_owned());
        Self { server, control }
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
        self.values(name, labels).iter().sum()
    }

    /// Returns the samples of this name with all of these labels.
    pub(crate) fn values(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let labels: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let samples = self.0.iter().filter(|(sample, _)| sample.split('{').next() == Some(name));
        samples
            .filter(|(sample, _)| labels.iter().all(|label| sample.contains(label)))
            .map(|(_, &v)| v)
            .collect()
    }
}
