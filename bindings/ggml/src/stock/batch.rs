//! The batch that the host is decoding on this thread, where it lets the hook see one, and which of its rows a
//! graph computes.
//!
//! A graph is given tokens and positions, and not whose they are. llama.cpp takes the rows of a batch in one of a
//! few orders ([`Split`]). The rows of a graph are those of the order that fits its tokens and positions; where
//! several fit and would cap rows differently, the decode fails.

use std::cell::RefCell;

use crate::error::HookError;
use crate::order::Split;
use crate::profile::ProfileId;

thread_local! {
    static CURRENT: RefCell<Option<Batch>> = const { RefCell::new(None) };
}

/// A batch as the host hands it to `llama_decode`.
#[derive(Debug, Clone, Default)]
pub struct StockBatch {
    /// One per row. `None` for a batch of embeddings.
    pub tokens: Option<Vec<i32>>,
    /// One per row. `None` leaves them to llama.cpp.
    pub positions: Option<Vec<i32>>,
    /// The sequences of each row.
    pub sequences: Vec<Vec<i32>>,
    /// Rows per micro-batch at most (`llama_n_ubatch`); 0 if that is unknown.
    pub ubatch: usize,
    /// Whether the sequences of the context share one KV cache, if that is known. It decides how llama.cpp takes
    /// the rows of a model that has nothing but a KV cache (`llama_kv_cache::init_batch`).
    pub unified: Option<bool>,
}

/// A batch in progress.
#[derive(Debug)]
struct Batch {
    is: StockBatch,
    /// The rows that are left, ascending.
    left: Vec<usize>,
}

/// The rows that a micro-batch may have.
#[derive(Debug)]
struct Candidate {
    /// In their order.
    rows: Vec<usize>,
    /// The rows of the micro-batches before it.
    before: Vec<usize>,
}

/// What a graph is given for its rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GivenRows<'a> {
    pub(crate) count: usize,
    pub(crate) tokens: Option<&'a [i32]>,
    /// They may be repeated by sections, of which the first counts.
    pub(crate) positions: Option<&'a [i32]>,
}

impl StockBatch {
    /// Notes that this thread is about to decode the batch, for contexts of a guard whose slots have profiles
    /// ([`Guard::set_slots`](crate::Guard::set_slots)).
    pub fn begin(self) {
        let left = (0..self.sequences.len()).collect();
        CURRENT.set(Some(Batch { is: self, left }));
    }
}

/// Returns the profiles of the rows of the next micro-batch, where `profile` says that of a sequence.
///
/// # Errors
/// [`HookError::RowOrder`], [`HookError::BatchUnseen`], and those of `profile`.
pub(crate) fn next_rows(
    given: GivenRows<'_>,
    profile: impl Fn(i32) -> Result<Option<ProfileId>, HookError>,
) -> Result<Vec<Option<ProfileId>>, HookError> {
    CURRENT.with_borrow_mut(|current| {
        let batch = current.as_mut().ok_or(HookError::BatchUnseen)?;
        batch.take(given, profile)
    })
}

impl Batch {
    fn take(
        &mut self,
        given: GivenRows<'_>,
        profile: impl Fn(i32) -> Result<Option<ProfileId>, HookError>,
    ) -> Result<Vec<Option<ProfileId>>, HookError> {
        let mut fitting = Vec::new();
        // Micro-batches before it may have been computed with caps switched off, and were not asked about.
        for later in [false, true] {
            for splits in self.splits() {
                if fitting.is_empty() {
                    fitting = self.candidates(splits, given, later);
                }
            }
        }
        let mut fitting = fitting.into_iter();
        let Some(Candidate { rows, before }) = fitting.next() else {
            return Err(HookError::row_order("no order of rows that is known fits its tokens and positions"));
        };
        let profiles = |rows: &[usize]| -> Result<Vec<_>, HookError> {
            rows.iter().map(|&row| self.profile_of(row, &profile)).collect()
        };
        let found = profiles(&rows)?;
        for other in fitting {
            if profiles(&other.rows)? != found {
                return Err(HookError::row_order(
                    "two orders of rows under different profiles fit its tokens",
                ));
            }
        }
        self.left.retain(|row| !rows.contains(row) && !before.contains(row));
        Ok(found)
    }

