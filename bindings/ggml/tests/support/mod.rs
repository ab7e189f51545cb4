//! Installs the hook through either table of ggml's functions.

use axiscap_ggml::Hook;

/// Installs the hook in the ggml that is linked in. With `AXISCAP_TEST_HOST=look-up` its functions are looked
/// up by name in the test program, as in a stock build.
pub(crate) fn install() -> Hook {
    #[cfg(unix)]
    if std::env::var_os("AXISCAP_TEST_HOST").is_some_and(|host| host == "look-up") {
        let program = libloading::os::unix::Library::this();
        let find = |name: &std::ffi::CStr| {
            // SAFETY: the address is only stored here.
            let symbol = unsafe { program.get::<*mut std::ffi::c_void>(name.to_bytes_with_nul()) }.ok()?;
            std::ptr::NonNull::new(symbol.as_raw_ptr())
        };
        // SAFETY: the program's own symbols, of the one ggml that is linked into it.
        return unsafe { Hook::install_in(&find) }.expect("the test program exports ggml's functions");
    }
    Hook::install().expect("the linked ggml can be hooked")
}
