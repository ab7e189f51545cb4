//! `capping_config.pt`: vectors by name, and experiments that cap projections on them.
//!
//! The layout is that of the released files of *The Assistant Axis* (arXiv 2601.10387):
//! `vectors`: name -> {`vector`: tensor `[width]`, `layer`: int}, and `experiments`: a list of {`id`: text,
//! `interventions`: a list of {`vector`: name, `cap`: number}}. A cap is an upper bound of the projection on
//! the vector, after the vector was divided by its norm.

use std::collections::HashMap;
use std::ops::Range;

use crate::file::{Result, invalid};
use crate::import::pickle::Id;
use crate::import::problem::{SAVE_AGAIN, quoted};
use crate::import::tensor::{MAX_LAYERS, Row};
use crate::import::torch::Torch;

/// Maximum length of a name or an id, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// The content of a `capping_config.pt`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct CappingConfig {
    pub(super) vectors: Vec<Named>,
    pub(super) experiments: Vec<Experiment>,
}

/// A vector of the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) layer: usize,
    pub(super) row: Row,
}

/// An experiment: upper bounds in the order in which they act.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Experiment {
    pub(super) id: String,
    pub(super) caps: Vec<UpperBound>,
    /// Number of interventions without a cap. The reference implementation ignores them as well.
    pub(super) without_cap: usize,
}

/// An upper bound of the projection on a unit vector.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct UpperBound {
    /// Index of the vector.
    pub(super) vector: usize,
    /// The bound, as the file has it.
    pub(super) cap: f64,
}

/// Reads a configuration, if the file's value has the keys of one.
pub(super) fn of_torch(torch: &Torch<'_>) -> Result<Option<CappingConfig>> {
    let document = &torch.document;
    let root = document.root();
    let (Some(vectors), Some(experiments)) =
        (document.get(root, "vectors")?, document.get(root, "experiments")?)
    else {
        return Ok(None);
    };
    let (vectors, names) = read_vectors(torch, vectors)?;
    let items = document
        .items(experiments)?
        .ok_or_else(|| invalid("experiments", "a list", document.kind(experiments), SAVE_AGAIN))?;
    let mut experiments = Vec::new();
    for (index, &experiment) in items.iter().enumerate() {
        experiments.push(read_experiment(torch, experiment, &format!("experiments[{index}]"), &names)?);
    }
    Ok(Some(CappingConfig { vectors, experiments }))
}

fn read_vectors<'a>(torch: &Torch<'a>, id: Id) -> Result<(Vec<Named>, HashMap<&'a str, usize>)> {
    let document = &torch.document;
    let entries =
        document.entries(id)?.ok_or_else(|| invalid("vectors", "a dict", document.kind(id), SAVE_AGAIN))?;
    let mut vectors: Vec<Named> = Vec::new();
    let mut names = HashMap::new();
    for &(key, value) in entries {
        let name = name(torch, key, "key of vectors")?;
        let field = format!("vectors[{}]", quoted(name));
        let layer = document.get(value, "layer")?.and_then(|layer| document.int(layer));
        let layer = layer.and_then(|layer| usize::try_from(layer).ok()).filter(|&layer| layer < MAX_LAYERS);
        let layer = layer.ok_or_else(|| {
            let expected = format!("a layer from 0 to {}", MAX_LAYERS - 1);
            invalid(format!("{field}.layer"), expected, "none or another", SAVE_AGAIN)
        })?;
        let tensor_field = format!("{field}.vector");
        let tensor = match document.get(value, "vector")? {
            Some(vector) => torch.tensor(vector, &tensor_field)?,
            None => None,
        };
        let tensor = tensor.ok_or_else(|| invalid(&*tensor_field, "a tensor", "none", SAVE_AGAIN))?;
        let vector = Named { name: name.to_owned(), layer, row: tensor.vector(&tensor_field)? };
        match names.get(name) {
            // As in Python, the last of two equal keys counts.
            Some(&earlier) => vectors[earlier] = vector,
            None => {
                names.insert(name, vectors.len());
                vectors.push(vector);
            }
        }
    }
    Ok((vectors, names))
}

