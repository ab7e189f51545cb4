//! The operation on an NVIDIA GPU: the kernels of `kernels/`, launched on memory and streams that belong to others.
//!
//! The kernels are compiled at build time (`build.rs`), the driver is loaded at run time, so that one binary runs
//! with and without a GPU: [`probe`] and [`Device::open`] say what is missing and how to get it, and never panic.
//! The results are those of [`cpu`](crate::cpu), bit for bit, NaN payloads aside.
//!
//! ```no_run
//! use axiscap::cuda::{Device, DeviceRows, Dtype, Job, Overlap, StreamRef};
//! # fn demo(table: &axiscap::CapTable, address: u64, stream: StreamRef<'_>) -> Result<(), axiscap::cuda::CudaError> {
//! let device = Device::open(0)?;
//! let table = device.upload(table)?;
//! let job = Job::in_place(Dtype::F32, DeviceRows { address, stride: 4096 }, 512);
//! // SAFETY: 512 rows of 4096 f32 lie at `address`, and only work on `stream` touches them.
//! unsafe { device.launch(&job, &table, stream, Overlap::None)? };
//! # Ok(()) }
//! ```
//!
//! On `CudaSlice`s of cudarc the same is safe: [`interop::cudarc`](crate::interop::cudarc).
//!
//! A launch is planned before it is made ([`Plan`]): which kernel, which shape, which argument. Planning needs no
//! GPU; the tests run plans in an emulator.

mod args;
mod device;
mod driver;
mod error;
mod faults;
mod graph;
mod host;
mod image;
mod memory;
mod pack;
mod plan;
mod shape;
mod staging;
mod stream;
mod table;

pub use args::CapArgs;
pub use device::{Device, DeviceInfo, Overlap, StreamRef, probe};
pub use error::CudaError;
pub use faults::ProfileFaults;
pub use graph::{CapturedGraph, GraphExec};
pub use image::{ImageInfo, image};
pub use memory::{Buffer, PinnedBuffer, gpu_of, read};
pub use pack::{PackedTable, TableLayout, TableView};
pub use plan::{DeviceNorm, DeviceRows, Dtype, Job, MOST_ROWS, MOST_STEPS, Operation, Plan};
pub use shape::{Limits, Path, Shape};
pub use stream::{Event, EventRef, Stream, is_done};
pub use table::DeviceTable;
