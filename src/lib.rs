//! Activation capping: hold the residual stream's projection on a persona axis within bounds.
//!
//! Language models drift away from their trained Assistant character, most of all in emotional and
//! self-reflective conversations. *The Assistant Axis* (arXiv 2601.10387) found the dominant direction of
//! that drift. It showed that clamping the residual stream's projection on this direction, at a few
//! middle-to-late blocks and for every token, halves harmful persona drift and keeps the model's
//! capabilities.
//!
//! This crate holds that operation. It knows nothing of llama.cpp; `axiscap-ggml` and `axiscap-llama` bring
//! the two together.
//!
//! | part | contents |
//! |---|---|
//! | root | the vocabulary: [`Axis`], [`Bound`], [`Cap`], [`CapSet`], [`Policy`], [`CapTable`], statistics |
//! | [`op`] | the description of a call, for every kind of memory |
//! | [`cpu`] | the operation on the CPU |
//! | `cuda` | the operation on NVIDIA GPUs, with the same bits (feature `cuda`) |
//! | `interop` | cudarc's and `cust`'s types (features `cuda` and `cust`) |
//! | [`mod@file`] | cap files |
//! | `import` | axes and caps from files of other tools (feature `import`) |
//!
//! # The operation
//! For a row `h` of `d` values and the ordered caps of its block, each with unit axis `v`, bounds `lo <= hi`
//! and strength `a`: `p = <h, v>`; `c = clamp(p, lo, hi)`; if `c != p`, `h += a (c - p) v`. Inside the bounds
//! nothing is written, bit for bit. `docs/operation.md` fixes the order of every addition, so that all
//! implementations give the same bits.
//!
//! # Calls
//! A call is a [`op::Job`]: built by [`op::Job::cap`] and its sisters, launched by `run` on the CPU and
//! `launch` on a GPU. Everywhere in this crate a plain name works in place, and `_into` writes to other
//! memory: `add_cap` puts the capped sum into the residual, `add_cap_into` into a third batch of rows.
//!
//! # Errors
//! [`Error`] says what is wrong with caps and with the arguments of a call. [`file::FileError`] and
//! `cuda::CudaError` add what can go wrong with files and GPUs, and keep an [`Error`] as their source where
//! there is one.

mod aligned;
mod axis;
mod cap;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
pub mod file;
#[cfg(feature = "import")]
pub mod import;
#[cfg(feature = "cuda")]
pub mod interop;
pub mod op;
mod policy;
mod stats;
mod table;

pub use axis::{Axis, UNIT_TOLERANCE};
pub use cap::{BlockCap, Bound, Cap, CapSet};
pub use error::{Error, Result, RowsError};
pub use op::{Dtype, Epsilon, Operation};
pub use policy::Policy;
pub use stats::{CapStats, RowStat};
pub use table::{CapParams, CapTable};
