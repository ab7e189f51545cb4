//! The driver's functions, with their results as errors. Nothing is called before the library is known to be
//! present.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::ptr;
use std::sync::{Mutex, OnceLock, PoisonError};

use cudarc::driver::sys;

use crate::cuda::error::{CudaError, DriverError};
use crate::cuda::library;

/// Loads the driver and initialises it, once per process. A failure is cached as well.
pub(super) fn init() -> Result<(), CudaError> {
    static DRIVER: OnceLock<Result<(), DriverError>> = OnceLock::new();
    library::load().map_err(|reason| CudaError::NoDriver { reason })?;
    // SAFETY: `library::load` has found the library, and `cuInit` has no preconditions.
    Ok((*DRIVER.get_or_init(|| check("cuInit", unsafe { sys::cuInit(0) })))?)
}

/// Turns any result but success into an error.
pub(super) fn check(call: &'static str, code: sys::CUresult) -> Result<(), DriverError> {
    match code {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(DriverError { call, code }),
    }
}

/// The first error per GPU that occurred while something was dropped. The GPU's next call returns it.
static DROP_ERRORS: Mutex<BTreeMap<usize, DriverError>> = Mutex::new(BTreeMap::new());

/// Keeps an error of a drop for the GPU's next call. Of several errors the first is kept.
pub(super) fn keep_error(ordinal: usize, result: Result<(), DriverError>) {
    if let Err(error) = result {
        let mut errors = DROP_ERRORS.lock().unwrap_or_else(PoisonError::into_inner);
        errors.entry(ordinal).or_insert(error);
    }
}

/// Returns the error that was kept for a GPU, once.
pub(super) fn take_error(ordinal: usize) -> Result<(), DriverError> {
    let mut errors = DROP_ERRORS.lock().unwrap_or_else(PoisonError::into_inner);
    errors.remove(&ordinal).map_or(Ok(()), Err)
}

/// Returns the newest CUDA version that the driver supports: 1000 * major + 10 * minor.
pub(super) fn version() -> Result<i32, DriverError> {
    let mut version = 0;
    // SAFETY: the pointer is valid.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) })?;
    Ok(version)
}

/// Returns the number of GPUs.
pub(super) fn count() -> Result<usize, DriverError> {
    let mut count = 0;
    // SAFETY: the pointer is valid and the driver is initialised.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Returns the handle of a GPU.
pub(super) fn device(ordinal: usize) -> Result<sys::CUdevice, CudaError> {
    let found = count()?;
    let index = i32::try_from(ordinal).ok().filter(|_| ordinal < found);
    let index = index.ok_or(CudaError::NoDevice { ordinal, found })?;
    let mut device = 0;
    // SAFETY: the pointer is valid, and the index is below the number of GPUs.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, index) })?;
    Ok(device)
}

/// Returns the name of a GPU.
pub(super) fn name(device: sys::CUdevice) -> Result<String, DriverError> {
    let mut name = [0 as c_char; 256];
    // SAFETY: the buffer is longer than the length given.
    check("cuDeviceGetName", unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), 255, device) })?;
    // SAFETY: the last byte is still NUL.
    Ok(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
}

/// Returns an attribute of a GPU, 0 for negative ones.
pub(super) fn attribute(
    device: sys::CUdevice,
    attribute: sys::CUdevice_attribute,
) -> Result<u32, DriverError> {
    let mut value = 0;
    // SAFETY: the pointer is valid.
    check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) })?;
    Ok(u32::try_from(value).unwrap_or(0))
}

/// A GPU's context that is current on this thread until the guard is dropped. The previous one is then
/// current again, because the thread belongs to the caller.
pub(super) struct Current {
    ordinal: usize,
    previous: Option<sys::CUcontext>,
}

impl Current {
    /// Makes the context of GPU `ordinal` current.
    pub(super) fn enter(ordinal: usize, context: sys::CUcontext) -> Result<Self, DriverError> {
        let current = Self::get()?;
        if current == context {
            return Ok(Self { ordinal, previous: None });
        }
        // SAFETY: the context is retained by the device, which outlives this guard.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(context) })?;
        Ok(Self { ordinal, previous: Some(current) })
    }

    /// Restores the current context when the guard is dropped, even if it changes in between.
    pub(super) fn keep(ordinal: usize) -> Result<Self, DriverError> {
        Ok(Self { ordinal, previous: Some(Self::get()?) })
    }

    fn get() -> Result<sys::CUcontext, DriverError> {
        let mut current = ptr::null_mut();
        // SAFETY: the pointer is valid.
        check("cuCtxGetCurrent", unsafe { sys::cuCtxGetCurrent(&mut current) })?;
        Ok(current)
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        use sys::CUresult::{CUDA_ERROR_CONTEXT_IS_DESTROYED, CUDA_ERROR_INVALID_CONTEXT};
        let Some(previous) = self.previous else { return };
        // SAFETY: the context was current before, or is null. The driver refuses one that was destroyed since
        // then.
        match unsafe { sys::cuCtxSetCurrent(previous) } {
            // A destroyed context cannot be current again, so nothing is left to do.
            CUDA_ERROR_CONTEXT_IS_DESTROYED | CUDA_ERROR_INVALID_CONTEXT => {}
            result => keep_error(self.ordinal, check("cuCtxSetCurrent", result)),
        }
    }
}

/// Allows this thread the calls that a stream capture in the global mode forbids to every thread, until the
/// guard is dropped. Calls that do not touch the captured streams are harmless.
pub(super) struct RelaxedCapture {
    ordinal: usize,
    previous: sys::CUstreamCaptureMode,
}

