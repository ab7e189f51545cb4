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
//! [`Gguf::parse`] accepts a subset of what llama.cpp accepts, so a file that passes here loads there. It is
//! stricter in this: versions below 3 are refused, strings must be UTF-8, and nothing may follow the last tensor.

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
