//! Cap files: which caps a model runs under, and where they come from.
//!
//! The native form is a GGUF file. A file with at most one cap per block and none on block 0 is also a control
//! vector that llama.cpp accepts. `docs/cap-files.md` lists every field.
//!
//! ```no_run
//! use axiscap::file::CapFile;
//!
//! let file = CapFile::read("assets/smollm2-135m-instruct.caps.gguf".as_ref())?;
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
//! Files come from strangers. The reader believes no count or length before it has compared it with the bytes
//! that are left, executes nothing, and refuses what it does not understand; every [`FileError`] says which field
//! of which file is wrong, what was expected there, what was found, and what to do.
//!
//! # Files of axes
//! The axes that an extraction finds, and that a calibration gives bounds to, are stored as a cap file too: one
//! whose caps have no bounds ([`CapFile::is_unbounded`]). So there is one format and one reader, block 0 and the
//! axes' norms have their place, and such a file can be run as it is: it observes the projections and moves
//! nothing. Plain control vectors made elsewhere are read by [`ControlVector`].

mod axes;
mod cap_file;
mod control_vector;
mod decode;
mod encode;
mod error;
mod fields;
pub mod gguf;
mod keys;
mod origin;
mod output;
mod warning;

pub use cap_file::{CapFile, ModelInfo};
pub use control_vector::ControlVector;
pub use error::{FileError, Problem};
pub use origin::Origin;
pub use output::write_atomically;
pub use warning::Warning;
