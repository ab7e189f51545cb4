//! Plain control vectors: directions without bounds, as llama.cpp's own tools and others write them.

use std::path::Path;

use crate::axis::Axis;
use crate::cap::{BlockCap, Bound, Cap, CapSet};
use crate::file::axes::{axis_problem, direction_block};
use crate::file::cap_file::{CapFile, read_whole};
use crate::file::decode::expect_control_vector;
use crate::file::error::{FileError, Result};
use crate::file::fields::{Fields, invalid};
use crate::file::gguf::Gguf;
use crate::file::keys::MODEL_HINT;
use crate::file::model_info::ModelInfo;

/// The directions of a control vector. They have no bounds. [`ControlVector::into_axes`] makes a file of axes
/// for a calibration.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ControlVector {
    /// `controlvector.model_hint`, if there is one.
    pub architecture: Option<String>,
    /// Block and direction, in ascending order of blocks. At least one, and none on block 0.
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
    /// `controlvector.layer_count` is ignored, as in llama.cpp, because some tools store the number of
    /// directions in it.
    ///
    /// # Errors
    /// [`FileError`]. Every tensor must be an F32 vector called `direction.N`, N >= 1, finite and not zero.
    /// All must have one width.
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

    /// Makes a file of axes for `model`: one cap without bounds per direction.
    ///
    /// # Errors
    /// [`FileError::OtherModel`] if the model does not have one of the blocks.
    pub fn into_axes(self, model: ModelInfo) -> Result<CapFile> {
        let architecture = self.architecture.unwrap_or_else(|| model.architecture.clone());
        let caps = self
            .directions
            .into_iter()
            .map(|(block, axis)| BlockCap { block, cap: Cap::new(axis, Bound::NONE) });
        // `from_bytes` gives at least one direction and one width, but the fields are public.
        let caps = CapSet::new(caps).map_err(|error| {
            invalid("tensors", "directions of one width", error.to_string(), "read the control vector again")
        })?;
        caps.check_model(caps.width(), model.blocks).map_err(FileError::other_model)?;
        Ok(CapFile::new(caps, ModelInfo { architecture, ..model }))
    }
}
