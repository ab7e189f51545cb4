//! Activation capping: hold the residual stream's projection on a persona axis within bounds.
//!
//! Language models drift away from their trained Assistant character, most of all in emotional and
//! self-reflective conversations. *The Assistant Axis* (arXiv 2601.10387) found the dominant direction of that
//! drift and showed that clamping the residual stream's projection on it, at a few middle-to-late blocks and for
//! every token, halves harmful persona drift without making the model dumber. This crate holds that operation:
//! its vocabulary ([`Axis`], [`Bound`], [`Cap`], [`CapSet`]), its CPU implementation ([`cpu`]) and the cap files
//! ([`mod@file`]). It knows nothing of llama.cpp; `axiscap-ggml` and `axiscap-llama` bring the two together.
//!
//! # The operation
//! For a row `h` of `d` values and the ordered caps of its block, each with unit axis `v`, bounds `lo <= hi` and
//! strength `a`: `p = <h, v>`; `c = clamp(p, lo, hi)`; where `c != p`, `h += a (c - p) v`. Inside the bounds
//! nothing is written, bit for bit. `docs/operation.md` fixes the order of every addition, so that all
//! implementations give the same bits.

mod axis;
pub mod backend;
mod cap;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
pub mod file;
#[cfg(feature = "cuda")]
pub mod interop;
mod stats;
mod table;

pub use axis::{Axis, UNIT_TOLERANCE};
pub use cap::{BlockCap, Bound, Cap, CapSet};
pub use error::{Error, Result, RowsError};
pub use stats::{CapStats, RowStat};
pub use table::{CapParams, CapTable};
