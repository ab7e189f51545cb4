//! From a parsed GGUF file to caps.

use crate::cap::{BlockCap, Bound, Cap, CapSet};
use crate::error::Error;
use crate::file::axes::Axes;
use crate::file::cap_file::CapFile;
use crate::file::error::{FileError, Problem, Result};
use crate::file::fields::{Fields, MAKE_AGAIN, invalid};
use crate::file::gguf::{Gguf, Value};
use crate::file::keys::{
    ARCHITECTURE, BLOCK, CEILING, CONTROL_VECTOR, CURRENT_VERSION, FLOOR, LAYER_COUNT, MODEL_ARCHITECTURE,
    MODEL_BLOCKS, MODEL_FILE_TYPE, MODEL_HINT, MODEL_NAME, MODEL_WIDTH, NAME, NORM, ORIENTATION,
    ORIGIN_PREFIX, POLICY_PREFIX, SKIP_POSITIONS, STRENGTH, TENSOR, VERSION, WIDTH,
};
use crate::file::model_info::ModelInfo;
use crate::file::norm_digest;
use crate::policy::Policy;

/// Decodes a cap file.
pub(super) fn cap_file(mut gguf: Gguf<'_>) -> Result<CapFile> {
    let mut fields = Fields::new(std::mem::take(&mut gguf.metadata));
    expect_control_vector(&mut fields)?;
    expect_version(&mut fields)?;
    let policy = policy(&mut fields)?;

    let architecture: String = fields.need(MODEL_HINT)?;
    let blocks = positive(LAYER_COUNT, fields.need::<i32>(LAYER_COUNT)?.into())?;
    let width = positive(WIDTH, fields.need::<u32>(WIDTH)?.into())?;
    let model = fingerprint(&mut fields, ModelInfo::new(architecture, blocks), width)?;
    let columns = Columns::take(&mut fields)?;
    let orientation = fields.take(ORIENTATION)?;
    let origin = fields.take_prefix(ORIGIN_PREFIX);

    let mut axes = Axes::new(&gguf, width)?;
    let caps = (0..columns.block.len())
        .map(|index| columns.cap(index, blocks, &mut axes))
        .collect::<Result<Vec<_>>>()?;
    let warnings = axes.warnings();
    let caps = CapSet::new(caps).map_err(|error| match error {
        Error::EmptySet => invalid(BLOCK, "at least one cap", "none", "run without a cap file instead"),
        // Not possible: `Axes` gives every axis the width of axiscap.width.
        other => invalid(BLOCK, "caps of one width", other.to_string(), MAKE_AGAIN),
    })?;
    let unknown = fields.rest();
    let caps = caps.with_policy(policy);
    Ok(CapFile { caps, model, orientation, origin, unknown, warnings })
}

/// Refuses files that are no control vectors.
pub(super) fn expect_control_vector(fields: &mut Fields) -> Result<()> {
    let architecture: String = fields.need(ARCHITECTURE)?;
    if architecture == CONTROL_VECTOR {
        return Ok(());
    }
    let remedy = "this is another kind of GGUF file; name a cap file or a control vector";
    Err(invalid(ARCHITECTURE, format!("{CONTROL_VECTOR:?}"), format!("{architecture:?}"), remedy))
}

fn expect_version(fields: &mut Fields) -> Result<()> {
    match fields.take::<u32>(VERSION)? {
        Some(CURRENT_VERSION) => Ok(()),
        Some(version) => {
            let remedy = "use a newer axiscap, or make the file again with this version";
            let found = version.to_string();
            Err(FileError::Unsupported(Problem::boxed(VERSION, CURRENT_VERSION.to_string(), found, remedy)))
        }
        // An incomplete cap file is no control vector. Its bounds and its policy would be lost silently.
        None if fields.has_prefix("axiscap.cap.") || fields.has_prefix(POLICY_PREFIX) => {
            Err(invalid(VERSION, CURRENT_VERSION.to_string(), "no such key", MAKE_AGAIN))
        }
        None => Err(FileError::PlainControlVector { file: None }),
    }
}

/// Reads the optional `axiscap.policy.*`.
fn policy(fields: &mut Fields) -> Result<Policy> {
    let policy = Policy { skip_positions: fields.take(SKIP_POSITIONS)?.unwrap_or_default() };
    refuse_policies(fields.left())?;
    Ok(policy)
}

/// Refuses values under `axiscap.policy.` whose meaning is not known. A policy changes which rows are capped,
/// so these keys cannot be ignored like others.
pub(super) fn refuse_policies(values: &[(String, Value)]) -> Result<()> {
    match values.iter().find(|(key, _)| key.starts_with(POLICY_PREFIX)) {
        None => Ok(()),
        Some((key, value)) => {
            let expected = format!("a policy that this version knows ({SKIP_POSITIONS})");
            let remedy = "it changes which rows are capped: use a newer axiscap";
            Err(FileError::Unsupported(Problem::boxed(key, expected, value.summary(), remedy)))
        }
    }
}

