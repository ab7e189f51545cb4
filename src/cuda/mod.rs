//! The operation on an NVIDIA GPU: the kernels of `kernels/`, launched on foreign memory and streams.
//!
//! The kernels are compiled at build time (`build.rs`), and the driver is loaded at run time. One binary so
//! runs with and without a GPU: [`probe`] and [`Device::open`] say what is missing and how to get it, and
//! never panic. The results are those of [`cpu`](crate::cpu), bit for bit, except for NaN payloads.
//!
//! ```no_run
//! use axiscap::Dtype;
//! use axiscap::cuda::{Device, DeviceRows, Job, Overlap, StreamRef};
//! # fn demo(table: &axiscap::CapTable, address: u64, stream: StreamRef<'_>) -> Result<(), axiscap::cuda::CudaError> {
//! let device = Device::open(0)?;
//! let table = device.upload(table)?;
//! let job = Job::cap(DeviceRows { dtype: Dtype::F32, address, count: 512, stride: 4096 });
//! // SAFETY: 512 rows of 4096 f32 are at `address`, and only work on `stream` touches them.
//! unsafe { job.launch(&table, stream, Overlap::None)? };
//! # Ok(()) }
//! ```
//!
//! On `CudaSlice`s of cudarc the same is safe: [`interop::cudarc`](crate::interop::cudarc).
//!
//! # Errors of drops
//! A call that fails while a value is dropped cannot return its error. The next call on the same GPU returns
//! it.

mod device;
mod driver;
mod error;
mod faults;
mod graph;
mod image;
mod launch;
mod library;
mod memory;
#[doc(hidden)]
pub mod raw;
mod stream;
mod table;

pub use device::{Device, DeviceInfo, probe};
pub use error::{CudaError, DriverError};
pub use faults::ProfileFaults;
pub use image::{ImageInfo, image};
pub use launch::{Limits, Overlap};
pub use stream::StreamRef;
pub use table::{DeviceTable, RowProfileBuffer};

pub use crate::op::{DeviceJob as Job, DeviceMemory, DeviceRows};
