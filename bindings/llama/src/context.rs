//! A llama.cpp context whose graphs run with caps.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};

use axiscap::{CapSet, CapStats};
use axiscap_ggml::{FusedNorms, Hook, Session};
use llama_cpp_2::DecodeError;
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_sys_2 as sys;

use crate::error::Error;
use crate::model::Model;
use crate::threads::{self, default_threads};
use crate::trace::{self, TraceRow};
use crate::{Token, backend, log, memory};

/// Number format of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// Half precision, llama.cpp's default.
    #[default]
    F16,
    /// Single precision.
    F32,
}

/// How to make a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextOptions {
    /// Tokens the context holds, over all sequences; `None`: 4096, or what the model was trained on if that is less.
    pub ctx: Option<u32>,
    /// Most rows of one [`Context::decode`].
    pub batch: u32,
    /// Most rows llama.cpp computes in one pass.
    pub ubatch: u32,
    /// Threads for the CPU; `None`: [`default_threads`].
    pub threads: Option<usize>,
    /// Number format of the KV cache.
    pub kv_type: KvType,
    /// Flash attention on or off; `None` leaves it to llama.cpp.
    pub flash_attention: Option<bool>,
    /// Number of sequences decoded side by side. They share one KV buffer, so that rows keep the order of the batch.
    pub sequences: u32,
}

impl Default for ContextOptions {
    fn default() -> Self {
        Self {
            ctx: None,
            batch: 2048,
            ubatch: 512,
            threads: None,
            kv_type: KvType::F16,
            flash_attention: None,
            sequences: 1,
        }
    }
}

/// Context size where none is asked for.
const DEFAULT_CTX: u32 = 4096;
/// Most sequences of a llama.cpp context (LLAMA_MAX_SEQ).
const MOST_SEQUENCES: u32 = 256;
/// Largest context asked of llama.cpp: far beyond any model, and small enough that what it needs besides the KV
/// cache does not end in the system killing the process.
pub const MOST_CTX: u32 = 1 << 24;

/// One row of a batch: a token at a position of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchRow {
    /// The token.
    pub token: Token,
    /// Its position in the sequence, from 0.
    pub position: i32,
    /// The sequence, below [`ContextOptions::sequences`].
    pub sequence: i32,
    /// Whether its logits are wanted. The last block computes only such rows.
    pub logits: bool,
}

/// A context and the caps of everything it decodes.
pub struct Context<'m> {
    // Declared first, dropped first: the backends inside must go before the hook does.
    llama: LlamaContext<'m>,
    batch: LlamaBatch<'static>,
    model: &'m Model,
    hooked: Option<Hooked>,
    options: ContextOptions,
    ctx: usize,
    /// Which rows of the last batch have logits.
    outputs: Vec<bool>,
    /// Tokens of sequence 0 that [`generate`](crate::generate()) has decoded under the current caps.
    pub(crate) history: Vec<Token>,
}

struct Hooked {
    session: Session,
    tracing: bool,
    trace: Vec<TraceRow>,
    _hook: Hook,
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("model", &self.model.path())
            .field("options", &self.options)
            .field("hooked", &self.hooked.is_some())
            .finish_non_exhaustive()
    }
}

impl<'m> Context<'m> {
    /// A context that can be capped. Until [`Context::set_caps`] its graphs run untouched.
    ///
    /// # Errors
    /// [`Error::Hook`] when the hook cannot be installed in this llama.cpp, [`Error::Option`],
    /// [`Error::ContextCreation`], [`Error::NotBound`].
    pub fn new(model: &'m Model, options: &ContextOptions) -> Result<Self, Error> {
        backend::llama();
        let hook = Hook::install()?;
        let session = Session::new(model.shape().clone());
        let (ctx, llama) = hook.bind(&session, || create(model, options))?;
        if !session.is_bound() {
            return Err(Error::NotBound);
        }
        let hooked = Hooked { session, tracing: false, trace: Vec::new(), _hook: hook };
        Ok(Self::wrap(model, options, ctx, llama, Some(hooked)))
    }

