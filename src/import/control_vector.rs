//! Control vectors in GGUF, with layer numbers as each tool writes them.
//!
//! | | `controlvector.layer_count` | numbers |
//! |---|---|---|
//! | llama.cpp's `cvector-generator` | i32, the number of directions | from 1: measured on block N - 1 |
//! | repeng | u32, the number of directions | as asked for: block N, also 0 and negative |
//! | axiscap | i32, the number of blocks | block N |
//!
//! llama.cpp adds `direction.N` to the output of block N, and ignores block 0 and the count.

use crate::file::gguf::Gguf;
use crate::file::gguf::Value;
use crate::file::{FileError, Result, invalid};
use crate::import::problem::{malformed, quoted, unsupported};
use crate::import::tensor::Row;
use crate::import::vectors::Vectors;

/// A control vector: its directions, and what else the file says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ControlVector {
    pub(super) vectors: Vectors,
    /// `controlvector.model_hint`, if there is one.
    pub(super) architecture: Option<String>,
    /// Whether the layer count is of the type, and has the value, that llama.cpp's generator writes.
    pub(super) by_generator: bool,
}

/// Reads a control vector.
pub(super) fn parse(bytes: &[u8]) -> Result<ControlVector> {
    let gguf = Gguf::parse(bytes)?;
    let text = |key: &str| match gguf.get(key) {
        Some(Value::String(text)) => Some(text.clone()),
        _ => None,
    };
    if gguf.get("axiscap.version").is_some() {
        let remedy = "it is a cap file already, and needs no import";
        return Err(unsupported("axiscap.version", "a file of another tool", "a cap file", remedy));
    }
    match text("general.architecture").as_deref() {
        Some("controlvector") => {}
        other => {
            let remedy = "this is another kind of GGUF file; name a control vector";
            let found = other.map_or_else(|| "no such key".into(), quoted);
            return Err(invalid("general.architecture", "\"controlvector\"", found, remedy));
        }
    }
    // Checks type, rank and place of every tensor.
    gguf.vectors()?;
    let directions = gguf.tensors.iter().map(|tensor| {
        let layer = layer(&tensor.name)?;
        let start = usize::try_from(gguf.data_offset() + tensor.offset).ok();
        let width = tensor.dimensions.first().and_then(|&width| usize::try_from(width).ok());
        match (start, width.filter(|&width| width > 0)) {
            (Some(start), Some(width)) => Ok((layer, Row::of_f32(start, width))),
            _ => Err(malformed(format!("tensor {}", tensor.name), "at least one value", "none")),
        }
    });
    let vectors = Vectors::numbered(directions.collect::<Result<Vec<_>>>()?)?;
    let count = gguf.tensors.len();
    let by_generator = matches!(gguf.get("controlvector.layer_count"), Some(Value::I32(n)) if usize::try_from(*n) == Ok(count));
    Ok(ControlVector { vectors, architecture: text("controlvector.model_hint"), by_generator })
}

/// Returns the number in `direction.N`, which may be negative.
fn layer(name: &str) -> Result<i64> {
    let number = name.strip_prefix("direction.").unwrap_or_default();
    let layer: Option<i32> = number.parse().ok();
    // Leading zeros and signs are refused, so a layer has one name.
    layer.filter(|layer| layer.to_string() == number).map(i64::from).ok_or_else(|| other_name(name))
}

fn other_name(name: &str) -> FileError {
    let remedy = "make the control vector again";
    invalid(format!("tensor {name}"), "a name direction.N with a layer's number N", "another name", remedy)
}
