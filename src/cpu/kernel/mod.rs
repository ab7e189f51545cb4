//! The kernels, written once over [`Simd`](crate::cpu::simd::Simd) and compiled for each instruction set.

mod cap_step;
mod elementwise;
mod one_cap;
mod project;
pub(crate) mod row;
mod sum;
