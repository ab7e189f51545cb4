//! Calls on a GPU. The functions are the same in a library without the feature `cuda`, where all of them fail.

#[cfg(not(feature = "cuda"))]
mod absent;
#[cfg(feature = "cuda")]
mod cuda;
pub(crate) mod device;
pub(crate) mod device_table;
pub(crate) mod faults;
pub(crate) mod launch;

#[cfg(not(feature = "cuda"))]
use absent as backend;
#[cfg(feature = "cuda")]
use cuda as backend;

/// The properties of a GPU.
#[derive(Debug)]
pub(crate) struct Properties {
    pub(crate) name: String,
    pub(crate) compute_capability: u32,
    pub(crate) driver_version: u32,
}
