//! Cap files in the formats of other tools.

use ::safetensors::serialize;
use ::safetensors::tensor::{Dtype, TensorView};

use crate::cap::Cap;
use crate::file::gguf::{self, Value};
use crate::file::{CapFile, FileError, Result, invalid};

/// Returns a plain control vector for llama.cpp and repeng: one `direction.N` per block, without bounds.
///
/// The directions are the unit axes. llama.cpp adds `direction.N` times a scale to the output of block N.
/// `controlvector.layer_count` is the model's number of blocks, as in cap files.
///
/// # Errors
/// [`FileError::Invalid`] for caps that a control vector cannot hold: one on block 0, or several on a block.
pub fn control_vector(file: &CapFile) -> Result<Vec<u8>> {
    if !file.is_control_vector() {
        let remedy = "export to safetensors, which holds all caps";
        return Err(invalid("caps", "at most one cap per block and none on block 0", "others", remedy));
    }
    let blocks = i32::try_from(file.model.blocks).map_err(|_| {
        invalid("controlvector.layer_count", "an i32", file.model.blocks.to_string(), "check the cap file")
    })?;
    let metadata: [(String, Value); 3] = [
        ("general.architecture".into(), "controlvector".into()),
        ("controlvector.model_hint".into(), file.model.architecture.as_str().into()),
        ("controlvector.layer_count".into(), blocks.into()),
    ];
    let caps = file.caps.caps().iter();
    let tensors: Vec<_> =
        caps.map(|entry| (format!("direction.{}", entry.block), entry.cap.axis().values())).collect();
    gguf::to_bytes(&metadata, &tensors)
}

/// Returns a safetensors file with everything that the caps say.
///
/// For n caps of width d, in order of application: `axis` F32 `[n, d]` (unit vectors), `block` I64 `[n]`
/// (0-based), `floor` and `ceiling` F32 `[n]` (-inf and +inf without a bound), `strength` F32 `[n]`, and `norm`
/// F32 `[n]` (of the axis before it was made a unit vector, 0 if unknown). A text `axiscap` in the header names
/// orientation and model. The same content gives the same bytes.
///
/// # Errors
/// [`FileError`] for a file that safetensors cannot hold.
pub fn safetensors(file: &CapFile) -> Result<Vec<u8>> {
    let caps = file.caps.caps();
    let column = |of: &dyn Fn(&Cap) -> f32| -> Vec<u8> {
        caps.iter().flat_map(|entry| of(&entry.cap).to_le_bytes()).collect()
    };
    let axes: Vec<u8> = caps
        .iter()
        .flat_map(|entry| entry.cap.axis().values().iter().flat_map(|value| value.to_le_bytes()))
        .collect();
    let blocks: Vec<u8> = caps.iter().flat_map(|entry| (entry.block as i64).to_le_bytes()).collect();
    let (count, width) = (caps.len(), file.caps.width());
    let columns = [
        ("axis", Dtype::F32, vec![count, width], axes),
        ("block", Dtype::I64, vec![count], blocks),
        ("floor", Dtype::F32, vec![count], column(&|cap| cap.bound().lo())),
        ("ceiling", Dtype::F32, vec![count], column(&|cap| cap.bound().hi())),
        ("strength", Dtype::F32, vec![count], column(&Cap::strength)),
        ("norm", Dtype::F32, vec![count], column(&|cap| cap.axis().norm().unwrap_or_default())),
    ];
    let failed = |error: ::safetensors::SafeTensorError| -> FileError {
        invalid("caps", "caps that safetensors holds", error.to_string(), "check the cap file")
    };
    let mut views = Vec::with_capacity(columns.len());
    for (name, dtype, shape, data) in &columns {
        views.push((*name, TensorView::new(*dtype, shape.clone(), data).map_err(failed)?));
    }
    // A single text, because the order of several is not fixed.
    let orientation = file.orientation.as_deref().unwrap_or("unknown");
    let (architecture, blocks) = (&file.model.architecture, file.model.blocks);
    let note = format!("positive means {orientation}; model {architecture} of {blocks} blocks");
    serialize(views, Some([("axiscap".to_owned(), note)].into())).map_err(failed)
}