fn read_experiment(
    torch: &Torch<'_>,
    id: Id,
    field: &str,
    names: &HashMap<&str, usize>,
) -> Result<Experiment> {
    let document = &torch.document;
    let missing = |key: &str| invalid(format!("{field}.{key}"), "a value", "none", SAVE_AGAIN);
    let text = name(torch, document.get(id, "id")?.ok_or_else(|| missing("id"))?, &format!("{field}.id"))?;
    let list = document.get(id, "interventions")?.ok_or_else(|| missing("interventions"))?;
    let items = document.items(list)?.ok_or_else(|| {
        invalid(format!("{field}.interventions"), "a list", document.kind(list), SAVE_AGAIN)
    })?;
    let mut experiment = Experiment { id: text.to_owned(), caps: Vec::new(), without_cap: 0 };
    for (index, &item) in items.iter().enumerate() {
        let field = format!("{field}.interventions[{index}]");
        let Some(cap) = document.get(item, "cap")? else {
            experiment.without_cap += 1;
            continue;
        };
        let cap = document.number(cap).filter(|cap| cap.is_finite()).ok_or_else(|| {
            let found = document.number(cap).map_or_else(|| document.kind(cap).into(), |cap| cap.to_string());
            invalid(
                format!("{field}.cap"),
                "a finite number",
                found,
                "convert the cap with float() and save again",
            )
        })?;
        let vector = document.get(item, "vector")?.and_then(|name| document.text(name)).unwrap_or_default();
        let vector = *names.get(vector).ok_or_else(|| {
            invalid(
                format!("{field}.vector"),
                "the name of a vector of this file",
                quoted(vector),
                SAVE_AGAIN,
            )
        })?;
        experiment.caps.push(UpperBound { vector, cap });
    }
    Ok(experiment)
}

fn name<'a>(torch: &Torch<'a>, id: Id, field: &str) -> Result<&'a str> {
    let text = torch.document.text(id);
    text.filter(|text| !text.is_empty() && text.len() <= MAX_NAME_BYTES).ok_or_else(|| {
        let found = text.map_or_else(|| torch.document.kind(id).to_owned(), quoted);
        invalid(field, format!("a text of 1 to {MAX_NAME_BYTES} bytes"), found, SAVE_AGAIN)
    })
}

/// The meaning of an experiment's id: `layers_46:54-p0.25` are the layers 46 to 53, with caps at the 25th
/// percentile of projections on the stored vectors.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Setting {
    /// The layers, half open as a slice in Python.
    pub(super) layers: Range<usize>,
    /// The percentile on the stored vectors, from 0 to 100.
    pub(super) percentile: f64,
}

impl Setting {
    /// Reads an id. Other forms have no meaning that is known.
    pub(super) fn parse(id: &str) -> Option<Self> {
        let (layers, fraction) = id.strip_prefix("layers_")?.split_once("-p")?;
        let (start, end) = layers.split_once(':')?;
        let fraction: f64 = fraction.parse().ok().filter(|fraction| (0.0..=1.0).contains(fraction))?;
        let layers = start.parse().ok()?..end.parse().ok()?;
        (!layers.is_empty()).then_some(Self { layers, percentile: 100.0 * fraction })
    }
}

/// Whether a vector's name says that it points from the default Assistant to roles, as in the released files:
/// `layer_46/contrast_role_pos3_default1`.
pub(super) fn is_named_role_ward(name: &str) -> bool {
    name.split_once("contrast_role_").is_some_and(|(_, rest)| rest.contains("_default"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_half_open_slice_and_a_fraction() {
        let id = Setting::parse("layers_46:54-p0.25").unwrap();
        assert_eq!((id.layers, id.percentile), (46..54, 25.0));
        for other in [
            "layers_46-54-p0.25",
            "layers_54:46-p0.25",
            "layers_1:2",
            "layers_1:2-p25",
            "x",
            "layers_1:2-pnan",
        ] {
            assert_eq!(Setting::parse(other), None, "{other}");
        }
    }

    #[test]
    fn names_of_the_released_files_point_to_roles() {
        assert!(is_named_role_ward("layer_46/contrast_role_pos3_default1"));
        for other in ["layer_46/assistant", "contrast_default1_role_pos3", "default_contrast_role_pos3"] {
            assert!(!is_named_role_ward(other), "{other}");
        }
    }
}
