//! What can be wrong with a file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Shorthand for results of this module.
pub(crate) type Result<T, E = FileError> = std::result::Result<T, E>;

/// Why a file could not be read, written or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// A call of the operating system failed.
    #[error("{}: cannot {action}: {error}; {}", .path.display(), remedy_of(.error))]
    Io {
        /// The file.
        path: PathBuf,
        /// The step that failed, e.g. `open it`.
        action: &'static str,
        /// The system's reason.
        error: io::Error,
    },
    /// The bytes are no GGUF file: cut short, damaged, or of another format.
    #[error("{0}")]
    Malformed(Box<Problem>),
    /// A valid file of a version or kind that this reader does not know.
    #[error("{0}")]
    Unsupported(Box<Problem>),
    /// A field is missing or holds a value it cannot have.
    #[error("{0}")]
    Invalid(Box<Problem>),
    /// A valid file for another model.
    #[error("{}: {error}", name_of(.file.as_deref()))]
    OtherModel {
        /// The file, if it has a name.
        file: Option<PathBuf>,
        /// The difference.
        error: Error,
    },
    /// A control vector without bounds, where caps are needed.
    #[error(
        "{}: axiscap.version: expected a cap file, found a plain control vector, which has no bounds; read it as a ControlVector, and give it bounds that are measured on this model", name_of(.file.as_deref())
    )]
    PlainControlVector {
        /// The file, if it has a name.
        file: Option<PathBuf>,
    },
}

/// A fault of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, if it has a name.
    pub file: Option<PathBuf>,
    /// The field, by its name in the file.
    pub field: String,
    /// The value it should have.
    pub expected: String,
    /// The value it has.
    pub found: String,
    /// The remedy.
    pub remedy: String,
}

impl Problem {
    pub(crate) fn boxed(
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Box<Self> {
        Box::new(Self {
            file: None,
            field: field.into(),
            expected: expected.into(),
            found: found.into(),
            remedy: remedy.into(),
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, field, expected, found, remedy } = self;
        let file = name_of(file.as_deref());
        // Each of them may quote the file.
        let [field, expected, found, remedy] = [field, expected, found, remedy].map(|text| printable(text));
        write!(f, "{file}: {field}: expected {expected}, found {found}; {remedy}")
    }
}

impl FileError {
    /// Returns the same error with the name of the file it was found in.
    #[must_use]
    pub fn in_file(mut self, path: &Path) -> Self {
        match &mut self {
            Self::Io { path: file, .. } => *file = path.into(),
            Self::PlainControlVector { file } | Self::OtherModel { file, .. } => *file = Some(path.into()),
            Self::Malformed(problem) | Self::Unsupported(problem) | Self::Invalid(problem) => {
                problem.file = Some(path.into())
            }
        }
        self
    }

    /// Returns the field that is wrong, if the error is about one.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::Io { .. } | Self::OtherModel { .. } => None,
            Self::PlainControlVector { .. } => Some("axiscap.version"),
            Self::Malformed(problem) | Self::Unsupported(problem) | Self::Invalid(problem) => {
                Some(&problem.field)
            }
        }
    }

    pub(crate) fn other_model(error: Error) -> Self {
        Self::OtherModel { file: None, error }
    }

    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { path: path.into(), action, error }
    }
}

/// Escapes the control characters in text from a file. Names in an untrusted file must not control a
/// terminal.
pub(crate) fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { printable.extend(c.escape_default()) } else { printable.push(c) }
    }
    printable
}

fn name_of(path: Option<&Path>) -> String {
    path.map_or_else(|| "the cap file".into(), |path| path.display().to_string())
}

fn remedy_of(error: &io::Error) -> &'static str {
    use io::ErrorKind::{
        AlreadyExists, IsADirectory, NotADirectory, NotFound, PermissionDenied, QuotaExceeded,
        ReadOnlyFilesystem, StorageFull,
    };
    match error.kind() {
        NotFound => "check the path: the file or the folder it should be in does not exist",
        PermissionDenied => "check the permissions of the file and of the folder it is in",
        StorageFull | QuotaExceeded => "free some space or choose another place; nothing was changed",
        ReadOnlyFilesystem => "choose a place that can be written to",
        IsADirectory => "name a file, not a folder",
        NotADirectory => "check the path: one of its parts is a file, not a folder",
        AlreadyExists => "choose another name",
        _ => "check the path and the disk it is on, then try again",
    }
}
