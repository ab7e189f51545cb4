//! Models for the tests, made from the real one with ggml's own functions: split over several files, or with
//! other metadata.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::ptr;

use axiscap_testing::llama::Gguf;
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
            let part = Gguf::new();
            // SAFETY: both files are open, the keys are NUL-terminated, and the tensors are those of the
            // source, which outlives the part.
            unsafe {
                if number == 0 {
                    sys::gguf_set_kv(part.raw(), self.file);
                }
                part.set("split.no", &(number as u16).into());
                part.set("split.count", &(count as u16).into());
                part.set("split.tensors.count", &(total as i32).into());
                for index in next..end {
                    let name = sys::gguf_get_tensor_name(self.file, index);
                    sys::gguf_add_tensor(part.raw(), sys::ggml_get_tensor(self.tensors, name));
                }
            }
            next = end;
            part.write(&path);
            path
        };
        (0..count).map(write).collect()
    }

    /// Writes the model with other metadata.
    pub(crate) fn with_metadata(&self, path: &Path, change: impl FnOnce(&Gguf)) {
        let part = Gguf::new();
        // SAFETY: both files are open, and the tensors are those of the source, which outlives the part.
        unsafe {
            sys::gguf_set_kv(part.raw(), self.file);
            for index in 0..sys::gguf_get_n_tensors(self.file) {
                let name = sys::gguf_get_tensor_name(self.file, index);
                sys::gguf_add_tensor(part.raw(), sys::ggml_get_tensor(self.tensors, name));
            }
        }
        change(&part);
        part.write(path);
    }

    /// Writes the model with another first value of a tensor of F32.
    pub(crate) fn with_value(&self, path: &Path, tensor: &str, value: f32) {
        let name = CString::new(tensor).expect("a name without NUL");
        // SAFETY: the name is NUL-terminated, and the tensors are in memory.
        let tensor = unsafe { sys::ggml_get_tensor(self.tensors, name.as_ptr()) };
        assert!(!tensor.is_null(), "{name:?} is there");
        // SAFETY: a tensor of F32 has at least one value at its data.
        unsafe {
            assert_eq!((*tensor).type_, sys::GGML_TYPE_F32);
            let first = (*tensor).data.cast::<f32>();
            let old = first.read();
            first.write(value);
            self.with_metadata(path, |_| {});
            first.write(old);
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

fn c_string(path: &Path) -> CString {
    CString::new(path.to_str().expect("a UTF-8 path")).expect("a path without NUL")
}
