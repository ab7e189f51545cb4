//! Activation capping inside an unmodified ggml.
//!
//! llama.cpp computes a token by handing graphs to ggml backends. [`Hook::install`] replaces two functions of
//! every ggml device: `init_backend`, and `get_type` to notice devices that are registered later. Backends of
//! contexts created under [`Hook::bind`] then get another `graph_compute`, which finds the outputs of the capped
//! blocks in each graph (nodes named `l_out-N`). The graph takes a [`Route`] on which they are capped before another
//! node reads them:
//!
//! - on the CPU backend a node is *inserted* after each of them, which ggml's own worker threads run between
//!   their own barriers ([`RouteChoice::Inserted`]);
//! - elsewhere the graph is cut into *views* that end at them ([`RouteChoice::Views`]). On ggml's CUDA
//!   backend axiscap's kernels run between the views on the GPU, in stream order, else the host caps. On
//!   request the kernels include the norm after a block ([`Settings::fused_norm`]).
//!
//! The private layout of ggml is measured, and a build with another layout is refused. Caps belong to a
//! [`Session`], one per context. A decode goes through [`Session::watch`], which fails when a configured
//! block was not computed, so that text is never silently uncapped.
//!
//! ```text
//! Hook::install -> Hook::bind(session, || new llama_context) -> session.watch(rows, outputs, || llama_decode)
//! ```

mod backend;
mod by_uid;
mod config;
mod decode;
mod devices;
mod digest;
mod error;
mod graph;
mod hook;
mod host;
mod order;
mod profile;
mod record;
mod report;
mod route;
mod rpc;
mod session;
mod stock;
mod tally;
mod tap;

pub use config::Settings;
pub use digest::CapDigest;
pub use error::{HookError, Seen};
pub use hook::{DeviceReport, Hook, HookReport};
pub use host::Symbols;
#[doc(hidden)]
pub use host::architecture::BlockNames;
pub use host::architecture::ModelShape;
#[doc(hidden)]
pub use order::Split;
pub use profile::{DecodeBatch, DecodeRow, Decoding, ProfileId, ProfileInfo};
pub use report::{BlockTrace, FusedNorms, GraphCounts, NotFusedReason, RouteUse, RowTrace};
#[doc(hidden)]
pub use route::{BlockOutput, ComputeError, ComputeHook, GraphCall, OwnedGraph};
pub use route::{Route, RouteChoice};
pub use session::Session;
pub use stock::{
    CapTotals, Fault, Found, Generation, Guard, GuardCounts, GuardedContext, Misfit, ModelCaps, Reaction,
    ReplaceError, Replaced, ReplacedContext, SeenModel, SlotProfile, StockBatch, Watcher,
};
pub use tally::{CapTotal, EXCESS_EDGES};
pub use tap::{Tap, TapRows};
