//! The operation on the CPU.
