//! A file of another tool, recognised by its content.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::file::{FileError, MAX_BYTES, Result};
use crate::import::capping_config::{self, CappingConfig};
use crate::import::control_vector;
use crate::import::neuronpedia::Manifest;
use crate::import::problem::unsupported;
use crate::import::torch::{Torch, refuse_legacy};
use crate::import::vectors::{self, Vectors};
use crate::import::yaml::{self, Yaml};
use crate::import::{archive, safetensors};

/// A file with axes or caps of another tool.
///
/// Opening reads the whole file and locates its tensors. Their values are read when caps are made of them.
#[derive(Debug)]
pub struct Source {
    pub(super) path: Option<PathBuf>,
    pub(super) bytes: Vec<u8>,
    pub(super) format: Format,
    pub(super) contents: Contents,
}

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// `capping_config.pt`: vectors and experiments with caps, by PyTorch.
    CappingConfig,
    /// Vectors by layer, by PyTorch.
    Torch,
    /// Vectors by layer, as safetensors.
    Safetensors,
    /// A control vector in GGUF.
    ControlVector,
    /// Neuronpedia's `persona.yaml` with the file of contrast vectors that it names.
    Neuronpedia,
}

impl Format {
    /// Returns the format's name in messages and in the origin of a cap file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CappingConfig => "capping_config.pt",
            Self::Torch => "PyTorch vectors",
            Self::Safetensors => "safetensors",
            Self::ControlVector => "control vector",
            Self::Neuronpedia => "Neuronpedia persona",
        }
    }
}

#[derive(Debug)]
pub(super) enum Contents {
    Config(CappingConfig),
    Vectors { vectors: Vectors, notes: Notes },
}

/// What a file says beside its vectors.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) architecture: Option<String>,
    pub(super) by_generator: bool,
    pub(super) bounds_ignored: bool,
    pub(super) manifest: Option<Manifest>,
}

impl Source {
    /// Opens a file. The path of a Neuronpedia asset is that of its `persona.yaml`.
    ///
    /// # Errors
    /// [`FileError`] for a file that cannot be read, that is larger than 1 GiB, damaged, of an unknown
    /// format, or that holds anything but tensors and plain data. Nothing in a file is executed.
    pub fn open(path: &Path) -> Result<Self> {
        let open = || {
            let bytes = read_whole(path)?;
            match manifest(&bytes)? {
                None => Self::from_bytes(bytes),
                Some(manifest) => Self::of_manifest(path, manifest),
            }
        };
        let source = open().map_err(|error| match error {
            // The error of a file beside a manifest names that file already.
            FileError::Malformed(problem) if problem.file.is_some() => FileError::Malformed(problem),
            FileError::Unsupported(problem) if problem.file.is_some() => FileError::Unsupported(problem),
            FileError::Invalid(problem) if problem.file.is_some() => FileError::Invalid(problem),
            error @ FileError::Io { .. } => error,
            other => other.in_file(path),
        })?;
        Ok(Self { path: Some(path.into()), ..source })
    }

