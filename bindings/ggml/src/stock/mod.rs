//! Contexts that a program makes which does not know of the hook: a stock build of llama.cpp.
//!
//! No caller says which model a context runs, when a decode begins, or what its rows are. The graphs tell:
//!
//! - [`ModelCaps`] describe a model by its shape and by digests of its norm weights, which every
//!   quantisation leaves alone. The first graph of a context that shows enough decides which caps it gets.
//! - A micro-batch is done when a graph computes logits or embeddings. By then each capped block must have
//!   been computed with all its rows.
//! - A [`Watcher`] is told what was found, and decides whether the program goes on after a fault.

mod context;
mod guard;
mod models;
mod seen;

pub(crate) use context::{StockBackend, begin_backend};
pub(crate) use guard::GuardState;
pub use guard::{Fault, Found, Guard, GuardCounts, Reaction, Watcher};
pub use models::{Misfit, ModelCaps};
pub use seen::SeenModel;
