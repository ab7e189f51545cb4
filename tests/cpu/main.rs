//! The CPU twin, held against the literal definition, the f64 oracle and itself, on every instruction set this
//! machine has.

mod definition;
mod literal;
mod support;
