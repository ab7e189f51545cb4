//! The functions of ggml that the hook calls, in one table.
//!
//! A process has one ggml whose devices can be hooked. The table holds its functions, by the names that ggml
//! gives them: taken from the bindings where ggml is linked in ([`Api::linked`]), or looked up in the build
//! that the process has loaded ([`Api::look_up`]). Everything else in this crate reaches ggml through
//! [`api`].

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use super::types::{
    Backend, Buffer, BufferType, CustomOp, Device, DeviceType, Dtype, Event, InitParams, RawContext,
    RawGraph, RawScheduler, RawTensor, Registry, Status,
};
use crate::error::HookError;

/// Looks up one symbol of ggml by its name; `None` where the build does not export it.
pub type Symbols<'a> = &'a dyn Fn(&CStr) -> Option<std::ptr::NonNull<c_void>>;

macro_rules! api {
    (
        required { $(fn $name:ident($($arg:ty),*) $(-> $result:ty)?;)* }
        optional { $(fn $extra:ident($($extra_arg:ty),*) $(-> $extra_result:ty)?;)* }
    ) => {
        /// ggml's functions, each under its own name.
        #[derive(Debug, Clone, Copy)]
        // Only the GPU's route records events.
        #[cfg_attr(not(feature = "gpu"), allow(dead_code))]
        pub(crate) struct Api {
            $(pub(crate) $name: unsafe extern "C" fn($($arg),*) $(-> $result)?,)*
            $(pub(crate) $extra: Option<unsafe extern "C" fn($($extra_arg),*) $(-> $extra_result)?>,)*
        }

        impl Api {
            /// Returns the functions of the ggml that is linked in.
            #[cfg(feature = "linked")]
            pub(crate) fn linked() -> Self {
                Self {
                    $($name: llama_cpp_sys_2::$name,)*
                    $($extra: Some(llama_cpp_sys_2::$extra),)*
                }
            }

            /// Returns the functions of the ggml whose symbols these are.
            ///
            /// # Safety
            /// Each symbol must be the function of ggml of that name, and stay loaded until the process ends.
            ///
            /// # Errors
            /// [`HookError::Symbol`] names the first function that is missing.
            pub(crate) unsafe fn look_up(symbols: Symbols<'_>) -> Result<Self, HookError> {
                Ok(Self {
                    $($name: {
                        let symbol = concat!(stringify!($name), "\0");
                        // The literal ends with its only NUL.
                        let symbol = CStr::from_bytes_with_nul(symbol.as_bytes()).unwrap_or(c"");
                        let address =
                            symbols(symbol).ok_or(HookError::Symbol { name: stringify!($name) })?;
                        // SAFETY: by the caller's contract the address is that of ggml's function of this
                        // name, whose C signature has been the one above since ggml 0.9.4.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($arg),*) $(-> $result)?,
                            >(address.as_ptr())
                        }
                    },)*
                    $($extra: {
                        let symbol = concat!(stringify!($extra), "\0");
                        let symbol = CStr::from_bytes_with_nul(symbol.as_bytes()).unwrap_or(c"");
                        // SAFETY: as for the required functions; where there is one, its signature is this.
                        symbols(symbol).map(|address| unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($extra_arg),*) $(-> $extra_result)?,
                            >(address.as_ptr())
                        })
                    },)*
                })
            }
        }
    };
}

