//! From untrusted bytes to values and tensors.

use std::collections::HashSet;

use crate::file::error::{FileError, Problem, Result};
use crate::file::gguf::value::{Element, TYPE_ARRAY, Value};
use crate::file::gguf::{
    ALIGNMENT_KEY, MAGIC, MAX_KEY_BYTES, MAX_TENSOR_NAME_BYTES, TYPE_F32, VERSION, alignment,
};

/// ggml's `GGML_MAX_DIMS`.
const MAX_DIMENSIONS: u32 = 4;
const DAMAGED: &str = "the file is damaged: copy it again from its source, or make it again";
const CUT_SHORT: &str = "the file is cut short or damaged: copy it again from its source, or make it again";

/// A parsed file: its values, its list of tensors, and the bytes of their data.
#[derive(Debug, Clone, PartialEq)]
pub struct Gguf<'a> {
    /// Keys and values, in the file's order. Keys are distinct.
    pub metadata: Vec<(String, Value)>,
    /// The tensors, in the file's order. Names are distinct. [`Gguf::vectors`] checks the rest.
    pub tensors: Vec<TensorInfo>,
    alignment: u64,
    start: u64,
    data: &'a [u8],
}

/// The file's entry for one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name, at most [`MAX_TENSOR_NAME_BYTES`] bytes.
    pub name: String,
    /// Extent of each dimension, at most 4.
    pub dimensions: Vec<u64>,
    /// ggml's number of the element type; 0 is f32.
    pub element_type: u32,
    /// Start of the data, from the start of all data.
    pub offset: u64,
}

impl<'a> Gguf<'a> {
    /// Parses a whole file. Tensor data is located, not read.
    ///
    /// The memory used is proportional to the length of `bytes`, for any counts and lengths in the file.
    ///
    /// # Errors
    /// [`FileError::Malformed`], and [`FileError::Unsupported`] for a version or byte order that is not read.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let mut cursor = Cursor { bytes, at: 0 };
        header(&mut cursor)?;
        let tensor_count: u64 = cursor.number("tensor count")?;
        let value_count: u64 = cursor.number("metadata count")?;
        // Key length, one byte of key, type, one byte of value; name length, dimensions, type, offset.
        cursor.expect_room(value_count, 14, "metadata count", "key-value pairs")?;
        cursor.expect_room(tensor_count, 24, "tensor count", "tensors")?;

        let metadata = metadata(&mut cursor, value_count)?;
        let alignment = alignment(&metadata)
            .map(u64::from)
            .map_err(|(expected, found)| malformed(ALIGNMENT_KEY, expected, found, DAMAGED))?;
        let tensors = tensor_infos(&mut cursor, tensor_count)?;
        let start = (cursor.at as u64).next_multiple_of(alignment);
        let data = match usize::try_from(start).ok().and_then(|start| bytes.get(start..)) {
            Some(data) => data,
            None if tensors.is_empty() => &[],
            None => {
                return Err(malformed(
                    "tensor data",
                    format!("a start at byte {start}"),
                    format!("{} bytes in all", bytes.len()),
                    CUT_SHORT,
                ));
            }
        };
        Ok(Self { metadata, tensors, alignment, start, data })
    }

    /// Returns where the data of the tensors begins in the file, in bytes.
    #[must_use]
    pub fn data_offset(&self) -> u64 {
        self.start
    }

    /// Returns the value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }

    /// Returns all tensors, which must be vectors of f32 that fill the data section without gap or overlap.
    ///
    /// # Errors
    /// [`FileError::Malformed`] for data that are missing, misplaced or left over; [`FileError::Invalid`] for
    /// a tensor of another type or shape. Both name the tensor.
    pub fn vectors(&self) -> Result<Vec<(&str, Vec<f32>)>> {
        let mut vectors = Vec::with_capacity(self.tensors.len());
        let mut end = 0u64;
        for tensor in &self.tensors {
            let field = || format!("tensor {}", tensor.name);
            if tensor.element_type != TYPE_F32 {
                let found = format!("ggml type {}", tensor.element_type);
                let remedy = "axes are stored as F32; convert the tensor";
                return Err(FileError::Invalid(Problem::boxed(field(), "type F32 (0)", found, remedy)));
            }
            let &[width] = tensor.dimensions.as_slice() else {
                let found = format!("{} dimensions {:?}", tensor.dimensions.len(), tensor.dimensions);
                let remedy = "store one axis per tensor";
                return Err(FileError::Invalid(Problem::boxed(field(), "1 dimension", found, remedy)));
            };
            if tensor.offset != end {
                return Err(malformed(
                    format!("offset of tensor {}", tensor.name),
                    format!("{end}: tensors follow each other at multiples of {} bytes", self.alignment),
                    tensor.offset.to_string(),
                    DAMAGED,
                ));
            }
            let room = self.data.len() as u64 - end;
            let size = width.checked_mul(4).filter(|&size| size <= room);
            let padded = size.and_then(|size| size.checked_next_multiple_of(self.alignment));
            let (Some(size), Some(padded)) = (size, padded.filter(|&padded| padded <= room)) else {
                let expected =
                    format!("{width} values of 4 bytes, padded to a multiple of {}", self.alignment);
                return Err(malformed(field(), expected, format!("{room} bytes of data left"), CUT_SHORT));
            };
            // Both fit: they are at most `data.len()`.
            let bytes = &self.data[end as usize..][..size as usize];
            let (values, _) = bytes.as_chunks::<4>();
            vectors.push((tensor.name.as_str(), values.iter().map(|&v| f32::from_le_bytes(v)).collect()));
            end += padded;
        }
        let left = self.data.len() as u64 - end;
        if left > 0 {
            let found = format!("{left} bytes after it");
            let remedy =
                "something was appended to the file: copy it again from its source, or make it again";
            return Err(malformed("tensor data", "the end of the file after the last tensor", found, remedy));
        }
        Ok(vectors)
    }
}

