//! Models for the tests, made from the real one with ggml's own functions: split over several files, or with
//! other metadata.

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::ptr;

use llama_cpp_sys_2 as sys;

/// The real model in memory.
pub(crate) struct Source {
    file: *mut sys::gguf_context,
    tensors: *mut sys::ggml_context,
}

impl Source {
    pub(crate) fn open() -> Self {
        let path = c_string(&super::model());
        let mut tensors = ptr::null_mut();
        let params = sys::gguf_init_params { no_alloc: false, ctx: &raw mut tensors };
        // SAFETY: the path is NUL-terminated, and the parameters point to a live pointer.
        let file = unsafe { sys::gguf_init_from_file(path.as_ptr(), params) };
        assert!(!file.is_null(), "the model opens");
        Self { file, tensors }
    }

    /// Splits the model into files of these numbers of tensors, the last one with the rest. Returns the
    /// files.
    pub(crate) fn split(&self, folder: &Path, name: &str, tensors: &[i64]) -> Vec<PathBuf> {
        let count = tensors.len() + 1;
        // SAFETY: the file is open.
        let total = unsafe { sys::gguf_get_n_tensors(self.file) };
        let mut next = 0;
        let write = |number: usize| {
            let path = folder.join(format!("{name}-{:05}-of-{count:05}.gguf", number + 1));
            let end = tensors.get(number).map_or(total, |tensors| next + tensors);
            let part = Part::new();
            // SAFETY: both files are open, the keys are NUL-terminated, and the tensors are those of the
            // source, which outlives the part.
            unsafe {
                if number == 0 {
                    sys::gguf_set_kv(part.0, self.file);
                }
                sys::gguf_set_val_u16(part.0, c"split.no".as_ptr(), number as u16);
                sys::gguf_set_val_u16(part.0, c"split.count".as_ptr(), count as u16);
                sys::gguf_set_val_i32(part.0, c"split.tensors.count".as_ptr(), total as i32);
                for index in next..end {
                    let name = sys::gguf_get_tensor_name(self.file, index);
                    sys::gguf_add_tensor(part.0, sys::ggml_get_tensor(self.tensors, name));
                }
            }
            next = end;
            part.write(&path);
            path
        };
        (0..count).map(write).collect()
    }

    /// Writes the model with other metadata.
    pub(crate) fn with_metadata(&self, path: &Path, change: impl FnOnce(&Part)) {
        let part = Part::new();
        // SAFETY: both files are open, and the tensors are those of the source, which outlives the part.
        unsafe {
            sys::gguf_set_kv(part.0, self.file);
            for index in 0..sys::gguf_get_n_tensors(self.file) {
                let name = sys::gguf_get_tensor_name(self.file, index);
                sys::gguf_add_tensor(part.0, sys::ggml_get_tensor(self.tensors, name));
            }
        }
        change(&part);
        part.write(path);
    }

    /// Writes a model of one block with heads of `width` numbers and the real model's vocabulary. Its weights
    /// are 0.
    pub(crate) fn tiny(&self, path: &Path, width: u32) {
        let (heads, inner) = (2, 32);
        let (rows, embedding) = (49152, heads * width);
        let part = Part::new();
        let size =
            4 * (i64::from(rows) * i64::from(embedding) + 8 * i64::from(embedding * embedding.max(inner)));
        let params = sys::ggml_init_params {
            mem_size: usize::try_from(size).unwrap() + (1 << 20),
            mem_buffer: ptr::null_mut(),
            no_alloc: false,
        };
        // SAFETY: the context has room for the tensors, which are zeroed before they are written, and is
        // freed after that.
        unsafe {
            let tensors = sys::ggml_init(params);
            sys::gguf_set_kv(part.0, self.file);
            let (e, n) = (i64::from(embedding), i64::from(inner));
            for (name, columns, lines) in [
                (c"token_embd.weight", e, i64::from(rows)),
                (c"output_norm.weight", e, 1),
                (c"blk.0.attn_norm.weight", e, 1),
                (c"blk.0.ffn_norm.weight", e, 1),
                (c"blk.0.attn_q.weight", e, e),
                (c"blk.0.attn_k.weight", e, e),
                (c"blk.0.attn_v.weight", e, e),
                (c"blk.0.attn_output.weight", e, e),
                (c"blk.0.ffn_gate.weight", e, n),
                (c"blk.0.ffn_up.weight", e, n),
                (c"blk.0.ffn_down.weight", n, e),
            ] {
                let tensor = if lines == 1 {
                    sys::ggml_new_tensor_1d(tensors, sys::GGML_TYPE_F32, columns)
                } else {
                    sys::ggml_new_tensor_2d(tensors, sys::GGML_TYPE_F32, columns, lines)
                };
                sys::ggml_set_name(tensor, name.as_ptr());
                let count = usize::try_from(columns * lines).unwrap();
                ptr::write_bytes(sys::ggml_get_data_f32(tensor), 0, count);
                sys::gguf_add_tensor(part.0, tensor);
            }
            part.set_u32(c"llama.block_count", 1);
            part.set_u32(c"llama.embedding_length", embedding);
            part.set_u32(c"llama.feed_forward_length", inner);
            part.set_u32(c"llama.attention.head_count", heads);
            part.set_u32(c"llama.attention.head_count_kv", heads);
            part.set_u32(c"llama.rope.dimension_count", width);
            part.write(path);
            sys::ggml_free(tensors);
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // SAFETY: this struct owns both, and parts are written before they are dropped.
        unsafe {
            sys::gguf_free(self.file);
            sys::ggml_free(self.tensors);
        }
    }
}

/// A file to be written.
pub(crate) struct Part(*mut sys::gguf_context);

impl Part {
    fn new() -> Self {
        // SAFETY: the function has no arguments.
        Self(unsafe { sys::gguf_init_empty() })
    }

    pub(crate) fn set_u32(&self, key: &CStr, value: u32) {
        // SAFETY: the file lives, and the key is NUL-terminated.
        unsafe { sys::gguf_set_val_u32(self.0, key.as_ptr(), value) }
    }

    pub(crate) fn set_bool(&self, key: &CStr, value: bool) {
        // SAFETY: as above.
        unsafe { sys::gguf_set_val_bool(self.0, key.as_ptr(), value) }
    }

    fn write(&self, path: &Path) {
        let path = c_string(path);
        // SAFETY: the path is NUL-terminated, and the data of every tensor lives.
        assert!(unsafe { sys::gguf_write_to_file(self.0, path.as_ptr(), false) }, "the file is written");
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // SAFETY: this struct owns the file.
        unsafe { sys::gguf_free(self.0) }
    }
}

fn c_string(path: &Path) -> CString {
    CString::new(path.to_str().expect("a UTF-8 path")).expect("a path without NUL")
}
