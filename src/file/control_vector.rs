//! Plain control vectors: directions without bounds, as llama.cpp's own tools and others write them.

use std::path::Path;

use super::axes::{axis_problem, direction_block};
use super::cap_file::{CapFile, ModelInfo, read_whole};
use super::decode::expect_control_vector;
use super::error::{FileError, Problem, Result};
use super::fields::{Fields, invalid};
use super::gguf::Gguf;
use super::keys::MODEL_HINT;
use crate::axis::Axis;
use crate::cap::{BlockCap, Bound, Cap, CapSet};

/// The directions of a control vector. They say where to steer, not how far: [`ControlVector::into_axes`] gives a
/// file of axes for a calibration.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ControlVector {
    /// `controlvector.model_hint`, if there is one.
    pub architecture: Option<String>,
    /// Block and direction, blocks ascending, none of them block 0. Never empty.
    pub directions: Vec<(usize, Axis)>,
}

impl ControlVector {
    /// Reads a control vector.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn read(path: &Path) -> Result<Self> {
        read_whole(path).and_then(|bytes| Self::from_bytes(&bytes)).map_err(|error| error.in_file(path))
    }

    /// Parses the bytes of a control vector.
    ///
    /// `controlvector.layer_count` is not looked at: some tools store the number of directions in it, and llama.cpp
    /// does not read it either.
    ///
    /// # Errors
    /// [`FileError`]: every tensor must be an F32 vector called `direction.N`, N >= 1, finite and not zero, and all
    /// must be of one width.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut gguf = Gguf::parse(bytes)?;
        let mut fields = Fields::new(std::mem::take(&mut gguf.metadata));
        expect_control_vector(&mut fields)?;
        let architecture = fields.take(MODEL_HINT)?;
        let mut directions = Vec::<(usize, Axis)>::new();
        for (name, values) in gguf.vectors()? {
            let field = format!("tensor {name}");
            let Some(block) = direction_block(name) else {
                let expected = "a name direction.N with N >= 1, as llama.cpp expects it";
                return Err(invalid(field, expected, "another name", "make the control vector again"));
            };
            if let Some((_, first)) = directions.first()
                && first.width() != values.len()
            {
                let expected = format!("{} values, as in the first tensor", first.width());
                let found = format!("{} values", values.len());
                return Err(invalid(field, expected, found, "make the control vector again for one model"));
            }
            let axis = Axis::from_direction(&values).map_err(|error| axis_problem(field, error))?;
            directions.push((block, axis));
        }
        if directions.is_empty() {
            let remedy = "the file steers nothing: make the control vector again";
            return Err(invalid("tensors", "at least one direction.N", "none", remedy));
        }
        directions.sort_by_key(|&(block, _)| block);
        Ok(Self { architecture, directions })
    }

    /// A file of axes for `model`: one cap without bounds per direction.
    ///
    /// # Errors
    /// [`FileError::OtherModel`] where the model has no such block.
    pub fn into_axes(self, model: ModelInfo) -> Result<CapFile> {
        let blocks = model.blocks;
        if let Some((block, _)) = self.directions.iter().find(|(block, _)| *block >= blocks) {
            let expected = format!("a block of the model, 1 to {}", blocks.saturating_sub(1));
            let remedy = "directions work only on the model they were made for: extract them from this model";
            return Err(FileError::OtherModel(Problem::boxed(
                format!("tensor direction.{block}"),
                expected,
                block.to_string(),
                remedy,
            )));
        }
        let architecture = self.architecture.unwrap_or_else(|| model.architecture.clone());
        let caps = self
            .directions
            .into_iter()
            .map(|(block, axis)| BlockCap { block, cap: Cap::new(axis, Bound::NONE) });
        // Neither empty nor of two widths: `from_bytes` has seen to that, but the fields are open to change.
        let caps = CapSet::new(caps).map_err(|error| {
            invalid("tensors", "directions of one width", error.to_string(), "read the control vector again")
        })?;
        Ok(CapFile::new(caps, ModelInfo { architecture, ..model }))
    }
}
