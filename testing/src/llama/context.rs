//! Contexts of random models.

use std::marker::PhantomData;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::{TestModel, log};

/// llama.cpp's parameters of a context.
pub type ContextSettings = sys::llama_context_params;

/// A row of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The token.
    pub token: i32,
    /// Its position in the sequence.
    pub position: i32,
    /// The sequence.
    pub sequence: i32,
    /// Whether its logits are computed.
    pub logits: bool,
}

/// A context of llama.cpp.
#[derive(Debug)]
pub struct TestContext<'m> {
    raw: NonNull<sys::llama_context>,
    vocabulary: usize,
    width: usize,
    model: PhantomData<&'m TestModel>,
}

impl TestModel {
    /// Makes a context of 64 tokens per sequence on one thread. `change` changes its parameters.
    ///
    /// # Errors
    /// llama.cpp's words.
    pub fn context(&self, change: impl FnOnce(&mut ContextSettings)) -> Result<TestContext<'_>, String> {
        let (raw, complaints) = log::capture(|| {
            // SAFETY: the model lives, and the context borrows it.
            unsafe {
                let mut params = sys::llama_context_default_params();
                params.n_ctx = 64;
                params.n_batch = 64;
                params.n_ubatch = 64;
                params.n_threads = 1;
                params.n_threads_batch = 1;
                params.no_perf = true;
                change(&mut params);
                sys::llama_init_from_model(self.raw(), params)
            }
        });
        let raw = NonNull::new(raw).ok_or(complaints)?;
        Ok(TestContext { raw, vocabulary: self.vocabulary(), width: self.width(), model: PhantomData })
    }
}

impl TestContext<'_> {
    /// Returns llama.cpp's context.
    #[must_use]
    pub fn raw(&self) -> *mut sys::llama_context {
        self.raw.as_ptr()
    }

    /// Returns llama.cpp's memory of the context.
    #[must_use]
    pub fn memory(&self) -> sys::llama_memory_t {
        // SAFETY: the context lives.
        unsafe { sys::llama_get_memory(self.raw()) }
    }

    /// Decodes a batch, and waits for its end. Returns `llama_decode`'s status, 0 for success.
    pub fn decode(&mut self, rows: &[Row]) -> i32 {
        self.run(rows, &[], &[], sys::llama_decode)
    }

    /// Decodes a batch whose rows each belong to all these sequences.
    pub fn decode_shared(&mut self, rows: &[Row], sequences: &[i32]) -> i32 {
        self.run(rows, sequences, &[], sys::llama_decode)
    }

    /// Encodes a batch. Returns `llama_encode`'s status, 0 for success.
    pub fn encode(&mut self, rows: &[Row]) -> i32 {
        self.run(rows, &[], &[], sys::llama_encode)
    }

    /// Decodes a batch whose rows each have a hidden state besides their token, one after the other.
    pub(super) fn decode_with_states(&mut self, rows: &[Row], states: &[f32]) -> i32 {
        assert_eq!(states.len(), rows.len() * self.width);
        self.run(rows, &[], states, sys::llama_decode)
    }

    /// Returns the width of a hidden state.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    fn run(
        &mut self,
        rows: &[Row],
        shared: &[i32],
        states: &[f32],
        run: unsafe extern "C" fn(*mut sys::llama_context, sys::llama_batch) -> i32,
    ) -> i32 {
        let mut tokens: Vec<_> = rows.iter().map(|row| row.token).collect();
        let mut positions: Vec<_> = rows.iter().map(|row| row.position).collect();
        let own = |row: &Row| if shared.is_empty() { vec![row.sequence] } else { shared.to_vec() };
        let mut sequences: Vec<_> = rows.iter().map(own).collect();
        let mut counts: Vec<_> = sequences.iter().map(|list| list.len() as i32).collect();
        let mut lists: Vec<_> = sequences.iter_mut().map(|list| list.as_mut_ptr()).collect();
        let mut logits: Vec<_> = rows.iter().map(|row| i8::from(row.logits)).collect();
        let mut states = states.to_vec();
        let batch = sys::llama_batch {
            n_tokens: rows.len() as i32,
            token: tokens.as_mut_ptr(),
            embd: if states.is_empty() { std::ptr::null_mut() } else { states.as_mut_ptr() },
            pos: positions.as_mut_ptr(),
            n_seq_id: counts.as_mut_ptr(),
            seq_id: lists.as_mut_ptr(),
            logits: logits.as_mut_ptr(),
        };
        // SAFETY: the arrays have a value for each row and outlive the call.
        unsafe {
            let status = run(self.raw(), batch);
            sys::llama_synchronize(self.raw());
            status
        }
    }

    /// Returns the logits of a row of the last batch.
    ///
    /// # Panics
    /// If the row has none.
    #[must_use]
    pub fn logits(&self, row: usize) -> Vec<f32> {
        // SAFETY: the context lives, and a row of logits has a value for each token of the vocabulary.
        unsafe {
            let logits = sys::llama_get_logits_ith(self.raw(), row as i32);
            assert!(!logits.is_null(), "row {row} has no logits");
            std::slice::from_raw_parts(logits, self.vocabulary).to_vec()
        }
    }

    /// Returns the pooled embedding of a sequence of the last batch.
    ///
    /// # Panics
    /// If the sequence has none.
    #[must_use]
    pub fn pooled_embedding(&self, sequence: i32) -> Vec<f32> {
        // SAFETY: the context lives, and a pooled embedding is as wide as the residual stream.
        unsafe {
            let embedding = sys::llama_get_embeddings_seq(self.raw(), sequence);
            assert!(!embedding.is_null(), "sequence {sequence} has no embedding");
            std::slice::from_raw_parts(embedding, self.width).to_vec()
        }
    }

    /// Returns the embedding of a row of the last batch.
    ///
    /// # Panics
    /// If the row has none.
    #[must_use]
    pub fn embedding(&self, row: usize) -> Vec<f32> {
        // SAFETY: the context lives, and an embedding without pooling is as wide as the residual stream.
        unsafe {
            let embedding = sys::llama_get_embeddings_ith(self.raw(), row as i32);
            assert!(!embedding.is_null(), "row {row} has no embedding");
            std::slice::from_raw_parts(embedding, self.width).to_vec()
        }
    }
}

impl Drop for TestContext<'_> {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { sys::llama_free(self.raw()) }
    }
}
