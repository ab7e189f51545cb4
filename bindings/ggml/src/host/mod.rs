//! ggml as the hook's host: its functions, structures and habits.
//!
//! Nothing outside this folder names a function or a field of ggml that it did not get from here. Functions
//! come from one table ([`Api`]), linked or looked up. Offsets of fields and slots, numbers of operations and
//! meanings of flags are measured ([`Layout`]). The hook therefore runs in builds of ggml that it was not
//! compiled with.

mod api;
pub(crate) mod architecture;
mod arena;
mod buffers;
mod cpu;
mod graph;
mod layout;
mod own_graphs;
mod tensor;
mod tensor_layout;
mod types;
pub(crate) mod uid;
mod use_counts;

pub use api::Symbols;
#[cfg(feature = "linked")]
pub(crate) use api::use_linked_host;
pub(crate) use api::{Api, api, cuda_backend_was_read, ggml_version, use_host};
#[cfg(test)]
pub(crate) use arena::chain;
pub(crate) use arena::{Arena, GRAPH_SIZE};
pub(crate) use buffers::{freed as freed_buffers, watch as watch_buffer};
pub(crate) use graph::Graph;
pub(crate) use layout::{Layout, layout, named_offsets};
pub(crate) use own_graphs::OwnGraphs;
pub(crate) use tensor::{Tensor, ops};
#[cfg(feature = "gpu")]
pub(crate) use types::Event;
pub(crate) use types::{
    Backend, Buffer, Device, DeviceType, F32, FAILED, RawContext, RawGraph, RawTensor, SUCCESS, Status,
};
