//! The metadata that a random model is made from.

use std::collections::BTreeMap;

use super::gguf::{Gguf, Value};
use super::shapes;

/// The metadata of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    architecture: String,
    values: BTreeMap<String, Value>,
    /// Parts of the names of tensors that llama.cpp takes when they are there, and that a file leaves out.
    pub(super) omitted: Vec<String>,
    /// Values of the file alone.
    announced: BTreeMap<String, Value>,
    pub(super) file: bool,
    /// Whether llama.cpp loads the weights of next-token blocks.
    pub(super) next_token_weights: bool,
}

impl Description {
    /// Describes a small model of an architecture, with experts or without.
    #[must_use]
    pub fn new(architecture: &str, experts: bool) -> Self {
        let mut new = Self {
            architecture: architecture.into(),
            values: BTreeMap::new(),
            omitted: Vec::new(),
            announced: BTreeMap::new(),
            file: false,
            next_token_weights: false,
        };
        shapes::describe(&mut new, experts);
        new
    }

    /// Returns the architecture.
    #[must_use]
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Sets a value. A key that begins with a dot belongs to the architecture, as in `.block_count`.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.values.insert(self.key(key), value.into());
        self
    }

    /// Removes a value.
    pub fn remove(&mut self, key: &str) -> &mut Self {
        self.values.remove(&self.key(key));
        self
    }

    /// Leaves out the tensors whose names contain this text.
    ///
    /// llama.cpp makes all optional tensors of a model that has no file. A description that omits some is
    /// therefore loaded from a file.
    pub fn omit(&mut self, part: &str) -> &mut Self {
        self.omitted.push(part.into());
        self.file = true;
        self
    }

    /// Announces blocks after the last one that predict further tokens, without their weights, as files of
    /// the text model alone do. Such a model is loaded from a file.
    pub fn announce_next_token_blocks(&mut self, count: u32) -> &mut Self {
        let blocks = self.number(".block_count");
        for (key, value) in [(".block_count", blocks + count), (".nextn_predict_layers", count)] {
            self.announced.insert(self.key(key), value.into());
        }
        self.file = true;
        self
    }

    /// Appends blocks after the last one that predict further tokens, with their weights.
    pub fn add_next_token_blocks(&mut self, count: u32) -> &mut Self {
        let blocks = self.number(".block_count");
        // They attend to the whole past, whatever the model's own blocks do.
        for (_, value) in self.values.iter_mut().filter(|(key, _)| !key.contains(".rope.")) {
            match value {
                Value::U32s(list) if list.len() == blocks as usize => {
                    let most = list.iter().copied().max().unwrap_or(0);
                    list.resize((blocks + count) as usize, most);
                }
                Value::Bools(list) if list.len() == blocks as usize => {
                    list.resize((blocks + count) as usize, false);
                }
                _ => {}
            }
        }
        self.next_token_weights = true;
        self.set(".block_count", blocks + count).set(".nextn_predict_layers", count)
    }

    /// Returns a number that was set.
    ///
    /// # Panics
    /// If there is no such number.
    #[must_use]
    pub fn number(&self, key: &str) -> u32 {
        match self.values.get(&self.key(key)) {
            Some(&Value::U32(number)) => number,
            other => panic!("{key} is {other:?}"),
        }
    }

    fn key(&self, key: &str) -> String {
        if key.starts_with('.') { format!("{}{key}", self.architecture) } else { key.into() }
    }

    /// Returns the metadata of the file as a GGUF.
    pub(super) fn file_gguf(&self) -> Gguf {
        let gguf = self.gguf();
        for (key, value) in &self.announced {
            gguf.set(key, value);
        }
        gguf
    }

    /// Returns the metadata as a GGUF.
    pub(super) fn gguf(&self) -> Gguf {
        let gguf = Gguf::new();
        for (key, value) in &self.values {
            gguf.set(key, value);
        }
        gguf
    }
}
