//! llama.cpp's own functions on a model of which some layers are on a device beside the CPU.
//!
//! `llama-cpp-2` does not set `cb_eval`.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_void};
use std::ptr::{NonNull, null_mut};
use std::sync::{Mutex, PoisonError};

use axiscap_ggml::{Hook, HookError, ModelShape, Session};
use llama_cpp_sys_2 as sys;

use super::support;

/// A model, its last layers on the device of the tests.
#[derive(Debug)]
pub(crate) struct Model {
    raw: NonNull<sys::llama_model>,
    pub(crate) shape: ModelShape,
}

// SAFETY: llama.cpp's models are read-only once loaded, apart from the making of contexts, which is done one at a
// time.
unsafe impl Sync for Model {}

/// How to make a context.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Rows of a micro-batch.
    pub(crate) ubatch: u32,
    /// Whether keys and values are where their layer is, and not in host memory.
    pub(crate) kv_offload: bool,
    pub(crate) flash_attention: bool,
    pub(crate) sequences: i32,
    pub(crate) threads: i32,
}

/// A row of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) token: i32,
    pub(crate) position: i32,
    pub(crate) sequence: i32,
    pub(crate) logits: bool,
}

/// What llama.cpp's evaluation callback saw of the block outputs: their rows, graph by graph, and the buffers that
/// they lay in.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    pub(crate) rows: Vec<(usize, Vec<f32>)>,
    pub(crate) buffers: BTreeSet<(usize, String)>,
}

pub(crate) struct Context<'m> {
    raw: NonNull<sys::llama_context>,
    model: &'m Model,
    session: Option<&'m Session>,
    /// llama.cpp has its address.
    observed: Option<Box<Observed>>,
}

impl Model {
    /// Loads the small model with this many layers on the tests' device. `None` keeps every device but the CPU
    /// out of its contexts.
    pub(crate) fn load(layers: Option<i32>) -> Self {
        let device = support::device();
        let path = CString::new(axiscap_testing::small_model().to_str().unwrap()).unwrap();
        let mut devices = [layers.map_or(null_mut(), |_| device), null_mut()];
        // SAFETY: the parameters are llama.cpp's own. Path and devices live for the call.
        unsafe {
            sys::llama_log_set(Some(ignore), null_mut());
            let mut params = sys::llama_model_default_params();
            params.n_gpu_layers = layers.unwrap_or(0);
            params.devices = devices.as_mut_ptr();
            let raw = sys::llama_model_load_from_file(path.as_ptr(), params);
            let raw = NonNull::new(raw).expect("the test model loads");
            let blocks = sys::llama_model_n_layer(raw.as_ptr()) as usize;
            let width = sys::llama_model_n_embd(raw.as_ptr()) as usize;
            Self { raw, shape: ModelShape { architecture: "llama".into(), blocks, width } }
        }
    }

    /// Makes a context. With a session it is bound to that.
    pub(crate) fn context<'m>(
        &'m self,
        options: Options,
        hooked: Option<(&Hook, &'m Session)>,
        observe: bool,
    ) -> Context<'m> {
        /// llama.cpp writes to the shared model while it makes a context.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let mut observed = observe.then(Box::<Observed>::default);
        let mut create = || {
            // SAFETY: the model is loaded. The observer lives in a box that the context owns.
            unsafe {
                let mut params = sys::llama_context_default_params();
                params.n_ctx = 256 * options.sequences as u32;
                params.n_batch = 256;
                params.n_ubatch = options.ubatch;
                params.n_seq_max = options.sequences as u32;
                params.n_threads = options.threads;
                params.n_threads_batch = options.threads;
                params.kv_unified = true;
                params.offload_kqv = options.kv_offload;
                params.flash_attn_type = match options.flash_attention {
                    true => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
                    false => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
                };
                if let Some(observed) = &mut observed {
                    params.cb_eval = Some(observe_block);
                    params.cb_eval_user_data = (&raw mut **observed).cast();
                }
                sys::llama_init_from_model(self.raw.as_ptr(), params)
            }
        };
        let raw = match hooked {
            Some((hook, session)) => hook.bind(session, create),
            None => create(),
        };
        let raw = NonNull::new(raw).expect("a context");
        Context { raw, model: self, session: hooked.map(|(_, session)| session), observed }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: loaded by `load`; contexts borrow the model, so none is left.
        unsafe { sys::llama_model_free(self.raw.as_ptr()) }
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `Model::context`, freed once.
        unsafe { sys::llama_free(self.raw.as_ptr()) }
    }
}