api! {
    required {
        fn ggml_init(InitParams) -> *mut RawContext;
        fn ggml_reset(*mut RawContext);
        fn ggml_free(*mut RawContext);
        fn ggml_tensor_overhead() -> usize;
        fn ggml_graph_overhead_custom(usize, bool) -> usize;
        fn ggml_new_tensor_1d(*mut RawContext, Dtype, i64) -> *mut RawTensor;
        fn ggml_new_tensor_4d(*mut RawContext, Dtype, i64, i64, i64, i64) -> *mut RawTensor;
        fn ggml_view_1d(*mut RawContext, *mut RawTensor, i64, usize) -> *mut RawTensor;
        fn ggml_add(*mut RawContext, *mut RawTensor, *mut RawTensor) -> *mut RawTensor;
        fn ggml_mul(*mut RawContext, *mut RawTensor, *mut RawTensor) -> *mut RawTensor;
        fn ggml_mul_mat_id(*mut RawContext, *mut RawTensor, *mut RawTensor, *mut RawTensor) -> *mut RawTensor;
        fn ggml_rms_norm(*mut RawContext, *mut RawTensor, f32) -> *mut RawTensor;
        fn ggml_map_custom1_inplace(*mut RawContext, *mut RawTensor, CustomOp, c_int, *mut c_void) -> *mut RawTensor;
        fn ggml_set_name(*mut RawTensor, *const c_char) -> *mut RawTensor;
        fn ggml_get_name(*const RawTensor) -> *const c_char;
        fn ggml_get_data(*const RawTensor) -> *mut c_void;
        fn ggml_set_output(*mut RawTensor);
        fn ggml_nbytes(*const RawTensor) -> usize;
        fn ggml_op_desc(*const RawTensor) -> *const c_char;
        fn ggml_type_name(Dtype) -> *const c_char;
        fn ggml_is_quantized(Dtype) -> bool;
        fn ggml_status_to_string(Status) -> *const c_char;
        fn ggml_new_graph_custom(*mut RawContext, usize, bool) -> *mut RawGraph;
        fn ggml_build_forward_expand(*mut RawGraph, *mut RawTensor);
        fn ggml_graph_n_nodes(*mut RawGraph) -> c_int;
        fn ggml_graph_node(*mut RawGraph, c_int) -> *mut RawTensor;
        fn ggml_graph_nodes(*mut RawGraph) -> *mut *mut RawTensor;
        fn ggml_backend_dev_count() -> usize;
        fn ggml_backend_dev_get(usize) -> Device;
        fn ggml_backend_dev_name(Device) -> *const c_char;
        fn ggml_backend_dev_type(Device) -> DeviceType;
        fn ggml_backend_dev_description(Device) -> *const c_char;
        fn ggml_backend_dev_backend_reg(Device) -> Registry;
        fn ggml_backend_dev_init(Device, *const c_char) -> Backend;
        fn ggml_backend_reg_name(Registry) -> *const c_char;
        fn ggml_backend_reg_by_name(*const c_char) -> Registry;
        fn ggml_backend_reg_dev_get(Registry, usize) -> Device;
        fn ggml_backend_free(Backend);
        fn ggml_backend_get_device(Backend) -> Device;
        fn ggml_backend_synchronize(Backend);
        fn ggml_backend_graph_compute_async(Backend, *mut RawGraph) -> Status;
        fn ggml_backend_event_new(Device) -> Event;
        fn ggml_backend_event_free(Event);
        fn ggml_backend_event_record(Event, Backend);
        fn ggml_backend_event_wait(Backend, Event);
        fn ggml_backend_tensor_get(*const RawTensor, *mut c_void, usize, usize);
        fn ggml_backend_tensor_set(*mut RawTensor, *const c_void, usize, usize);
        fn ggml_backend_alloc_ctx_tensors(*mut RawContext, Backend) -> Buffer;
        fn ggml_backend_buffer_free(Buffer);
        fn ggml_backend_buffer_is_host(Buffer) -> bool;
        fn ggml_backend_buffer_get_type(Buffer) -> BufferType;
        fn ggml_backend_buft_name(BufferType) -> *const c_char;
        fn ggml_backend_sched_new(*mut Backend, *mut BufferType, c_int, usize, bool, bool) -> RawScheduler;
        fn ggml_backend_sched_free(RawScheduler);
        fn ggml_backend_sched_reset(RawScheduler);
        fn ggml_backend_sched_split_graph(RawScheduler, *mut RawGraph);
    }
    optional {
        fn ggml_version() -> *const c_char;
        fn ggml_commit() -> *const c_char;
    }
}

static API: OnceLock<Api> = OnceLock::new();

/// Returns the functions of this process's ggml.
///
/// # Panics
/// Where ggml is not linked in and [`use_host`] was not called. The hook calls it first of all.
pub(crate) fn api() -> &'static Api {
    #[cfg(feature = "linked")]
    return API.get_or_init(default_api);
    #[cfg(not(feature = "linked"))]
    return API.get().expect("the hook names its host's ggml before it calls it");
}

