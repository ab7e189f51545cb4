//! A cap file in memory.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::control_vector::ControlVector;
use super::error::{FileError, Problem, Result};
use super::gguf::{self, Gguf, Value};
use super::origin::Origin;
use super::output::write_atomically;
use super::warning::Warning;
use super::{decode, encode};
use crate::cap::CapSet;

/// Largest file that is read or written. The caps of 80 blocks of width 8192 take 2.6 MB.
pub(super) const MOST_BYTES: u64 = 1 << 30;

/// The model a cap file was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelInfo {
    /// Its architecture as in its `general.architecture`, e.g. `llama`.
    pub architecture: String,
    /// Number of blocks.
    pub blocks: usize,
    /// Its name as in its `general.name`, where known.
    pub name: Option<String>,
    /// Its quantisation as in its `general.file_type`, where known. Thresholds move with it.
    pub file_type: Option<u32>,
}

impl ModelInfo {
    /// A model known by architecture and number of blocks only.
    #[must_use]
    pub fn new(architecture: impl Into<String>, blocks: usize) -> Self {
        Self { architecture: architecture.into(), blocks, name: None, file_type: None }
    }
}

/// Caps, the model they are for, and how they were made.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CapFile {
    /// The caps, in order.
    pub caps: CapSet,
    /// The model they were made for.
    pub model: ModelInfo,
    /// What a positive projection means, e.g. `more Assistant`.
    pub orientation: Option<String>,
    /// How the file was made.
    pub origin: Origin,
    /// Values under keys that this version does not know, kept for the next writing.
    pub(super) unknown: Vec<(String, Value)>,
    pub(super) warnings: Vec<Warning>,
}

impl CapFile {
    /// Most caps of a file: 32 on each block of a model of 128. A file may let all of them share one axis, but
    /// whoever caps with them holds an axis for each ([`CapTable`](crate::CapTable)).
    pub const MOST_CAPS: usize = 4096;

    /// A new file's content, without orientation and origin yet.
    #[must_use]
    pub fn new(caps: CapSet, model: ModelInfo) -> Self {
        let (unknown, warnings) = (Vec::new(), Vec::new());
        Self { caps, model, orientation: None, origin: Origin::default(), unknown, warnings }
    }

    /// Reads a cap file.
    ///
    /// # Errors
    /// [`FileError`]; [`FileError::PlainControlVector`] for a control vector without bounds.
    pub fn read(path: &Path) -> Result<Self> {
        read_whole(path).and_then(|bytes| Self::from_bytes(&bytes)).map_err(|error| error.in_file(path))
    }

    /// Reads the axes that a calibration gives bounds to: those of a cap file, whose bounds are kept, or those of
    /// a plain control vector for `model`, which then have none.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn read_axes(path: &Path, model: &ModelInfo) -> Result<Self> {
        let read = || {
            let bytes = read_whole(path)?;
            match Self::from_bytes(&bytes) {
                Err(FileError::PlainControlVector { .. }) => {
                    ControlVector::from_bytes(&bytes)?.into_axes(model.clone())
                }
                other => other,
            }
        };
        read().map_err(|error| error.in_file(path))
    }

    /// Parses the bytes of a cap file. Errors name no file; see [`FileError::in_file`].
    ///
    /// # Errors
    /// [`FileError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        decode::cap_file(Gguf::parse(bytes)?)
    }

    /// Writes the file, whole or not at all; see [`write_atomically`].
    ///
    /// # Errors
    /// [`FileError`]; an older file is then still there, unchanged.
    pub fn write(&self, path: &Path) -> Result<()> {
        let bytes = self.to_bytes().map_err(|error| error.in_file(path))?;
        write_atomically(path, |out| out.write_all(&bytes))
    }

    /// The bytes of the file; the same content gives the same bytes.
    ///
    /// # Errors
    /// [`FileError::Invalid`] for what [`CapFile::from_bytes`] would refuse, e.g. a cap on a block that
    /// [`ModelInfo::blocks`] does not have, more than [`CapFile::MOST_CAPS`] caps, or more bytes than a file may have.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        encode::cap_file(self)
    }

    /// Checks the file against a model: its architecture, its width (`n_embd`), its number of blocks.
    ///
    /// Another architecture name is only a warning: the same model may go by two names.
    ///
    /// # Errors
    /// [`FileError::OtherModel`] for another width or number of blocks.
    pub fn check_model(&self, architecture: &str, width: usize, blocks: usize) -> Result<Vec<Warning>> {
        let other = |field: &str, unit: &str, model: usize, file: usize| {
            Err(FileError::OtherModel(Problem::boxed(
                field,
                format!("{model}, the model's {unit}"),
                file.to_string(),
                "caps work only on the model they were made for: extract and calibrate on this model",
            )))
        };
        if self.caps.width() != width {
            return other("axiscap.width", "width", width, self.caps.width());
        }
        if self.model.blocks != blocks {
            return other("controlvector.layer_count", "number of blocks", blocks, self.model.blocks);
        }
        if self.model.architecture == architecture {
            return Ok(Vec::new());
        }
        Ok(vec![Warning::OtherArchitecture {
            file: self.model.architecture.clone(),
            model: architecture.to_owned(),
        }])
    }

    /// Compares what the file says of its model beyond its shape with a model: name and quantisation, where both
    /// know them. Shape and architecture are for [`CapFile::check_model`].
    ///
    /// Another name is no proof of another model, and caps of another quantisation are only less exact, so these are
    /// warnings.
    #[must_use]
    pub fn check_fingerprint(&self, model: &ModelInfo) -> Vec<Warning> {
        let mut warnings = Vec::new();
        if let (Some(file), Some(model)) = (&self.model.name, &model.name)
            && file != model
        {
            warnings.push(Warning::OtherName { file: file.clone(), model: model.clone() });
        }
        if let (Some(file), Some(model)) = (self.model.file_type, model.file_type)
            && file != model
        {
            warnings.push(Warning::OtherFileType { file, model });
        }
        warnings
    }

    /// What was odd about the file when it was read.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Values under keys that this version does not know. They are kept when the file is written again.
    #[must_use]
    pub fn unknown(&self) -> &[(String, Value)] {
        &self.unknown
    }

    /// Whether no cap has a bound: a file of axes, which observes and moves nothing.
    #[must_use]
    pub fn is_unbounded(&self) -> bool {
        self.caps.caps().iter().all(|entry| entry.cap.bound().is_none())
    }

    /// Whether llama.cpp also accepts the file, as written by [`CapFile::write`], as a control vector: at most one
    /// cap per block, none on block 0.
    #[must_use]
    pub fn is_control_vector(&self) -> bool {
        self.caps.blocks().iter().all(|(&block, caps)| block > 0 && caps.len() == 1)
    }
}

