//! What a context remembers of its sequences.

use llama_cpp_sys_2 as sys;

use super::TestContext;

impl TestContext<'_> {
    /// Removes all sequences.
    pub fn clear(&mut self) {
        if !self.memory().is_null() {
            // SAFETY: the context's memory.
            unsafe { sys::llama_memory_clear(self.memory(), true) }
        }
    }

    /// Removes positions from `from` to before `to` of a sequence, -1 for all. Returns whether the memory can do
    /// that.
    #[must_use]
    pub fn remove(&mut self, sequence: i32, from: i32, to: i32) -> bool {
        // SAFETY: the context's memory.
        unsafe { sys::llama_memory_seq_rm(self.memory(), sequence, from, to) }
    }

    /// Makes one sequence a copy of another.
    pub fn copy(&mut self, from: i32, to: i32) {
        // SAFETY: the context's memory.
        unsafe { sys::llama_memory_seq_cp(self.memory(), from, to, -1, -1) }
    }

    /// Returns whether the memory can move positions.
    #[must_use]
    pub fn can_shift(&self) -> bool {
        // SAFETY: the context's memory.
        unsafe { sys::llama_memory_can_shift(self.memory()) }
    }

    /// Moves positions from `from` on by `by`.
    pub fn shift(&mut self, sequence: i32, from: i32, by: i32) {
        // SAFETY: the context's memory.
        unsafe { sys::llama_memory_seq_add(self.memory(), sequence, from, -1, by) }
    }

    /// Returns the last position of a sequence, -1 without one.
    #[must_use]
    pub fn last_position(&self, sequence: i32) -> i32 {
        // SAFETY: the context's memory.
        unsafe { sys::llama_memory_seq_pos_max(self.memory(), sequence) }
    }

    /// Returns the state of a sequence.
    #[must_use]
    pub fn state(&mut self, sequence: i32) -> Vec<u8> {
        // SAFETY: the buffer has the size that the state takes.
        unsafe {
            let mut state = vec![0; sys::llama_state_seq_get_size(self.raw(), sequence)];
            let used = sys::llama_state_seq_get_data(self.raw(), state.as_mut_ptr(), state.len(), sequence);
            state.truncate(used);
            state
        }
    }

    /// Sets the state of a sequence. Returns whether it was taken.
    #[must_use]
    pub fn set_state(&mut self, sequence: i32, state: &[u8]) -> bool {
        // SAFETY: the state lives for the call.
        let used =
            unsafe { sys::llama_state_seq_set_data(self.raw(), state.as_ptr(), state.len(), sequence) };
        used == state.len()
    }
}
