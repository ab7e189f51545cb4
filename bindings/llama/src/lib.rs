//! Capped generation on llama.cpp.
//!
//! [`Model`] loads a GGUF. [`Context`] is a llama.cpp context whose graphs run with caps on the outputs of
//! its transformer blocks, through the hook of `axiscap-ggml`, in an unmodified llama.cpp.
//! [`generate`](generate()) and [`Chat`] write text with it. [`TraceRow`] says what every cap did to every
//! row.
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
//! [`Watch`] follows how far the answers of a text drift, token by token, and raises alarms.
//!
//! A decode in which a capped block was not seen with all its rows is an error: text is never silently
//! uncapped.

mod alarm;
mod backend;
mod batch;
mod batcher;
mod cached;
mod chat;
mod context;
mod error;
mod fingerprint;
mod generate;
mod gguf;
mod kv_type;
pub mod log;
mod memory;
mod message;
mod model;
#[cfg(feature = "dynamic-backends")]
mod modules;
mod norms;
mod options;
mod saved;
mod schedule;
mod special;
mod split;
mod template;
mod threads;
mod trace;
mod utf8;
mod watch;

pub use axiscap_ggml::{
    CapDigest, FusedNorms, GraphCounts, Hook, HookError, ModelShape, NotFusedReason, ProfileId, ProfileInfo,
    Route, RouteChoice, RouteUse, Session, Settings, Tap, TapRows,
};
pub use llama_cpp_2::token::LlamaToken as Token;

pub use crate::alarm::{Alarm, AlarmRule};
pub use crate::backend::{Build, Device, build, devices};
pub use crate::batch::BatchRow;
pub use crate::batcher::{Batcher, BatcherOptions, Event, Finished, Request, RequestId};
pub use crate::chat::{Asked, Chat, Turn};
pub use crate::context::Context;
pub use crate::error::{Error, LoadFailure};
pub use crate::fingerprint::Fingerprint;
pub use crate::generate::{
    GenerateOptions, Generated, Sampling, Step, Stop, Timings, generate, generate_watched, log_probability,
};
pub use crate::kv_type::KvType;
pub use crate::message::{Message, Role};
pub use crate::model::{Model, ModelOptions};
pub use crate::options::{ContextOptions, ContextParams, MAX_CTX};
pub use crate::saved::SavedSequence;
pub use crate::schedule::{Engagement, RAMP_STEPS, Schedule};
pub use crate::split::model_files;
pub use crate::template::{ChatTemplate, Rendered, TemplateNote, TemplateOptions, TemplateSource};
pub use crate::threads::{MAX_THREADS, default_threads};
pub use crate::trace::{AnswerMeans, TraceRow, answer_means};
pub use crate::watch::{AlarmState, Level, Reading, Thresholds, Watch, Watcher};
#[cfg(feature = "dynamic-backends")]
pub use crate::{backend::modules, modules::Module};