/// The bytes of a file, as far as it can be a GGUF file of a sensible size.
pub(super) fn read_whole(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(FileError::io(path, "open it"))?;
    let length = file.metadata().map_err(FileError::io(path, "read its size"))?.len();
    let check = |length: u64| {
        if length <= MOST_BYTES {
            return Ok(());
        }
        let expected = format!("at most {MOST_BYTES} bytes");
        let remedy = "this is no cap file; if it is a model, give it as --model";
        Err(FileError::Invalid(Problem::boxed("file size", expected, format!("{length} bytes"), remedy)))
    };
    check(length)?;
    // One byte more than allowed, to notice a file that grew since its size was read, or has none.
    let bytes = read_at_most(file, MOST_BYTES + 1).map_err(FileError::io(path, "read it"))?;
    check(bytes.len() as u64)?;
    Ok(bytes)
}

/// The first bytes of what may never end. Whatever does not even begin like GGUF (a device, a pipe) is not read any
/// further.
fn read_at_most(reader: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut reader = reader.take(most.min(gguf::MAGIC.len() as u64));
    reader.read_to_end(&mut bytes)?;
    if bytes == gguf::MAGIC {
        reader.set_limit(most - bytes.len() as u64);
        reader.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::axis::Axis;
    use crate::cap::{BlockCap, Bound, Cap};

    /// Says when more is read than can be wanted.
    struct Guarded<R>(R, usize);

    impl<R: Read> Read for Guarded<R> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(buffer)?;
            self.1 = self.1.checked_sub(read).expect("read on and on");
            Ok(read)
        }
    }

    #[test]
    fn what_never_ends_is_read_up_to_the_limit() {
        let endless = || Guarded(gguf::MAGIC.chain(io::repeat(0)), 1 << 20);
        assert_eq!(read_at_most(endless(), 70_000).unwrap().len(), 70_000);
        let zeros = Guarded(io::repeat(0), 1 << 20);
        assert_eq!(read_at_most(zeros, 70_000).unwrap(), [0; 4]);
        let short = [&gguf::MAGIC[..], b"123"].concat();
        assert_eq!(read_at_most(&short[..], 70_000).unwrap(), short);
        assert_eq!(read_at_most(&b"GG"[..], 70_000).unwrap(), b"GG");
    }

    #[test]
    fn a_fingerprint_is_compared_as_far_as_both_know_it() {
        let info = |name: Option<&str>, file_type| ModelInfo {
            name: name.map(Into::into),
            file_type,
            ..ModelInfo::new("llama", 2)
        };
        let cap = Cap::new(Axis::from_direction(&[1.0]).unwrap(), Bound::NONE);
        let file =
            |model| CapFile::new(CapSet::new([BlockCap { block: 1, cap: cap.clone() }]).unwrap(), model);
        let known = file(info(Some("a"), Some(3)));
        for same in [info(Some("a"), Some(3)), info(None, Some(3)), info(Some("a"), None), info(None, None)] {
            assert_eq!(known.check_fingerprint(&same), []);
            assert_eq!(file(same).check_fingerprint(&info(Some("a"), Some(3))), []);
        }
        assert_eq!(
            known.check_fingerprint(&info(Some("b"), Some(15))),
            [
                Warning::OtherName { file: "a".into(), model: "b".into() },
                Warning::OtherFileType { file: 3, model: 15 }
            ]
        );
    }
}
