//! Contexts that a program makes which does not know of the hook: a stock build of llama.cpp.
//!
//! No caller says which model a context runs, when a decode begins, or what its rows are. The graphs tell:
//!
//! - [`ModelCaps`] describe a model by its shape and by digests of its norm weights, which every
//!   quantisation leaves alone. The first graph of a context that shows enough decides which caps it gets.
//! - A micro-batch is done when a graph computes logits or embeddings. By then each capped block must have
//!   been computed with all its rows.
//! - [`Guard::replace`] changes the caps of living contexts between two micro-batches.
//! - An RPC server computes parts of the models of its clients. Each part is recognised and checked by itself.
//! - A [`Watcher`] is told what was found, and decides whether the program goes on after a fault.

mod backend;
pub(crate) mod batch;
mod context;
mod guard;
mod ledger;
mod living;
mod models;
mod promises;
mod replace;
mod seen;
pub(crate) mod slots;
mod visits;

pub(crate) use backend::{StockBackend, begin_backend};
pub use batch::StockBatch;
pub(crate) use guard::GuardState;
pub use guard::{Fault, Found, Guard, GuardCounts, Reaction, Watcher};
pub use ledger::CapTotals;
pub use living::GuardedContext;
pub use models::{Misfit, ModelCaps};
pub use replace::{Generation, ReplaceError, Replaced, ReplacedContext};
pub use seen::SeenModel;
pub use slots::SlotProfile;
