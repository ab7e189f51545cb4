//! A stock llama-server.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::{Host, PROMPTS, agent, free_port, is_up, model, path, with_plugin};

/// A llama-server that answers.
pub(crate) struct Server {
    pub(crate) host: Host,
    pub(crate) url: String,
}

pub(crate) fn command(port: u16, arguments: &[&str]) -> Command {
    let mut command = Command::new(path("AXISCAP_TEST_LLAMA_SERVER"));
    command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--threads", "1", "--model"]);
    command.arg(model()).args(arguments);
    command.env_remove("GGML_BACKEND_PATH");
    command
}

impl Server {
    pub(crate) fn start(caps: &[&Path], arguments: &[&str]) -> Self {
        Self::start_with(caps, arguments, |_| {})
    }

    pub(crate) fn start_with(caps: &[&Path], arguments: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let port = free_port();
        let mut command = command(port, arguments);
        if !caps.is_empty() {
            with_plugin(&mut command, caps);
        }
        change(&mut command);
        let mut host = Host::start(&mut command);
        let url = format!("http://127.0.0.1:{port}");
        host.wait_for("the server answers", |_| is_up(port));
        Self { host, url }
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Value {
        let answer = agent().post(format!("{}{path}", self.url)).send_json(body);
        let mut answer = answer.unwrap_or_else(|error| panic!("{error}: {}", self.host.log()));
        let status = answer.status();
        let value: Value = answer.body_mut().read_json().expect("JSON");
        assert_eq!(status, 200, "{path}: {value}\n{}", self.host.log());
        value
    }

    pub(crate) fn complete(&self, prompt: &str) -> String {
        let body = json!({ "prompt": prompt, "n_predict": 24, "temperature": 0, "cache_prompt": false });
        self.post("/completion", &body)["content"].as_str().expect("text").to_owned()
    }

    /// Completes all prompts.
    pub(crate) fn texts(&self) -> Vec<String> {
        PROMPTS.iter().map(|prompt| self.complete(prompt)).collect()
    }

    pub(crate) fn chat(&self, text: &str) -> String {
        let body = json!({
            "messages": [{ "role": "user", "content": text }],
            "max_tokens": 24, "temperature": 0, "cache_prompt": false,
        });
        let answer = self.post("/v1/chat/completions", &body);
        answer["choices"][0]["message"]["content"].as_str().expect("text").to_owned()
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
