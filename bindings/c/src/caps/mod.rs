//! A cap file in memory.

pub(crate) mod blocks;
pub(crate) mod cap;
pub(crate) mod describe;
pub(crate) mod open;
