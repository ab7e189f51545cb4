//! Models and contexts of llama.cpp for tests, without `llama-cpp-2`.
//!
//! A [`Description`] is the metadata of a GGUF. [`TestModel::new`] has llama.cpp build a model from it
//! (`llama_model_init_from_user`), of any architecture that llama.cpp knows. Its weights depend only on the
//! names of the tensors. [`TestContext`] decodes with it.

mod context;
mod description;
mod gguf;
mod log;
mod memory;
mod next_token;
mod quick;
mod shapes;
mod weights;

use std::ffi::CString;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::Once;

use llama_cpp_sys_2 as sys;

pub use context::{ContextSettings, Row, TestContext};
pub use description::Description;
pub use gguf::{Gguf, Value, write_matrices};
pub use log::capture as capture_log;
pub use quick::quick_model;
pub use shapes::{ARCHITECTURES, has_dense_form, has_experts_form, is_causal, is_embedding};

use weights::Weights;

/// A model of llama.cpp.
#[derive(Debug)]
pub struct TestModel(NonNull<sys::llama_model>);

// SAFETY: llama.cpp's models are read-only once made, and any thread may free them.
unsafe impl Send for TestModel {}
// SAFETY: as above.
unsafe impl Sync for TestModel {}

/// Starts llama.cpp, and keeps its log to the thread that it is written on.
fn start() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        // SAFETY: llama_backend_init may be called at any time.
        unsafe { sys::llama_backend_init() };
    });
    log::install();
}

impl TestModel {
    /// Makes a model.
    ///
    /// # Errors
    /// llama.cpp's words where it refuses the description.
    ///
    /// # Panics
    /// If a description that needs a file cannot have one.
    pub fn new(description: &Description) -> Result<Self, String> {
        if !description.file {
            return Self::make(description, &mut Weights::default());
        }
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        Self::write(description, file.path())?;
        Self::load(file.path(), |_| {})
    }

    /// Loads a model from a GGUF file. `change` changes llama.cpp's parameters.
    ///
    /// # Errors
    /// llama.cpp's words.
    pub fn load(path: &Path, change: impl FnOnce(&mut sys::llama_model_params)) -> Result<Self, String> {
        let name = c_string(path);
        Self::of(|params| {
            change(params);
            // SAFETY: the name is a C string.
            unsafe { sys::llama_model_load_from_file(name.as_ptr(), *params) }
        })
    }

    fn make(description: &Description, weights: &mut Weights) -> Result<Self, String> {
        let gguf = description.gguf();
        let data = ptr::from_mut(weights).cast();
        // SAFETY: metadata and weights outlive the call, and the callback alone uses the weights.
        Self::of(|params| unsafe {
            params.load_mtp = description.next_token_weights;
            sys::llama_model_init_from_user(gguf.raw(), Some(weights::fill), data, *params)
        })
    }

    /// Takes the model that `make` returns, or llama.cpp's words.
    fn of(make: impl FnOnce(&mut sys::llama_model_params) -> *mut sys::llama_model) -> Result<Self, String> {
        start();
        // SAFETY: a plain constructor.
        let mut params = unsafe { sys::llama_model_default_params() };
        params.progress_callback = Some(no_progress);
        let (model, complaints) = log::capture(|| make(&mut params));
        NonNull::new(model).map(Self).ok_or(complaints)
    }

    /// Writes a model to a GGUF file, with the weights that [`TestModel::new`] gives it.
    ///
    /// # Errors
    /// llama.cpp's words where it refuses the description.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn write(description: &Description, path: &Path) -> Result<(), String> {
        let mut weights = Weights::kept();
        let _made = Self::make(description, &mut weights)?;
        let gguf = description.file_gguf();
        weights.add_to(&gguf, &description.omitted);
        gguf.write(path);
        Ok(())
    }

    /// Returns llama.cpp's model.
    #[must_use]
    pub fn raw(&self) -> *mut sys::llama_model {
        self.0.as_ptr()
    }

    /// Returns the number of blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        // SAFETY: the model lives.
        (unsafe { sys::llama_model_n_layer(self.raw()) }) as usize
    }

    /// Returns the width of the residual stream.
    #[must_use]
    pub fn width(&self) -> usize {
        // SAFETY: the model lives.
        (unsafe { sys::llama_model_n_embd(self.raw()) }) as usize
    }

    /// Returns the number of tokens of the vocabulary.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        // SAFETY: the model lives, and its vocabulary with it.
        (unsafe { sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(self.raw())) }) as usize
    }

    /// Returns whether the model has an encoder, whose output its decoder reads.
    #[must_use]
    pub fn has_encoder(&self) -> bool {
        // SAFETY: the model lives.
        unsafe { sys::llama_model_has_encoder(self.raw()) }
    }
}

impl Drop for TestModel {
    fn drop(&mut self) {
        // SAFETY: freed once, and contexts borrow the model.
        unsafe { sys::llama_model_free(self.raw()) }
    }
}

fn c_string(path: &Path) -> CString {
    CString::new(path.to_str().expect("a path in UTF-8")).expect("a path without NUL bytes")
}

unsafe extern "C" fn no_progress(_: f32, _: *mut std::ffi::c_void) -> bool {
    true
}
