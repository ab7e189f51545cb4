//! Conversions of other crates' pointers and streams.

#[cfg(feature = "cuda")]
pub mod cudarc;
#[cfg(feature = "cust")]
pub mod cust;
