//! Capped generation on llama.cpp.
//!
//! [`Model`] loads a GGUF, [`Context`] is a llama.cpp context whose graphs run with caps on the outputs of its
//! transformer blocks (through `axiscap-ggml`'s hook, in an unmodified llama.cpp), [`generate`](generate())
//! and [`Chat`] write text with it, and [`TraceRow`] says what every cap did to every row.
//!
//! ```no_run
//! use axiscap_llama::{Context, ContextOptions, GenerateOptions, Model, ModelOptions, generate};
//! # let caps: axiscap::CapSet = unimplemented!();
//!
//! let model = Model::load("model.gguf", &ModelOptions::default())?;
//! let mut context = Context::new(&model, &ContextOptions::default())?;
//! context.set_caps(Some(&caps))?;
//! let prompt = model.tokenize("The sea at night", true)?;
//! let written = generate(&mut context, &prompt, &GenerateOptions::default(), |piece| {
//!     print!("{piece}");
//!     std::ops::ControlFlow::Continue(())
//! })?;
//! println!("\n{} tokens per second", written.timings.decode_tokens_per_second());
//! # Ok::<(), axiscap_llama::Error>(())
//! ```
//!
//! Never silently uncapped: a decode in which a capped block was not seen with all its rows is an error.

pub mod activations;
mod backend;
pub mod bench;
pub mod calibrate;
mod chat;
mod context;
pub mod drift;
mod error;
pub mod extract;
mod extract_separation;
mod generate;
pub mod line_chart;
mod log;
mod memory;
mod model;
#[cfg(feature = "dynamic-backends")]
mod modules;
pub mod rollout;
pub mod rollout_file;
pub mod rollout_part;
pub mod rollout_plan;
mod threads;
mod trace;
mod utf8;

pub use axiscap_ggml::{Engine, FusedNorms, GraphCounts, Hook, HookError, ModelShape, NormObstacle, Session};
pub use llama_cpp_2::token::LlamaToken as Token;

pub use crate::backend::{Build, Device, build, devices};
pub use crate::chat::{Chat, Message, Role, Turn};
pub use crate::context::{BatchRow, Context, ContextOptions, KvType, MOST_CTX};
pub use crate::error::Error;
pub use crate::extract_separation::Separation;
pub use crate::generate::{GenerateOptions, Generated, Sampling, Stop, Timings, generate};
pub use crate::model::{Model, ModelOptions};
pub use crate::threads::{MOST as MOST_THREADS, default_threads};
pub use crate::trace::{AnswerMeans, TraceRow, answer_means};
#[cfg(feature = "dynamic-backends")]
pub use crate::{backend::modules, modules::Module};
