//! Whose the rows of batches are: read from `llama_batch`, and noted as a `llama_batch_ext` is made.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use axiscap_ggml::StockBatch;

/// `llama_batch`: the fields that all versions since 2023 have in common.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Batch {
    n_tokens: i32,
    token: *const i32,
    embd: *const f32,
    pos: *const i32,
    n_seq_id: *const i32,
    seq_id: *const *const i32,
    logits: *const i8,
}

/// What is known of a context.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Context {
    /// Rows per micro-batch at most; 0 if that is unknown.
    pub(super) ubatch: usize,
    /// Whether its sequences share one KV cache.
    pub(super) unified: Option<bool>,
}

/// Rows of a batch that are believed. llama.cpp's largest batches have some thousands.
const MOST: i32 = 1 << 22;

/// Copies what says whose the rows of a batch are.
///
/// # Safety
/// The arrays must be null or have as many elements as the batch has rows.
pub(super) unsafe fn read(batch: &Batch, context: Context) -> StockBatch {
    if !(0..=MOST).contains(&batch.n_tokens) {
        return StockBatch::default();
    }
    let rows = batch.n_tokens.cast_unsigned() as usize;
    let list = |first: *const i32| {
        // SAFETY: by the caller's contract, an array of that many elements.
        (!first.is_null()).then(|| unsafe { std::slice::from_raw_parts(first, rows) }.to_vec())
    };
    let sequences = |row: usize| -> Vec<i32> {
        if batch.seq_id.is_null() || batch.n_seq_id.is_null() {
            return vec![0];
        }
        // SAFETY: by the caller's contract there is a list per row, of as many sequences as its length says.
        unsafe {
            let (first, count) = (*batch.seq_id.add(row), *batch.n_seq_id.add(row));
            match usize::try_from(count) {
                Ok(count) if count > 0 && !first.is_null() => {
                    std::slice::from_raw_parts(first, count).to_vec()
                }
                _ => vec![0],
            }
        }
    };
    let sequences = (0..rows).map(sequences).collect();
    let (tokens, positions) = (list(batch.token), list(batch.pos));
    StockBatch { tokens, positions, sequences, ubatch: context.ubatch, unified: context.unified }
}

/// The rows of the living `llama_batch_ext`s, by address.
static MADE: LazyLock<Mutex<HashMap<usize, Vec<Row>>>> = LazyLock::new(Mutex::default);

/// A row as it was added.
#[derive(Debug, Clone)]
struct Row {
    token: Option<i32>,
    position: i32,
    sequences: Vec<i32>,
}

fn with_rows<R>(batch: usize, change: impl FnOnce(&mut Vec<Row>) -> R) -> R {
    change(MADE.lock().unwrap_or_else(PoisonError::into_inner).entry(batch).or_default())
}

/// A row was added to a batch.
pub(super) fn added(batch: usize, sequence: i32, token: Option<i32>) {
    with_rows(batch, |rows| rows.push(Row { token, position: 0, sequences: vec![sequence] }));
}

/// A row was added to a further sequence.
pub(super) fn added_to(batch: usize, row: i32, sequence: i32) {
    change_row(batch, row, |row| row.sequences.push(sequence));
}

/// A row got its position.
pub(super) fn positioned(batch: usize, row: i32, position: i32) {
    change_row(batch, row, |row| row.position = position);
}

fn change_row(batch: usize, row: i32, change: impl FnOnce(&mut Row)) {
    with_rows(batch, |rows| {
        if let Some(row) = usize::try_from(row).ok().and_then(|row| rows.get_mut(row)) {
            change(row);
        }
    });
}

/// A batch was emptied.
pub(super) fn cleared(batch: usize) {
    with_rows(batch, Vec::clear);
}

/// A batch was freed.
pub(super) fn freed(batch: usize) {
    MADE.lock().unwrap_or_else(PoisonError::into_inner).remove(&batch);
}

/// Returns a batch as it was made.
pub(super) fn made(batch: usize, context: Context) -> StockBatch {
    with_rows(batch, |rows| StockBatch {
        // Rows that are embeddings have no tokens.
        tokens: rows.iter().map(|row| row.token).collect(),
        positions: Some(rows.iter().map(|row| row.position).collect()),
        sequences: rows.iter().map(|row| row.sequences.clone()).collect(),
        ubatch: context.ubatch,
        unified: context.unified,
    })
}

#[cfg(test)]
mod tests {
    use std::ptr::null;

    use super::*;

    #[test]
    fn a_batch_is_read_with_what_it_has() {
        let (tokens, positions, counts) = ([5, 6, 7], [0, 1, 9], [1, 2, 0]);
        let lists = [vec![3], vec![1, 2], vec![]];
        let lists = lists.each_ref().map(Vec::as_ptr);
        let mut batch = Batch {
            n_tokens: 3,
            token: tokens.as_ptr(),
            embd: null(),
            pos: positions.as_ptr(),
            n_seq_id: counts.as_ptr(),
            seq_id: lists.as_ptr(),
            logits: null(),
        };
        // SAFETY: the arrays have as many elements as the batch has rows.
        let read_batch = |batch: &Batch| unsafe { read(batch, Context { ubatch: 8, unified: None }) };
        let found = read_batch(&batch);
        assert_eq!(
            (found.tokens.as_deref(), found.positions.as_deref()),
            (Some(&tokens[..]), Some(&positions[..]))
        );
        assert_eq!((found.sequences, found.ubatch), (vec![vec![3], vec![1, 2], vec![0]], 8));
        (batch.token, batch.pos, batch.seq_id) = (null(), null(), null());
        let found = read_batch(&batch);
        assert_eq!((found.tokens, found.positions, found.sequences), (None, None, vec![vec![0]; 3]));
        batch.n_tokens = -1;
        assert!(read_batch(&batch).sequences.is_empty());
    }

    #[test]
    fn a_batch_is_noted_as_it_is_made() {
        let batch = 0x10;
        added(batch, 2, Some(5));
        added(batch, 3, Some(6));
        added_to(batch, 1, 4);
        positioned(batch, 1, 9);
        for row in [-1, 2] {
            positioned(batch, row, 7);
        }
        let context = Context { ubatch: 16, unified: Some(true) };
        let found = made(batch, context);
        assert_eq!((found.tokens, found.positions), (Some(vec![5, 6]), Some(vec![0, 9])));
        assert_eq!((found.sequences, found.ubatch), (vec![vec![2], vec![3, 4]], 16));
        added(batch, 0, None);
        assert_eq!(made(batch, context).tokens, None, "a row of embeddings");
        cleared(batch);
        assert!(made(batch, context).sequences.is_empty());
        freed(batch);
    }
}
