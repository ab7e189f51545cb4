//! Typed access to the values of a GGUF file.

use crate::file::error::{FileError, Problem, Result};
use crate::file::gguf::{Typed, Value};
use crate::file::origin::Origin;

/// The remedy for a wrong value of a cap file.
pub(super) const MAKE_AGAIN: &str = "make the file again";

/// Metadata that is taken out key by key. The keys that are left in the end are unknown.
pub(super) struct Fields(Vec<(String, Value)>);

impl Fields {
    pub(super) fn new(metadata: Vec<(String, Value)>) -> Self {
        Self(metadata)
    }

    /// Takes the value of `key`, if there is one. It must have type `T`.
    pub(super) fn take<T: Typed>(&mut self, key: &str) -> Result<Option<T>> {
        let Some(index) = self.0.iter().position(|(k, _)| k == key) else {
            return Ok(None);
        };
        let (_, value) = self.0.remove(index);
        T::of(value).map(Some).map_err(|other| {
            let found = format!("{} {}", other.type_name(), other.summary());
            invalid(key, format!("a value of type {}", T::TYPE), found, MAKE_AGAIN)
        })
    }

    /// Takes the value of `key`, which must exist.
    pub(super) fn need<T: Typed>(&mut self, key: &str) -> Result<T> {
        self.take(key)?
            .ok_or_else(|| invalid(key, format!("a value of type {}", T::TYPE), "no such key", MAKE_AGAIN))
    }

    pub(super) fn has_prefix(&self, prefix: &str) -> bool {
        self.0.iter().any(|(key, _)| key.starts_with(prefix))
    }

    /// Returns the keys and values that have not been taken.
    pub(super) fn left(&self) -> &[(String, Value)] {
        &self.0
    }

    pub(super) fn take_prefix(&mut self, prefix: &str) -> Origin {
        let taken = self.0.extract_if(.., |(key, _)| key.starts_with(prefix));
        Origin::from_distinct(taken.map(|(key, value)| (key[prefix.len()..].to_owned(), value)).collect())
    }

    /// Returns all other values, without the container's alignment. A file is always written with the default
    /// one.
    pub(super) fn rest(self) -> Vec<(String, Value)> {
        self.0.into_iter().filter(|(key, _)| key != "general.alignment").collect()
    }
}

pub(crate) fn invalid(
    field: impl Into<String>,
    expected: impl Into<String>,
    found: impl Into<String>,
    remedy: impl Into<String>,
) -> FileError {
    FileError::Invalid(Problem::boxed(field, expected, found, remedy))
}
