//! A model of which some layers are on a device beside the CPU, and its contexts.

use std::collections::BTreeSet;
use std::ffi::{CStr, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

use axiscap_ggml::{Hook, HookError, ModelShape, Session};
use axiscap_testing::llama::{Row, TestContext, TestModel};
use llama_cpp_sys_2 as sys;

use super::support;

/// A model, its last layers on the device of the tests.
#[derive(Debug)]
pub(crate) struct Model {
    llama: TestModel,
    pub(crate) shape: ModelShape,
}

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

/// What llama.cpp's evaluation callback saw of the block outputs: the rows of those at which it cuts the graphs,
/// graph by graph, and the buffers that all of them lie in.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    cut: BTreeSet<usize>,
    pub(crate) rows: Vec<(usize, Vec<f32>)>,
    pub(crate) buffers: BTreeSet<(usize, String)>,
}

pub(crate) struct Context<'m> {
    // The first field is dropped first: llama.cpp has the address of the last one.
    llama: TestContext<'m>,
    session: Option<&'m Session>,
    observed: Option<Box<Observed>>,
}

impl Model {
    /// Loads the tests' model with this many layers on the tests' device. `None` keeps every device but the
    /// CPU out of its contexts.
    pub(crate) fn load(layers: Option<i32>) -> Self {
        let device = support::device();
        let mut devices = [layers.map_or(null_mut(), |_| device), null_mut()];
        let llama = TestModel::load(&support::model(), |params| {
            params.n_gpu_layers = layers.unwrap_or(0);
            params.devices = devices.as_mut_ptr();
        });
        let llama = llama.expect("the test model loads");
        let (blocks, width) = (llama.blocks(), llama.width());
        Self { llama, shape: ModelShape { architecture: "llama".into(), blocks, width } }
    }

    /// Makes a context. With a session it is bound to that. With blocks to `cut` at, llama.cpp's evaluation callback
    /// observes them.
    pub(crate) fn context<'m>(
        &'m self,
        options: Options,
        hooked: Option<(&Hook, &'m Session)>,
        cut: impl IntoIterator<Item = usize>,
    ) -> Context<'m> {
        /// llama.cpp writes to the shared model while it makes a context.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let cut: BTreeSet<_> = cut.into_iter().collect();
        let observe = || Box::new(Observed { cut: cut.clone(), ..Observed::default() });
        let mut observed = (!cut.is_empty()).then(observe);
        let mut create = || {
            self.llama.context(|params| {
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
            })
        };
        let llama = match hooked {
            Some((hook, session)) => hook.bind(session, create),
            None => create(),
        };
        Context { llama: llama.expect("a context"), session: hooked.map(|(_, session)| session), observed }
    }
}

impl Context<'_> {
    /// Decodes a batch, under the session if the context has one. Returns the bits of the logits of the rows
    /// that ask for them.
    pub(crate) fn decode(&mut self, rows: &[Row]) -> Result<Vec<Vec<u32>>, HookError> {
        let outputs = rows.iter().filter(|row| row.logits).count();
        let mut decode = || Ok::<_, HookError>(self.llama.decode(rows));
        let status = match self.session {
            Some(session) => session.watch(rows.len(), outputs, decode)?,
            None => decode()?,
        };
        assert_eq!(status, 0, "llama_decode");
        let logits = |row| self.llama.logits(row).iter().map(|value| value.to_bits()).collect();
        Ok((0..rows.len()).filter(|&row| rows[row].logits).map(logits).collect())
    }

    /// Returns what the evaluation callback saw since the last call.
    pub(crate) fn observed(&mut self) -> Observed {
        let observed = &mut **self.observed.as_mut().expect("an observed context");
        let empty = Observed { cut: observed.cut.clone(), ..Observed::default() };
        std::mem::replace(observed, empty)
    }
}

/// Notes the buffer of every block output, and copies the rows of those to cut at, once their backend has computed
/// them.
unsafe extern "C" fn observe_block(tensor: *mut sys::ggml_tensor, ask: bool, data: *mut c_void) -> bool {
    // SAFETY: a node with a NUL-terminated name.
    let name = unsafe { CStr::from_ptr((*tensor).name.as_ptr()) }.to_str().unwrap_or_default();
    let Some(block) = name.strip_prefix("l_out-").and_then(|block| block.parse().ok()) else { return !ask };
    // SAFETY: the observer outlives the context. The node has a buffer. It is f32 and contiguous, and the vector has
    // its size. When not asked, the node was computed and its backend is idle.
    unsafe {
        let observed = &mut *data.cast::<Observed>();
        let bytes = sys::ggml_nbytes(tensor);
        if ask {
            if bytes > 0 {
                let buffer = CStr::from_ptr(sys::ggml_backend_buffer_name((*tensor).buffer));
                observed.buffers.insert((block, buffer.to_string_lossy().into_owned()));
            }
            return observed.cut.contains(&block);
        }
        let mut rows = vec![0.0_f32; bytes / size_of::<f32>()];
        if bytes > 0 {
            sys::ggml_backend_tensor_get(tensor, rows.as_mut_ptr().cast(), 0, bytes);
        }
        observed.rows.push((block, rows));
    }
    true
}
