//! From values and tensors to bytes. The same input gives the same bytes.

use std::collections::HashSet;

use crate::file::error::{FileError, Problem, Result};
use crate::file::gguf::value::{Element, Value};
use crate::file::gguf::{
    ALIGNMENT_KEY, MAGIC, MAX_KEY_BYTES, MAX_TENSOR_NAME_BYTES, TYPE_F32, VERSION, alignment,
};

/// Returns a whole GGUF file with these values and these vectors of f32, in this order.
///
/// # Errors
/// [`FileError::Invalid`] for input that [`Gguf::parse`](crate::file::gguf::Gguf::parse) would refuse: a key
/// or a tensor name that is empty, too long or repeated, or a `general.alignment` that is not a u32 power of
/// two.
pub fn to_bytes(metadata: &[(String, Value)], tensors: &[(String, &[f32])]) -> Result<Vec<u8>> {
    check_names("metadata key", metadata.iter().map(|(key, _)| key), MAX_KEY_BYTES)?;
    check_names("tensor name", tensors.iter().map(|(name, _)| name), MAX_TENSOR_NAME_BYTES)?;
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

fn check_names<'a>(what: &str, names: impl Iterator<Item = &'a String>, max: usize) -> Result<()> {
    let mut seen = HashSet::new();
    for name in names {
        let found = match name.len() {
            0 => "an empty name".into(),
            length if length > max => format!("{length} bytes"),
            _ if seen.insert(name) => continue,
            _ => format!("{name} twice"),
        };
        let expected = format!("distinct names of 1 to {max} bytes");
        return Err(FileError::Invalid(Problem::boxed(what, expected, found, "choose another name")));
    }
    Ok(())
}