fn header(cursor: &mut Cursor<'_>) -> Result<()> {
    if cursor.left() == 0 {
        let remedy = "copy the file again from its source, or make it again";
        return Err(malformed("magic", "\"GGUF\"", "an empty file", remedy));
    }
    let magic = cursor.take(4, "magic")?;
    if magic != MAGIC {
        let found = format!("\"{}\"", magic.escape_ascii());
        let remedy = "this is no GGUF file; name a cap file";
        return Err(malformed("magic", "\"GGUF\"", found, remedy));
    }
    let version: u32 = cursor.number("version")?;
    let unsupported = |found: String, remedy: &str| {
        let expected = format!("{VERSION}, little endian");
        Err(FileError::Unsupported(Problem::boxed("version", expected, found, remedy)))
    };
    match version {
        VERSION => Ok(()),
        1 | 2 => unsupported(format!("{version}"), "rewrite the file with a current GGUF tool"),
        v if v != 0 && v.swap_bytes() <= 0xff => unsupported(
            format!("{}, big endian", v.swap_bytes()),
            "rewrite the file as little endian with gguf-py's gguf_convert_endian",
        ),
        v => unsupported(format!("{v}"), "use a newer axiscap, or rewrite the file as version 3"),
    }
}

/// Reads the keys and values.
fn metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<(String, Value)>> {
    let mut metadata = Vec::new();
    let mut seen = HashSet::new();
    for index in 0..count {
        let field = format!("metadata key {index}");
        let key = cursor.text(&field)?;
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            let expected = format!("1 to {MAX_KEY_BYTES} bytes");
            return Err(malformed(field, expected, format!("{} bytes", key.len()), DAMAGED));
        }
        if !seen.insert(key) {
            return Err(malformed(key, "one value", "the same key twice", DAMAGED));
        }
        metadata.push((key.to_owned(), value(cursor, key)?));
    }
    Ok(metadata)
}

fn value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value> {
    let id: u32 = cursor.number(key)?;
    if id != TYPE_ARRAY {
        return typed(cursor, key, id, None);
    }
    let id: u32 = cursor.number(key)?;
    let count: u64 = cursor.number(key)?;
    typed(cursor, key, id, Some(count))
}

/// Reads a value of type `id`, or `count` of them as an array.
fn typed(cursor: &mut Cursor<'_>, key: &str, id: u32, count: Option<u64>) -> Result<Value> {
    /// Reads numbers of `N` bytes each.
    fn numbers<T: Element, const N: usize>(
        cursor: &mut Cursor<'_>,
        key: &str,
        count: Option<u64>,
        read: fn([u8; N]) -> T,
    ) -> Result<Value> {
        let Some(count) = count else {
            return Ok(read(cursor.array(key)?).single());
        };
        cursor.expect_room(count, T::MIN_BYTES, key, T::NAME)?;
        let (chunks, _) = cursor.take(count * N as u64, key)?.as_chunks::<N>();
        Ok(T::array(chunks.iter().map(|&bytes| read(bytes)).collect()))
    }

    match id {
        u8::ID => numbers(cursor, key, count, u8::from_le_bytes),
        i8::ID => numbers(cursor, key, count, i8::from_le_bytes),
        u16::ID => numbers(cursor, key, count, u16::from_le_bytes),
        i16::ID => numbers(cursor, key, count, i16::from_le_bytes),
        u32::ID => numbers(cursor, key, count, u32::from_le_bytes),
        i32::ID => numbers(cursor, key, count, i32::from_le_bytes),
        f32::ID => numbers(cursor, key, count, f32::from_le_bytes),
        u64::ID => numbers(cursor, key, count, u64::from_le_bytes),
        i64::ID => numbers(cursor, key, count, i64::from_le_bytes),
        f64::ID => numbers(cursor, key, count, f64::from_le_bytes),
        // As in ggml, any value but 0 is true.
        bool::ID => numbers(cursor, key, count, |[byte]: [u8; 1]| byte != 0),
        String::ID => match count {
            None => Ok(Value::String(cursor.text(key)?.to_owned())),
            Some(count) => {
                cursor.expect_room(count, String::MIN_BYTES, key, String::NAME)?;
                let texts = (0..count).map(|_| cursor.text(key).map(str::to_owned));
                Ok(String::array(texts.collect::<Result<_>>()?))
            }
        },
        TYPE_ARRAY => {
            let remedy = "nested arrays are read by no GGUF tool of llama.cpp either; store them flat";
            Err(FileError::Unsupported(Problem::boxed(
                key,
                "a value or a flat array",
                "a nested array",
                remedy,
            )))
        }
        other => Err(malformed(key, "a metadata type from 0 to 12", other.to_string(), DAMAGED)),
    }
}

