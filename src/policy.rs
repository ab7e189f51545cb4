//! A policy: the rows that caps leave alone.

/// The rows that caps leave alone, whatever their projections. By default every row is capped.
///
/// A position is a token's 0-based place in its sequence. Rows at positions `0..skip_positions` of a sequence
/// are not capped. The reason is attention sinks. In many models the later tokens attend strongly to position
/// 0, and its row holds activations that are orders of magnitude larger than those of other rows (*Massive
/// Activations in Large Language Models*, arXiv 2402.17762). Its projection is then far from theirs. A cap
/// would throw the row onto a bound that was measured on other rows, and change all text that follows.
///
/// The operations of this crate are on rows, whose positions only the caller knows. The caller obeys the
/// policy: it gives rows that are left alone a profile without bounds, which measures them, or the empty
/// profile 0 ([`CapTable`](crate::CapTable)).
///
/// ```
/// let policy = axiscap::Policy::default().with_skip_positions(1);
/// assert_eq!(policy.skip_positions, 1);
/// assert!(!policy.is_default());
/// ```
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Policy {
    /// Number of first positions of every sequence whose rows are left alone (attention sinks). 0 by default.
    pub skip_positions: u32,
}

impl Policy {
    /// Returns the same policy with another number of skipped first positions.
    #[must_use]
    pub fn with_skip_positions(mut self, skip_positions: u32) -> Self {
        self.skip_positions = skip_positions;
        self
    }

    /// Whether every row is capped. Such a policy takes no place in a cap file.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_capped_by_default() {
        let policy = Policy::default();
        assert_eq!(policy.skip_positions, 0);
        assert!(policy.is_default());
    }

    #[test]
    fn the_number_of_skipped_positions_can_change() {
        let policy = Policy::default().with_skip_positions(4);
        assert_eq!(policy.skip_positions, 4);
        assert!(!policy.is_default());
        assert_eq!(policy.with_skip_positions(0), Policy::default());
    }
}
