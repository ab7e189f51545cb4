//! From caps to a GGUF file.

use std::collections::{HashMap, HashSet};

use crate::cap::{BlockCap, Cap};
use crate::file::cap_file::{CapFile, MAX_BYTES};
use crate::file::decode::{check_count, refuse_policies};
use crate::file::error::Result;
use crate::file::fields::invalid;
use crate::file::gguf::{self, Value};
use crate::file::keys::{
    ARCHITECTURE, BLOCK, CEILING, CONTROL_VECTOR, CURRENT_VERSION, FLOOR, LAYER_COUNT, MODEL_ARCHITECTURE,
    MODEL_BLOCKS, MODEL_FILE_TYPE, MODEL_HINT, MODEL_NAME, MODEL_NORM_DIGEST, MODEL_NORM_SHA256,
    MODEL_NORM_TENSOR, MODEL_WIDTH, NAME, NORM, ORIENTATION, ORIGIN_PREFIX, SKIP_POSITIONS, STRENGTH, TENSOR,
    VERSION, WIDTH,
};
use crate::file::norm_digest;

/// Encodes a cap file: known keys in the order of `docs/cap-files.md`, then unknown ones as they were read,
/// then tensors in the order of the caps.
pub(super) fn cap_file(file: &CapFile) -> Result<Vec<u8>> {
    let caps = file.caps.caps();
    check_count(caps.len())?;
    refuse_policies(&file.unknown)?;
    norm_digest::check(&file.model.norms)?;
    let blocks = check_blocks(file)?;
    let width = u32::try_from(file.caps.width()).map_err(|_| {
        invalid(WIDTH, "a u32", file.caps.width().to_string(), "no model is as wide: check the axes")
    })?;
    let (names, tensors) = tensors(caps);
    check_size(tensors.iter().map(|(_, values)| size_of_val(*values) as u64).sum())?;
    let column = |of: fn(&Cap) -> f32| caps.iter().map(|entry| of(&entry.cap)).collect::<Vec<_>>();

    let mut values = Values(Vec::new());
    values.add(ARCHITECTURE, CONTROL_VECTOR);
    values.add(MODEL_HINT, file.model.architecture.as_str());
    values.add(LAYER_COUNT, blocks);
    values.add(VERSION, CURRENT_VERSION);
    values.add(WIDTH, width);
    // `check_blocks` has checked that they fit.
    values.add(BLOCK, caps.iter().map(|entry| entry.block as i32).collect::<Vec<_>>());
    values.add(TENSOR, names);
    values.add(FLOOR, column(|cap| cap.bound().lo()));
    values.add(CEILING, column(|cap| cap.bound().hi()));
    values.add(STRENGTH, column(Cap::strength));
    if caps.iter().any(|entry| entry.cap.name().is_some()) {
        let names = caps.iter().map(|entry| entry.cap.name().unwrap_or_default().to_owned());
        values.add(NAME, names.collect::<Vec<_>>());
    }
    if let Some(norms) = norms(caps)? {
        values.add(NORM, norms);
    }
    values.add_some(ORIENTATION, file.orientation.as_deref());
    values.add(MODEL_ARCHITECTURE, file.model.architecture.as_str());
    values.add_some(MODEL_NAME, file.model.name.as_deref());
    values.add(MODEL_BLOCKS, blocks as u32);
    values.add(MODEL_WIDTH, width);
    values.add_some(MODEL_FILE_TYPE, file.model.file_type);
    if let [first, ..] = file.model.norms.as_slice() {
        let norms = &file.model.norms;
        values.add(MODEL_NORM_DIGEST, first.to_string());
        values.add(MODEL_NORM_TENSOR, norms.iter().map(|norm| norm.tensor.clone()).collect::<Vec<_>>());
        values.add(MODEL_NORM_SHA256, norms.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
    let skip_positions = file.caps.policy().skip_positions;
    values.add_some(SKIP_POSITIONS, (skip_positions != 0).then_some(skip_positions));
    for (key, value) in file.origin.iter() {
        values.add(&format!("{ORIGIN_PREFIX}{key}"), value.clone());
    }
    values.0.extend(file.unknown.iter().cloned());

    let bytes = gguf::to_bytes(&values.0, &tensors)?;
    check_size(bytes.len() as u64)?;
    Ok(bytes)
}

/// Refuses a file that would be too large to be read again.
fn check_size(bytes: u64) -> Result<()> {
    if bytes <= MAX_BYTES {
        return Ok(());
    }
    let remedy = "divide the caps over several files";
    Err(invalid("file size", format!("at most {MAX_BYTES} bytes"), format!("{bytes} bytes"), remedy))
}

struct Values(Vec<(String, Value)>);

impl Values {
    fn add(&mut self, key: &str, value: impl Into<Value>) {
        self.0.push((key.into(), value.into()));
    }

    fn add_some(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.add(key, value);
        }
    }
}

/// Returns the number of blocks as the file stores it. Every cap must be on one of them.
fn check_blocks(file: &CapFile) -> Result<i32> {
    let blocks = file.model.blocks;
    let count = i32::try_from(blocks).ok().filter(|&count| count > 0).ok_or_else(|| {
        let remedy = "give the number of blocks of the model the caps are for";
        invalid(LAYER_COUNT, format!("a number from 1 to {}", i32::MAX), blocks.to_string(), remedy)
    })?;
    match file.caps.caps().iter().enumerate().find(|(_, entry)| entry.block >= blocks) {
        None => Ok(count),
        Some((index, entry)) => {
            let expected = format!("a block from 0 to {} ({LAYER_COUNT} is {blocks})", blocks - 1);
            let remedy = "caps work only on the model they were made for";
            Err(invalid(format!("{BLOCK}[{index}]"), expected, entry.block.to_string(), remedy))
        }
    }
}

/// Returns the tensor name of each cap, and the tensors in the order in which caps ask for them.
///
/// The first cap of block N >= 1 has `direction.N`, which llama.cpp reads as a control vector. The other caps
/// share one tensor per axis, bit for bit. They never share a `direction.N`, or llama.cpp would accept a file
/// that it can use only in part.
fn tensors(caps: &[BlockCap]) -> (Vec<String>, Vec<(String, &[f32])>) {
    fn bits(entry: &BlockCap) -> &[u32] {
        bytemuck::cast_slice(entry.cap.axis().values())
    }
    let mut seen = HashSet::new();
    let first: Vec<bool> = caps.iter().map(|entry| seen.insert(entry.block) && entry.block > 0).collect();
    let mut stored = HashMap::<_, String>::new();
    let (mut names, mut tensors) = (Vec::with_capacity(caps.len()), Vec::new());
    for (index, (entry, first)) in caps.iter().zip(first).enumerate() {
        let mut add = |name: String| {
            tensors.push((name.clone(), entry.cap.axis().values()));
            name
        };
        names.push(if first {
            add(format!("direction.{}", entry.block))
        } else {
            stored.entry(bits(entry)).or_insert_with(|| add(format!("axiscap.axis.{index}"))).clone()
        });
    }
    (names, tensors)
}

/// Returns the norms, 0 for unknown ones; `None` if none is known.
fn norms(caps: &[BlockCap]) -> Result<Option<Vec<f32>>> {
    if caps.iter().all(|entry| entry.cap.axis().norm().is_none()) {
        return Ok(None);
    }
    let norm = |(index, entry): (usize, &BlockCap)| match entry.cap.axis().norm() {
        None => Ok(0.0),
        Some(norm) if norm > 0.0 && norm.is_finite() => Ok(norm),
        Some(norm) => {
            let (expected, remedy) = ("a finite norm above 0", "leave it out if it is not known");
            Err(invalid(format!("{NORM}[{index}]"), expected, norm.to_string(), remedy))
        }
    };
    caps.iter().enumerate().map(norm).collect::<Result<_>>().map(Some)
}
