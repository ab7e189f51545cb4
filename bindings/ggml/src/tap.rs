//! Observation of block outputs while a model runs.

use std::fmt;
use std::sync::Arc;

/// An observer of block outputs, before any cap of the block.
#[derive(Clone)]
pub struct Tap {
    /// The blocks to observe.
    pub blocks: Vec<usize>,
    /// Called once per micro-batch and block with all its rows, on one of ggml's threads.
    pub see: Arc<dyn Fn(usize, TapRows<'_>) + Send + Sync>,
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap").field("blocks", &self.blocks).finish_non_exhaustive()
    }
}

/// The rows of a block output: one per token, or in the last block one per token with logits.
#[derive(Debug, Clone, Copy)]
pub struct TapRows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) stride: usize,
}

impl<'a> TapRows<'a> {
    /// Returns the number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns one row, `n_embd` values.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, index: usize) -> &'a [f32] {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        &self.values[index * self.stride..][..self.width]
    }
}
