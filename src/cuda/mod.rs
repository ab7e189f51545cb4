//! The operation on an NVIDIA GPU.

mod args;
mod error;
mod pack;
mod plan;
mod shape;

pub use args::CapArgs;
pub use error::CudaError;
pub use pack::{PackedTable, TableLayout, TableView};
pub use plan::{DeviceNorm, DeviceRows, Dtype, Job, MOST_ROWS, MOST_STEPS, Operation, Plan};
pub use shape::{Limits, Path, Shape};
