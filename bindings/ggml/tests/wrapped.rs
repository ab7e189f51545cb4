//! Alone in its process: another library wraps the hook, and the hook is installed again.

mod support;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use axiscap_ggml::{ModelShape, Session};
use llama_cpp_sys_2 as sys;

type Init = unsafe extern "C" fn(sys::ggml_backend_dev_t, *const std::ffi::c_char) -> sys::ggml_backend_t;

static WRAPPED: OnceLock<Init> = OnceLock::new();
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// What a library would put over the hook.
unsafe extern "C" fn wrapper(
    device: sys::ggml_backend_dev_t,
    params: *const std::ffi::c_char,
) -> sys::ggml_backend_t {
    assert_eq!(CALLS.fetch_add(1, Ordering::Relaxed) % 2, 0, "it is called by what it calls");
    // SAFETY: the function that was in the slot before, with the arguments it would have been called with.
    let backend = unsafe { WRAPPED.get().unwrap()(device, params) };
    CALLS.fetch_add(1, Ordering::Relaxed);
    backend
}

#[test]
fn a_wrapped_hook_is_installed_again_within_the_wrapper() {
    let device = support::device();
    let hook = support::install();
    let offset = hook.report().slots.iter().find(|(name, _)| name.contains("init_backend")).unwrap().1;
    // SAFETY: the offset of a function pointer within the device, as the hook's report names it.
    let slot = unsafe { device.byte_add(offset).cast::<Init>() };
    // SAFETY: the slot holds a function, and ours calls that.
    unsafe {
        WRAPPED.set(slot.read()).unwrap();
        slot.write(wrapper);
    }
    // SAFETY: the slot is read as long as the device lives, which is always.
    let is_wrapper = || std::ptr::fn_addr_eq(unsafe { slot.read() }, wrapper as Init);
    drop(hook);
    assert!(is_wrapper(), "what is not ours is left alone");

    for _ in 0..2 {
        let hook = support::install();
        assert!(is_wrapper(), "ours is within it already");
        let session = Session::new(ModelShape { architecture: "llama".into(), blocks: 1, width: 1 });
        // SAFETY: the device makes a backend, which is freed once.
        unsafe {
            let backend = hook.bind(&session, || sys::ggml_backend_dev_init(device, std::ptr::null()));
            assert!(!backend.is_null() && session.is_bound());
            sys::ggml_backend_free(backend);
        }
    }
    assert_eq!(CALLS.load(Ordering::Relaxed), 4);
}
