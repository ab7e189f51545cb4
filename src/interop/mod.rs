//! Conversions of pointers and streams of other crates, and nothing else.

#[cfg(feature = "cuda")]
pub mod cudarc;
#[cfg(feature = "cust")]
pub mod cust;
