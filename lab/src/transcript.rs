//! Transcripts: conversations that were had elsewhere, as JSON Lines.

use std::collections::BTreeMap;

use axiscap_llama::{Message, Role};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::Error;

/// The fields of a line, as they are written there.
#[derive(Debug)]
pub struct Fields<'a>(BTreeMap<String, &'a RawValue>);

impl<'a> Fields<'a> {
    /// Reads the names of a line's fields. Their values may be any JSON, also numbers that no `f64` holds.
    ///
    /// # Errors
    /// [`Error::Transcript`] for a line that is no JSON object.
    pub fn parse(line: &'a str) -> Result<Self, Error> {
        let fields = serde_json::from_str(line);
        fields.map(Self).map_err(|error| problem(format!("it is no JSON object: {error}")))
    }

    /// Whether there is a field of this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether there is no field.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn get(&self, name: &str) -> Result<Option<Value>, Error> {
        let parse = |raw: &&RawValue| {
            serde_json::from_str(raw.get())
                .map_err(|error| problem(format!("{name:?} cannot be read: {error}")))
        };
        self.0.get(name).map(parse).transpose()
    }
}

/// The messages of one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transcript {
    /// The messages, in order.
    pub messages: Vec<Message>,
}

impl Transcript {
    /// Reads a line. It is a JSON object that holds one of these, and any other fields:
    ///
    /// - `messages`: `[{"role", "content"}]`, as OpenAI's interface and most data sets have them. Roles are `system`,
    ///   `developer` (which is `system`), `user` and `assistant`. A content is a text, a list of parts
    ///   `{"type": "text", "text"}`, or null for an answer that only called tools.
    /// - `conversations`: `[{"from", "value"}]`, where `from` is `system`, `human` or `gpt`, or one of the roles above.
    /// - `prompt` and `completion` (or `response`): lists of messages as above, or texts, of which the first is the
    ///   user's and the second the model's.
    ///
    /// # Errors
    /// [`Error::Transcript`], also for a transcript without an answer.
    pub fn parse(line: &str) -> Result<Self, Error> {
        Self::of(&Fields::parse(line)?)
    }

    /// Reads the fields of a line.
    ///
    /// # Errors
    /// Those of [`Transcript::parse`].
    pub fn of(fields: &Fields<'_>) -> Result<Self, Error> {
        let messages = if let Some(list) = fields.get("messages")? {
            messages(&list, "messages", ["role", "content"])?
        } else if let Some(list) = fields.get("conversations")? {
            messages(&list, "conversations", ["from", "value"])?
        } else if let Some(prompt) = fields.get("prompt")? {
            let key = if fields.has("completion") { "completion" } else { "response" };
            let Some(completion) = fields.get(key)? else {
                return Err(problem("it has \"prompt\", but no \"completion\"".into()));
            };
            let mut all = side(&prompt, "prompt", Role::User)?;
            all.extend(side(&completion, key, Role::Assistant)?);
            all
        } else {
            return Err(problem("it has none of \"messages\", \"conversations\" and \"prompt\"".into()));
        };
        if !messages.iter().any(|message| message.role == Role::Assistant) {
            return Err(problem("no message is the model's (\"assistant\")".into()));
        }
        Ok(Self { messages })
    }
}

fn problem(problem: String) -> Error {
    Error::Transcript { problem }
}

/// Returns one side of a pair: a text, or messages.
fn side(value: &Value, key: &str, role: Role) -> Result<Vec<Message>, Error> {
    match value {
        Value::String(text) => Ok(vec![Message::new(role, text)]),
        list => messages(list, key, ["role", "content"]),
    }
}

fn messages(list: &Value, key: &str, [role, content]: [&str; 2]) -> Result<Vec<Message>, Error> {
    let Some(list) = list.as_array() else {
        return Err(problem(format!("{key:?} is no list of messages")));
    };
    let message = |(index, message): (usize, &Value)| {
        let place = format!("{key:?}[{index}]");
        let Some(fields) = message.as_object() else {
            return Err(problem(format!("{place} is no object with {role:?} and {content:?}")));
        };
        let role = match fields.get(role).and_then(Value::as_str) {
            Some("system" | "developer") => Role::System,
            Some("user" | "human") => Role::User,
            Some("assistant" | "gpt") => Role::Assistant,
            Some(other) => {
                let known = "system, developer, user and assistant";
                return Err(problem(format!("{place} is of the role {other:?}, which is none of {known}")));
            }
            None => return Err(problem(format!("{place} has no {role:?}"))),
        };
        let text = text(fields.get(content), role)
            .ok_or_else(|| problem(format!("the {content:?} of {place} is no text, nor a list of texts")))?;
        Ok(Message::new(role, text))
    };
    list.iter().enumerate().map(message).collect()
}

/// Returns the text of a content. An answer that only called tools has none.
fn text(content: Option<&Value>, role: Role) -> Option<String> {
    match content {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(parts)) => {
            parts.iter().map(|part| part.get("text").and_then(Value::as_str)).collect()
        }
        None | Some(Value::Null) => (role == Role::Assistant).then(String::new),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(line: &str) -> Vec<(&'static str, String)> {
        let messages = Transcript::parse(line).unwrap().messages;
        messages.into_iter().map(|message| (message.role.name(), message.content)).collect()
    }

    #[test]
    fn the_shapes_of_other_tools_are_read() {
        let expected = [("system", "S".into()), ("user", "Q".into()), ("assistant", "A".into())];
        let same = [
            r#"{"id": 3, "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q", "name": "x"},
                {"role": "assistant", "content": "A"}], "reward": 0.5}"#,
            r#"{"messages": [{"role": "developer", "content": "S"}, {"role": "user", "content": [{"type": "text",
                "text": "Q"}]}, {"role": "assistant", "content": [{"type": "text", "text": "A"}]}]}"#,
            r#"{"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"},
                {"from": "gpt", "value": "A"}]}"#,
            r#"{"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}],
                "completion": [{"role": "assistant", "content": "A"}], "advantages": [1, 2]}"#,
        ];
        for line in same {
            assert_eq!(roles(line), expected, "{line}");
        }
        assert_eq!(roles(r#"{"prompt": "Q", "response": "A"}"#), expected[1..]);
        let called = r#"{"messages": [{"role": "user", "content": "Q"},
            {"role": "assistant", "content": null, "tool_calls": []}]}"#;
        assert_eq!(roles(called)[1], ("assistant", String::new()));
    }

    #[test]
    fn other_lines_are_refused_with_what_is_wrong() {
        let refused = [
            ("", "no JSON object"),
            ("[1]", "no JSON object"),
            (r#"{"messages": [{"role": "user", "content": 1e999}]}"#, "\"messages\" cannot be read"),
            ("{}", "none of"),
            (r#"{"messages": 3}"#, "\"messages\" is no list"),
            (r#"{"messages": []}"#, "no message is the model's"),
            (r#"{"messages": [{"role": "user", "content": "Q"}]}"#, "no message is the model's"),
            (r#"{"messages": ["Q"]}"#, "\"messages\"[0] is no object"),
            (r#"{"messages": [{"content": "Q"}]}"#, "has no \"role\""),
            (r#"{"messages": [{"role": "tool", "content": "Q"}]}"#, "the role \"tool\""),
            (r#"{"messages": [{"role": "user"}]}"#, "is no text"),
            (r#"{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}"#, "is no text"),
            (r#"{"prompt": "Q"}"#, "no \"completion\""),
        ];
        for (line, expected) in refused {
            let error = Transcript::parse(line).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("docs/watch.md"), "{line}: {error}");
        }
    }
}
