//! Neuronpedia's assistant-axis assets: a manifest `persona.yaml` beside the file of vectors that it names.
//!
//! The manifest says which file holds one contrast vector per layer (`contrast_vectors`, by default
//! `contrast_vectors.pt`), at which layers projections are shown (`pca`), what the components are called
//! (`pc_titles`), and whether the fit was made without a system prompt (`blank_system_prompt`). Neuronpedia
//! shows the projection on the *negated*, normalised contrast vector as "more Assistant". The stored vectors
//! therefore point to roles. The fitted components in the `pca` files are not read.

use std::path::{Component, Path};

use crate::file::{Result, invalid};
use crate::import::problem::quoted;
use crate::import::yaml::Yaml;

/// What a manifest says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Manifest {
    /// The file of vectors, in the manifest's folder.
    pub(super) vectors: String,
    /// The layers at which Neuronpedia shows projections.
    pub(super) layers: Vec<usize>,
    /// Names of the components, e.g. `- Role-playing / + Assistant-like`.
    pub(super) titles: Vec<String>,
    /// Whether the fit was made with an empty system prompt.
    pub(super) blank_system_prompt: bool,
}

const REMEDY: &str = "write the manifest as Neuronpedia's persona.yaml";

impl Manifest {
    /// Reads a manifest. Returns `None` for other documents.
    ///
    /// # Errors
    /// [`FileError`](crate::file::FileError) for values of other kinds, and for a file outside the folder.
    pub(super) fn of_yaml(yaml: &Yaml) -> Result<Option<Self>> {
        if !["contrast_vectors", "pca", "pc_titles"].iter().any(|key| yaml.get(key).is_some()) {
            return Ok(None);
        }
        let vectors = match yaml.get("contrast_vectors") {
            None => "contrast_vectors.pt",
            Some(value) => value.text().filter(|text| is_inside(text)).ok_or_else(|| {
                wrong("contrast_vectors", "the name of a file in the manifest's folder", value)
            })?,
        };
        let list = |key: &str| match yaml.get(key) {
            None => Ok(&[][..]),
            Some(value) => value.items().ok_or_else(|| wrong(key, "a list", value)),
        };
        let layer = |entry: &Yaml| {
            let layer = entry.get("layer").and_then(Yaml::int);
            layer.ok_or_else(|| wrong("pca", "entries with a layer from 0", entry))
        };
        let title =
            |entry: &Yaml| entry.text().map(str::to_owned).ok_or_else(|| wrong("pc_titles", "texts", entry));
        let blank_system_prompt = match yaml.get("blank_system_prompt") {
            None => false,
            Some(value) => {
                value.bool().ok_or_else(|| wrong("blank_system_prompt", "true or false", value))?
            }
        };
        Ok(Some(Self {
            vectors: vectors.to_owned(),
            layers: list("pca")?.iter().map(layer).collect::<Result<_>>()?,
            titles: list("pc_titles")?.iter().map(title).collect::<Result<_>>()?,
            blank_system_prompt,
        }))
    }
}

/// Whether a path stays in the folder that it is relative to.
fn is_inside(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

fn wrong(key: &str, expected: &str, found: &Yaml) -> crate::file::FileError {
    let found = match found {
        Yaml::Plain(text) | Yaml::Text(text) => quoted(text),
        Yaml::List(_) => "a list".into(),
        Yaml::Map(_) => "a map".into(),
    };
    invalid(key, expected, found, REMEDY)
}
