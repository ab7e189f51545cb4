//! Values and tensors to bytes; the same input gives the same bytes.

use std::collections::HashSet;

use super::value::{Element, Value};
use super::{ALIGNMENT_KEY, LONGEST_KEY, LONGEST_TENSOR_NAME, MAGIC, TYPE_F32, VERSION, alignment};
use crate::file::error::{FileError, Problem, Result};

/// A whole GGUF file with these values and these vectors of f32, in this order.
///
/// # Errors
/// [`FileError::Invalid`] for a key or a tensor name that is empty, too long or there twice, and for a
/// `general.alignment` that is not a u32 power of two: what [`Gguf::parse`](super::Gguf::parse) would refuse.
pub fn to_bytes(metadata: &[(String, Value)], tensors: &[(String, &[f32])]) -> Result<Vec<u8>> {
    check_names("metadata key", metadata.iter().map(|(key, _)| key), LONGEST_KEY)?;
    check_names("tensor name", tensors.iter().map(|(name, _)| name), LONGEST_TENSOR_NAME)?;
    let alignment = alignment(metadata).map_err(|(expected, found)| {
        let remedy = "leave it out for the default of 32";
        FileError::Invalid(Problem::boxed(ALIGNMENT_KEY, expected, found, remedy))
    })? as usize;

    let mut out = MAGIC.to_vec();
    VERSION.put(&mut out);
    (tensors.len() as u64).put(&mut out);
    (metadata.len() as u64).put(&mut out);
    for (key, value) in metadata {
        key.put(&mut out);
        value.put(&mut out);
    }
    let mut offset = 0;
    for (name, values) in tensors {
        name.put(&mut out);
        1u32.put(&mut out);
        (values.len() as u64).put(&mut out);
        TYPE_F32.put(&mut out);
        (offset as u64).put(&mut out);
        offset += size_of_val(*values).next_multiple_of(alignment);
    }
    out.resize(out.len().next_multiple_of(alignment), 0);
    out.reserve_exact(offset);
    for (_, values) in tensors {
        out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        out.resize(out.len().next_multiple_of(alignment), 0);
    }
    Ok(out)
}

fn check_names<'a>(what: &str, names: impl Iterator<Item = &'a String>, longest: usize) -> Result<()> {
    let mut seen = HashSet::new();
    for name in names {
        let found = match name.len() {
            0 => "an empty name".into(),
            length if length > longest => format!("{length} bytes"),
            _ if seen.insert(name) => continue,
            _ => format!("{name} twice"),
        };
        let expected = format!("distinct names of 1 to {longest} bytes");
        return Err(FileError::Invalid(Problem::boxed(what, expected, found, "choose another name")));
    }
    Ok(())
}
