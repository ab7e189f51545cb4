//! Activation capping inside an unmodified ggml.
//!
//! llama.cpp computes a token by handing graphs to ggml backends. [`Hook::install`] replaces one function slot of
//! every ggml device, `init_backend`, so that the backends of contexts created under [`Hook::bind`] get a
//! `graph_compute` of ours. It finds the outputs of the capped blocks in each graph (nodes named `l_out-N`) and
//! sees to it that they are capped before anything reads them:
//!
//! - on the CPU backend by *inserting* a node after each of them, which ggml's own worker threads run between
//!   their own barriers ([`Engine::Inserted`]);
//! - elsewhere by cutting the graph into *views* that end at them ([`Engine::Views`]); on ggml's CUDA backend
//!   axiscap's kernels run between them on the GPU, in stream order, else the host caps. On request they do the norm
//!   behind a block as well ([`Session::set_fused_norm`]).
//!
//! Nothing of ggml's private layout is assumed: offsets are measured, and a build that is laid out differently is
//! refused. Caps belong to a [`Session`], one per context. A decode goes through [`Session::watch`], which fails
//! when a configured block did not show up: text is never silently uncapped.
//!
//! ```text
//! Hook::install -> Hook::bind(session, || new llama_context) -> session.watch(rows, outputs, || llama_decode)
//! ```

mod by_uid;
// Without the feature there is no driver to run it with.
#[cfg_attr(not(feature = "gpu"), allow(dead_code))]
mod device;
mod engine;
mod error;
mod eval_callback;
mod graph;
mod host;
mod hook;
mod session;
mod stock_chain;
mod tap;

pub use host::Symbols;
pub use host::architecture::ModelShape;
pub use device::{BlockTiming, FusedNorms, GraphCounts, GraphTimeline, NormObstacle};
pub use error::{HookError, Seen};
pub use eval_callback::EvalCallback;
pub use hook::{DeviceReport, Hook, HookReport};
pub use session::{BlockTrace, Engine, Session};
pub use tap::{Tap, TapRows};
