//! A cap file in memory.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::cap::CapSet;
use crate::error::Error;
use crate::file::control_vector::ControlVector;
use crate::file::error::{FileError, Problem, Result};
use crate::file::gguf::{self, Gguf, Value};
use crate::file::model_info::ModelInfo;
use crate::file::origin::Origin;
use crate::file::output::write_atomically;
use crate::file::warning::Warning;
use crate::file::{decode, encode};

/// Maximum size of a file that is read or written. The caps of 80 blocks of width 8192 take 2.6 MB.
pub(crate) const MAX_BYTES: u64 = 1 << 30;

/// Caps, the rows they leave alone, the model they are for, and how they were made.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CapFile {
    /// The caps, in order.
    pub caps: CapSet,
    /// The model they were made for.
    pub model: ModelInfo,
    /// The meaning of a positive projection, e.g. `more Assistant`.
    pub orientation: Option<String>,
    /// How the file was made.
    pub origin: Origin,
    /// Values under unknown keys. They are written again.
    pub(super) unknown: Vec<(String, Value)>,
    pub(super) warnings: Vec<Warning>,
}

impl CapFile {
    /// Maximum number of caps of a file: 32 on each block of a model of 128. All of them may share one axis
    /// in the file, but a [`CapTable`](crate::CapTable) holds one copy of the axis per cap.
    pub const MAX_CAPS: usize = 4096;

    /// Makes the content of a new file, without orientation and origin. Its caps act on every row.
    #[must_use]
    pub fn new(caps: CapSet, model: ModelInfo) -> Self {
        let origin = Origin::default();
        let (unknown, warnings) = (Vec::new(), Vec::new());
        Self { caps, model, orientation: None, origin, unknown, warnings }
    }

    /// Reads a cap file.
    ///
    /// # Errors
    /// [`FileError`], for a control vector without bounds [`FileError::PlainControlVector`].
    pub fn read(path: &Path) -> Result<Self> {
        read_whole(path).and_then(|bytes| Self::from_bytes(&bytes)).map_err(|error| error.in_file(path))
    }

    /// Reads axes for a calibration: those of a cap file with their bounds, or those of a plain control
    /// vector for `model` without bounds.
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

    /// Parses the bytes of a cap file. The error holds no file name; see [`FileError::in_file`].
    ///
    /// # Errors
    /// [`FileError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        decode::cap_file(Gguf::parse(bytes)?)
    }

    /// Writes the file, whole or not at all.
    ///
    /// The bytes go to a temporary file in the same folder, which then replaces `path` in one step. Symbolic
    /// links are followed, and an older file's permissions are kept.
    ///
    /// # Errors
    /// [`FileError`]. An older file is unchanged then.
    pub fn write(&self, path: &Path) -> Result<()> {
        let bytes = self.to_bytes().map_err(|error| error.in_file(path))?;
        write_atomically(path, |out| out.write_all(&bytes))
    }

    /// Returns the bytes of the file. The same content gives the same bytes.
    ///
    /// # Errors
    /// [`FileError::Invalid`] for content that [`CapFile::from_bytes`] would refuse, e.g. a cap on a block
    /// beyond [`ModelInfo::blocks`], more than [`CapFile::MAX_CAPS`] caps, or more bytes than a file may
    /// have.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        encode::cap_file(self)
    }

    /// Checks the file against a model: its architecture, its width (`n_embd`) and its number of blocks.
    ///
    /// Another architecture name is a warning only, because a model may have two names.
    ///
    /// # Errors
    /// [`FileError::OtherModel`] for another width or number of blocks.
    pub fn check_model(&self, architecture: &str, width: usize, blocks: usize) -> Result<Vec<Warning>> {
        self.caps.check_model(width, blocks).map_err(FileError::other_model)?;
        if self.model.blocks != blocks {
            let error = Error::BlockCount { caps: self.model.blocks, model: blocks };
            return Err(FileError::other_model(error));
        }
        if self.model.architecture == architecture {
            return Ok(Vec::new());
        }
        Ok(vec![Warning::OtherArchitecture {
            file: self.model.architecture.clone(),
            model: architecture.to_owned(),
        }])
    }

    /// Compares norms, name and quantisation of the file's model with those of a model, if both are known.
    ///
    /// These are warnings only. Caps for another quantisation are only less exact. Another name is no proof
    /// of another model, and says nothing if the norms agree. [`CapFile::check_model`] checks shape and
    /// architecture.
    #[must_use]
    pub fn check_fingerprint(&self, model: &ModelInfo) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let norms = self.model.compare_norms(model);
        if let Some(Err(norm)) = norms {
            warnings.push(Warning::OtherWeights { tensor: norm.tensor.clone() });
        }
        if let (Some(file), Some(model)) = (&self.model.name, &model.name)
            && file != model
            && norms != Some(Ok(()))
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

    /// Returns the warnings from reading the file.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Returns the values under unknown keys. They are written again.
    #[must_use]
    pub fn unknown(&self) -> &[(String, Value)] {
        &self.unknown
    }

    /// Whether no cap has a bound. Such a file of axes observes and changes nothing.
    #[must_use]
    pub fn is_unbounded(&self) -> bool {
        self.caps.caps().iter().all(|entry| entry.cap.bound().is_none())
    }

    /// Whether llama.cpp accepts the written file as a control vector: at most one cap per block, none on
    /// block 0.
    #[must_use]
    pub fn is_control_vector(&self) -> bool {
        self.caps.blocks().iter().all(|(&block, caps)| block > 0 && caps.len() == 1)
    }
}

