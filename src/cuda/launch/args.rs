//! The argument of the kernels: `CapArgs` in kernels/args.cuh, byte for byte.

use bytemuck::{Pod, Zeroable};

/// The single argument of every kernel. Addresses are device addresses, 0 where an operation does not use
/// them. Strides count elements.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct CapArgs {
    pub(crate) h: u64,
    pub(crate) x: u64,
    pub(crate) r: u64,
    pub(crate) y: u64,
    pub(crate) weight: u64,
    pub(crate) h_stride: i64,
    pub(crate) x_stride: i64,
    pub(crate) r_stride: i64,
    pub(crate) y_stride: i64,
    pub(crate) axes: u64,
    pub(crate) params: u64,
    pub(crate) ends: u64,
    pub(crate) profile: u64,
    pub(crate) stats: u64,
    pub(crate) faults: u64,
    pub(crate) axis_stride: u32,
    pub(crate) profiles: u32,
    pub(crate) first: u32,
    pub(crate) count: u32,
    pub(crate) depth: u32,
    pub(crate) rows: u32,
    pub(crate) width: u32,
    pub(crate) eps: f32,
    pub(crate) stages: u32,
    pub(crate) wide: u32,
}

// kernels/args.cuh asserts the same size. `Pod` rules out padding.
const _: () = assert!(size_of::<CapArgs>() == 160);
