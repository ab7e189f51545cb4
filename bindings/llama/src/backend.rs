//! The one llama.cpp of this process.

use std::ffi::CStr;
use std::ffi::c_char;
use std::sync::OnceLock;

use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::{LlamaBackendDeviceType, list_llama_ggml_backend_devices};
use llama_cpp_sys_2 as sys;

use crate::log;

/// Initialises llama.cpp once. It is never freed, because contexts may outlive any guard.
///
/// From here on llama.cpp's log goes to `tracing`.
pub(crate) fn llama() -> &'static LlamaBackend {
    static BACKEND: OnceLock<LlamaBackend> = OnceLock::new();
    BACKEND.get_or_init(|| {
        log::install();
        // Before llama.cpp starts. If llama.cpp finds no backend, it loads what it can and reports no
        // failure.
        #[cfg(feature = "dynamic-backends")]
        MODULES.get_or_init(crate::modules::load);
        // The only error is that the program has initialised llama.cpp itself, which serves as well. The
        // token made for that case lives in a static and is never dropped, so it never frees a backend that
        // it does not own.
        LlamaBackend::init().unwrap_or(LlamaBackend {})
    })
}

#[cfg(feature = "dynamic-backends")]
static MODULES: OnceLock<Vec<crate::modules::Module>> = OnceLock::new();

/// Returns the files with backends of ggml that were found, other than the CPU's, and what became of them.
#[cfg(feature = "dynamic-backends")]
pub fn modules() -> &'static [crate::modules::Module] {
    llama();
    MODULES.get().map(Vec::as_slice).unwrap_or_default()
}

/// The llama.cpp that is linked in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// Version of ggml, e.g. `0.26.0`.
    pub ggml_version: String,
    /// Commit of ggml, if the build knew it.
    pub ggml_commit: String,
    /// llama.cpp's line of CPU and GPU features.
    pub system_info: String,
    /// Whether any backend can take layers off the CPU.
    pub gpu_offload: bool,
}

/// Describes the llama.cpp that is linked in.
#[must_use]
pub fn build() -> Build {
    let backend = llama();
    // SAFETY: these functions return pointers to static NUL-terminated strings.
    let (version, commit, info) = unsafe {
        (text(sys::ggml_version()), text(sys::ggml_commit()), text(sys::llama_print_system_info()))
    };
    Build {
        ggml_version: version,
        ggml_commit: commit,
        system_info: info.trim().to_owned(),
        gpu_offload: backend.supports_gpu_offload(),
    }
}

/// A device llama.cpp can compute on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// E.g. `CPU`, `CUDA0`.
    pub name: String,
    /// E.g. the processor's model.
    pub description: String,
    /// The backend it belongs to.
    pub backend: String,
    /// `cpu`, `accelerator`, `gpu`, `integrated gpu` or `unknown`.
    pub kind: &'static str,
    /// Bytes of memory.
    pub memory_total: usize,
    /// Bytes free.
    pub memory_free: usize,
}

/// Returns the devices that llama.cpp sees.
#[must_use]
pub fn devices() -> Vec<Device> {
    llama();
    let kind = |kind| match kind {
        LlamaBackendDeviceType::Cpu => "cpu",
        LlamaBackendDeviceType::Accelerator => "accelerator",
        LlamaBackendDeviceType::Gpu => "gpu",
        LlamaBackendDeviceType::IntegratedGpu => "integrated gpu",
        LlamaBackendDeviceType::Unknown => "unknown",
    };
    list_llama_ggml_backend_devices()
        .into_iter()
        .map(|device| Device {
            name: device.name,
            description: device.description,
            backend: device.backend,
            kind: kind(device.device_type),
            memory_total: device.memory_total,
            memory_free: device.memory_free,
        })
        .collect()
}

/// Copies a C string.
///
/// # Safety
/// `pointer` is null or a NUL-terminated string that outlives the call.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: not null, and the caller promises a NUL-terminated string.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}
