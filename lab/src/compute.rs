//! How llama.cpp computes what is measured.

use axiscap_llama::{ContextOptions, KvType};

/// How llama.cpp computes. The number formats and flash attention move the last bits of activations: measure with
/// those that will serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComputeOptions {
    /// Threads for the CPU. `None` means [`default_threads`](axiscap_llama::default_threads).
    pub threads: Option<usize>,
    /// Number format of the keys in the KV cache.
    pub kv_type_k: KvType,
    /// Number format of the values in the KV cache. A quantised one needs flash attention.
    pub kv_type_v: KvType,
    /// Flash attention on or off. `None` leaves it to llama.cpp.
    pub flash_attention: Option<bool>,
}

impl Default for ComputeOptions {
    /// Returns those of [`ContextOptions`].
    fn default() -> Self {
        let ContextOptions { threads, kv_type_k, kv_type_v, flash_attention, .. } = ContextOptions::default();
        Self { threads, kv_type_k, kv_type_v, flash_attention }
    }
}

impl ComputeOptions {
    /// Returns the options of a context that computes in this way.
    pub(crate) fn context(&self) -> ContextOptions {
        ContextOptions {
            threads: self.threads,
            kv_type_k: self.kv_type_k,
            kv_type_v: self.kv_type_v,
            flash_attention: self.flash_attention,
            ..ContextOptions::default()
        }
    }
}
