//! ggml's types as the hook passes them on.
//!
//! With the feature `linked` they are those of the bindings, so that the compiler checks every signature of
//! [`Api`](super::Api) against the headers. Without it they are opaque, since a stock build may lay them out
//! differently. Nothing but tests reads a field of them either way; see [`Tensor`](super::Tensor) and
//! [`Graph`](super::Graph).

use std::ffi::{c_int, c_void};

#[cfg(feature = "linked")]
pub(crate) use llama_cpp_sys_2::{
    ggml_backend_buffer_t as Buffer, ggml_backend_buffer_type_t as BufferType, ggml_backend_dev_t as Device,
    ggml_backend_event_t as Event, ggml_backend_reg_t as Registry, ggml_backend_sched_t as RawScheduler,
    ggml_backend_t as Backend, ggml_cgraph as RawGraph, ggml_context as RawContext,
    ggml_init_params as InitParams, ggml_tensor as RawTensor,
};

#[cfg(not(feature = "linked"))]
mod opaque {
    use std::ffi::c_void;

    macro_rules! opaque {
        ($($(#[$doc:meta])* $name:ident)*) => { $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Debug)]
            pub(crate) struct $name {
                _private: [u8; 0],
            }
        )* };
    }

    opaque! {
        /// `ggml_tensor`
        RawTensor
        /// `ggml_cgraph`
        RawGraph
        /// `ggml_context`
        RawContext
    }

    pub(crate) type Backend = *mut c_void;
    pub(crate) type Device = *mut c_void;
    pub(crate) type Registry = *mut c_void;
    pub(crate) type Buffer = *mut c_void;
    pub(crate) type BufferType = *mut c_void;
    pub(crate) type Event = *mut c_void;
    pub(crate) type RawScheduler = *mut c_void;

    /// `ggml_init_params`, which every ggml takes by value.
    #[repr(C)]
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct InitParams {
        pub(crate) mem_size: usize,
        pub(crate) mem_buffer: *mut c_void,
        pub(crate) no_alloc: bool,
    }
}
#[cfg(not(feature = "linked"))]
pub(crate) use opaque::*;

/// `ggml_type`: a number that GGUF files fix.
pub(crate) type Dtype = u32;

/// `enum ggml_backend_dev_type`.
pub(crate) type DeviceType = u32;

/// `ggml_status`.
pub(crate) type Status = i32;

/// `ggml_custom1_op_t`, as an optional function.
pub(crate) type CustomOp =
    Option<unsafe extern "C" fn(*mut RawTensor, *const RawTensor, c_int, c_int, *mut c_void)>;

/// `GGML_TYPE_F32`. [`Layout::probe`](super::Layout::probe) asks ggml for its name.
pub(crate) const F32: Dtype = 0;

/// `GGML_TYPE_I32`. [`Layout::probe`](super::Layout::probe) asks ggml for its name.
pub(crate) const I32: Dtype = 26;

/// `GGML_STATUS_SUCCESS`. [`Layout::probe`](super::Layout::probe) asks ggml for its name.
pub(crate) const SUCCESS: Status = 0;

/// `GGML_STATUS_FAILED`. [`Layout::probe`](super::Layout::probe) asks ggml for its name.
pub(crate) const FAILED: Status = -1;