    /// A context that the hook never touches: llama.cpp as it is, the baseline of measurements.
    ///
    /// # Errors
    /// [`Error::Option`], [`Error::ContextCreation`].
    pub fn uncapped(model: &'m Model, options: &ContextOptions) -> Result<Self, Error> {
        let (ctx, llama) = create(model, options)?;
        Ok(Self::wrap(model, options, ctx, llama, None))
    }

    fn wrap(
        model: &'m Model,
        options: &ContextOptions,
        ctx: u32,
        llama: LlamaContext<'m>,
        hooked: Option<Hooked>,
    ) -> Self {
        Self {
            batch: LlamaBatch::new(llama.n_batch() as usize, 1),
            llama,
            model,
            hooked,
            options: options.clone(),
            ctx: ctx as usize,
            outputs: Vec::new(),
            history: Vec::new(),
        }
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Tokens the context holds, over all sequences.
    #[must_use]
    pub fn ctx(&self) -> usize {
        self.ctx
    }

    /// Most rows of one [`Context::decode`].
    #[must_use]
    pub fn batch(&self) -> usize {
        self.llama.n_batch() as usize
    }

    /// Most rows llama.cpp computes in one pass.
    #[must_use]
    pub fn ubatch(&self) -> usize {
        self.llama.n_ubatch() as usize
    }

    /// The options it was made with.
    #[must_use]
    pub fn options(&self) -> &ContextOptions {
        &self.options
    }

    /// The session of this context, to change bounds and strengths between two decodes, to observe block outputs
    /// and to read statistics. Changes made here do not reach what is in the KV cache already; use
    /// [`Context::set_caps`] and its siblings to have [`generate`](crate::generate()) decode the prompt anew.
    ///
    /// # Errors
    /// [`Error::NotHooked`] for a context made by [`Context::uncapped`].
    pub fn session(&self) -> Result<&Session, Error> {
        self.hooked.as_ref().map(|hooked| &hooked.session).ok_or(Error::NotHooked)
    }

    /// Sets the caps, checked against the model; `None` removes them.
    ///
    /// # Errors
    /// [`Error::Hook`] with the reason, [`Error::NotHooked`].
    pub fn set_caps(&mut self, caps: Option<&CapSet>) -> Result<(), Error> {
        self.session()?.set_caps(caps)?;
        self.history.clear();
        Ok(())
    }

    /// Switches the caps on or off without forgetting them. Off, graphs run untouched.
    ///
    /// # Errors
    /// [`Error::NotHooked`].
    pub fn set_enabled(&mut self, on: bool) -> Result<(), Error> {
        self.session()?.set_enabled(on);
        self.history.clear();
        Ok(())
    }

    /// Changes the strength of one cap: 1 moves the projection onto the bound, 0 only observes.
    ///
    /// # Errors
    /// [`Error::Hook`], [`Error::NotHooked`].
    pub fn set_strength(&mut self, cap: usize, strength: f32) -> Result<(), Error> {
        self.session()?.set_strength(cap, strength)?;
        self.history.clear();
        Ok(())
    }

    /// Has caps that run on a GPU do the RMSNorm behind their block as well, where the graph allows it
    /// ([`Session::set_fused_norm`]); [`Context::fused_norms`] says where.
    ///
    /// # Errors
    /// [`Error::NotHooked`].
    pub fn set_fused_norm(&mut self, on: bool) -> Result<(), Error> {
        self.session()?.set_fused_norm(on);
        self.history.clear();
        Ok(())
    }

    /// Behind which capped blocks the norm ran with the caps so far, and behind which it did not and why.
    ///
    /// # Errors
    /// [`Error::NotHooked`].
    pub fn fused_norms(&self) -> Result<FusedNorms, Error> {
        Ok(self.session()?.fused_norms())
    }

    /// What each cap did since the last [`Context::reset_stats`], in the order of the set.
    ///
    /// # Errors
    /// [`Error::NotHooked`].
    pub fn stats(&self) -> Result<Vec<CapStats>, Error> {
        Ok(self.session()?.stats())
    }

    /// Starts the statistics anew.
    ///
    /// # Errors
    /// [`Error::NotHooked`].
    pub fn reset_stats(&mut self) -> Result<(), Error> {
        self.session()?.reset_stats();
        Ok(())
    }

    /// Where capped blocks were computed so far, and how: a ggml device's name (`CPU`, `CUDA0`) and a few words.
    ///
    /// # Errors
    /// [`Error::NotHooked`].
    pub fn engines_used(&self) -> Result<Vec<(String, &'static str)>, Error> {
        Ok(self.session()?.engines_used())
    }

    /// Starts or stops recording what every cap does to every row.
    ///
    /// # Errors
    /// [`Error::NotHooked`].
    pub fn set_tracing(&mut self, on: bool) -> Result<(), Error> {
        let hooked = self.hooked.as_mut().ok_or(Error::NotHooked)?;
        hooked.session.set_tracing(on);
        drop(hooked.session.take_trace());
        hooked.tracing = on;
        Ok(())
    }

    /// What was recorded since the last call: per decode in the order of its rows, each row's caps in the order
    /// of the set.
    pub fn take_trace(&mut self) -> Vec<TraceRow> {
        self.hooked.as_mut().map(|hooked| std::mem::take(&mut hooked.trace)).unwrap_or_default()
    }

    /// Decodes one batch: rows of any sequences, each sequence's positions ascending and going on from what is in
    /// the KV cache.
    ///
    /// # Errors
    /// [`Error::BatchTooLong`], [`Error::BatchRow`], [`Error::ContextFull`], [`Error::Decode`], and
    /// [`Error::Hook`] when a capped block was not seen with all its rows. After an error the KV cache may hold
    /// some of the rows; [`Context::truncate`] or [`Context::clear`] it before going on.
    pub fn decode(&mut self, rows: &[BatchRow]) -> Result<(), Error> {
        self.outputs.clear();
        let Some(first) = rows.first() else { return Ok(()) };
        self.check_rows(rows)?;
        self.batch.clear();
        for row in rows {
            let added = self.batch.add(row.token, row.position, &[row.sequence], row.logits);
            added.map_err(|_| Error::BatchTooLong { rows: rows.len(), batch: self.batch() })?;
        }
        let outputs = rows.iter().filter(|row| row.logits).count();
        let (decoded, complaints) = log::capture(|| {
            let mut run = || self.llama.decode(&mut self.batch);
            match &self.hooked {
                Some(hooked) => hooked.session.watch(rows.len(), outputs, run),
                None => Ok(run()),
            }
        });
        match decoded? {
            Ok(()) => {}
            Err(DecodeError::NoKvCacheSlot) => {
                return Err(Error::ContextFull { rows: rows.len(), context: self.ctx });
            }
            Err(_) => {
                let reason = complaints.reason();
                return Err(Error::Decode { rows: rows.len(), position: first.position, reason });
            }
        }
        self.outputs.extend(rows.iter().map(|row| row.logits));
        if let Some(hooked) = &mut self.hooked
            && hooked.tracing
        {
            let passes = hooked.session.take_trace();
            hooked.trace.extend(trace::assemble(rows, &passes)?);
        }
        Ok(())
    }

    /// llama.cpp aborts the process, or reads out of bounds, on some of what is refused here.
    fn check_rows(&self, rows: &[BatchRow]) -> Result<(), Error> {
        if rows.len() > self.batch() {
            return Err(Error::BatchTooLong { rows: rows.len(), batch: self.batch() });
        }
        let wrong = |row, what, value: i32, expected| {
            Err(Error::BatchRow { row, what, value: i64::from(value), expected })
        };
        for (index, row) in rows.iter().enumerate() {
            if !self.model.has_token(row.token) {
                return wrong(index, "token", row.token.0, format!("0 to {}", self.model.vocab_size() - 1));
            }
            if !usize::try_from(row.position).is_ok_and(|position| position < self.ctx) {
                return wrong(index, "position", row.position, format!("0 to {} (--ctx)", self.ctx - 1));
            }
            if self.check_sequence(row.sequence).is_err() {
                return wrong(
                    index,
                    "sequence",
                    row.sequence,
                    format!("0 to {}", self.options.sequences - 1),
                );
            }
        }
        Ok(())
    }

    /// Decodes `tokens` on from `position` of `sequence`, in batches as long as allowed, with the logits of the
    /// last token.
    ///
    /// # Errors
    /// Those of [`Context::decode`].
    pub fn prefill(&mut self, tokens: &[Token], position: usize, sequence: i32) -> Result<(), Error> {
        let batch = self.batch();
        for (chunk, start) in tokens.chunks(batch).zip((0..).step_by(batch)) {
            let row = |(index, &token): (usize, &Token)| BatchRow {
                token,
                position: i32::try_from(position + start + index).unwrap_or(i32::MAX),
                sequence,
                logits: start + index + 1 == tokens.len(),
            };
            let rows: Vec<_> = chunk.iter().enumerate().map(row).collect();
            self.decode(&rows)?;
        }
        Ok(())
    }

    /// The logits of a row of the last batch, one per token of the vocabulary; `None` where none were asked for.
    #[must_use]
    pub fn logits(&self, row: usize) -> Option<&[f32]> {
        let asked = self.outputs.get(row).copied().unwrap_or(false);
        asked.then(|| self.llama.get_logits_ith(i32::try_from(row).unwrap_or(i32::MAX)))
    }

    /// The logits of the last row of the last batch; none where none were asked for.
    pub(crate) fn last_logits(&self) -> &[f32] {
        self.outputs.len().checked_sub(1).and_then(|row| self.logits(row)).unwrap_or_default()
    }

    /// Whether the last row of the last batch has logits to sample from.
    pub(crate) fn has_last_logits(&self) -> bool {
        self.outputs.last().copied().unwrap_or(false)
    }

    /// Number of positions of a sequence that are in the KV cache; none of a sequence that the context does not have.
    #[must_use]
    pub fn position(&self, sequence: i32) -> usize {
        if self.check_sequence(sequence).is_err() {
            return 0;
        }
        usize::try_from(self.llama.kv_cache_seq_pos_max(sequence) + 1).unwrap_or(0)
    }

    /// llama.cpp aborts the process on sequences that it does not have.
    fn check_sequence(&self, sequence: i32) -> Result<u32, Error> {
        u32::try_from(sequence)
            .ok()
            .filter(|&sequence| sequence < self.options.sequences)
            .ok_or(Error::Sequence { sequence, last: self.options.sequences - 1 })
    }

    /// Forgets all sequences.
    pub fn clear(&mut self) {
        self.llama.clear_kv_cache();
        self.history.clear();
    }

    /// Forgets a sequence from a position on.
    ///
    /// # Errors
    /// [`Error::Sequence`], and [`Error::CannotTruncate`] where the model's memory has no such rows to take away
    /// (recurrent models).
    pub fn truncate(&mut self, sequence: i32, position: usize) -> Result<(), Error> {
        let known = self.check_sequence(sequence)?;
        // llama.cpp counts positions in an i32; beyond them there is nothing to forget.
        let from = u32::try_from(position).unwrap_or(u32::MAX).min(i32::MAX.cast_unsigned());
        let removed = self.llama.clear_kv_cache_seq(Some(known), Some(from), None).unwrap_or(false);
        if !removed {
            return Err(Error::CannotTruncate {
                architecture: self.model.shape().architecture.clone(),
                sequence,
                position: i32::try_from(position).unwrap_or(i32::MAX),
            });
        }
        if sequence == 0 {
            self.history.truncate(position);
        }
        Ok(())
    }

    /// Makes sequence `to` a copy of sequence `from`, e.g. to go on from a common prompt; what was in it is forgotten.
    /// The cells are shared.
    ///
    /// # Errors
    /// [`Error::Sequence`], and those of [`Context::truncate`].
    pub fn copy_sequence(&mut self, from: i32, to: i32) -> Result<(), Error> {
        self.check_sequence(from)?;
        self.check_sequence(to)?;
        if from != to {
            // llama.cpp would add the copy to what is there. This also has generate() decode its prompt anew.
            self.truncate(to, 0)?;
            self.llama.copy_cache(from, to, -1);
        }
        Ok(())
    }

    /// The context of `llama-cpp-2`, for what this crate does not cover. A decode through it is not watched.
    #[must_use]
    pub fn llama(&self) -> &LlamaContext<'m> {
        &self.llama
    }
}

