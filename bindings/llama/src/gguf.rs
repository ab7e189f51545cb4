//! The metadata of a GGUF file and the places of its tensors, read by ggml without the tensors' data.

use std::ffi::{CStr, CString};
use std::path::Path;
use std::ptr::{self, NonNull};

use llama_cpp_sys_2 as sys;

use crate::log;

/// ggml's `GGML_MAX_DIMS`.
const DIMENSIONS: usize = 4;

/// An open GGUF file.
pub(crate) struct Gguf(NonNull<sys::gguf_context>);

/// A tensor of a GGUF file.
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// Offset of its data in the file.
    pub(crate) offset: u64,
    /// Bytes of its data.
    pub(crate) size: u64,
    /// Whether it is a vector of F32.
    pub(crate) is_f32_vector: bool,
}

impl Gguf {
    /// Opens a file. The error is ggml's reason.
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        let Some(path) = path.to_str().and_then(|path| CString::new(path).ok()) else {
            return Err("its path is not UTF-8 or holds a NUL byte".into());
        };
        let params = sys::gguf_init_params { no_alloc: true, ctx: ptr::null_mut() };
        // SAFETY: `path` is NUL-terminated and lives for the call. Without a place for a context, only the
        // metadata is read.
        let (file, complaints) = log::capture(|| unsafe { sys::gguf_init_from_file(path.as_ptr(), params) });
        NonNull::new(file).map(Self).ok_or_else(|| complaints.reason())
    }

    /// Returns a value of type u16, `None` if there is no such key or its value has another type.
    pub(crate) fn u16(&self, key: &CStr) -> Option<u16> {
        let file = self.0.as_ptr();
        // SAFETY: the file is open, and the index is that of a key that was found. The value is read as u16
        // only if it is one, because ggml aborts the process otherwise.
        unsafe {
            let index = sys::gguf_find_key(file, key.as_ptr());
            let is_u16 = index >= 0 && sys::gguf_get_kv_type(file, index) == sys::GGUF_TYPE_UINT16;
            is_u16.then(|| sys::gguf_get_val_u16(file, index))
        }
    }

    /// Returns the tensors, in the file's order. Those whose names are not UTF-8 are left out.
    pub(crate) fn tensors(&self) -> Vec<Tensor> {
        let file = self.0.as_ptr();
        // SAFETY: the file is open.
        let (count, data) = unsafe { (sys::gguf_get_n_tensors(file), sys::gguf_get_data_offset(file)) };
        let tensor = |index| {
            // SAFETY: the file is open and has a tensor of this index. Its name is a NUL-terminated string,
            // and its extents are an array of `DIMENSIONS`. Both live as long as the file.
            let (name, extents) = unsafe {
                let extents = sys::gguf_get_tensor_ne(file, index);
                let extents = std::slice::from_raw_parts(extents, DIMENSIONS);
                (CStr::from_ptr(sys::gguf_get_tensor_name(file, index)), extents)
            };
            // SAFETY: as above.
            let (kind, offset, size) = unsafe {
                (
                    sys::gguf_get_tensor_type(file, index),
                    sys::gguf_get_tensor_offset(file, index),
                    sys::gguf_get_tensor_size(file, index),
                )
            };
            Some(Tensor {
                name: name.to_str().ok()?.to_owned(),
                // ggml has checked that the sum of all sizes does not overflow.
                offset: (data as u64).saturating_add(offset as u64),
                size: size as u64,
                is_f32_vector: kind == sys::GGML_TYPE_F32 && extents[1..].iter().all(|&extent| extent == 1),
            })
        };
        (0..count).filter_map(tensor).collect()
    }
}

impl Drop for Gguf {
    fn drop(&mut self) {
        // SAFETY: this struct opened the file, and nothing refers to it any more.
        unsafe { sys::gguf_free(self.0.as_ptr()) };
    }
}