/// Reads a file, as far as it can be a GGUF file within the maximum size.
pub(super) fn read_whole(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(FileError::io(path, "open it"))?;
    let length = file.metadata().map_err(FileError::io(path, "read its size"))?.len();
    let check = |length: u64| {
        if length <= MAX_BYTES {
            return Ok(());
        }
        let expected = format!("at most {MAX_BYTES} bytes");
        let remedy = "this is no cap file; name one";
        Err(FileError::Invalid(Problem::boxed("file size", expected, format!("{length} bytes"), remedy)))
    };
    check(length)?;
    // One byte more than allowed, to notice a file that has grown, or whose size is unknown.
    let bytes = read_at_most(file, MAX_BYTES + 1).map_err(FileError::io(path, "read it"))?;
    check(bytes.len() as u64)?;
    Ok(bytes)
}

/// Reads at most `max` bytes. Input that does not begin like GGUF, such as a device or a pipe, is not read
/// any further.
fn read_at_most(reader: impl Read, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut reader = reader.take(max.min(gguf::MAGIC.len() as u64));
    reader.read_to_end(&mut bytes)?;
    if bytes == gguf::MAGIC {
        reader.set_limit(max - bytes.len() as u64);
        reader.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::axis::Axis;
    use crate::cap::{BlockCap, Bound, Cap};
    use crate::file::keys::SKIP_POSITIONS;
    use crate::file::norm_digest::NormDigest;

    /// Panics when more is read than necessary.
    struct Guarded<R>(R, usize);

    impl<R: Read> Read for Guarded<R> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(buffer)?;
            self.1 = self.1.checked_sub(read).expect("no more is read than necessary");
            Ok(read)
        }
    }

    #[test]
    fn endless_input_is_read_up_to_the_limit() {
        let endless = || Guarded(gguf::MAGIC.chain(io::repeat(0)), 1 << 20);
        assert_eq!(read_at_most(endless(), 70_000).unwrap().len(), 70_000);
        let zeros = Guarded(io::repeat(0), 1 << 20);
        assert_eq!(read_at_most(zeros, 70_000).unwrap(), [0; 4]);
        let short = [&gguf::MAGIC[..], b"123"].concat();
        assert_eq!(read_at_most(&short[..], 70_000).unwrap(), short);
        assert_eq!(read_at_most(&b"GG"[..], 70_000).unwrap(), b"GG");
    }

    #[test]
    fn a_policy_that_is_not_known_is_not_written() {
        let cap = Cap::new(Axis::from_direction(&[1.0]).unwrap(), Bound::NONE);
        let caps = CapSet::new([BlockCap { block: 1, cap }]).unwrap();
        for key in ["axiscap.policy.skip_roles", "axiscap.policy.", SKIP_POSITIONS] {
            let mut file = CapFile::new(caps.clone(), ModelInfo::new("llama", 2));
            file.unknown = vec![("axiscap.tomorrow".into(), 1u8.into()), (key.into(), 1u32.into())];
            let error = file.to_bytes().unwrap_err();
            assert!(matches!(error, FileError::Unsupported(_)), "{error}");
            assert_eq!(error.field(), Some(key));
            file.unknown.pop();
            file.to_bytes().unwrap();
        }
    }

    #[test]
    fn names_and_quantisations_are_compared_if_both_are_known() {
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

    #[test]
    fn norms_are_compared_by_their_names_and_overrule_the_name_of_the_model() {
        let info = |name: &str, norms: &[(&str, u8)]| {
            let norm =
                |&(tensor, byte): &(&str, u8)| NormDigest { tensor: tensor.into(), sha256: [byte; 32] };
            let (name, norms) = (Some(name.into()), norms.iter().map(norm).collect());
            ModelInfo { name, norms, ..ModelInfo::new("llama", 2) }
        };
        let cap = Cap::new(Axis::from_direction(&[1.0]).unwrap(), Bound::NONE);
        let caps = CapSet::new([BlockCap { block: 1, cap }]).unwrap();
        let file = CapFile::new(caps, info("a", &[("out", 1), ("x", 2), ("y", 3)]));
        let check = |name: &str, norms: &[(&str, u8)]| file.check_fingerprint(&info(name, norms));
        let other_name = || Warning::OtherName { file: "a".into(), model: "b".into() };
        let other_weights = |tensor: &str| Warning::OtherWeights { tensor: tensor.into() };

        assert_eq!(check("a", &[("y", 3), ("out", 1)]), []);
        assert_eq!(check("b", &[("y", 3), ("out", 1), ("z", 9)]), [], "one model under two names");
        assert_eq!(check("b", &[]), [other_name()]);
        assert_eq!(check("b", &[("z", 1)]), [other_name()], "no norm in common says nothing");
        assert_eq!(check("a", &[("y", 9), ("x", 9), ("out", 1)]), [other_weights("x")]);
        assert_eq!(check("b", &[("out", 2)]), [other_weights("out"), other_name()]);
    }
}
