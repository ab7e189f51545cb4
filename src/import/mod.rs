//! Axes and caps from files of other tools (feature `import`).
//!
//! | format | content | becomes |
//! |---|---|---|
//! | `capping_config.pt` | vectors and experiments with caps | caps with bounds |
//! | PyTorch, safetensors | one vector per layer | axes without bounds |
//! | control vectors by llama.cpp and repeng | directions | axes without bounds |
//! | Neuronpedia's `persona.yaml` | contrast vectors per layer | axes without bounds |
//!
//! ```no_run
//! use axiscap::file::ModelInfo;
//! use axiscap::import::{Request, Source, Target};
//!
//! let source = Source::open("capping_config.pt".as_ref())?;
//! let target = Target { model: ModelInfo::new("qwen3", 64), width: 5120 };
//! let request = Request { experiment: Some("layers_46:54-p0.25"), ..Request::default() };
//! let imported = source.caps(&target, &request)?;
//! for warning in &imported.warnings {
//!     eprintln!("warning: {warning}");
//! }
//! imported.file.write("qwen3-32b.caps.gguf".as_ref())?;
//! # Ok::<(), axiscap::file::FileError>(())
//! ```
//!
//! # Trust
//! Files are untrusted. A pickle is read by a machine that knows the opcodes of plain data and the few names
//! of PyTorch's tensors. It calls nothing. Archives that are compressed, encrypted or ambiguous are refused.
//! Every size is compared with the bytes that are there before memory is allocated, and memory is
//! proportional to the file.
//!
//! # Orientation
//! Imported axes point to the Assistant. [`Evidence`] decides which way a file's vectors point; without it,
//! the caller's word or the format's convention does, and a [`Warning`] and the file's origin say so. The
//! operation of an imported cap does not depend on that decision: an upper bound on a vector is the mirrored
//! lower bound on its negation.
//!
//! `docs/import.md` has the details of each format.

mod archive;
mod capping_config;
mod control_vector;
mod convert;
mod describe;
mod element;
mod evidence;
pub mod export;
mod neuronpedia;
mod orient;
mod pickle;
mod problem;
mod request;
mod safetensors;
mod source;
mod tensor;
mod torch;
mod vectors;
mod warning;
mod yaml;

pub use describe::{Description, ExperimentLine, VectorLine};
pub use evidence::{Evidence, MIN_COSINE};
pub use request::{Imported, PointsTo, Request, Target};
pub use source::{Format, Source};
pub use warning::Warning;
