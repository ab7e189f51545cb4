//! A context that caps through llama.cpp's evaluation callback, to compare with.
//!
//! `llama-cpp-2` neither sets `cb_eval` nor gives out its pointers, so this one goes to llama.cpp directly, with a
//! second copy of the model.

use std::ffi::CString;
use std::ptr::{self, NonNull};

use axiscap::CapSet;
use axiscap_ggml::{EvalCallback, ModelShape, Session};
use llama_cpp_sys_2 as sys;

use super::Subject;
use crate::Token;
use crate::context::{BatchRow, ContextOptions, Settings};
use crate::error::Error;
use crate::log;
use crate::model::Model;

/// The model, loaded once more.
pub(super) struct EvalModel {
    raw: NonNull<sys::llama_model>,
    shape: ModelShape,
}

impl EvalModel {
    pub(super) fn load(model: &Model) -> Result<Self, Error> {
        let path = model.path();
        let name = path.to_str().and_then(|path| CString::new(path).ok());
        let name = name.ok_or_else(|| Error::ModelPath(path.to_owned()))?;
        // SAFETY: a plain query of default parameters.
        let mut params = unsafe { sys::llama_model_default_params() };
        if let Some(layers) = model.options().gpu_layers {
            params.n_gpu_layers = i32::try_from(layers).unwrap_or(i32::MAX);
        }
        // SAFETY: `name` is NUL-terminated and lives for the call; the parameters are llama.cpp's own.
        let (raw, complaints) =
            log::capture(|| unsafe { sys::llama_model_load_from_file(name.as_ptr(), params) });
        let raw = NonNull::new(raw).ok_or_else(|| Error::ModelLoad {
            path: path.to_owned(),
            reason: complaints.reason(),
            remedy: "leave the comparison with cb_eval out",
        })?;
        Ok(Self { raw, shape: model.shape().clone() })
    }
}

impl Drop for EvalModel {
    fn drop(&mut self) {
        // SAFETY: ours and alive; every context borrows this struct and is gone by now.
        unsafe { sys::llama_model_free(self.raw.as_ptr()) }
    }
}

pub(super) struct EvalContext<'m> {
    context: NonNull<sys::llama_context>,
    session: Session,
    batch: usize,
    /// Kept for the context, which holds a pointer into it.
    _callback: EvalCallback,
    _model: &'m EvalModel,
}

impl<'m> EvalContext<'m> {
    /// A context of the copy of `model`.
    pub(super) fn new(
        model: &Model,
        copy: &'m EvalModel,
        caps: &CapSet,
        statistics: bool,
        options: &ContextOptions,
    ) -> Result<Self, Error> {
        let session = Session::new(copy.shape.clone());
        session.set_statistics(statistics);
        session.set_caps(Some(caps))?;
        let callback = EvalCallback::new(session.clone());
        let settings = Settings::new(model, options)?;
        let ctx = settings.ctx;
        // SAFETY: a plain query of default parameters.
        let mut params = unsafe { sys::llama_context_default_params() };
        (params.n_ctx, params.n_seq_max) = (ctx, settings.sequences);
        (params.n_batch, params.n_ubatch) = (settings.batch, settings.ubatch);
        (params.n_threads, params.n_threads_batch) = (settings.threads, settings.threads);
        (params.type_k, params.type_v) = (settings.kv, settings.kv);
        params.flash_attn_type = settings.flash_attention;
        (params.kv_unified, params.no_perf) = (true, true);
        (params.cb_eval, params.cb_eval_user_data) = (callback.function(), callback.user_data());
        // SAFETY: the model is borrowed for as long as the context lives; the callback's state is boxed and kept
        // in this struct for as long.
        let (raw, complaints) =
            log::capture(|| unsafe { sys::llama_init_from_model(copy.raw.as_ptr(), params) });
        let context =
            NonNull::new(raw).ok_or_else(|| Error::ContextCreation { ctx, reason: complaints.reason() })?;
        // SAFETY: the context is alive.
        let batch = unsafe { sys::llama_n_batch(context.as_ptr()) } as usize;
        Ok(Self { context, session, batch, _callback: callback, _model: copy })
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
                self.session.watch(rows.len(), outputs, || {
                    // SAFETY: the batch borrows the vectors above, one value per row each, which live for the
                    // call; the context is alive and ours.
                    let status = unsafe { sys::llama_decode(self.context.as_ptr(), batch) };
                    if status == 0 { Ok(()) } else { Err(status) }
                })
            });
            decoded?.map_err(|_| Error::Decode {
                rows: rows.len(),
                position: rows.first().map_or(0, |row| row.position),
                reason: complaints.reason(),
            })?;
        }
        // SAFETY: the context is alive.
        unsafe { sys::llama_synchronize(self.context.as_ptr()) };
        Ok(())
    }
}

impl Subject for EvalContext<'_> {
    fn clear(&mut self) {
        // SAFETY: the context is alive, and so is its memory.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.context.as_ptr()), true) }
    }

    fn prefill(&mut self, tokens: &[Token]) -> Result<(), Error> {
        let last = tokens.len().saturating_sub(1);
        let row = |(index, &token): (usize, &Token)| BatchRow {
            token,
            position: i32::try_from(index).unwrap_or(i32::MAX),
            sequence: 0,
            logits: index == last,
        };
        self.decode(&tokens.iter().enumerate().map(row).collect::<Vec<_>>())
    }

    fn spread(&mut self, count: u32) -> Result<(), Error> {
        for sequence in 1..count.cast_signed() {
            // SAFETY: the context is alive, and so is its memory; the sequences are below the `n_seq_max` it was made
            // with, and negative positions mean all.
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
        // SAFETY: ours and alive; the callback and the model outlive this call.
        unsafe { sys::llama_free(self.context.as_ptr()) }
    }
}
