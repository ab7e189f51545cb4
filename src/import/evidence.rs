//! Which way a vector points: the default vector and the vectors of roles decide it.
//!
//! Raw projections carry a large offset that all activations of a layer share, so the sign of a projection
//! says nothing. The difference between the default vector and the mean of the role vectors has no offset.
//! An axis points to the Assistant if its product with that difference is positive.

use std::collections::BTreeMap;

use crate::file::{Result, invalid};
use crate::import::problem::unsupported;
use crate::import::source::{Contents, Source};
use crate::import::tensor::Budget;
use crate::import::vectors::Rows;

/// Minimum cosine, as a magnitude, between an axis and the difference for the sign to be decided.
pub const MIN_COSINE: f64 = 0.1;

/// Mean activations of the default Assistant and of roles, by block.
#[derive(Debug, Clone)]
pub struct Evidence {
    default: BTreeMap<usize, Vec<f64>>,
    /// Sums over the roles.
    roles: BTreeMap<usize, Vec<f64>>,
    count: usize,
    pub(super) file: Option<String>,
}

impl Evidence {
    /// Makes the evidence of a default vector, e.g. `default_vector.pt`, and of the vectors of roles. Every
    /// role counts the same.
    ///
    /// # Errors
    /// [`FileError`](crate::file::FileError) for files without vectors by layer, no roles, other layers or
    /// widths than the default vector's, and values that are not finite.
    pub fn new<'a>(default: &Source, roles: impl IntoIterator<Item = &'a Source>) -> Result<Self> {
        let file = default.file_name();
        let mut evidence = Self { default: means(default)?, roles: BTreeMap::new(), count: 0, file };
        for role in roles {
            evidence.add_role(role)?;
        }
        if evidence.count == 0 {
            let expected = "the vector of at least one role";
            let remedy = "name a file of role_vectors; more roles decide better";
            return Err(invalid("role vectors", expected, "none", remedy));
        }
        Ok(evidence)
    }

    /// Adds the vector of a role.
    ///
    /// # Errors
    /// As for [`Evidence::new`].
    pub fn add_role(&mut self, role: &Source) -> Result<()> {
        let means = means(role)?;
        let shape = |means: &BTreeMap<usize, Vec<f64>>| (means.len(), means.values().next().map(Vec::len));
        if shape(&means) != shape(&self.default) || !means.keys().eq(self.default.keys()) {
            let text = |(layers, width): (usize, Option<usize>)| {
                format!("{layers} layers of width {}", width.unwrap_or_default())
            };
            let expected = format!("{}, as in the default vector", text(shape(&self.default)));
            let remedy = "name files of one model";
            return Err(role.in_file(invalid("layers", expected, text(shape(&means)), remedy)));
        }
        for (block, values) in means {
            match self.roles.get_mut(&block) {
                Some(sum) => sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
                None => drop(self.roles.insert(block, values)),
            }
        }
        self.count += 1;
        Ok(())
    }

    /// Returns the number of roles.
    #[must_use]
    pub fn roles(&self) -> usize {
        self.count
    }

    /// Returns the blocks that the evidence covers, in ascending order.
    pub fn blocks(&self) -> impl Iterator<Item = usize> {
        self.default.keys().copied()
    }

    /// Returns the default vector minus the mean of the role vectors on a block, in f64: an axis that points
    /// to the Assistant by definition. It is `None` for a block without vectors.
    #[must_use]
    pub fn difference(&self, block: usize) -> Option<Vec<f64>> {
        let (default, roles) = (self.default.get(&block)?, self.roles.get(&block)?);
        let count = self.count as f64;
        Some(default.iter().zip(roles).map(|(default, roles)| default - roles / count).collect())
    }

    /// Returns the cosine between a vector and the difference on its block. It is positive for a vector that
    /// points to the Assistant.
    ///
    /// # Errors
    /// [`FileError`](crate::file::FileError) for a block without vectors, another width, a difference of
    /// zero, and a cosine too small to decide ([`MIN_COSINE`]).
    pub(super) fn cosine(&self, block: usize, vector: &[f32]) -> Result<f64> {
        let field = format!("default and role vectors, block {block}");
        let Some(difference) = self.difference(block) else {
            return Err(invalid(field, "a vector of this block", "none", "name files with every block"));
        };
        if difference.len() != vector.len() {
            let found = format!("{} values", difference.len());
            return Err(invalid(field, format!("{} values", vector.len()), found, "name files of one model"));
        }
        let vector = || vector.iter().map(|&value| f64::from(value));
        let product: f64 = difference.iter().zip(vector()).map(|(a, b)| a * b).sum();
        let norms = difference.iter().map(|a| a * a).sum::<f64>().sqrt()
            * vector().map(|b| b * b).sum::<f64>().sqrt();
        let cosine = product / norms;
        if cosine.abs() >= MIN_COSINE {
            return Ok(cosine);
        }
        let expected = format!("a cosine of at least {MIN_COSINE} in magnitude with the vector");
        let remedy = "these files do not decide the sign: name more role vectors of the same model, or say what the file's vectors point to";
        Err(unsupported(field, expected, format!("{cosine:.3}"), remedy))
    }
}

/// Reads all vectors of a file.
fn means(source: &Source) -> Result<BTreeMap<usize, Vec<f64>>> {
    let read = || {
        let Contents::Vectors { vectors, .. } = &source.contents else {
            let remedy = "name default_vector.pt or a file of role_vectors";
            return Err(unsupported("file format", "vectors by layer", source.format.name(), remedy));
        };
        let rows = match &vectors.rows {
            Rows::Numbered(rows) => rows,
            Rows::Single(_) => {
                let remedy = "name a file with one vector per layer";
                return Err(unsupported("layers", "one vector per layer", "a single vector", remedy));
            }
        };
        let budget = Budget::of(&source.bytes);
        let mut means = BTreeMap::new();
        for (&layer, row) in rows {
            let field = format!("layer {layer}");
            let values = row.values(&source.bytes, &budget)?;
            if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                let found = format!("{} at index {index} of {}", values[index], values.len());
                return Err(invalid(field, "finite values", found, "save the vectors again"));
            }
            let block = usize::try_from(layer)
                .map_err(|_| invalid(field, "a layer from 0", layer.to_string(), "name a file of PyTorch"))?;
            means.insert(block, values);
        }
        Ok(means)
    };
    read().map_err(|error| source.in_file(error))
}