fn tensor_infos(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<TensorInfo>> {
    let mut tensors = Vec::new();
    let mut seen = HashSet::new();
    for index in 0..count {
        let field = format!("name of tensor {index}");
        let name = cursor.text(&field)?;
        if name.is_empty() || name.len() > MAX_TENSOR_NAME_BYTES {
            let expected = format!("1 to {MAX_TENSOR_NAME_BYTES} bytes");
            return Err(malformed(field, expected, format!("{} bytes", name.len()), DAMAGED));
        }
        let field = format!("tensor {name}");
        if !seen.insert(name) {
            return Err(malformed(field, "one tensor of this name", "two", DAMAGED));
        }
        let rank: u32 = cursor.number(&field)?;
        if rank > MAX_DIMENSIONS {
            let expected = format!("at most {MAX_DIMENSIONS} dimensions");
            return Err(malformed(field, expected, rank.to_string(), DAMAGED));
        }
        let dimensions = (0..rank).map(|_| cursor.number(&field)).collect::<Result<_>>()?;
        tensors.push(TensorInfo {
            name: name.to_owned(),
            dimensions,
            element_type: cursor.number(&field)?,
            offset: cursor.number(&field)?,
        });
    }
    Ok(tensors)
}

/// Integers of the container itself.
trait Number: Sized {
    fn read(cursor: &mut Cursor<'_>, field: &str) -> Result<Self>;
}

impl Number for u32 {
    fn read(cursor: &mut Cursor<'_>, field: &str) -> Result<Self> {
        cursor.array(field).map(Self::from_le_bytes)
    }
}

impl Number for u64 {
    fn read(cursor: &mut Cursor<'_>, field: &str) -> Result<Self> {
        cursor.array(field).map(Self::from_le_bytes)
    }
}

/// A position in the file. The methods' `field` is the field that an error names.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, count: u64, field: &str) -> Result<&'a [u8]> {
        match usize::try_from(count).ok().filter(|&count| count <= self.left()) {
            Some(count) => {
                let taken = &self.bytes[self.at..][..count];
                self.at += count;
                Ok(taken)
            }
            None => Err(self.cut_short(field, format!("{count} bytes"))),
        }
    }

    fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, field)?);
        Ok(array)
    }

    fn number<T: Number>(&mut self, field: &str) -> Result<T> {
        T::read(self, field)
    }

    fn text(&mut self, field: &str) -> Result<&'a str> {
        let length = self.number(field)?;
        let start = self.at;
        let bytes = self.take(length, field)?;
        str::from_utf8(bytes).map_err(|error| {
            let found = format!("an invalid sequence at byte {} of the file", start + error.valid_up_to());
            malformed(field, "UTF-8 text", found, DAMAGED)
        })
    }

    /// Refuses a count of items that cannot fit in the bytes that are left, before anything is allocated.
    fn expect_room(&self, count: u64, min_bytes: u64, field: &str, what: &str) -> Result<()> {
        if count > self.left() as u64 / min_bytes {
            return Err(self.cut_short(field, format!("{count} of {what}, at least {min_bytes} bytes each")));
        }
        Ok(())
    }

    fn cut_short(&self, field: &str, expected: String) -> FileError {
        malformed(field, expected, format!("{} bytes left at byte {}", self.left(), self.at), CUT_SHORT)
    }
}

fn malformed(
    field: impl Into<String>,
    expected: impl Into<String>,
    found: impl Into<String>,
    remedy: &str,
) -> FileError {
    FileError::Malformed(Problem::boxed(field, expected, found, remedy))
}
