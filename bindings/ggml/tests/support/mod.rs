//! What the tests of the hook share: the hook, installed through either table of ggml's functions, and the
//! device and the model that they run on.
#![allow(dead_code, reason = "every test file uses its own part of this")]

use std::ffi::CStr;
use std::path::{Path, PathBuf};

use axiscap_ggml::{Hook, Route, RouteChoice, Session};
use axiscap_testing::llama::{Description, TestModel};
use llama_cpp_sys_2 as sys;

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

/// Returns the name of ggml's backend that the tests are to run on, e.g. `Vulkan`, from
/// `AXISCAP_TEST_BACKEND`. `None` leaves the choice to llama.cpp.
pub(crate) fn wanted_backend() -> Option<String> {
    let name = std::env::var_os("AXISCAP_TEST_BACKEND")?;
    Some(name.into_string().expect("AXISCAP_TEST_BACKEND is text"))
}

/// Returns the device that the tests run on: the first one of the wanted backend, else the CPU.
///
/// # Panics
/// If the wanted backend has no device, because a test that is to run on it must not run elsewhere.
pub(crate) fn device() -> sys::ggml_backend_dev_t {
    // SAFETY: llama_backend_init may be called at any time.
    unsafe { sys::llama_backend_init() };
    let name = wanted_backend().unwrap_or_else(|| "CPU".into());
    find_device(&name).unwrap_or_else(|| panic!("ggml's backend {name} has no device in this process"))
}

/// Returns the model that the tests run on: the small model, or with `AXISCAP_TEST_MODEL=random` a smaller one of
/// random weights, for which a software driver takes seconds and not minutes.
pub(crate) fn model() -> PathBuf {
    if std::env::var_os("AXISCAP_TEST_MODEL").is_none_or(|model| model != "random") {
        return axiscap_testing::small_model();
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.join("random.gguf");
    let written = tempfile::NamedTempFile::new_in(folder).expect("a temporary file");
    let mut description = Description::new("llama", false);
    description.set(".block_count", 12u32);
    TestModel::write(&description, written.path()).expect("a random model");
    written.persist(&path).expect("the random model is renamed");
    path
}

/// Finds the first device of a backend.
pub(crate) fn find_device(backend: &str) -> Option<sys::ggml_backend_dev_t> {
    // SAFETY: plain queries of ggml's registry, whose names are NUL-terminated.
    let (count, get) = unsafe { (sys::ggml_backend_dev_count(), |i| sys::ggml_backend_dev_get(i)) };
    (0..count).map(get).find(|&device| {
        // SAFETY: as above.
        let name =
            unsafe { CStr::from_ptr(sys::ggml_backend_reg_name(sys::ggml_backend_dev_backend_reg(device))) };
        name.to_bytes() == backend.as_bytes()
    })
}

/// Returns ggml's name of a device.
pub(crate) fn device_name(device: sys::ggml_backend_dev_t) -> String {
    // SAFETY: a device of ggml's registry, whose name is NUL-terminated and lives as long as the device.
    unsafe { CStr::from_ptr(sys::ggml_backend_dev_name(device)) }.to_string_lossy().into_owned()
}

/// Checks that capped blocks took the route that this choice means on each device, and that the wanted
/// backend computed some.
///
/// # Panics
/// If they did not.
pub(crate) fn check_routes(session: &Session, choice: RouteChoice) {
    let used = session.routes_used();
    for used in &used {
        let expected = match (used.device.as_str(), choice) {
            ("CPU", RouteChoice::Views) => Route::HostViews,
            ("CPU", _) => Route::Inserted,
            (name, _) if name.starts_with("CUDA") => continue,
            _ => Route::HostViews,
        };
        assert!([expected, Route::Untouched].contains(&used.route), "{choice:?} took {used}");
    }
    if wanted_backend().is_some() {
        let name = device_name(device());
        let capped = used.iter().any(|used| used.device == name && used.route != Route::Untouched);
        assert!(capped, "no block was capped on {name}: {used:?}");
    }
}
