//! What is known of the rows in a KV cache: their tokens, and what they were capped under.

use std::collections::BTreeMap;

use crate::Token;
use crate::batch::BatchRow;

/// One row in the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CachedRow {
    pub(crate) token: Token,
    /// Revision of the profile that the row was computed under. `None` for a row that was left alone.
    pub(crate) revision: Option<u64>,
}

/// The rows of each sequence of a context.
#[derive(Debug, Default)]
pub(crate) struct CachedRows(BTreeMap<i32, Sequence>);

#[derive(Debug, Clone, Default)]
struct Sequence {
    rows: Vec<CachedRow>,
    /// Whether the sequence has rows of which nothing is known.
    unknown: bool,
}

impl CachedRows {
    /// Notes that rows were decoded, with their revisions.
    pub(crate) fn extend(&mut self, rows: impl IntoIterator<Item = (BatchRow, Option<u64>)>) {
        for (row, revision) in rows {
            let sequence = self.0.entry(row.sequence).or_default();
            if usize::try_from(row.position) == Ok(sequence.rows.len()) {
                sequence.rows.push(CachedRow { token: row.token, revision });
            } else {
                sequence.unknown = true;
            }
        }
    }

    /// Notes that a sequence was replaced by rows from elsewhere.
    pub(crate) fn replace(&mut self, sequence: i32, rows: Vec<CachedRow>) {
        self.0.insert(sequence, Sequence { rows, unknown: false });
    }

    /// Notes that a sequence was truncated.
    pub(crate) fn truncate(&mut self, sequence: i32, position: usize) {
        if position == 0 {
            self.0.remove(&sequence);
        } else if let Some(cached) = self.0.get_mut(&sequence) {
            cached.rows.truncate(position);
        }
    }

    /// Notes that a sequence became a copy of another one.
    pub(crate) fn copy(&mut self, from: i32, to: i32) {
        match self.0.get(&from).cloned() {
            Some(sequence) => drop(self.0.insert(to, sequence)),
            None => drop(self.0.remove(&to)),
        }
    }

    /// Notes that all sequences were removed.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Forgets what the rows were capped under, so that none is reused.
    pub(crate) fn forget(&mut self) {
        self.0.values_mut().for_each(|sequence| sequence.unknown = true);
    }

    /// Returns the rows of a sequence. `None` if they are not known.
    pub(crate) fn rows(&self, sequence: i32) -> Option<&[CachedRow]> {
        match self.0.get(&sequence) {
            Some(Sequence { unknown: true, .. }) => None,
            Some(Sequence { rows, .. }) => Some(rows),
            None => Some(&[]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(sequence: i32, position: i32) -> BatchRow {
        BatchRow { token: Token(10 * sequence + position), position, sequence, logits: false }
    }

    fn tokens(cached: &CachedRows, sequence: i32) -> Option<Vec<i32>> {
        Some(cached.rows(sequence)?.iter().map(|row| row.token.0).collect())
    }

    #[test]
    fn rows_are_known_as_long_as_they_follow_each_other() {
        let mut cached = CachedRows::default();
        cached.extend([(row(0, 0), Some(1)), (row(2, 0), None), (row(0, 1), Some(2))]);
        assert_eq!((tokens(&cached, 0), tokens(&cached, 1)), (Some(vec![0, 1]), Some(vec![])));
        let revisions: Vec<_> = cached.rows(0).unwrap().iter().map(|row| row.revision).collect();
        assert_eq!(revisions, [Some(1), Some(2)]);
        cached.copy(0, 1);
        cached.truncate(0, 1);
        assert_eq!((tokens(&cached, 0), tokens(&cached, 1)), (Some(vec![0]), Some(vec![0, 1])));
        cached.extend([(row(0, 2), None)]);
        assert_eq!(tokens(&cached, 0), None, "a row is missing");
        cached.truncate(0, 1);
        assert_eq!(tokens(&cached, 0), None);
        cached.truncate(0, 0);
        assert_eq!(tokens(&cached, 0), Some(vec![]));
        cached.forget();
        assert_eq!((tokens(&cached, 1), tokens(&cached, 2)), (None, None));
        cached.copy(3, 1);
        assert_eq!(tokens(&cached, 1), Some(vec![]));
        cached.replace(2, vec![CachedRow { token: Token(7), revision: None }]);
        assert_eq!(tokens(&cached, 2), Some(vec![7]));
        cached.clear();
        assert_eq!(tokens(&cached, 2), Some(vec![]));
    }
}
