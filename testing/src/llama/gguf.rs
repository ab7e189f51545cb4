//! Metadata and tensors of GGUF files, through ggml's own writer.

use std::ffi::CString;
use std::path::Path;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::c_string;

/// A value of GGUF metadata.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U16(u16),
    I32(i32),
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    U32s(Vec<u32>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Bools(Vec<bool>),
    Texts(Vec<String>),
}

macro_rules! from {
    ($($from:ty => $variant:ident),* $(,)?) => {
        $(impl From<$from> for Value {
            fn from(value: $from) -> Self {
                Self::$variant(value.into())
            }
        })*
    };
}

from! {
    u16 => U16, i32 => I32, u32 => U32, f32 => F32, bool => Bool, &str => Text, String => Text, Vec<u32> => U32s,
    Vec<i32> => I32s, Vec<f32> => F32s, Vec<bool> => Bools, Vec<String> => Texts,
}

/// Writes a GGUF file of f32 matrices, each with its name, shape and values.
///
/// # Panics
/// If the file cannot be written, or a matrix has another number of values than its shape.
pub fn write_matrices(path: &Path, metadata: &[(&str, Value)], matrices: &[(String, [i64; 2], Vec<f32>)]) {
    let gguf = Gguf::new();
    for (key, value) in metadata {
        gguf.set(key, value);
    }
    for (name, shape, values) in matrices {
        assert_eq!(values.len() as i64, shape.iter().product::<i64>(), "{name}");
        let name = CString::new(name.as_str()).expect("a name without NUL bytes");
        // SAFETY: a tensor is plain data for which zeros are valid. It is contiguous, and its values outlive the
        // GGUF, which copies the rest.
        unsafe {
            let mut tensor: sys::ggml_tensor = std::mem::zeroed();
            tensor.type_ = sys::GGML_TYPE_F32;
            tensor.ne = [shape[0], shape[1], 1, 1];
            let row = 4 * shape[0] as usize;
            tensor.nb = [4, row, row * shape[1] as usize, row * shape[1] as usize];
            tensor.data = values.as_ptr().cast_mut().cast();
            sys::ggml_set_name(&raw mut tensor, name.as_ptr());
            sys::gguf_add_tensor(gguf.raw(), &raw const tensor);
        }
    }
    gguf.write(path);
}

/// A GGUF file to be written.
#[derive(Debug)]
pub struct Gguf(NonNull<sys::gguf_context>);

impl Default for Gguf {
    fn default() -> Self {
        Self::new()
    }
}

impl Gguf {
    /// Creates a file without metadata and tensors.
    ///
    /// # Panics
    /// If there is no memory.
    #[must_use]
    pub fn new() -> Self {
        // SAFETY: a plain constructor.
        Self(NonNull::new(unsafe { sys::gguf_init_empty() }).expect("memory for a GGUF"))
    }

    /// Returns ggml's file.
    #[must_use]
    pub fn raw(&self) -> *mut sys::gguf_context {
        self.0.as_ptr()
    }

    /// Sets a value, in place of one that has this key.
    ///
    /// # Panics
    /// If key or text hold a NUL byte.
    pub fn set(&self, key: &str, value: &Value) {
        let text = |text: &str| CString::new(text).expect("a text without NUL bytes");
        let (gguf, key) = (self.raw(), text(key));
        let array = |kind, data: *const std::ffi::c_void, count| {
            // SAFETY: the array has `count` values of that kind, and ggml copies them.
            unsafe { sys::gguf_set_arr_data(gguf, key.as_ptr(), kind, data, count) }
        };
        // SAFETY: the GGUF lives, and ggml copies keys and values.
        unsafe {
            match value {
                Value::U16(value) => sys::gguf_set_val_u16(gguf, key.as_ptr(), *value),
                Value::I32(value) => sys::gguf_set_val_i32(gguf, key.as_ptr(), *value),
                Value::U32(value) => sys::gguf_set_val_u32(gguf, key.as_ptr(), *value),
                Value::F32(value) => sys::gguf_set_val_f32(gguf, key.as_ptr(), *value),
                Value::Bool(value) => sys::gguf_set_val_bool(gguf, key.as_ptr(), *value),
                Value::Text(value) => sys::gguf_set_val_str(gguf, key.as_ptr(), text(value).as_ptr()),
                Value::U32s(v) => array(sys::GGUF_TYPE_UINT32, v.as_ptr().cast(), v.len()),
                Value::I32s(v) => array(sys::GGUF_TYPE_INT32, v.as_ptr().cast(), v.len()),
                Value::F32s(v) => array(sys::GGUF_TYPE_FLOAT32, v.as_ptr().cast(), v.len()),
                Value::Bools(v) => array(sys::GGUF_TYPE_BOOL, v.as_ptr().cast(), v.len()),
                Value::Texts(v) => {
                    let texts: Vec<_> = v.iter().map(|value| text(value)).collect();
                    let mut texts: Vec<_> = texts.iter().map(|value| value.as_ptr()).collect();
                    sys::gguf_set_arr_str(gguf, key.as_ptr(), texts.as_mut_ptr(), texts.len());
                }
            }
        }
    }

    /// Writes the file.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, path: &Path) {
        // SAFETY: the metadata lives. A caller of `raw` keeps the tensors that it adds until here. The name is
        // a C string.
        let written = unsafe { sys::gguf_write_to_file(self.raw(), c_string(path).as_ptr(), false) };
        assert!(written, "{} cannot be written", path.display());
    }
}

impl Drop for Gguf {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { sys::gguf_free(self.raw()) }
    }
}
