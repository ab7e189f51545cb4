//! Activation capping in a stock build of llama.cpp.
//!
//! llama.cpp loads the library that `GGML_BACKEND_PATH` names as a further ggml backend, and calls its
//! `ggml_backend_init`. This one has no device. It looks up ggml's functions in the library that called it,
//! installs the hook of `axiscap-ggml` in all of ggml's devices, and caps every context whose model one of
//! the cap files is for:
//!
//! ```text
//! GGML_BACKEND_PATH=/path/libggml-axiscap.so AXISCAP_CAPS=caps.gguf llama-server -m model.gguf
//! ```
//!
//! No ggml is linked in. Programs that load no backends at run time can call [`axiscap_attach`] instead,
//! before they create a context. `docs/operators.md` describes the variables and the log lines.
//!
//! Text is never silently uncapped: by default every fault ends the process (`AXISCAP_STRICT`).

mod attach;
mod caps;
mod decode;
mod duty;
mod environment;
mod host;
mod http;
mod log;
mod profiles;
mod registry;
mod report;
mod send;

use std::ffi::{c_int, c_void};

use registry::Registry;

/// Called by ggml as it loads the library, each time it loads all backends: attaches the plugin, once.
/// Returns a registry without devices, or null if the plugin could not be attached and
/// `AXISCAP_STRICT=warn` is set.
///
/// # Safety
/// To be called by ggml.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggml_backend_init() -> *const Registry {
    // The return address is in ggml, whose functions the library that holds it knows. Neither the global
    // scope nor the program has them in processes such as node or Python.
    #[cfg(target_arch = "x86_64")]
    std::arch::naked_asm!("mov rdi, [rsp]", "jmp {init}", init = sym init_for);
    #[cfg(target_arch = "aarch64")]
    std::arch::naked_asm!("mov x0, x30", "b {init}", init = sym init_for);
}

/// As on other processors, but the caller is looked for among the loaded libraries.
///
/// # Safety
/// To be called by ggml.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggml_backend_init() -> *const Registry {
    init_for(std::ptr::null())
}

/// Attaches the plugin for a caller in ggml.
extern "C" fn init_for(caller: *const c_void) -> *const Registry {
    attach::attach(attach::By::Ggml { caller: caller as usize }).map_or(std::ptr::null(), std::ptr::from_ref)
}

/// Returns whether the library suits this machine, which ggml asks for before it initialises a backend: it
/// does.
#[unsafe(no_mangle)]
pub extern "C" fn ggml_backend_score() -> c_int {
    1
}

/// Attaches the plugin to the ggml of this process, for programs that load no backends at run time. To be
/// called before a context is created, from any thread. Contexts that exist are not capped.
///
/// `AXISCAP_GGML` names the library with ggml's functions where several are loaded. Returns 0, or 1 if the
/// plugin could not be attached and `AXISCAP_STRICT=warn` is set. Without that the process ends.
#[unsafe(no_mangle)]
pub extern "C" fn axiscap_attach() -> c_int {
    c_int::from(attach::attach(attach::By::Program).is_none())
}
