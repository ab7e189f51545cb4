//! The part of YAML that manifests need: maps, lists and scalars, without anchors and tags.

use saphyr_parser::{Event, Parser, ScalarStyle};

use crate::file::Result;
use crate::import::problem::{malformed, quoted, unsupported};

/// Maximum size of a manifest in bytes.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// Maximum nesting of maps and lists.
const MAX_DEPTH: usize = 16;
/// Maximum number of keys of a map. Each key is compared with the others.
const MAX_KEYS: usize = 1024;

/// A value of a YAML document.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Yaml {
    /// A scalar without quotation marks, whose text may be a number or a bool.
    Plain(String),
    Text(String),
    List(Vec<Yaml>),
    Map(Vec<(String, Yaml)>),
}

impl Yaml {
    /// Reads a single document.
    ///
    /// # Errors
    /// [`FileError`](crate::file::FileError) for invalid YAML, and for aliases, which can name a value many
    /// times in few bytes.
    pub(super) fn parse(text: &str) -> Result<Self> {
        if text.len() > MAX_BYTES {
            let found = format!("{} bytes", text.len());
            let remedy = "this is no manifest";
            return Err(unsupported("YAML", format!("at most {MAX_BYTES} bytes"), found, remedy));
        }
        let mut open: Vec<Open> = Vec::new();
        let mut document = None;
        for event in Parser::new_from_str(text) {
            let (event, _) =
                event.map_err(|error| malformed("YAML", "a valid document", quoted(&error.to_string())))?;
            let value = match event {
                Event::Scalar(text, ScalarStyle::Plain, ..) => Self::Plain(text.into_owned()),
                Event::Scalar(text, ..) => Self::Text(text.into_owned()),
                Event::Alias(_) => {
                    let remedy = "write the value in full where the alias is";
                    return Err(unsupported("YAML", "values without anchors", "an alias", remedy));
                }
                Event::SequenceStart(..) | Event::MappingStart(..) if open.len() == MAX_DEPTH => {
                    return Err(malformed("YAML", format!("at most {MAX_DEPTH} levels"), "more"));
                }
                Event::SequenceStart(..) => {
                    open.push(Open::List(Vec::new()));
                    continue;
                }
                Event::MappingStart(..) => {
                    open.push(Open::Map(Vec::new(), None));
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                    Some(closed) => closed.value(),
                    None => continue,
                },
                _ => continue,
            };
            match open.last_mut() {
                Some(inner) => inner.add(value)?,
                None if document.is_none() => document = Some(value),
                None => return Err(malformed("YAML", "one document", "several")),
            }
        }
        document.ok_or_else(|| malformed("YAML", "a document", "none"))
    }

    /// Returns the value of a key of a map.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(entries) => entries.iter().find(|(k, _)| k == key).map(|(_, value)| value),
            _ => None,
        }
    }

    pub(super) fn items(&self) -> Option<&[Self]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Plain(text) | Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn int(&self) -> Option<usize> {
        match self {
            Self::Plain(text) => text.parse().ok(),
            _ => None,
        }
    }

    pub(super) fn bool(&self) -> Option<bool> {
        match self {
            Self::Plain(text) => match text.as_str() {
                "true" | "True" | "TRUE" | "yes" | "Yes" => Some(true),
                "false" | "False" | "FALSE" | "no" | "No" => Some(false),
                _ => None,
            },
            _ => None,
        }
    }
}

/// A list or map whose end is not yet read.
enum Open {
    List(Vec<Yaml>),
    /// The entries, and the key that waits for its value.
    Map(Vec<(String, Yaml)>, Option<String>),
}

impl Open {
    fn add(&mut self, value: Yaml) -> Result<()> {
        match self {
            Self::List(items) => items.push(value),
            Self::Map(entries, key) => match key.take() {
                Some(key) => entries.push((key, value)),
                None => match value {
                    _ if entries.len() == MAX_KEYS => {
                        return Err(malformed("YAML", format!("at most {MAX_KEYS} keys"), "more"));
                    }
                    Yaml::Plain(text) | Yaml::Text(text) if entries.iter().all(|(k, _)| *k != text) => {
                        *key = Some(text);
                    }
                    Yaml::Plain(text) | Yaml::Text(text) => {
                        return Err(malformed("YAML", "distinct keys", format!("{} twice", quoted(&text))));
                    }
                    _ => return Err(malformed("YAML", "a text as key", "a list or a map")),
                },
            },
        }
        Ok(())
    }

    fn value(self) -> Yaml {
        match self {
            Self::List(items) => Yaml::List(items),
            Self::Map(entries, _) => Yaml::Map(entries),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_maps_lists_and_scalars() {
        let yaml = Yaml::parse("# note\na: 40\nb: [x, \"1\", true]\nc:\n  - d: e\n").unwrap();
        assert_eq!(yaml.get("a").unwrap().int(), Some(40));
        let b = yaml.get("b").unwrap().items().unwrap();
        assert_eq!((b[0].text(), b[1].int(), b[2].bool()), (Some("x"), None, Some(true)));
        assert_eq!(yaml.get("c").unwrap().items().unwrap()[0].get("d").unwrap().text(), Some("e"));
    }

    #[test]
    fn what_grows_or_is_ambiguous_is_refused() {
        let deep = "[".repeat(17);
        for bad in
            ["", "a: &x [1]\nb: *x", "a: 1\na: 2", "[1]: 2", &deep, "a: [", "--- 1\n--- 2", "a: \"\\q\""]
        {
            assert!(Yaml::parse(bad).is_err(), "{bad}");
        }
    }
}
