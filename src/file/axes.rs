//! Tensors as axes.

use std::collections::HashMap;

use crate::axis::{Axis, UNIT_TOLERANCE};
use crate::error::Error;
use crate::file::error::{FileError, Result};
use crate::file::fields::{MAKE_AGAIN, invalid};
use crate::file::gguf::Gguf;
use crate::file::keys::WIDTH;
use crate::file::warning::Warning;

/// The tensors of a cap file, which become axes when caps ask for them.
pub(super) struct Axes<'a> {
    width: usize,
    tensors: Vec<Tensor<'a>>,
    index: HashMap<&'a str, usize>,
}

struct Tensor<'a> {
    name: &'a str,
    values: Vec<f32>,
    /// Caps that share a tensor share its axis. A small file cannot ask for a lot of memory.
    axis: Option<Axis>,
    /// The block of the first cap that asked for it.
    first_block: Option<usize>,
    /// Whether the name is `direction.N` and a cap on block N asked for it.
    used_as_named: bool,
}

impl<'a> Axes<'a> {
    pub(super) fn new(gguf: &'a Gguf<'_>, width: usize) -> Result<Self> {
        let tensor =
            |(name, values)| Tensor { name, values, axis: None, first_block: None, used_as_named: false };
        let tensors: Vec<_> = gguf.vectors()?.into_iter().map(tensor).collect();
        let index = tensors.iter().enumerate().map(|(index, tensor)| (tensor.name, index)).collect();
        Ok(Self { width, tensors, index })
    }

    /// Returns the axis in tensor `name` for a cap on `block`. `field` is the field that holds the name.
    pub(super) fn get(&mut self, name: &str, block: usize, field: impl FnOnce() -> String) -> Result<Axis> {
        let Some(&index) = self.index.get(name) else {
            let expected = "the name of a tensor of this file";
            return Err(invalid(field(), expected, format!("{name:?}, which is not there"), MAKE_AGAIN));
        };
        let tensor = &mut self.tensors[index];
        tensor.first_block.get_or_insert(block);
        tensor.used_as_named |= direction_block(name) == Some(block);
        if let Some(axis) = &tensor.axis {
            return Ok(axis.clone());
        }
        let (field, found) = (format!("tensor {name}"), tensor.values.len());
        if found != self.width {
            let expected = format!("{} values, as {WIDTH} says", self.width);
            return Err(invalid(field, expected, format!("{found} values"), MAKE_AGAIN));
        }
        let axis = Axis::from_unit(&tensor.values, None).map_err(|error| axis_problem(field, error))?;
        Ok(tensor.axis.insert(axis).clone())
    }

    /// Returns the warnings about tensors, after every cap has asked for its axis.
    pub(super) fn warnings(&self) -> Vec<Warning> {
        let warning = |tensor: &Tensor<'_>| match tensor.first_block {
            None => Some(Warning::UnusedTensor { name: tensor.name.into() }),
            Some(block) if !tensor.used_as_named && direction_block(tensor.name).is_some() => {
                Some(Warning::MisnamedTensor { name: tensor.name.into(), block })
            }
            Some(_) => None,
        };
        self.tensors.iter().filter_map(warning).collect()
    }
}

/// Returns the block that llama.cpp steers with a tensor of this name, if the name is `direction.N`, N >= 1.
pub(super) fn direction_block(name: &str) -> Option<usize> {
    let number = name.strip_prefix("direction.")?;
    let block = number.parse().ok().filter(|&block: &usize| block > 0)?;
    // Signs and leading zeros are refused, so a block has one name.
    (block.to_string() == number).then_some(block)
}

/// Turns the error of an axis into one of its tensor.
pub(crate) fn axis_problem(field: String, error: Error) -> FileError {
    let again = "extract the axes again";
    match error {
        Error::EmptyAxis => invalid(field, "one value per channel", "none", again),
        Error::NonFiniteAxis { index, width, value } => {
            invalid(field, "finite values", format!("{value} at index {index} of {width}"), again)
        }
        Error::ZeroAxis => invalid(field, "a direction", "zeros only", again),
        Error::NotUnit { norm, .. } => {
            let expected = format!("a unit vector (norm within {UNIT_TOLERANCE} of 1)");
            let remedy = "divide it by its norm; bounds are for the unit axis, so calibrate again as well";
            invalid(field, expected, format!("norm {norm}"), remedy)
        }
        other => invalid(field, "an axis", other.to_string(), again),
    }
}
