//! Cap files: the caps of a model, and how they were made.
//!
//! The native form is a GGUF file. A file with at most one cap per block and none on block 0 is also a
//! control vector that llama.cpp accepts. `docs/cap-files.md` lists every field.
//!
//! ```no_run
//! use axiscap::file::CapFile;
//!
//! let file = CapFile::read("smollm2-135m-instruct.caps.gguf".as_ref())?;
//! for warning in file.check_model("llama", 576, 30)? {
//!     eprintln!("warning: {warning}");
//! }
//! for entry in file.caps.caps() {
//!     println!("block {}: {}", entry.block, entry.cap.bound());
//! }
//! # Ok::<(), axiscap::file::FileError>(())
//! ```
//!
//! # Strictness
//! Files are untrusted. The reader compares every count and length with the bytes that are left before it
//! uses them, executes nothing, and refuses what it does not understand. Every [`FileError`] names the file
//! and the field, what was expected there, what was found, and what to do.
//!
//! # Files of axes
//! An extraction finds axes, and a calibration gives them bounds. Axes are stored as a cap file whose caps
//! have no bounds ([`CapFile::is_unbounded`]). There is one format and one reader, with a place for block 0
//! and for the axes' norms. Such a file can be run: it observes the projections and changes nothing.
//! [`ControlVector`] reads plain control vectors of other tools.

mod axes;
mod cap_file;
mod control_vector;
mod decode;
mod encode;
mod error;
mod fields;
mod folder;
pub mod gguf;
mod keys;
mod model_info;
mod norm_digest;
mod origin;
mod output;
mod quantiles;
mod warning;

pub use cap_file::CapFile;
pub use control_vector::ControlVector;
pub use error::{FileError, Problem};
pub use folder::cap_files;
pub use model_info::ModelInfo;
pub use norm_digest::NormDigest;
pub use origin::Origin;
pub use output::write_atomically;
pub use quantiles::Quantiles;
pub use warning::Warning;

#[cfg(feature = "import")]
pub(crate) use {
    axes::axis_problem,
    cap_file::MAX_BYTES,
    error::{Result, printable},
    fields::invalid,
};