impl Context<'_> {
    /// Decodes a batch, under the session if the context has one. Returns the bits of the logits of the rows
    /// that ask for them.
    pub(crate) fn decode(&mut self, rows: &[Row]) -> Result<Vec<Vec<u32>>, HookError> {
        let outputs = rows.iter().filter(|row| row.logits).count();
        let status = match self.session {
            Some(session) => {
                session.watch(rows.len(), outputs, || Ok::<_, HookError>(self.decode_raw(rows)))?
            }
            None => self.decode_raw(rows),
        };
        assert_eq!(status, 0, "llama_decode");
        // SAFETY: a context whose last batch had logits at these rows.
        let logits = |row: usize| unsafe {
            let vocabulary = sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(self.model.raw.as_ptr()));
            let logits = sys::llama_get_logits_ith(self.raw.as_ptr(), row as i32);
            assert!(!logits.is_null());
            std::slice::from_raw_parts(logits, vocabulary as usize).iter().map(|x| x.to_bits()).collect()
        };
        Ok((0..rows.len()).filter(|&row| rows[row].logits).map(logits).collect())
    }

    fn decode_raw(&mut self, rows: &[Row]) -> i32 {
        // SAFETY: the batch has room for that many rows of one sequence each.
        unsafe {
            let mut batch = sys::llama_batch_init(rows.len() as i32, 0, 1);
            batch.n_tokens = rows.len() as i32;
            for (i, row) in rows.iter().enumerate() {
                batch.token.add(i).write(row.token);
                batch.pos.add(i).write(row.position);
                batch.n_seq_id.add(i).write(1);
                batch.seq_id.add(i).read().write(row.sequence);
                batch.logits.add(i).write(i8::from(row.logits));
            }
            let status = sys::llama_decode(self.raw.as_ptr(), batch);
            sys::llama_synchronize(self.raw.as_ptr());
            sys::llama_batch_free(batch);
            status
        }
    }

    /// Returns what the evaluation callback saw since the last call.
    pub(crate) fn observed(&mut self) -> Observed {
        std::mem::take(&mut **self.observed.as_mut().expect("an observed context"))
    }
}

unsafe extern "C" fn ignore(_: sys::ggml_log_level, _: *const std::ffi::c_char, _: *mut c_void) {}

/// Copies the rows of every block output, once its backend has computed it.
unsafe extern "C" fn observe_block(tensor: *mut sys::ggml_tensor, ask: bool, data: *mut c_void) -> bool {
    // SAFETY: a node with a NUL-terminated name.
    let name = unsafe { CStr::from_ptr((*tensor).name.as_ptr()) }.to_str().unwrap_or_default();
    let Some(block) = name.strip_prefix("l_out-").and_then(|block| block.parse().ok()) else { return !ask };
    if ask {
        return true;
    }
    // SAFETY: the observer outlives the context. The node was computed and its backend is idle. It is f32 and
    // contiguous, and the vector has its size.
    unsafe {
        let observed = &mut *data.cast::<Observed>();
        let bytes = sys::ggml_nbytes(tensor);
        let mut rows = vec![0.0_f32; bytes / size_of::<f32>()];
        if bytes > 0 {
            sys::ggml_backend_tensor_get(tensor, rows.as_mut_ptr().cast(), 0, bytes);
            let buffer = CStr::from_ptr(sys::ggml_backend_buffer_name((*tensor).buffer));
            observed.buffers.insert((block, buffer.to_string_lossy().into_owned()));
        }
        observed.rows.push((block, rows));
    }
    true
}
