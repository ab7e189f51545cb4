//! How a cap file was made.

use crate::file::gguf::Value;

/// Keys and values about how a file was made, in a fixed order. They are `axiscap.origin.*` in the file.
///
/// They are for information and have no effect on what the caps do. [`Quantiles`](super::Quantiles) among them give
/// alarms their thresholds. Keys are given without the prefix.
///
/// ```
/// let mut origin = axiscap::file::Origin::default();
/// origin.set("tool", "axiscap 0.1.0").set("samples", 220u32).set("percentiles", vec![25.0f32, 50.0, 75.0]);
/// assert_eq!(origin.get("samples"), Some(&220u32.into()));
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Origin(Vec<(String, Value)>);

impl Origin {
    /// Sets `key`. An existing key keeps its place.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) -> &mut Self {
        let (key, value) = (key.into(), value.into());
        match self.0.iter_mut().find(|(k, _)| *k == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key, value)),
        }
        self
    }

    /// Returns the value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.iter().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// Returns all keys and values, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Whether there are no values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes entries whose keys are distinct.
    pub(super) fn from_distinct(entries: Vec<(String, Value)>) -> Self {
        Self(entries)
    }
}
