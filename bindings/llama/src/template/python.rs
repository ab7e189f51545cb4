//! Python's ways that chat templates rely on, where Jinja in Rust has others.

use std::io::{Result as IoResult, Write};

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Begins the message of errors that a template raises itself.
pub(super) const RAISED: &str = "the template refuses the conversation: ";

/// Adds the functions, filters and methods that `transformers` and llama.cpp give to chat templates.
pub(super) fn add_to(environment: &mut Environment<'_>) {
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |reason: String| {
        Err::<Value, _>(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{reason}")))
    });
    environment.add_filter("tojson", to_json);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
}

/// Returns the length of a value. That of an undefined value is 0, as Jinja2's `Undefined` has it.
fn length(value: &Value) -> Result<usize, Error> {
    match value.len() {
        Some(length) => Ok(length),
        None if value.is_undefined() => Ok(0),
        None => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("cannot calculate the length of a value of type {}", value.kind()),
        )),
    }
}

/// Writes a value as Python's `json.dumps(value, ensure_ascii=False)` does, which is what `transformers` has
/// for `tojson`: without escapes for HTML, and with a space after commas and colons.
fn to_json(value: &Value, arguments: Kwargs) -> Result<String, Error> {
    let indent: Option<Value> = arguments.get("indent")?;
    let _: Option<bool> = arguments.get("ensure_ascii")?;
    let separators: Option<(String, String)> = match arguments.get::<Option<Vec<String>>>("separators")? {
        Some(pair) => match <[String; 2]>::try_from(pair) {
            Ok([item, key]) => Some((item, key)),
            Err(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators are two texts")),
        },
        None => None,
    };
    let sorted = arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    arguments.assert_all_used()?;
    let failed = |error: serde_json::Error| Error::new(ErrorKind::InvalidOperation, error.to_string());
    let mut json = serde_json::to_value(value).map_err(failed)?;
    if sorted {
        json.sort_all_objects();
    }
    let mut text = Vec::new();
    match indent.filter(|indent| indent.kind() == ValueKind::Number).and_then(|indent| indent.as_usize()) {
        Some(width) => {
            let spaces = " ".repeat(width.min(MAX_INDENT));
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            json.serialize(&mut Serializer::with_formatter(&mut text, formatter)).map_err(failed)?;
        }
        None => {
            let (item, key) = separators.unwrap_or_else(|| (", ".into(), ": ".into()));
            let formatter = OneLine { item, key };
            json.serialize(&mut Serializer::with_formatter(&mut text, formatter)).map_err(failed)?;
        }
    }
    String::from_utf8(text).map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// Maximum spaces of a level.
const MAX_INDENT: usize = 64;

/// One line, with these separators after an item and after a key.
struct OneLine {
    item: String,
    key: String,
}

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> IoResult<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> IoResult<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> IoResult<()> {
        writer.write_all(self.key.as_bytes())
    }
}
