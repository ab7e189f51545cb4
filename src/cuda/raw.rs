//! Lower layers, for `axiscap-ggml`, the tests and the benchmarks: streams, events, buffers and graphs of our
//! own, and launches that are planned without a GPU. They may change in any release.

pub use crate::cuda::graph::{CapturedGraph, GraphExec};
pub use crate::cuda::launch::{CapArgs, KernelPath, Plan, Shape};
pub use crate::cuda::memory::{Buffer, PinnedBuffer, gpu_of, read};
pub use crate::cuda::stream::{Event, EventRef, Stream, is_done};
pub use crate::cuda::table::{PackedTable, TableLayout, TableView};
