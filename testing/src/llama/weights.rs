//! Random weights, which depend only on the name of a tensor.

use std::ffi::{CStr, c_void};

use llama_cpp_sys_2 as sys;

use super::gguf::Gguf;
use crate::numbers::Random;

/// The tensors that were filled, if they are to be kept.
#[derive(Debug, Default)]
pub(super) struct Weights {
    kept: Option<Vec<Kept>>,
}

#[derive(Debug)]
struct Kept {
    tensor: sys::ggml_tensor,
    values: Vec<u8>,
}

impl Weights {
    /// Keeps what it fills.
    pub(super) fn kept() -> Self {
        Self { kept: Some(Vec::new()) }
    }

    /// Adds the kept tensors to the metadata, which refers to them from then on.
    pub(super) fn add_to(&mut self, gguf: &Gguf, omitted: &[String]) {
        for Kept { tensor, values } in self.kept.iter_mut().flatten() {
            // SAFETY: ggml's names end with a NUL byte.
            let name = unsafe { CStr::from_ptr(tensor.name.as_ptr()) }.to_string_lossy();
            if omitted.iter().any(|part| name.contains(part.as_str())) {
                continue;
            }
            // SAFETY: a copy of a tensor with its own contiguous values, which live as long as `self`.
            unsafe {
                tensor.buffer = std::ptr::null_mut();
                tensor.view_src = std::ptr::null_mut();
                tensor.data = values.as_mut_ptr().cast();
                // Blocks share some tensors, which llama.cpp then makes once for each under one name.
                if sys::gguf_find_tensor(gguf.raw(), tensor.name.as_ptr()) < 0 {
                    sys::gguf_add_tensor(gguf.raw(), tensor);
                }
            }
        }
    }
}

/// Returns the values of a tensor.
///
/// Weights of norms are near 1, and the decay of a state space is negative, because models diverge otherwise.
fn values(name: &str, count: usize) -> Vec<f32> {
    // FNV-1a, which is the same on every machine.
    let seed =
        name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut random = Random(seed);
    let is_norm = name.contains("norm") && name.ends_with(".weight");
    let is_decay = name.contains("ssm_a") || name.contains("time_mix_decay");
    (0..count)
        .map(|_| match random.signed() {
            value if is_decay => -value.abs() - 0.01,
            value if is_norm => 1.0 + 0.2 * value,
            value => 0.2 * value,
        })
        .collect()
}

/// Fills one tensor: the callback of `llama_model_init_from_user`.
pub(super) unsafe extern "C" fn fill(tensor: *mut sys::ggml_tensor, weights: *mut c_void) {
    // SAFETY: llama.cpp passes a tensor with memory of a backend, and the weights given with this callback. The
    // buffer written has the tensor's size.
    unsafe {
        let name = CStr::from_ptr(sys::ggml_get_name(tensor)).to_string_lossy();
        let count = sys::ggml_nelements(tensor) as usize;
        // llama.cpp makes f32 tensors where the metadata names no type.
        assert_eq!((*tensor).type_, sys::GGML_TYPE_F32, "{name}");
        let bytes: Vec<u8> = values(&name, count).into_iter().flat_map(f32::to_ne_bytes).collect();
        assert_eq!(bytes.len(), sys::ggml_nbytes(tensor), "{name}");
        sys::ggml_backend_tensor_set(tensor, bytes.as_ptr().cast(), 0, bytes.len());
        let weights = &mut *weights.cast::<Weights>();
        if let Some(kept) = &mut weights.kept {
            kept.push(Kept { tensor: *tensor, values: bytes });
        }
    }
}
