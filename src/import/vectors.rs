//! One vector per layer: an axis, the default vector, or the vector of a role.

use std::collections::BTreeMap;

use crate::file::{Result, invalid};
use crate::import::pickle::{Document, Id};
use crate::import::problem::{quoted, unsupported};
use crate::import::tensor::{MAX_LAYERS, Row};
use crate::import::torch::Torch;

/// Vectors by layer, all of one width. Hugging Face's layer L, 0-based, is llama.cpp's block L.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Vectors {
    pub(super) rows: Rows,
    pub(super) width: usize,
    /// Whether the vectors are the rows of one tensor or list, one per layer of the model.
    pub(super) stacked: bool,
    /// Whether the file says that they are mean activations of a role, and no axis.
    pub(super) means: bool,
}

/// Which layers the vectors belong to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Rows {
    /// At least one layer. Negative numbers count from the end, -1 being the last block.
    Numbered(BTreeMap<i64, Row>),
    /// A single vector of a layer that the file does not name.
    Single(Row),
}

impl Vectors {
    /// Makes vectors of rows with their layers.
    ///
    /// # Errors
    /// [`FileError`](crate::file::FileError) for no layers, a layer twice, or different widths.
    pub(super) fn numbered(rows: impl IntoIterator<Item = (i64, Row)>) -> Result<Self> {
        let mut numbered = BTreeMap::new();
        let mut width = None;
        for (layer, row) in rows {
            let field = format!("layer {layer}");
            let first = *width.get_or_insert(row.width);
            if row.width != first {
                let found = format!("{} values", row.width);
                return Err(invalid(field, format!("{first} values, as the first"), found, ONE_MODEL));
            }
            if layer.unsigned_abs() >= MAX_LAYERS as u64 {
                return Err(invalid(
                    field,
                    format!("a layer below {MAX_LAYERS}"),
                    layer.to_string(),
                    ONE_MODEL,
                ));
            }
            if numbered.insert(layer, row).is_some() {
                return Err(invalid(field, "one vector", "two", ONE_MODEL));
            }
        }
        match width {
            Some(width) => Ok(Self { rows: Rows::Numbered(numbered), width, stacked: false, means: false }),
            None => Err(invalid("layers", "at least one", "none", ONE_MODEL)),
        }
    }

    fn stacked(rows: Vec<Row>) -> Result<Self> {
        Ok(Self { stacked: true, ..Self::numbered((0..).zip(rows))? })
    }

    /// Makes vectors of a tensor's rows: a single one without a layer, or one per layer from 0.
    pub(super) fn of_rows(rows: Vec<Row>) -> Result<Self> {
        match rows.as_slice() {
            &[row] => Ok(Self { rows: Rows::Single(row), width: row.width, stacked: false, means: false }),
            _ => Self::stacked(rows),
        }
    }
}

const ONE_MODEL: &str = "save one vector per layer of one model";

/// Reads the vectors that a value holds: a tensor `[layers, width]` or `[layers, 1, width]`, a list of vectors,
/// a dict of vectors by layer, or a dict with one of these under the key `axis` or `vector`.
pub(super) fn of_torch(torch: &Torch<'_>, id: Id, field: &str) -> Result<Vectors> {
    let document = &torch.document;
    if let Some(axis) = document.get(id, "axis")? {
        return layers(torch, axis, "axis");
    }
    if let Some(vector) = document.get(id, "vector")? {
        // The pipeline of the reference implementation writes the mean activations of a role so.
        let means = document.get(id, "role")?.is_some() || document.get(id, "type")?.is_some();
        return Ok(Vectors { means, ..layers(torch, vector, "vector")? });
    }
    layers(torch, id, field)
}

fn layers(torch: &Torch<'_>, id: Id, field: &str) -> Result<Vectors> {
    let document = &torch.document;
    if let Some(tensor) = torch.tensor(id, field)? {
        return Vectors::of_rows(tensor.rows(field)?);
    }
    let vector = |layer: i64, value: Id| {
        let field = format!("{field}[{layer}]");
        let tensor = torch.tensor(value, &field)?.ok_or_else(|| {
            invalid(field.as_str(), "a tensor", document.kind(value), "save one vector per layer")
        })?;
        tensor.vector(&field)
    };
    if let Some(items) = document.items(id)? {
        let items = (0..).zip(items).take(MAX_LAYERS + 1);
        return Vectors::stacked(items.map(|(layer, &value)| vector(layer, value)).collect::<Result<_>>()?);
    }
    if let Some(entries) = document.entries(id)? {
        let mut rows = Vec::new();
        for (layer, value) in by_layer(document, entries, field)? {
            rows.push((layer, vector(layer, value)?));
        }
        return Vectors::numbered(rows);
    }
    let remedy = "name a file of vectors by layer, or a capping_config.pt";
    Err(invalid(field, "a tensor, a list or a dict of tensors", document.kind(id), remedy))
}

/// Returns the values of a dict by layer. Of two equal keys the last one counts, as in Python.
fn by_layer(document: &Document<'_>, entries: &[(Id, Id)], field: &str) -> Result<BTreeMap<i64, Id>> {
    let mut layers = BTreeMap::new();
    for &(key, value) in entries {
        let layer = match document.text(key) {
            Some(text) => layer_of_name(text),
            None => document.int(key).filter(|&layer| layer >= 0),
        };
        layers.insert(layer.ok_or_else(|| other_key(document, key, field))?, value);
        if layers.len() > MAX_LAYERS {
            return Err(invalid(field, format!("at most {MAX_LAYERS} layers"), "more", ONE_MODEL));
        }
    }
    Ok(layers)
}

/// Returns the layer in a name: `46`, `layer_46`, `layer.46`, `layers.46` or `direction.46`.
pub(super) fn layer_of_name(name: &str) -> Option<i64> {
    let prefixes = ["layers.", "layer_", "layer.", "layer", "direction."];
    let number = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    let layer: u32 = number.parse().ok()?;
    // Signs and leading zeros are refused, so a layer has one number.
    (layer.to_string() == number).then_some(layer.into())
}

fn other_key(document: &Document<'_>, key: Id, field: &str) -> crate::file::FileError {
    let found = match (document.text(key), document.int(key)) {
        (Some(text), _) => quoted(text),
        (None, Some(int)) => int.to_string(),
        (None, None) => document.kind(key).to_owned(),
    };
    let expected = "the keys vectors and experiments, axis, vector, or layers from 0";
    unsupported(
        format!("key of {field}"),
        expected,
        found,
        "save one tensor per layer, under the layer's number",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_one_number_and_a_few_names() {
        for name in ["46", "layer_46", "layer.46", "layers.46", "layer46", "direction.46"] {
            assert_eq!(layer_of_name(name), Some(46), "{name}");
        }
        for name in ["", "layer_", "-1", "+1", "046", "layer_46/x", "x46", "46 ", "99999999999999999999"] {
            assert_eq!(layer_of_name(name), None, "{name}");
        }
    }
}
