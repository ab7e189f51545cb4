//! The caps of one block, as the kernels read them.

pub(crate) mod change;
pub(crate) mod make;