/// Reads the optional `axiscap.model.*`. These keys may add to the required keys, but not contradict them.
fn fingerprint(fields: &mut Fields, model: ModelInfo, width: usize) -> Result<ModelInfo> {
    let agree = |field, found: String, other, expected: String| {
        if found == expected {
            Ok(())
        } else {
            Err(invalid(field, format!("{expected}, as {other}"), found, MAKE_AGAIN))
        }
    };
    if let Some(architecture) = fields.take::<String>(MODEL_ARCHITECTURE)? {
        agree(MODEL_ARCHITECTURE, architecture, MODEL_HINT, model.architecture.clone())?;
    }
    if let Some(blocks) = fields.take::<u32>(MODEL_BLOCKS)? {
        agree(MODEL_BLOCKS, blocks.to_string(), LAYER_COUNT, model.blocks.to_string())?;
    }
    if let Some(found) = fields.take::<u32>(MODEL_WIDTH)? {
        agree(MODEL_WIDTH, found.to_string(), WIDTH, width.to_string())?;
    }
    let (name, file_type) = (fields.take(MODEL_NAME)?, fields.take(MODEL_FILE_TYPE)?);
    Ok(ModelInfo { name, file_type, norms: norm_digest::take(fields)?, ..model })
}

fn positive(field: &str, value: i64) -> Result<usize> {
    usize::try_from(value)
        .ok()
        .filter(|&value| value > 0)
        .ok_or_else(|| invalid(field, "a number above 0", value.to_string(), MAKE_AGAIN))
}

/// Refuses more caps than a file may hold.
pub(super) fn check_count(caps: usize) -> Result<()> {
    if caps <= CapFile::MAX_CAPS {
        return Ok(());
    }
    let expected = format!("at most {} caps", CapFile::MAX_CAPS);
    Err(invalid(BLOCK, expected, caps.to_string(), "divide the caps over several files"))
}

/// The arrays of `axiscap.cap.*`, all of one length.
struct Columns {
    block: Vec<i32>,
    tensor: Vec<String>,
    floor: Vec<f32>,
    ceiling: Vec<f32>,
    strength: Vec<f32>,
    name: Option<Vec<String>>,
    norm: Option<Vec<f32>>,
}

impl Columns {
    fn take(fields: &mut Fields) -> Result<Self> {
        let columns = Self {
            block: fields.need(BLOCK)?,
            tensor: fields.need(TENSOR)?,
            floor: fields.need(FLOOR)?,
            ceiling: fields.need(CEILING)?,
            strength: fields.need(STRENGTH)?,
            name: fields.take(NAME)?,
            norm: fields.take(NORM)?,
        };
        let caps = columns.block.len();
        check_count(caps)?;
        let lengths = [
            (TENSOR, columns.tensor.len()),
            (FLOOR, columns.floor.len()),
            (CEILING, columns.ceiling.len()),
            (STRENGTH, columns.strength.len()),
            (NAME, columns.name.as_ref().map_or(caps, Vec::len)),
            (NORM, columns.norm.as_ref().map_or(caps, Vec::len)),
        ];
        match lengths.into_iter().find(|&(_, length)| length != caps) {
            None => Ok(columns),
            Some((field, length)) => {
                let expected = format!("{caps} values, one per cap as in {BLOCK}");
                Err(invalid(field, expected, format!("{length} values"), MAKE_AGAIN))
            }
        }
    }

    fn cap(&self, index: usize, blocks: usize, axes: &mut Axes<'_>) -> Result<BlockCap> {
        let at = |key: &str| format!("{key}[{index}]");
        let block =
            usize::try_from(self.block[index]).ok().filter(|&block| block < blocks).ok_or_else(|| {
                let expected = format!("a block from 0 to {} ({LAYER_COUNT} is {blocks})", blocks - 1);
                invalid(at(BLOCK), expected, self.block[index].to_string(), MAKE_AGAIN)
            })?;
        let norm = match self.norm.as_ref().map(|norms| norms[index]) {
            None | Some(0.0) => None,
            Some(norm) if norm > 0.0 && norm.is_finite() => Some(norm),
            Some(norm) => {
                let expected = "a finite norm above 0, or 0 where it is not known";
                return Err(invalid(at(NORM), expected, norm.to_string(), MAKE_AGAIN));
            }
        };
        let axis = axes.get(&self.tensor[index], block, || at(TENSOR))?.with_norm(norm);
        let bound = self.bound(index)?;
        let strength = self.strength[index];
        let cap = Cap::new(axis, bound).with_strength(strength).map_err(|_| {
            let remedy = "1 moves the projection onto the bound, 0 only observes";
            invalid(at(STRENGTH), "a value from 0 to 1", strength.to_string(), remedy)
        })?;
        let cap = match &self.name {
            None => cap,
            Some(names) => cap.with_name(names[index].as_str()),
        };
        Ok(BlockCap { block, cap })
    }

    fn bound(&self, index: usize) -> Result<Bound> {
        let (lo, hi) = (self.floor[index], self.ceiling[index]);
        let refuse = |key: &str, expected: String, found: f32| {
            let remedy = "no projection satisfies it: make the file again";
            Err(invalid(format!("{key}[{index}]"), expected, found.to_string(), remedy))
        };
        if lo.is_nan() || lo == f32::INFINITY {
            return refuse(FLOOR, "a number, or -inf for no floor".into(), lo);
        }
        if hi.is_nan() || hi == f32::NEG_INFINITY {
            return refuse(CEILING, "a number, or +inf for no ceiling".into(), hi);
        }
        Bound::band(lo, hi).or_else(|_| refuse(FLOOR, format!("at most the ceiling, {hi}"), lo))
    }
}
