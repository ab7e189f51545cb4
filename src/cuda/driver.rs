//! The driver's functions, each with its result turned into an error, and nothing loaded before it is known to be
//! there.

use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::OnceLock;

use cudarc::driver::sys;

use super::error::CudaError;

/// Loads and initialises the driver; once per process, also when it fails.
pub(super) fn init() -> Result<(), CudaError> {
    static DRIVER: OnceLock<Result<(), CudaError>> = OnceLock::new();
    DRIVER
        .get_or_init(|| {
            // cudarc panics where the library is missing: look first.
            present()?;
            // SAFETY: no preconditions.
            check("cuInit", unsafe { sys::cuInit(0) })
        })
        .clone()
}

fn present() -> Result<(), CudaError> {
    let names: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };
    let mut reason = String::new();
    for name in names {
        // SAFETY: the driver's library may be loaded at any time; its initialisers have no preconditions.
        match unsafe { libloading::Library::new(*name) } {
            Ok(library) => {
                // Loaded for good: cudarc keeps it too, and unloading a driver is asking for trouble.
                std::mem::forget(library);
                return Ok(());
            }
            Err(error) if reason.is_empty() => {
                // The loader's own words are one level down.
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                reason = cause.unwrap_or_else(|| error.to_string());
            }
            Err(_) => {}
        }
    }
    Err(CudaError::NoDriver { reason })
}

/// An error for anything but success.
pub(super) fn check(call: &'static str, result: sys::CUresult) -> Result<(), CudaError> {
    match result {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        error => Err(failure(call, error)),
    }
}

pub(super) fn failure(call: &'static str, error: sys::CUresult) -> CudaError {
    if error == sys::CUresult::CUDA_ERROR_NO_DEVICE {
        return CudaError::NoDevice { ordinal: 0, found: 0 };
    }
    type Describe = unsafe fn(sys::CUresult, *mut *const std::ffi::c_char) -> sys::CUresult;
    let text = |describe: Describe| {
        let mut text = ptr::null();
        // SAFETY: the driver writes a pointer to a string of its own, or leaves null.
        let found = unsafe { describe(error, &mut text) } == sys::CUresult::CUDA_SUCCESS && !text.is_null();
        // SAFETY: not null, so it is one of the driver's static strings.
        if found { unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned() } else { "unknown".into() }
    };
    CudaError::Driver {
        call,
        code: error as u32,
        name: text(sys::cuGetErrorName),
        meaning: text(sys::cuGetErrorString),
    }
}

/// The newest CUDA the driver supports: 1000 * major + 10 * minor.
pub(super) fn version() -> Result<i32, CudaError> {
    let mut version = 0;
    // SAFETY: the pointer is valid.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) })?;
    Ok(version)
}

/// Number of GPUs.
pub(super) fn count() -> Result<usize, CudaError> {
    let mut count = 0;
    // SAFETY: the pointer is valid and the driver is initialised.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

pub(super) fn device(ordinal: usize) -> Result<sys::CUdevice, CudaError> {
    let found = count()?;
    let index = i32::try_from(ordinal).ok().filter(|_| ordinal < found);
    let index = index.ok_or(CudaError::NoDevice { ordinal, found })?;
    let mut device = 0;
    // SAFETY: the pointer is valid.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, index) })?;
    Ok(device)
}

pub(super) fn name(device: sys::CUdevice) -> Result<String, CudaError> {
    let mut name = [0 as std::ffi::c_char; 256];
    // SAFETY: the buffer is as long as said.
    check("cuDeviceGetName", unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), 255, device) })?;
    // SAFETY: the last byte is still NUL.
    Ok(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
}

pub(super) fn attribute(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Result<u32, CudaError> {
    let mut value = 0;
    // SAFETY: the pointer is valid.
    check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) })?;
    Ok(u32::try_from(value).unwrap_or(0))
}

/// Makes a context current on this thread until dropped, and puts back what was there before: we are guests in
/// other people's threads.
pub(super) struct Current {
    previous: Option<sys::CUcontext>,
}

impl Current {
    pub(super) fn enter(context: sys::CUcontext) -> Result<Self, CudaError> {
        let current = Self::get()?;
        if current == context {
            return Ok(Self { previous: None });
        }
        // SAFETY: the context is retained by its owner for longer than this guard lives.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(context) })?;
        Ok(Self { previous: Some(current) })
    }

    /// Puts back what is current now, whatever happens in between.
    pub(super) fn keep() -> Result<Self, CudaError> {
        Ok(Self { previous: Some(Self::get()?) })
    }

    fn get() -> Result<sys::CUcontext, CudaError> {
        let mut current = ptr::null_mut();
        // SAFETY: the pointer is valid.
        check("cuCtxGetCurrent", unsafe { sys::cuCtxGetCurrent(&mut current) })?;
        Ok(current)
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        if let Some(previous) = self.previous {
            // SAFETY: it was current before, or null. If it was destroyed meanwhile the driver says so, and there
            // is nothing to put back.
            let _ = unsafe { sys::cuCtxSetCurrent(previous) };
        }
    }
}

