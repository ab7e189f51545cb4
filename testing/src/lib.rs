//! What the tests and benchmarks of several axiscap crates share.
//!
//! | module | contents |
//! |---|---|
//! | [`literal`] | a literal transcription of docs/operation.md |
//! | [`median`] | the median of a sample and its confidence interval |
//! | [`numbers`] | pseudo-random numbers that are the same on every machine |
//! | `llama` | models and contexts of llama.cpp: random ones of every architecture, made in the process (feature `llama`) |
//! | `case`, `sweep`, `twin` | launches of the CUDA kernels, and the same calls on the CPU (feature `cuda`) |

#[cfg(feature = "cuda")]
pub mod case;
pub mod literal;
#[cfg(feature = "llama")]
pub mod llama;
pub mod median;
mod model;
pub mod numbers;
#[cfg(feature = "cuda")]
pub mod sweep;
#[cfg(feature = "cuda")]
mod twin;

pub use model::small_model;
