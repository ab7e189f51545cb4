//! GGUF files through ggml's own reader.

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::ptr;

use axiscap::file::gguf::{Array, Value};
use llama_cpp_sys_2 as sys;

/// A file as ggml sees it.
pub(crate) struct Theirs {
    file: *mut sys::gguf_context,
    tensors: *mut sys::ggml_context,
}

impl Theirs {
    /// `gguf_init_from_file`, with all tensor data. `None` where ggml refuses the file.
    pub(crate) fn open(path: &Path) -> Option<Self> {
        let path = CString::new(path.to_str()?).ok()?;
        Self::init(|params| {
            // SAFETY: `path` is a C string, and `params` points to a live context pointer.
            unsafe { sys::gguf_init_from_file(path.as_ptr(), params) }
        })
    }

    /// `gguf_init_from_buffer`, with all tensor data. `None` where ggml refuses the bytes.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        Self::init(|params| {
            // SAFETY: pointer and length are those of `bytes`, and `params` points to a live context pointer.
            unsafe { sys::gguf_init_from_buffer(bytes.as_ptr().cast(), bytes.len(), params) }
        })
    }

    fn init(read: impl FnOnce(sys::gguf_init_params) -> *mut sys::gguf_context) -> Option<Self> {
        let mut tensors = ptr::null_mut();
        let file = read(sys::gguf_init_params { no_alloc: false, ctx: &mut tensors });
        (!file.is_null()).then_some(Self { file, tensors })
    }

    /// Every key and value.
    pub(crate) fn metadata(&self) -> Vec<(String, Value)> {
        // SAFETY: the context lives, and the indices are below the number of keys it reports.
        unsafe {
            (0..sys::gguf_get_n_kv(self.file))
                .map(|key| (text(sys::gguf_get_key(self.file, key)), self.value(key)))
                .collect()
        }
    }

    /// # Safety
    /// There must be a key of this index.
    unsafe fn value(&self, key: i64) -> Value {
        let file = self.file;
        // SAFETY: each getter is called for the type that the context reports for the key; array data of type
        // T has as many elements as the context reports, and arrays of strings are asked for one by one.
        unsafe {
            match sys::gguf_get_kv_type(file, key) {
                sys::GGUF_TYPE_UINT8 => sys::gguf_get_val_u8(file, key).into(),
                sys::GGUF_TYPE_INT8 => sys::gguf_get_val_i8(file, key).into(),
                sys::GGUF_TYPE_UINT16 => sys::gguf_get_val_u16(file, key).into(),
                sys::GGUF_TYPE_INT16 => sys::gguf_get_val_i16(file, key).into(),
                sys::GGUF_TYPE_UINT32 => sys::gguf_get_val_u32(file, key).into(),
                sys::GGUF_TYPE_INT32 => sys::gguf_get_val_i32(file, key).into(),
                sys::GGUF_TYPE_FLOAT32 => sys::gguf_get_val_f32(file, key).into(),
                sys::GGUF_TYPE_BOOL => sys::gguf_get_val_bool(file, key).into(),
                sys::GGUF_TYPE_STRING => text(sys::gguf_get_val_str(file, key)).into(),
                sys::GGUF_TYPE_UINT64 => sys::gguf_get_val_u64(file, key).into(),
                sys::GGUF_TYPE_INT64 => sys::gguf_get_val_i64(file, key).into(),
                sys::GGUF_TYPE_FLOAT64 => sys::gguf_get_val_f64(file, key).into(),
                sys::GGUF_TYPE_ARRAY => Value::Array(match sys::gguf_get_arr_type(file, key) {
                    sys::GGUF_TYPE_UINT8 => Array::U8(self.elements(key)),
                    sys::GGUF_TYPE_INT8 => Array::I8(self.elements(key)),
                    sys::GGUF_TYPE_UINT16 => Array::U16(self.elements(key)),
                    sys::GGUF_TYPE_INT16 => Array::I16(self.elements(key)),
                    sys::GGUF_TYPE_UINT32 => Array::U32(self.elements(key)),
                    sys::GGUF_TYPE_INT32 => Array::I32(self.elements(key)),
                    sys::GGUF_TYPE_FLOAT32 => Array::F32(self.elements(key)),
                    sys::GGUF_TYPE_BOOL => {
                        Array::Bool(self.elements::<i8>(key).into_iter().map(|v| v != 0).collect())
                    }
                    sys::GGUF_TYPE_STRING => Array::String(
                        (0..sys::gguf_get_arr_n(file, key))
                            .map(|index| text(sys::gguf_get_arr_str(file, key, index)))
                            .collect(),
                    ),
                    sys::GGUF_TYPE_UINT64 => Array::U64(self.elements(key)),
                    sys::GGUF_TYPE_INT64 => Array::I64(self.elements(key)),
                    sys::GGUF_TYPE_FLOAT64 => Array::F64(self.elements(key)),
                    other => panic!("array of type {other}"),
                }),
                other => panic!("type {other}"),
            }
        }
    }

    /// # Safety
    /// The value at `key` must be an array of `T`.
    unsafe fn elements<T: Copy>(&self, key: i64) -> Vec<T> {
        // SAFETY: the caller's promise; ggml's vectors are aligned for their elements. An empty one has no
        // data.
        unsafe {
            match sys::gguf_get_arr_n(self.file, key) {
                0 => Vec::new(),
                count => {
                    let data = sys::gguf_get_arr_data(self.file, key).cast::<T>();
                    std::slice::from_raw_parts(data, count).to_vec()
                }
            }
        }
    }

    /// Every tensor by name, in the file's order; all must be vectors of f32.
    pub(crate) fn vectors(&self) -> Vec<(String, Vec<f32>)> {
        // SAFETY: the contexts live, the indices are below the number of tensors, and a tensor that the file
        // lists is in the context that was filled from it. Its data has the extent and type it reports.
        unsafe {
            (0..sys::gguf_get_n_tensors(self.file))
                .map(|index| {
                    let name = sys::gguf_get_tensor_name(self.file, index);
                    let tensor = sys::ggml_get_tensor(self.tensors, name);
                    assert_eq!((*tensor).type_, sys::GGML_TYPE_F32);
                    assert_eq!(sys::ggml_n_dims(tensor), 1);
                    let count = sys::ggml_nelements(tensor) as usize;
                    (text(name), std::slice::from_raw_parts((*tensor).data.cast::<f32>(), count).to_vec())
                })
                .collect()
        }
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        // SAFETY: both came from ggml and are freed once.
        unsafe {
            sys::gguf_free(self.file);
            sys::ggml_free(self.tensors);
        }
    }
}

/// # Safety
/// `text` must be a C string.
unsafe fn text(text: *const c_char) -> String {
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_str().expect("UTF-8").to_owned()
}

/// Keeps llama.cpp's messages out of the test's output.
pub(crate) fn quiet() {
    unsafe extern "C" fn ignore(_: sys::ggml_log_level, _: *const c_char, _: *mut c_void) {}
    // SAFETY: the callback ignores its arguments and lives as long as the program.
    unsafe {
        sys::ggml_log_set(Some(ignore), ptr::null_mut());
        sys::llama_log_set(Some(ignore), ptr::null_mut());
    }
}
