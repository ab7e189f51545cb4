//! A context that caps through llama.cpp's evaluation callback.
//!
//! `llama-cpp-2` neither sets `cb_eval` nor exposes its pointers, so this context uses llama.cpp directly,
//! with a second copy of the model.

use std::ffi::CString;
use std::ptr::{self, NonNull};

use axiscap::CapSet;
use axiscap_llama::{
    BatchRow, ContextOptions, ContextParams, HookError, LoadFailure, Model, ModelShape, Token, log,
};
use llama_cpp_sys_2 as sys;

use super::Subject;
use super::eval_callback::EvalCallback;
use crate::error::Error;

/// The model, loaded once more.
#[derive(Debug)]
pub(super) struct EvalModel {
    raw: NonNull<sys::llama_model>,
    shape: ModelShape,
}

impl EvalModel {
    pub(super) fn load(model: &Model) -> Result<Self, Error> {
        let path = model.files().first().map_or(model.path(), |file| file.as_path());
        let name = path.to_str().and_then(|path| CString::new(path).ok());
        let name = name.ok_or_else(|| axiscap_llama::Error::ModelPath(path.to_owned()))?;
        // SAFETY: the function has no arguments and returns a struct by value.
        let mut params = unsafe { sys::llama_model_default_params() };
        if let Some(layers) = model.options().gpu_layers {
            params.n_gpu_layers = i32::try_from(layers).unwrap_or(i32::MAX);
        }
        // SAFETY: `name` is NUL-terminated and lives for the call; the parameters are llama.cpp's own.
        let (raw, complaints) =
            log::capture(|| unsafe { sys::llama_model_load_from_file(name.as_ptr(), params) });
        let raw = NonNull::new(raw).ok_or_else(|| {
            let reason = complaints.reason();
            axiscap_llama::Error::ModelLoad { path: path.to_owned(), cause: LoadFailure::of(&reason), reason }
        })?;
        Ok(Self { raw, shape: model.shape().clone() })
    }
}

impl Drop for EvalModel {
    fn drop(&mut self) {
        // SAFETY: this struct owns the model, and every context borrows the struct, so none is left.
        unsafe { sys::llama_model_free(self.raw.as_ptr()) }
    }
}

/// Why a decode failed.
enum Failure {
    Hook(HookError),
    Llama,
}

impl From<HookError> for Failure {
    fn from(error: HookError) -> Self {
        Self::Hook(error)
    }
}

/// A context of that model, with the callback that caps it.
pub(super) struct EvalContext<'m> {
    context: NonNull<sys::llama_context>,
    batch: usize,
    sequences: u32,
    /// The context holds a pointer into it.
    callback: EvalCallback,
    _model: &'m EvalModel,
}

impl<'m> EvalContext<'m> {
    /// Makes a context of `copy`, with the numbers that a context of `model` would be given.
    pub(super) fn new(
        model: &Model,
        copy: &'m EvalModel,
        caps: &CapSet,
        statistics: bool,
        options: &ContextOptions,
    ) -> Result<Self, Error> {
        let callback =
            EvalCallback::new(&copy.shape, caps, statistics).map_err(axiscap_llama::Error::from)?;
        let settings = ContextParams::new(model, options)?;
        // SAFETY: the function has no arguments and returns a struct by value.
        let mut params = unsafe { sys::llama_context_default_params() };
        (params.n_ctx, params.n_seq_max) = (settings.ctx, settings.sequences);
        (params.n_batch, params.n_ubatch) = (settings.batch, settings.ubatch);
        (params.n_threads, params.n_threads_batch) = (settings.threads, settings.threads);
        (params.type_k, params.type_v) = (settings.kv_type_k.ggml(), settings.kv_type_v.ggml());
        params.flash_attn_type = settings.flash_attention;
        (params.kv_unified, params.no_perf) = (true, true);
        (params.cb_eval, params.cb_eval_user_data) = (callback.function(), callback.user_data());
        // SAFETY: `copy` is borrowed for as long as this struct, which frees the context in `drop`. The
        // callback's state is boxed and stays in this struct for as long.
        let (raw, complaints) =
            log::capture(|| unsafe { sys::llama_init_from_model(copy.raw.as_ptr(), params) });
        let context = NonNull::new(raw)
            .ok_or_else(|| axiscap_llama::Error::of_context(&settings, complaints.reason()))?;
        // SAFETY: the context was just made.
        let batch = unsafe { sys::llama_n_batch(context.as_ptr()) } as usize;
        let sequences = settings.sequences;
        Ok(Self { context, batch, sequences, callback, _model: copy })
    }

