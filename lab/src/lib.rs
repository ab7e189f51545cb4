//! The method around capping: where axes come from, where bounds go, what caps do to a conversation, and what
//! they cost.
//!
//! 1. [`rollout`] has a model answer questions, as itself and in roles.
//! 2. [`judge`] finds the answers that ignore their role.
//! 3. [`activations`] runs the others through the uncapped model and averages or projects its block outputs.
//! 4. [`extract`] makes an axis per block from the averages. [`calibrate`] puts a floor on it from the
//!    projections.
//! 5. [`dose`] measures what caps do to text that they should leave as it is.
//! 6. [`import`] makes axes and caps of files that other tools wrote.
//! 7. [`evaluate`] measures what caps do to a model, with controls and intervals.
//! 8. [`drift`] follows the projection over a scripted conversation, uncapped and capped.
//! 9. [`transcript`] reads conversations that were had elsewhere, and [`watch`] what they project.
//! 10. [`bench`](mod@bench) measures what capping costs, in pairs, and compares with other ways to cap.
//!
//! Steps 1 to 4 follow *The Assistant Axis* (arXiv 2601.10387). `docs/method.md` says where they differ from
//! it.

pub mod activations;
mod appended;
mod baselines;
pub mod bench;
pub mod calibrate;
pub mod charts;
mod compute;
mod distribution;
pub mod dose;
pub mod drift;
mod error;
mod estimate;
pub mod evaluate;
pub mod extract;
pub mod judge;
mod likelihood;
pub mod output;
mod pass;
mod quantile;
mod reading;
pub mod report;
pub mod rollout;
mod separation;
mod text;
pub mod transcript;
pub mod watch;

pub use axiscap::import;

pub use crate::compute::ComputeOptions;
pub use crate::distribution::Distribution;
pub use crate::error::Error;
pub use crate::estimate::{Estimate, slope};
pub use crate::separation::Separation;
