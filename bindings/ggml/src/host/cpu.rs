//! A backend of ggml's CPU device, to measure with.

use std::ptr::null;

use super::api::{api, mismatch};
use super::types::Backend;
use crate::error::HookError;

/// An own backend of ggml's CPU device.
#[derive(Debug)]
pub(super) struct CpuBackend(Backend);

impl CpuBackend {
    /// # Errors
    /// [`HookError::NoDevice`] where ggml has no CPU device (yet).
    pub(super) fn new() -> Result<Self, HookError> {
        let api = api();
        // SAFETY: queries of the registry; the name is NUL-terminated, and the CPU's registry has one device.
        let device = unsafe {
            let registry = (api.ggml_backend_reg_by_name)(c"CPU".as_ptr());
            if registry.is_null() {
                return Err(HookError::NoDevice);
            }
            (api.ggml_backend_reg_dev_get)(registry, 0)
        };
        // SAFETY: a device of the registry, which takes null for no parameters.
        let backend = unsafe { (api.ggml_backend_dev_init)(device, null()) };
        if backend.is_null() { Err(mismatch("the CPU device makes no backend")) } else { Ok(Self(backend)) }
    }

    pub(super) fn raw(&self) -> Backend {
        self.0
    }
}

impl Drop for CpuBackend {
    fn drop(&mut self) {
        // SAFETY: made by `new` and freed once.
        unsafe { (api().ggml_backend_free)(self.0) };
    }
}