    /// Decodes rows, in batches as long as allowed.
    fn decode(&mut self, rows: &[BatchRow]) -> Result<(), Error> {
        for rows in rows.chunks(self.batch) {
            let mut tokens: Vec<_> = rows.iter().map(|row| row.token.0).collect();
            let mut positions: Vec<_> = rows.iter().map(|row| row.position).collect();
            let mut sequences: Vec<_> = rows.iter().map(|row| row.sequence).collect();
            let mut counts = vec![1; rows.len()];
            let mut lists: Vec<_> = sequences.iter_mut().map(ptr::from_mut).collect();
            let mut logits: Vec<_> = rows.iter().map(|row| i8::from(row.logits)).collect();
            let batch = sys::llama_batch {
                n_tokens: i32::try_from(rows.len()).unwrap_or(i32::MAX),
                token: tokens.as_mut_ptr(),
                embd: ptr::null_mut(),
                pos: positions.as_mut_ptr(),
                n_seq_id: counts.as_mut_ptr(),
                seq_id: lists.as_mut_ptr(),
                logits: logits.as_mut_ptr(),
            };
            let outputs = rows.iter().filter(|row| row.logits).count();
            let (decoded, complaints) = log::capture(|| {
                self.callback.watch(rows.len(), outputs, || {
                    // SAFETY: the batch points into the vectors above, which hold one value per row and live
                    // for the call. This struct owns the context.
                    let status = unsafe { sys::llama_decode(self.context.as_ptr(), batch) };
                    if status == 0 { Ok(()) } else { Err(Failure::Llama) }
                })
            });
            decoded.map_err(|failure| match failure {
                Failure::Hook(error) => axiscap_llama::Error::Hook(error),
                Failure::Llama => axiscap_llama::Error::Decode {
                    rows: rows.len(),
                    position: rows.first().map_or(0, |row| row.position),
                    reason: complaints.reason(),
                },
            })?;
        }
        // SAFETY: this struct owns the context.
        unsafe { sys::llama_synchronize(self.context.as_ptr()) };
        Ok(())
    }
}

#[cfg(test)]
impl EvalContext<'_> {
    /// Returns the logits of the last row decoded, `[vocabulary]`.
    pub(super) fn last_logits(&self) -> &[f32] {
        // SAFETY: this struct owns the context. Its last row has one logit per token
        // of the vocabulary, which the next decode overwrites. A decode needs `&mut self`.
        unsafe {
            let vocabulary = sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(sys::llama_get_model(
                self.context.as_ptr(),
            )));
            let logits = sys::llama_get_logits_ith(self.context.as_ptr(), -1);
            assert!(!logits.is_null(), "the last row has logits");
            std::slice::from_raw_parts(logits, vocabulary as usize)
        }
    }
}

impl Subject for EvalContext<'_> {
    fn clear(&mut self) {
        // SAFETY: this struct owns the context, which owns its memory.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.context.as_ptr()), true) }
    }

    fn prefill(&mut self, tokens: &[Token], position: usize, ends: bool) -> Result<(), Error> {
        let last = tokens.len().saturating_sub(1);
        let row = |(index, &token): (usize, &Token)| BatchRow {
            token,
            position: i32::try_from(position + index).unwrap_or(i32::MAX),
            sequence: 0,
            logits: ends && index == last,
        };
        self.decode(&tokens.iter().enumerate().map(row).collect::<Vec<_>>())
    }

    fn spread(&mut self, count: u32) -> Result<(), Error> {
        if count > self.sequences {
            let (sequence, last) = (count.cast_signed() - 1, self.sequences - 1);
            return Err(axiscap_llama::Error::Sequence { sequence, last }.into());
        }
        for sequence in 1..count.cast_signed() {
            // SAFETY: this struct owns the context, which owns its memory. The sequences are below its
            // `n_seq_max`, as checked above, and negative positions mean all positions.
            unsafe {
                sys::llama_memory_seq_cp(sys::llama_get_memory(self.context.as_ptr()), 0, sequence, -1, -1);
            }
        }
        Ok(())
    }

    fn step(&mut self, tokens: &[Token], position: usize) -> Result<(), Error> {
        let position = i32::try_from(position).unwrap_or(i32::MAX);
        let row = |(sequence, &token)| BatchRow { token, position, sequence, logits: true };
        self.decode(&(0..).zip(tokens).map(row).collect::<Vec<_>>())
    }
}

impl Drop for EvalContext<'_> {
    fn drop(&mut self) {
        // SAFETY: this struct owns the context. Its fields, the callback among them, are dropped after this
        // call, and the model is borrowed.
        unsafe { sys::llama_free(self.context.as_ptr()) }
    }
}
