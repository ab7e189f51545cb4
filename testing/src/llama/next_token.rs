//! Blocks that predict further tokens, and the hidden states that they read.
//!
//! `llama.h` has no functions for these states. `llama-ext.h` has, for C++ alone: they are linked under the names
//! that compilers give them on Unix.

use llama_cpp_sys_2 as sys;

use super::{Row, TestContext};

unsafe extern "C" {
    #[link_name = "_Z26llama_set_embeddings_nextnP13llama_contextbb"]
    fn llama_set_embeddings_nextn(context: *mut sys::llama_context, value: bool, masked: bool);
    #[link_name = "_Z30llama_get_embeddings_nextn_ithP13llama_contexti"]
    fn llama_get_embeddings_nextn_ith(context: *mut sys::llama_context, row: i32) -> *const f32;
}

impl TestContext<'_> {
    /// Has decodes keep the hidden states that a next-token block reads, of all rows or only of those with logits.
    pub fn keep_hidden_states(&mut self, only_with_logits: bool) {
        // SAFETY: the context lives.
        unsafe { llama_set_embeddings_nextn(self.raw(), true, only_with_logits) }
    }

    /// Returns the hidden state of a row of the last batch.
    ///
    /// # Panics
    /// If the row has none.
    #[must_use]
    pub fn hidden_state(&self, row: usize) -> Vec<f32> {
        // SAFETY: the context lives, and a hidden state is as wide as the residual stream.
        unsafe {
            let state = llama_get_embeddings_nextn_ith(self.raw(), row as i32);
            assert!(!state.is_null(), "row {row} has no hidden state");
            std::slice::from_raw_parts(state, self.width()).to_vec()
        }
    }

    /// Drafts with the next-token block: decodes a batch whose rows each have the hidden state that the model had
    /// before their token. For contexts of the type `LLAMA_CONTEXT_TYPE_MTP`. Returns `llama_decode`'s status.
    pub fn draft(&mut self, rows: &[Row], states: &[Vec<f32>]) -> i32 {
        self.decode_with_states(rows, &states.concat())
    }
}
