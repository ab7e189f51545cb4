//! The method around capping: where axes come from, where bounds go, what caps do to a conversation, and what
//! they cost.
//!
//! 1. [`rollout`] has a model answer questions, as itself and in roles.
//! 2. [`activations`] runs the answers through the uncapped model and averages or projects its block outputs.
//! 3. [`extract`] makes an axis per block from the averages. [`calibrate`] puts a floor on it from the
//!    projections.
//! 4. [`import`] makes the same of files that other tools wrote.
//! 5. [`drift`] follows the projection over a scripted conversation, uncapped and capped.
//! 6. [`bench`](mod@bench) measures what capping costs, in pairs, and compares with other ways to cap.
//!
//! Steps 1 to 3 follow *The Assistant Axis* (arXiv 2601.10387). `docs/method.md` says where they differ from
//! it.

pub mod activations;
mod baselines;
pub mod bench;
pub mod calibrate;
pub mod charts;
pub mod drift;
mod error;
pub mod extract;
pub mod output;
pub mod rollout;
mod separation;

pub use axiscap::import;

pub use crate::error::Error;
pub use crate::separation::Separation;