/// Has everything go through this table from now on.
///
/// # Errors
/// [`HookError::OtherHost`] where the process already uses another one.
pub(crate) fn use_host(host: Api) -> Result<(), HookError> {
    let used = API.get_or_init(|| host);
    // One function tells two builds of ggml apart: each has its own.
    if std::ptr::fn_addr_eq(used.ggml_init, host.ggml_init) { Ok(()) } else { Err(HookError::OtherHost) }
}

/// Has everything go through the functions of the ggml that is linked in.
///
/// # Errors
/// [`HookError::OtherHost`] where the process already uses another one.
#[cfg(feature = "linked")]
pub(crate) fn use_linked_host() -> Result<(), HookError> {
    use_host(default_api())
}

#[cfg(all(feature = "linked", not(test)))]
fn default_api() -> Api {
    Api::linked()
}

/// The tests of this crate run through either table: `AXISCAP_TEST_HOST=look-up` has them use the symbols
/// that the test program exports.
#[cfg(all(feature = "linked", test))]
fn default_api() -> Api {
    if std::env::var_os("AXISCAP_TEST_HOST").is_some_and(|host| host == "look-up") {
        // SAFETY: the symbols of the program itself, whose ggml is the one that is linked in.
        unsafe { Api::look_up(&tests::own_symbols) }.expect("the test program exports ggml's functions")
    } else {
        Api::linked()
    }
}

/// Returns ggml's version and commit, or "unknown" where it has no function that tells.
pub(crate) fn ggml_version() -> String {
    let api = api();
    let text = |function: Option<unsafe extern "C" fn() -> *const c_char>| {
        // SAFETY: both functions return pointers to static, NUL-terminated strings.
        function.map(|function| unsafe { CStr::from_ptr(function()) }.to_string_lossy())
    };
    match (text(api.ggml_version), text(api.ggml_commit)) {
        (Some(version), Some(commit)) => format!("{version} ({commit})"),
        (Some(version), None) => version.into_owned(),
        (None, _) => "unknown".into(),
    }
}

/// The version of ggml whose CUDA backend was read. What the hook assumes of that backend beyond ggml's public
/// headers is true of this version, and not assumed of others.
const READ_VERSION: &str = "0.26.";

/// Returns whether the CUDA backend of this version of ggml was read.
pub(crate) fn cuda_backend_was_read(version: &str) -> bool {
    version.starts_with(READ_VERSION)
}

/// Returns the error for a ggml that is laid out otherwise than the hook needs.
pub(crate) fn mismatch(what: impl Into<String>) -> HookError {
    HookError::Layout { version: ggml_version(), what: what.into() }
}

#[cfg(all(feature = "linked", test))]
pub(crate) mod tests {
    use super::*;

    /// Looks a symbol up in the running program.
    #[cfg(unix)]
    pub(crate) fn own_symbols(name: &CStr) -> Option<std::ptr::NonNull<c_void>> {
        let program = libloading::os::unix::Library::this();
        // SAFETY: the address is only compared and stored, not called.
        let symbol = unsafe { program.get::<*mut c_void>(name.to_bytes_with_nul()) }.ok()?;
        std::ptr::NonNull::new(symbol.as_raw_ptr())
    }

    #[test]
    fn the_functions_looked_up_are_those_linked_in() {
        // SAFETY: the program's own symbols.
        let found = unsafe { Api::look_up(&own_symbols) }.unwrap();
        assert_eq!(format!("{found:?}"), format!("{:?}", Api::linked()));
    }

    #[test]
    fn a_function_that_is_missing_is_named() {
        let all_but_one = |name: &CStr| own_symbols(name).filter(|_| name != c"ggml_backend_synchronize");
        // SAFETY: the symbols of the program itself, whose ggml is the one that is linked in.
        let error = unsafe { Api::look_up(&all_but_one) }.unwrap_err();
        assert!(matches!(error, HookError::Symbol { name: "ggml_backend_synchronize" }), "{error}");
        let message = error.to_string();
        assert!(message.contains("ggml_backend_synchronize"), "{message}");
    }
}