    /// Returns the orders in which llama.cpp may take the rows, those that are expected before all others.
    fn splits(&self) -> [&'static [Split]; 2] {
        const IN_ORDER: Split = Split::InOrder;
        const EQUAL: Split = Split::Equal { consecutive: false };
        const CONSECUTIVE: Split = Split::Equal { consecutive: true };
        match self.is.unified {
            // With sliding windows and a full cache it takes equal numbers of rows.
            Some(true) => [&[IN_ORDER, EQUAL], &[CONSECUTIVE]],
            Some(false) => [&[CONSECUTIVE], &[IN_ORDER, EQUAL]],
            None => [&[IN_ORDER, EQUAL, CONSECUTIVE], &[]],
        }
    }

    /// Returns the rows that the next micro-batch may have, or with `later` one after it, by what it is given.
    fn candidates(&self, splits: &[Split], given: GivenRows<'_>, later: bool) -> Vec<Candidate> {
        let first_of = |sequences: &Vec<i32>| sequences.first().copied().unwrap_or(0);
        let sequences: Vec<_> = self.is.sequences.iter().map(first_of).collect();
        let mut candidates: Vec<Candidate> = Vec::new();
        // The size of micro-batches may not be known.
        for ubatch in [self.is.ubatch.max(1), given.count.max(1)] {
            for &split in splits {
                let (mut left, mut before) = (self.left.clone(), Vec::new());
                while !left.is_empty() {
                    let rows = split.next(&sequences, &left, ubatch);
                    let new = candidates.iter().all(|known| known.rows != rows);
                    if rows.len() == given.count && new && self.fits(&rows, given) {
                        candidates.push(Candidate { rows: rows.clone(), before: before.clone() });
                    }
                    if !later {
                        break;
                    }
                    left.retain(|row| !rows.contains(row));
                    before.extend(rows);
                }
            }
        }
        candidates
    }

    fn fits(&self, rows: &[usize], given: GivenRows<'_>) -> bool {
        let same = |own: &Option<Vec<i32>>, found: Option<&[i32]>| match (own, found) {
            (Some(own), Some(found)) => {
                found.len() >= rows.len() && rows.iter().zip(found).all(|(&row, found)| own[row] == *found)
            }
            _ => true,
        };
        same(&self.is.tokens, given.tokens) && same(&self.is.positions, given.positions)
    }

