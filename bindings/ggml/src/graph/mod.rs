//! What the hook looks for in a graph.

pub(crate) mod ends;
pub(crate) mod find;
pub(crate) mod inputs;
pub(crate) mod weights;
