//! The GGUF container: named values and named tensors in one file.
//!
//! As much of it as cap files need, on bytes in memory: version 3, little endian, metadata of every type but
//! nested arrays (which llama.cpp refuses as well), tensors of f32. Layout, from ggml's `gguf.h`:
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
//! [`Gguf::parse`] and [`Gguf::vectors`] together accept a subset of what llama.cpp accepts, so a file that passes
//! both loads there. They are stricter in this: versions below 3 are refused and strings must be UTF-8 (`parse`), all
//! tensors are vectors of f32, and nothing may follow the last one (`vectors`; `parse` alone looks neither at what
//! tensors claim nor at what lies behind them).

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
/// Alignment of tensor data where `general.alignment` does not say otherwise.
pub const DEFAULT_ALIGNMENT: u32 = 32;
/// Longest key, in bytes (GGUF specification).
pub const LONGEST_KEY: usize = 65_535;
/// Longest tensor name, in bytes (ggml's `GGML_MAX_NAME` with its terminating zero).
pub const LONGEST_TENSOR_NAME: usize = 63;

/// Key of the alignment.
const ALIGNMENT_KEY: &str = "general.alignment";
/// Largest alignment believed: a page of any machine fits; more would only pad.
const LARGEST_ALIGNMENT: u32 = 1 << 20;
/// ggml's type number of f32.
const TYPE_F32: u32 = 0;

/// The alignment that a file's values ask for; what was expected and what was found where they ask for none.
fn alignment(metadata: &[(String, Value)]) -> Result<u32, (String, String)> {
    match metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some((_, Value::U32(n))) if n.is_power_of_two() && *n <= LARGEST_ALIGNMENT => Ok(*n),
        Some((_, other)) => Err((
            format!("a u32 that is a power of two, at most {LARGEST_ALIGNMENT}"),
            format!("{} {}", other.type_name(), other.summary()),
        )),
    }
}
