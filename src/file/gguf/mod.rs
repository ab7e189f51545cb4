//! The GGUF container: named values and named tensors in one file.
//!
//! This module reads and writes the part that cap files need, on bytes in memory: version 3, little endian,
//! metadata of every type but nested arrays (which llama.cpp refuses as well), tensors of f32. The layout,
//! from ggml's `gguf.h`:
//!
//! ```text
//! "GGUF"  version u32  tensor count u64  value count u64
//! values:   key string, type u32, value            (an array: element type u32, count u64, elements)
//! tensors:  name string, dimensions u32, u64 each, type u32, offset u64 from the start of the data
//! padding to `general.alignment` (32 if absent)
//! data:     each tensor padded to the alignment, in the order of the list above, without gaps
//! ```
//! A string is a u64 length and that many bytes of UTF-8.
//!
//! A file that passes both [`Gguf::parse`] and [`Gguf::vectors`] loads in llama.cpp. They are stricter than
//! llama.cpp: `parse` refuses versions below 3 and strings that are not UTF-8, and `vectors` refuses tensors
//! that are no vectors of f32 and bytes after the last tensor. `parse` alone does not check the tensors'
//! data.

mod read;
mod value;
mod write;

pub(in crate::file) use value::Typed;

pub use read::{Gguf, TensorInfo};
pub use value::{Array, Value};
pub use write::to_bytes;

/// First bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The version read and written.
pub const VERSION: u32 = 3;
/// Default alignment of tensor data, if there is no `general.alignment`.
pub const DEFAULT_ALIGNMENT: u32 = 32;
/// Maximum length of a key, in bytes (GGUF specification).
pub const MAX_KEY_BYTES: usize = 65_535;
/// Maximum length of a tensor name, in bytes (ggml's `GGML_MAX_NAME` less its terminating zero).
pub const MAX_TENSOR_NAME_BYTES: usize = 63;

/// Key of the alignment.
const ALIGNMENT_KEY: &str = "general.alignment";
/// Maximum alignment: the largest page of any machine. A larger one would only add padding.
const MAX_ALIGNMENT: u32 = 1 << 20;
/// ggml's type number of f32.
const TYPE_F32: u32 = 0;

/// Returns the alignment of a file with these values. The error is what was expected and what was found.
fn alignment(metadata: &[(String, Value)]) -> Result<u32, (String, String)> {
    match metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some((_, Value::U32(n))) if n.is_power_of_two() && *n <= MAX_ALIGNMENT => Ok(*n),
        Some((_, other)) => Err((
            format!("a u32 that is a power of two, at most {MAX_ALIGNMENT}"),
            format!("{} {}", other.type_name(), other.summary()),
        )),
    }
}