/// Lets this thread make calls, until dropped, that a stream capture in the global mode forbids to every thread: those
/// that do not touch what is captured are harmless.
pub(super) struct RelaxedCapture {
    previous: sys::CUstreamCaptureMode,
}

impl RelaxedCapture {
    pub(super) fn enter() -> Result<Self, CudaError> {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the pointer is valid; the driver leaves the mode there that was before.
        check("cuThreadExchangeStreamCaptureMode", unsafe {
            sys::cuThreadExchangeStreamCaptureMode(&mut mode)
        })?;
        Ok(Self { previous: mode })
    }
}

impl Drop for RelaxedCapture {
    fn drop(&mut self) {
        // SAFETY: as above, with a mode that the driver gave us.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut self.previous) };
    }
}

/// Device memory of one context. Freed with the context entered.
#[derive(Debug)]
pub(super) struct Memory {
    address: sys::CUdeviceptr,
}

impl Memory {
    /// Allocates in the current context.
    pub(super) fn new(bytes: usize) -> Result<Self, CudaError> {
        let mut address = 0;
        // SAFETY: the pointer is valid; the driver refuses 0 bytes.
        check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&mut address, bytes.max(16)) })?;
        Ok(Self { address })
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Waits until nothing on the GPU can use it any more, and frees it; its context must be current.
    pub(super) fn free(&mut self) {
        if self.address != 0 {
            // SAFETY: no preconditions. An error is one of earlier work, and reported to whoever waits for that.
            let _ = unsafe { sys::cuCtxSynchronize() };
            self.free_idle();
        }
    }

    /// Frees it without waiting, when nothing on the GPU can use it any more; its context must be current.
    pub(super) fn free_idle(&mut self) {
        if self.address != 0 {
            // SAFETY: allocated by `new`, freed once.
            let _ = unsafe { sys::cuMemFree_v2(self.address) };
            self.address = 0;
        }
    }
}

/// Refuses a stream that is being captured: a copy would be made at each replay, from or to memory that by then is
/// another's.
pub(super) fn not_capturing(stream: sys::CUstream) -> Result<(), CudaError> {
    let mut status = sys::CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the pointer is valid, the stream the caller's.
    check("cuStreamIsCapturing", unsafe { sys::cuStreamIsCapturing(stream, &mut status) })?;
    match status {
        sys::CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_NONE => Ok(()),
        _ => Err(CudaError::Capturing),
    }
}

/// Copies to the device in stream order, and does not wait.
///
/// # Safety
/// `to` is device memory for that many bytes in the current context, and the stream one of it that is not being
/// captured. The source is neither changed nor freed before the stream has passed the copy.
pub(super) unsafe fn copy_to_device_async(
    to: u64,
    from: &[u8],
    stream: sys::CUstream,
) -> Result<(), CudaError> {
    if from.is_empty() {
        return Ok(());
    }
    let source: *const c_void = from.as_ptr().cast();
    // SAFETY: the source is a slice; the caller answers for how long it is one, and for the target.
    check("cuMemcpyHtoDAsync", unsafe { sys::cuMemcpyHtoDAsync_v2(to, source, from.len(), stream) })
}

/// Copies to the device in stream order and waits for it.
///
/// # Safety
/// `to` is device memory for that many bytes in the current context, and the stream one of it.
pub(super) unsafe fn copy_to_device(to: u64, from: &[u8], stream: sys::CUstream) -> Result<(), CudaError> {
    if from.is_empty() {
        return Ok(());
    }
    not_capturing(stream)?;
    // SAFETY: the caller's promise; the source is borrowed until the stream has passed the copy. Where waiting fails,
    // the context is lost, and its copies with it.
    unsafe { copy_to_device_async(to, from, stream) }?;
    // SAFETY: the stream is the caller's.
    check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream) })
}

/// Fills with zeros in stream order.
///
/// # Safety
/// `at` is device memory for that many bytes in the current context.
pub(super) unsafe fn zero(at: u64, bytes: usize, stream: sys::CUstream) -> Result<(), CudaError> {
    // SAFETY: the caller's promise.
    check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(at, 0, bytes, stream) })
}

/// Copies from the device in stream order and waits for it.
///
/// # Safety
/// `from` is device memory for that many bytes in the current context.
pub(super) unsafe fn copy_to_host(to: &mut [u8], from: u64, stream: sys::CUstream) -> Result<(), CudaError> {
    if to.is_empty() {
        return Ok(());
    }
    not_capturing(stream)?;
    let target: *mut c_void = to.as_mut_ptr().cast();
    // SAFETY: the target is a slice, the caller answers for the source.
    check("cuMemcpyDtoHAsync", unsafe { sys::cuMemcpyDtoHAsync_v2(target, from, to.len(), stream) })?;
    // SAFETY: the stream is the caller's.
    check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream) })
}
