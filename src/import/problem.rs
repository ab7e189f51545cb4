//! Errors of importers, in the form of those of cap files.

use crate::file::gguf::Value;
use crate::file::{FileError, Problem};

/// The remedy for a file that is cut short or changed.
pub(super) const DAMAGED: &str = "the file is cut short or damaged: copy it again from its source";
/// The remedy for a file that PyTorch can load and this reader refuses.
pub(super) const SAVE_AGAIN: &str =
    "load the file in PyTorch, and save plain tensors, dicts, lists and numbers with torch.save";

/// Makes the error for bytes that are no valid file of their format.
pub(super) fn malformed(
    field: impl Into<String>,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> FileError {
    FileError::Malformed(Problem::boxed(field, expected, found, DAMAGED))
}

/// Makes the error for a valid file of a kind that is not read.
pub(super) fn unsupported(
    field: impl Into<String>,
    expected: impl Into<String>,
    found: impl Into<String>,
    remedy: impl Into<String>,
) -> FileError {
    FileError::Unsupported(Problem::boxed(field, expected, found, remedy))
}

/// Returns text from a file in quotation marks, cut to a few words.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).summary()
}
