//! The order in which llama.cpp computes the rows of a batch.
//!
//! llama.cpp splits a batch into micro-batches (`llama_batch_allocr`). A unified KV cache alone keeps the order of
//! the batch. A cache per sequence, and models that keep states, take equal numbers of rows of several sequences at
//! a time.

/// How llama.cpp splits a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[doc(hidden)]
pub enum Split {
    /// In the order of the batch (`split_simple`): a unified KV cache.
    InOrder,
    /// Equally over sequences (`split_equal`): recurrent and hybrid models, and a KV cache per sequence. Models that
    /// keep states alone, and such a cache, take only sequences with consecutive numbers together.
    Equal {
        /// Whether sequences of a micro-batch have consecutive numbers.
        consecutive: bool,
    },
}

impl Split {
    /// Returns the micro-batches of at most `ubatch` rows that llama.cpp makes of a batch, as indices of its
    /// rows, which are given by their sequences.
    #[must_use]
    pub fn micro_batches(self, rows: &[i32], ubatch: usize) -> Vec<Vec<usize>> {
        let mut left: Vec<usize> = (0..rows.len()).collect();
        let mut micro_batches = Vec::new();
        while !left.is_empty() {
            let micro_batch = self.next(rows, &left, ubatch.max(1));
            let mut taken = vec![false; rows.len()];
            micro_batch.iter().for_each(|&index| taken[index] = true);
            left.retain(|&index| !taken[index]);
            micro_batches.push(micro_batch);
        }
        micro_batches
    }

    /// Returns the next micro-batch of the rows that are left, ascending, of which there must be some.
    #[must_use]
    pub(crate) fn next(self, rows: &[i32], left: &[usize], ubatch: usize) -> Vec<usize> {
        match self {
            Self::InOrder => left[..ubatch.min(left.len())].to_vec(),
            Self::Equal { consecutive } => equal(rows, left, ubatch, consecutive),
        }
    }
}

/// Takes rows as `llama_batch_allocr::split_equal` does.
fn equal(rows: &[i32], left: &[usize], ubatch: usize, consecutive: bool) -> Vec<usize> {
    // Whether a sequence takes part is decided row by row, so a later row of it may let it in.
    let mut sequences: Vec<i32> = Vec::new();
    for sequence in left.iter().map(|&index| rows[index]) {
        let follows = sequences.last().is_none_or(|last| !consecutive || sequence == last + 1);
        if sequences.len() <= ubatch && follows && !sequences.contains(&sequence) {
            sequences.push(sequence);
        }
    }
    let of = |sequence: i32| left.iter().copied().filter(move |&index| rows[index] == sequence);
    // As many rows of each as the shortest has, and as fit.
    let shortest = sequences.iter().map(|&sequence| of(sequence).count()).min().unwrap_or(0);
    let each = shortest.min((ubatch / sequences.len().max(1)).max(1));
    sequences.iter().flat_map(|&sequence| of(sequence).take(each)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_keeps_the_order_of_the_batch() {
        let rows = [1, 0, 0, 1, 1];
        assert_eq!(Split::InOrder.micro_batches(&rows, 2), [vec![0, 1], vec![2, 3], vec![4]]);
        assert!(Split::InOrder.micro_batches(&[], 2).is_empty());
    }

    #[test]
    fn states_take_equal_numbers_of_rows_of_each_sequence() {
        let split = |sequences: &[i32], ubatch, consecutive| {
            Split::Equal { consecutive }.micro_batches(sequences, ubatch)
        };
        // Five rows of sequence 0 and three of sequence 1.
        let rows = [0, 0, 0, 0, 0, 1, 1, 1];
        assert_eq!(split(&rows, 8, false), [vec![0, 1, 2, 5, 6, 7], vec![3, 4]]);
        assert_eq!(split(&rows, 4, false), [vec![0, 1, 5, 6], vec![2, 7], vec![3, 4]]);
        // Sequences 0 and 2 are no neighbours.
        assert_eq!(split(&[0, 2, 1], 8, false), [vec![0, 1, 2]]);
        assert_eq!(split(&[0, 2, 1], 8, true), [vec![0, 2], vec![1]]);
        assert_eq!(split(&[0, 2, 1, 2], 8, true), [vec![0, 2, 1], vec![3]]);
        assert_eq!(split(&[2, 1, 0], 8, true), [vec![0], vec![1], vec![2]]);
    }
}
