//! What is inside a file.

use crate::file::Result;
use crate::import::source::{Contents, Format, Source};
use crate::import::tensor::{Budget, Row};
use crate::import::vectors::{Rows, Vectors};

/// What is inside a file.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Description {
    /// The file's format.
    pub format: Format,
    /// The experiments of a `capping_config.pt`, in the file's order.
    pub experiments: Vec<ExperimentLine>,
    /// The vectors, in the file's order or by layer.
    pub vectors: Vec<VectorLine>,
}

/// An experiment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ExperimentLine {
    /// The id, by which it is chosen.
    pub id: String,
    /// Per cap, in order of application: the layer.
    pub layers: Vec<usize>,
    /// Per cap: the upper bound of the projection on the file's unit vector.
    pub upper_bounds: Vec<f64>,
}

/// A vector.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct VectorLine {
    /// The name, where vectors have names.
    pub name: Option<String>,
    /// The 0-based layer, if the file says one. Negative layers count from the end.
    pub layer: Option<i64>,
    /// Number of values.
    pub width: usize,
    /// The type of its elements in the file, e.g. `bfloat16`.
    pub element_type: &'static str,
    /// The norm, computed in f64. It is not finite if a value is not.
    pub norm: f64,
}

impl Source {
    /// Lists the experiments and vectors of the file.
    ///
    /// # Errors
    /// [`FileError`](crate::file::FileError) for a file whose tensors share most of their values.
    pub fn describe(&self) -> Result<Description> {
        self.lines().map_err(|error| self.in_file(error))
    }

    fn lines(&self) -> Result<Description> {
        let budget = Budget::of(&self.bytes);
        let line = |name: Option<&str>, layer: Option<i64>, row: &Row| {
            let squares = row.values(&self.bytes, &budget)?.into_iter().map(|value| value * value);
            Ok(VectorLine {
                name: name.map(str::to_owned),
                layer,
                width: row.width,
                element_type: row.element.name(),
                norm: squares.sum::<f64>().sqrt(),
            })
        };
        let (experiments, vectors) = match &self.contents {
            Contents::Config(config) => {
                let experiments = config.experiments.iter().map(|experiment| ExperimentLine {
                    id: experiment.id.clone(),
                    layers: experiment.caps.iter().map(|cap| config.vectors[cap.vector].layer).collect(),
                    upper_bounds: experiment.caps.iter().map(|cap| cap.cap).collect(),
                });
                let vectors = config.vectors.iter().map(|vector| {
                    // Layers are below 4096.
                    line(Some(&vector.name), Some(vector.layer as i64), &vector.row)
                });
                (experiments.collect(), vectors.collect::<Result<_>>()?)
            }
            Contents::Vectors { vectors, .. } => {
                let vectors = vectors.each().map(|(layer, row)| line(None, layer, &row));
                (Vec::new(), vectors.collect::<Result<_>>()?)
            }
        };
        Ok(Description { format: self.format, experiments, vectors })
    }
}

impl Vectors {
    /// Returns each vector with its layer.
    pub(super) fn each(&self) -> impl Iterator<Item = (Option<i64>, Row)> {
        let (single, numbered) = match &self.rows {
            Rows::Single(row) => (Some((None, *row)), None),
            Rows::Numbered(rows) => (None, Some(rows)),
        };
        let numbered = numbered.into_iter().flatten().map(|(&layer, row)| (Some(layer), *row));
        single.into_iter().chain(numbered)
    }
}
