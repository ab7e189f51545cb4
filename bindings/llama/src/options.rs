//! How contexts are made: the options, and the numbers that llama.cpp is given for them.

use std::num::NonZeroU32;

use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_sys_2 as sys;

use crate::error::Error;
use crate::kv_type::KvType;
use crate::model::Model;
use crate::threads::{MAX_THREADS, default_threads};

/// How to make a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextOptions {
    /// Tokens the context holds, over all sequences. `None` means 4096, or what the model was trained on if
    /// that is less.
    pub ctx: Option<u32>,
    /// Maximum rows of one [`Context::decode`](crate::Context::decode). At least `ubatch` and `sequences` are
    /// taken.
    pub batch: u32,
    /// Maximum rows llama.cpp computes in one pass.
    pub ubatch: u32,
    /// Threads for the CPU. `None` means [`default_threads`].
    pub threads: Option<usize>,
    /// Number format of the keys in the KV cache.
    pub kv_type_k: KvType,
    /// Number format of the values in the KV cache. A quantised one needs flash attention.
    pub kv_type_v: KvType,
    /// Flash attention on or off. `None` leaves it to llama.cpp.
    pub flash_attention: Option<bool>,
    /// Number of sequences decoded side by side. They share one KV buffer, which keeps rows in the order of
    /// the batch.
    pub sequences: u32,
}

impl Default for ContextOptions {
    fn default() -> Self {
        Self {
            ctx: None,
            batch: 2048,
            ubatch: 512,
            threads: None,
            kv_type_k: KvType::F16,
            kv_type_v: KvType::F16,
            flash_attention: None,
            sequences: 1,
        }
    }
}

/// Context size by default.
const DEFAULT_CTX: u32 = 4096;
/// Maximum sequences of a llama.cpp context (`LLAMA_MAX_SEQ`).
const MAX_SEQUENCES: u32 = 256;
/// Largest context asked of llama.cpp. No model needs more, and what such a context needs besides its KV
/// cache still fits into memory.
pub const MAX_CTX: u32 = 1 << 24;

/// The numbers that llama.cpp is given for [`ContextOptions`], checked. llama.cpp aborts the process on some
/// of what the check refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextParams {
    /// `n_ctx`
    pub ctx: u32,
    /// `n_batch`
    pub batch: u32,
    /// `n_ubatch`
    pub ubatch: u32,
    /// `n_seq_max`
    pub sequences: u32,
    /// `n_threads` and `n_threads_batch`
    pub threads: i32,
    /// `type_k`
    pub kv_type_k: KvType,
    /// `type_v`
    pub kv_type_v: KvType,
    /// `flash_attn_type`
    pub flash_attention: sys::llama_flash_attn_type,
}

impl ContextParams {
    /// Checks the options and fills in what they leave to the model and the machine.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub fn new(model: &Model, options: &ContextOptions) -> Result<Self, Error> {
        let default = DEFAULT_CTX.min(model.trained_context().max(1));
        let threads = u32::try_from(options.threads.unwrap_or_else(default_threads)).unwrap_or(u32::MAX);
        let batch = in_range("batch", options.batch, i32::MAX as u32)?;
        let mut ubatch = in_range("ubatch", options.ubatch, i32::MAX as u32)?;
        let sequences = in_range("sequences", options.sequences, MAX_SEQUENCES)?;
        if model.is_one_token_at_a_time() {
            ubatch = 1;
            in_range("sequences", sequences, 1)?;
        }
        Ok(Self {
            ctx: in_range("ctx", options.ctx.unwrap_or(default), MAX_CTX)?,
            // llama.cpp reserves a row with logits for each sequence, and aborts where a batch has fewer rows.
            batch: batch.max(ubatch).max(sequences),
            ubatch,
            sequences,
            threads: in_range("threads", threads, MAX_THREADS as u32)?.cast_signed(),
            kv_type_k: options.kv_type_k,
            kv_type_v: options.kv_type_v,
            flash_attention: match options.flash_attention {
                None => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
                Some(false) => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
                Some(true) => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            },
        })
    }

    /// The parameters as `llama-cpp-2` takes them.
    pub(crate) fn to_llama(self) -> LlamaContextParams {
        LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(self.ctx))
            .with_n_batch(self.batch)
            .with_n_ubatch(self.ubatch)
            .with_n_seq_max(self.sequences)
            .with_n_threads(self.threads)
            .with_n_threads_batch(self.threads)
            .with_type_k(KvCacheType::from(self.kv_type_k.ggml()))
            .with_type_v(KvCacheType::from(self.kv_type_v.ggml()))
            .with_flash_attention_policy(self.flash_attention)
            .with_kv_unified(true)
            .with_no_perf(true)
    }
}

fn in_range(option: &'static str, value: u32, max: u32) -> Result<u32, Error> {
    if (1..=max).contains(&value) {
        Ok(value)
    } else {
        Err(Error::Option { option, value: value.to_string(), expected: format!("1 to {max}") })
    }
}