    /// Returns the profile of a row, which may be of several sequences.
    fn profile_of(
        &self,
        row: usize,
        profile: impl Fn(i32) -> Result<Option<ProfileId>, HookError>,
    ) -> Result<Option<ProfileId>, HookError> {
        let mut profiles = self.is.sequences[row].iter().map(|&sequence| profile(sequence));
        let first = profiles.next().unwrap_or_else(|| profile(0))?;
        for other in profiles {
            if other? != first {
                return Err(HookError::row_order("a row is of several sequences under different profiles"));
            }
        }
        Ok(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sequences 0 and 1 are under the default profile, 2 under another, and all others under none.
    fn profile(sequence: i32) -> Result<Option<ProfileId>, HookError> {
        Ok(match sequence {
            0 | 1 => Some(ProfileId::DEFAULT),
            2 => Some(ProfileId(1)),
            _ => None,
        })
    }

    const DEFAULT: Option<ProfileId> = Some(ProfileId::DEFAULT);
    const OTHER: Option<ProfileId> = Some(ProfileId(1));

    fn begin(rows: &[(i32, i32, i32)], ubatch: usize) {
        let batch = StockBatch {
            tokens: Some(rows.iter().map(|row| row.0).collect()),
            positions: Some(rows.iter().map(|row| row.1).collect()),
            sequences: rows.iter().map(|row| vec![row.2]).collect(),
            ubatch,
            unified: None,
        };
        batch.begin();
    }

    /// As [`begin`], in a context of which it is known whether its KV cache is unified.
    fn begin_in(unified: bool, rows: &[(i32, i32, i32)], ubatch: usize) {
        begin(rows, ubatch);
        CURRENT.with_borrow_mut(|batch| batch.as_mut().unwrap().is.unified = Some(unified));
    }

    fn next(tokens: &[i32], positions: &[i32]) -> Result<Vec<Option<ProfileId>>, HookError> {
        let given = GivenRows { count: tokens.len(), tokens: Some(tokens), positions: Some(positions) };
        next_rows(given, profile)
    }

    #[test]
    fn rows_in_the_order_of_the_batch() {
        begin(&[(5, 0, 0), (6, 1, 0), (7, 4, 2), (8, 9, 3)], 3);
        // Positions of two kinds.
        assert_eq!(next(&[5, 6, 7], &[0, 1, 4, 0, 0, 0]).unwrap(), [DEFAULT, DEFAULT, OTHER]);
        assert_eq!(next(&[8], &[9]).unwrap(), [None]);
        assert!(matches!(next(&[8], &[9]), Err(HookError::RowOrder { .. })), "no row is left");
    }

    #[test]
    fn equal_numbers_of_rows_of_each_sequence() {
        begin(&[(5, 0, 0), (6, 1, 0), (7, 2, 0), (5, 0, 2), (9, 1, 2)], 8);
        assert_eq!(next(&[5, 6, 5, 9], &[0, 1, 0, 1]).unwrap(), [DEFAULT, DEFAULT, OTHER, OTHER]);
        assert_eq!(next(&[7], &[2]).unwrap(), [DEFAULT]);
    }

    #[test]
    fn micro_batches_that_were_not_asked_about_are_passed_over() {
        begin(&[(5, 0, 0), (6, 1, 0), (7, 4, 2), (8, 9, 3)], 2);
        assert_eq!(next(&[7, 8], &[4, 9]).unwrap(), [OTHER, None]);
        assert!(next(&[5, 6], &[0, 1]).is_err(), "they came before");
        begin(&[(5, 0, 0), (6, 1, 0), (7, 2, 0), (5, 0, 2), (9, 1, 2)], 8);
        assert_eq!(next(&[7], &[2]).unwrap(), [DEFAULT]);
    }

    #[test]
    fn the_kind_of_the_cache_tells_orders_apart() {
        // Sequences 2, 0 and 3 read the same two tokens. Those with consecutive numbers go together.
        let rows = [2, 0, 3].map(|sequence| [(5, 0, sequence), (6, 1, sequence)]).concat();
        let (tokens, positions) = ([5, 6, 5, 6], [0, 1, 0, 1]);
        begin_in(true, &rows, 4);
        assert_eq!(next(&tokens, &positions).unwrap(), [OTHER, OTHER, DEFAULT, DEFAULT]);
        begin_in(false, &rows, 4);
        assert_eq!(next(&tokens, &positions).unwrap(), [OTHER, OTHER, None, None]);
        assert_eq!(next(&tokens[..2], &positions[..2]).unwrap(), [DEFAULT, DEFAULT]);
        begin(&rows, 4);
        assert!(matches!(next(&tokens, &positions), Err(HookError::RowOrder { .. })));
        // What is known of the cache may not be all.
        begin_in(false, &[(5, 0, 0), (6, 1, 0), (7, 4, 2)], 3);
        assert_eq!(next(&[5, 6, 7], &[0, 1, 4]).unwrap(), [DEFAULT, DEFAULT, OTHER]);
    }

    #[test]
    fn what_cannot_be_told_apart_is_an_error() {
        // Either two rows of sequence 0, or one of each.
        let rows = [(5, 0, 0), (5, 0, 0), (5, 0, 2), (5, 0, 2)];
        begin(&rows, 2);
        assert!(matches!(next(&[5, 5], &[0, 0]), Err(HookError::RowOrder { .. })));
        begin(&rows.map(|(token, position, sequence)| (token, position, sequence / 2)), 2);
        assert_eq!(next(&[5, 5], &[0, 0]).unwrap(), [DEFAULT, DEFAULT], "under one profile");
        begin(&rows, 8);
        for (tokens, positions) in [(&[5, 6], &[0, 0]), (&[5, 5], &[0, 1])] {
            assert!(matches!(next(tokens, positions), Err(HookError::RowOrder { .. })), "{tokens:?}");
        }
        std::thread::spawn(|| assert_eq!(next(&[5], &[0]), Err(HookError::BatchUnseen))).join().unwrap();
    }

    #[test]
    fn a_row_of_several_sequences() {
        let shared = |sequences: &[i32]| {
            let sequences = vec![sequences.to_vec()];
            StockBatch { tokens: Some(vec![5]), positions: None, sequences, ubatch: 8, unified: None }
                .begin();
            next(&[5], &[0])
        };
        assert_eq!(shared(&[0, 1]).unwrap(), [DEFAULT]);
        assert_eq!(shared(&[3, 4]).unwrap(), [None]);
        assert!(matches!(shared(&[0, 2]), Err(HookError::RowOrder { .. })));
        assert_eq!(shared(&[]).unwrap(), [DEFAULT], "of sequence 0");
    }
}