/// Creates the llama.cpp context. Returns with it how many tokens it may hold: llama.cpp rounds up, but what was
/// asked for is what counts.
fn create<'m>(model: &'m Model, options: &ContextOptions) -> Result<(u32, LlamaContext<'m>), Error> {
    /// llama.cpp writes to the shared model while it makes a context (`n_ctx_train`, for scaled rope).
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    let settings = Settings::new(model, options)?;
    let (ctx, params) = (settings.ctx, settings.params());
    memory::check(model, ctx, options.kv_type)?;
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (made, complaints) = log::capture(|| model.llama().new_context(backend::llama(), params));
    let llama = made.map_err(|_| Error::ContextCreation { ctx, reason: complaints.reason() })?;
    Ok((ctx.min(llama.n_ctx()), llama))
}

/// The numbers that llama.cpp is given for [`ContextOptions`], checked: it aborts the process on some of what is
/// refused here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) ctx: u32,
    pub(crate) batch: u32,
    pub(crate) ubatch: u32,
    pub(crate) sequences: u32,
    pub(crate) threads: i32,
    pub(crate) kv: sys::ggml_type,
    pub(crate) flash_attention: sys::llama_flash_attn_type,
}

impl Settings {
    pub(crate) fn new(model: &Model, options: &ContextOptions) -> Result<Self, Error> {
        let default = DEFAULT_CTX.min(model.trained_context().max(1));
        let threads = u32::try_from(options.threads.unwrap_or_else(default_threads)).unwrap_or(u32::MAX);
        let batch = in_range("batch", options.batch, 1, i32::MAX as u32)?;
        let ubatch = in_range("ubatch (--ubatch)", options.ubatch, 1, i32::MAX as u32)?;
        Ok(Self {
            ctx: in_range("ctx (--ctx)", options.ctx.unwrap_or(default), 1, MOST_CTX)?,
            batch: batch.max(ubatch),
            ubatch,
            sequences: in_range("sequences", options.sequences, 1, MOST_SEQUENCES)?,
            threads: in_range("threads (--threads)", threads, 1, threads::MOST as u32)?.cast_signed(),
            kv: match options.kv_type {
                KvType::F16 => sys::GGML_TYPE_F16,
                KvType::F32 => sys::GGML_TYPE_F32,
            },
            flash_attention: match options.flash_attention {
                None => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
                Some(false) => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
                Some(true) => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            },
        })
    }

    fn params(&self) -> LlamaContextParams {
        let kv = KvCacheType::from(self.kv);
        LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(self.ctx))
            .with_n_batch(self.batch)
            .with_n_ubatch(self.ubatch)
            .with_n_seq_max(self.sequences)
            .with_n_threads(self.threads)
            .with_n_threads_batch(self.threads)
            .with_type_k(kv)
            .with_type_v(kv)
            .with_flash_attention_policy(self.flash_attention)
            .with_kv_unified(true)
            .with_no_perf(true)
    }
}

fn in_range(option: &'static str, value: u32, least: u32, most: u32) -> Result<u32, Error> {
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(Error::Option { option, value: value.to_string(), expected: format!("{least} to {most}") })
    }
}