impl RelaxedCapture {
    /// Sets the relaxed mode. An error of the drop is kept for GPU `ordinal`.
    pub(super) fn enter(ordinal: usize) -> Result<Self, DriverError> {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the pointer is valid. The driver replaces the mode by the previous one.
        check("cuThreadExchangeStreamCaptureMode", unsafe {
            sys::cuThreadExchangeStreamCaptureMode(&mut mode)
        })?;
        Ok(Self { ordinal, previous: mode })
    }
}

impl Drop for RelaxedCapture {
    fn drop(&mut self) {
        // SAFETY: the pointer is valid, and the mode is one that the driver returned.
        let result = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut self.previous) };
        keep_error(self.ordinal, check("cuThreadExchangeStreamCaptureMode", result));
    }
}

/// Device memory of one context. Its owner frees it with the context current.
#[derive(Debug)]
pub(super) struct Allocation {
    address: sys::CUdeviceptr,
}

impl Allocation {
    /// Allocates in the current context.
    pub(super) fn new(bytes: usize) -> Result<Self, DriverError> {
        let mut address = 0;
        // SAFETY: the pointer is valid. The size is not 0, which the driver would refuse.
        check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&mut address, bytes.max(16)) })?;
        Ok(Self { address })
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Waits until nothing on the GPU can use the memory, and frees it. Its context must be current.
    pub(super) fn free(&mut self) -> Result<(), DriverError> {
        if self.address == 0 {
            return Ok(());
        }
        // SAFETY: a context is current.
        let waited = check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() });
        let freed = self.free_without_sync();
        waited.and(freed)
    }

    /// Frees the memory at once, when nothing on the GPU can use it. Its context must be current.
    pub(super) fn free_without_sync(&mut self) -> Result<(), DriverError> {
        match std::mem::take(&mut self.address) {
            0 => Ok(()),
            // SAFETY: `new` allocated it, and it is freed once, because the address is gone now.
            address => check("cuMemFree", unsafe { sys::cuMemFree_v2(address) }),
        }
    }
}

/// Refuses a stream that is being captured. A captured copy would run at each replay, from or to memory that
/// may be gone then.
pub(super) fn not_capturing(stream: sys::CUstream) -> Result<(), CudaError> {
    let mut status = sys::CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the pointer is valid, and callers pass a live stream.
    check("cuStreamIsCapturing", unsafe { sys::cuStreamIsCapturing(stream, &mut status) })?;
    match status {
        sys::CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_NONE => Ok(()),
        _ => Err(CudaError::Capturing),
    }
}

/// Copies to the device in stream order, and does not wait.
///
/// # Safety
/// `to` is device memory for that many bytes in the current context, and the stream one of it that is not
/// being captured. The source is neither changed nor freed before the stream has passed the copy.
pub(super) unsafe fn copy_to_device_async(
    to: u64,
    from: &[u8],
    stream: sys::CUstream,
) -> Result<(), DriverError> {
    if from.is_empty() {
        return Ok(());
    }
    let source: *const c_void = from.as_ptr().cast();
    // SAFETY: the source is a slice of this length. The caller keeps it alive, and answers for the target.
    check("cuMemcpyHtoDAsync", unsafe { sys::cuMemcpyHtoDAsync_v2(to, source, from.len(), stream) })
}

/// Copies to the device in stream order and waits for the copy.
///
/// # Safety
/// `to` is device memory for that many bytes in the current context, and the stream one of it.
pub(super) unsafe fn copy_to_device(to: u64, from: &[u8], stream: sys::CUstream) -> Result<(), CudaError> {
    if from.is_empty() {
        return Ok(());
    }
    not_capturing(stream)?;
    // SAFETY: the caller answers for target and stream. The source is borrowed until the stream has passed
    // the copy. If waiting fails the context is lost, and its copies with it.
    unsafe { copy_to_device_async(to, from, stream) }?;
    // SAFETY: the caller passes a live stream.
    Ok(check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream) })?)
}

/// Fills with zeros in stream order.
///
/// # Safety
/// `at` is device memory for that many bytes in the current context, and the stream one of it.
pub(super) unsafe fn zero(at: u64, bytes: usize, stream: sys::CUstream) -> Result<(), DriverError> {
    // SAFETY: the caller promises the memory and the stream.
    check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(at, 0, bytes, stream) })
}

/// Copies from the device in stream order and waits for the copy.
///
/// # Safety
/// `from` is device memory for that many bytes in the current context, and the stream one of it.
pub(super) unsafe fn copy_to_host(to: &mut [u8], from: u64, stream: sys::CUstream) -> Result<(), CudaError> {
    if to.is_empty() {
        return Ok(());
    }
    not_capturing(stream)?;
    let target: *mut c_void = to.as_mut_ptr().cast();
    // SAFETY: the target is a slice of this length, borrowed until the copy is done. The caller answers for
    // the source.
    check("cuMemcpyDtoHAsync", unsafe { sys::cuMemcpyDtoHAsync_v2(target, from, to.len(), stream) })?;
    // SAFETY: the caller passes a live stream.
    Ok(check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream) })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_of_a_drop_is_returned_once_and_by_its_own_gpu() {
        let error = |call| DriverError { call, code: sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS };
        let (gpu, other) = (usize::MAX, usize::MAX - 1);
        keep_error(gpu, Ok(()));
        assert_eq!(take_error(gpu), Ok(()));
        keep_error(gpu, Err(error("cuMemFree")));
        keep_error(gpu, Err(error("cuStreamDestroy")));
        assert_eq!(take_error(other), Ok(()));
        assert_eq!(take_error(gpu), Err(error("cuMemFree")));
        assert_eq!(take_error(gpu), Ok(()));
    }
}