    /// Reads a file in memory. A manifest alone is refused, because its vectors are in another file.
    ///
    /// # Errors
    /// [`FileError`], as for [`Source::open`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        if bytes.starts_with(&crate::file::gguf::MAGIC) {
            let vector = control_vector::parse(&bytes)?;
            let notes = Notes {
                architecture: vector.architecture,
                by_generator: vector.by_generator,
                ..Notes::default()
            };
            let contents = Contents::Vectors { vectors: vector.vectors, notes };
            return Ok(Self { path: None, bytes, format: Format::ControlVector, contents });
        }
        if bytes.starts_with(&archive::MAGIC) {
            let torch = Torch::parse(&bytes)?;
            if let Some(config) = capping_config::of_torch(&torch)? {
                drop(torch);
                let contents = Contents::Config(config);
                return Ok(Self { path: None, bytes, format: Format::CappingConfig, contents });
            }
            let vectors = vectors::of_torch(&torch, torch.document.root(), "tensor")?;
            drop(torch);
            let contents = Contents::Vectors { vectors, notes: Notes::default() };
            return Ok(Self { path: None, bytes, format: Format::Torch, contents });
        }
        // The length in front of a safetensors header may have the first bytes of a pickle.
        if safetensors::is_one(&bytes) {
            let (vectors, bounds_ignored) = safetensors::parse(&bytes)?;
            let contents = Contents::Vectors { vectors, notes: Notes { bounds_ignored, ..Notes::default() } };
            return Ok(Self { path: None, bytes, format: Format::Safetensors, contents });
        }
        refuse_legacy(&bytes)?;
        if manifest(&bytes)?.is_some() {
            let expected = "a file that holds vectors";
            let remedy = "open the manifest by its path, so that the file of vectors beside it is found";
            return Err(unsupported("file format", expected, "a manifest alone", remedy));
        }
        let start = bytes[..bytes.len().min(8)].escape_ascii();
        let expected = "a file of PyTorch, safetensors, a GGUF control vector, or a persona.yaml";
        let remedy = "name one of these; docs/import.md says what each holds";
        Err(unsupported("file format", expected, format!("a file that begins with \"{start}\""), remedy))
    }

    fn of_manifest(path: &Path, manifest: Manifest) -> Result<Self> {
        let file = path.parent().unwrap_or(Path::new("")).join(&manifest.vectors);
        let read = || {
            let source = Self::from_bytes(read_whole(&file)?)?;
            match source {
                Self {
                    bytes,
                    format: Format::Torch | Format::Safetensors,
                    contents: Contents::Vectors { vectors, notes },
                    ..
                } => {
                    let notes = Notes { manifest: Some(manifest), ..notes };
                    let contents = Contents::Vectors { vectors, notes };
                    Ok(Self { path: None, bytes, format: Format::Neuronpedia, contents })
                }
                Self { format, .. } => {
                    let remedy = "name a file of vectors by layer in the manifest";
                    Err(unsupported("file format", "vectors by layer", format.name(), remedy))
                }
            }
        };
        read().map_err(|error| error.in_file(&file))
    }

    /// Returns the file's format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Returns the file's name without its folder.
    pub(super) fn file_name(&self) -> Option<String> {
        Some(self.path.as_deref()?.file_name()?.to_string_lossy().into_owned())
    }

    /// Puts the file's name into an error.
    pub(super) fn in_file(&self, error: FileError) -> FileError {
        match &self.path {
            Some(path) => error.in_file(path),
            None => error,
        }
    }
}

/// Reads the manifest in a file of text, if it is one.
fn manifest(bytes: &[u8]) -> Result<Option<Manifest>> {
    // No other format begins like text that is YAML: their first bytes are checked before.
    let is_text = bytes.len() <= yaml::MAX_BYTES
        && !bytes.contains(&0)
        && !bytes.starts_with(&archive::MAGIC)
        && !bytes.starts_with(&crate::file::gguf::MAGIC);
    match str::from_utf8(bytes) {
        Ok(text) if is_text && text.contains(':') => Manifest::of_yaml(&Yaml::parse(text)?),
        _ => Ok(None),
    }
}

/// Reads a file, as far as it can be one of a known format.
fn read_whole(path: &Path) -> Result<Vec<u8>> {
    let mut file = File::open(path).map_err(FileError::io(path, "open it"))?;
    let mut bytes = Vec::new();
    let mut read = |bytes: &mut Vec<u8>, limit: u64| {
        file.by_ref().take(limit).read_to_end(bytes).map_err(FileError::io(path, "read it"))
    };
    // A manifest is short. Longer input must begin like another format, or it may be a device without an end.
    read(&mut bytes, yaml::MAX_BYTES as u64 + 1)?;
    if bytes.len() <= yaml::MAX_BYTES || !is_binary(&bytes) {
        return Ok(bytes);
    }
    // One byte more than allowed, to notice a file that is too large.
    let left = MAX_BYTES + 1 - bytes.len() as u64;
    read(&mut bytes, left)?;
    if bytes.len() as u64 > MAX_BYTES {
        let expected = format!("at most {MAX_BYTES} bytes");
        let remedy = "axes and caps are smaller; name another file";
        return Err(unsupported("file size", expected, format!("at least {} bytes", bytes.len()), remedy));
    }
    Ok(bytes)
}

/// Whether a file begins like one of the binary formats.
fn is_binary(bytes: &[u8]) -> bool {
    bytes.starts_with(&archive::MAGIC)
        || bytes.starts_with(&crate::file::gguf::MAGIC)
        || bytes.first() == Some(&0x80)
        || bytes.get(8) == Some(&b'{')
}
