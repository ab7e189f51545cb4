//! What a process with the plugin reports: JSON lines, of which unknown events and fields are ignored.

use serde_json::Value;

use crate::inspect::printable;

/// A line of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Report {
    /// The process, as it calls itself.
    pub(super) process: String,
    pub(super) event: Event,
}

/// What happened. Texts hold no control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// The plugin was loaded.
    Loaded {
        /// Its version and the host's.
        versions: String,
    },
    /// A model is capped.
    Capped {
        caps: String,
        model: String,
        blocks: usize,
    },
    /// No caps are for a model.
    NotCapped {
        model: String,
    },
    Warning {
        text: String,
    },
    /// The process cannot go on.
    Fatal {
        reason: String,
    },
}

impl Report {
    /// Parses a line. A line that is not understood is `None`.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let line: Value = serde_json::from_slice(line).ok()?;
        // A field of another type than expected must not hide the event.
        let text = |key: &str| match &line[key] {
            Value::Null => "unknown".to_owned(),
            Value::String(text) => printable(text),
            other => printable(&other.to_string()),
        };
        let event = match line["event"].as_str()? {
            "loaded" => {
                Event::Loaded { versions: format!("plugin {}, ggml {}", text("version"), text("ggml")) }
            }
            "capped" => {
                let blocks = line["blocks"].as_array().map_or(0, Vec::len);
                Event::Capped { caps: text("caps"), model: text("model"), blocks }
            }
            "not_capped" => Event::NotCapped { model: text("model") },
            "warning" => Event::Warning { text: text("text") },
            "fatal" => Event::Fatal { reason: text("reason") },
            _ => return None,
        };
        Some(Self { process: text("pid"), event })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood_and_unknown_ones_ignored() {
        let event = |line: &str| Report::parse(line.as_bytes()).map(|report| report.event);
        let loaded =
            r#"{"event":"loaded","pid":7,"version":"0.1.0","ggml":"0.25.3","devices":["CPU"],"new":{}}"#;
        let report = Report::parse(loaded.as_bytes()).unwrap();
        assert_eq!(report.process, "7");
        assert_eq!(report.event, Event::Loaded { versions: "plugin 0.1.0, ggml 0.25.3".into() });
        assert_eq!(
            event(r#"{"event":"capped","pid":7,"caps":"c.gguf","model":"m","blocks":[3,4]}"#),
            Some(Event::Capped { caps: "c.gguf".into(), model: "m".into(), blocks: 2 })
        );
        assert_eq!(
            event(r#"{"event":"fatal","pid":"7","reason":"a\u001b[2Jb"}"#),
            Some(Event::Fatal { reason: "a\\u{1b}[2Jb".into() })
        );
        assert_eq!(event(r#"{"event":"fatal"}"#), Some(Event::Fatal { reason: "unknown".into() }));
        for ignored in [r#"{"event":"tomorrow"}"#, r#"{"event":1}"#, "{}", "[]", "loaded", "", "\u{fffd}"] {
            assert_eq!(event(ignored), None, "{ignored}");
        }
        assert_eq!(Report::parse(b"\xff"), None);
    }
}
