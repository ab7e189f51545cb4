//! Launches: which kernel, which shape, which argument, and the call itself. All but the call work without a
//! GPU, so that the tests can run plans in an emulator.

mod args;
pub(super) mod kernel;
pub(super) mod limits;
mod plan;
mod shape;
mod submit;

pub use args::CapArgs;
pub use kernel::KernelPath;
pub use limits::Limits;
pub use plan::Plan;
pub use shape::Shape;
pub use submit::Overlap;
