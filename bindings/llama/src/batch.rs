//! Rows of a batch.

use crate::Token;

/// One row of a batch: a token at a position of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchRow {
    /// The token.
    pub token: Token,
    /// Its position in the sequence, from 0.
    pub position: i32,
    /// The sequence, below [`ContextOptions::sequences`](crate::ContextOptions::sequences).
    pub sequence: i32,
    /// Whether its logits are wanted. The last block computes only such rows.
    pub logits: bool,
}
