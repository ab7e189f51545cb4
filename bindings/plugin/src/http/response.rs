//! Responses.

use serde_json::{Value, json};

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    content_type: &'static str,
    /// The methods that the path has, where another was asked for.
    allow: Option<&'static str>,
    pub(crate) body: String,
}

const JSON: &str = "application/json";

impl Response {
    /// Answers with JSON.
    pub(crate) fn json(status: u16, value: &Value) -> Self {
        Self { status, content_type: JSON, allow: None, body: format!("{value:#}\n") }
    }

    /// Answers that something is wrong.
    pub(crate) fn error(status: u16, reason: &str) -> Self {
        Self::json(status, &json!({ "error": { "status": status, "reason": reason } }))
    }

    /// Answers that the path has only these methods.
    pub(crate) fn not_allowed(allow: &'static str) -> Self {
        let response = Self::error(405, &format!("the path has the method {allow}"));
        Self { allow: Some(allow), ..response }
    }

    /// Answers with metrics in the text format of Prometheus.
    pub(crate) fn metrics(body: String) -> Self {
        Self { status: 200, content_type: "text/plain; version=0.0.4; charset=utf-8", allow: None, body }
    }

    /// Returns the bytes of the answer. Each connection has one request.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            409 => "Conflict",
            411 => "Length Required",
            413 => "Content Too Large",
            422 => "Unprocessable Content",
            431 => "Request Header Fields Too Large",
            _ => "Internal Server Error",
        };
        let allow = self.allow.map_or_else(String::new, |allow| format!("Allow: {allow}\r\n"));
        let Self { status, content_type, body, .. } = self;
        let length = body.len();
        format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n{allow}Cache-Control: no-store\r\nConnection: close\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_its_length_and_names_the_methods() {
        let text = String::from_utf8(Response::not_allowed("GET").to_bytes()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"), "{head}");
        assert!(head.contains("\r\nAllow: GET\r\n") && head.ends_with("Connection: close"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
        let value: Value = serde_json::from_str(body).unwrap();
        assert_eq!(value["error"]["status"], 405);
    }
}
