//! Streams and events: references to foreign ones, and our own.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr;

use cudarc::driver::sys;

use crate::cuda::device::Device;
use crate::cuda::driver::check;
use crate::cuda::error::{CudaError, DriverError};

/// A foreign stream: ggml's, a framework's, or cudarc's. It lives for `'a`, so that safe code cannot put work
/// on a stream that is gone:
///
/// ```compile_fail,E0515
/// use axiscap::cuda::raw::Stream;
/// use axiscap::cuda::{CudaError, Device, StreamRef};
/// fn dangling(device: &Device) -> Result<StreamRef<'_>, CudaError> {
///     let stream = Stream::new(device)?;
///     Ok(stream.handle())
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamRef<'a>(pub(super) sys::CUstream, PhantomData<&'a ()>);

impl StreamRef<'_> {
    /// The legacy default stream.
    pub const DEFAULT: Self = Self(ptr::null_mut(), PhantomData);

    /// Takes a stream by its handle (`CUstream`, which is also `cudaStream_t`).
    ///
    /// # Safety
    /// The handle is null or a live stream of the primary context of the device it is used with. It stays one
    /// for as long as the value or a copy of it is used, which the caller's lifetime may allow for long.
    #[must_use]
    pub unsafe fn from_raw(stream: *mut c_void) -> Self {
        Self(stream.cast(), PhantomData)
    }

    /// Returns the handle.
    #[must_use]
    pub fn as_raw(self) -> *mut c_void {
        self.0.cast()
    }
}

impl Device {
    /// Waits until everything on a stream is done.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for errors of earlier work on the stream.
    pub fn synchronize(&self, stream: StreamRef<'_>) -> Result<(), CudaError> {
        let _current = self.enter()?;
        // SAFETY: the stream is live for its lifetime, and its context is current.
        Ok(check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream.0) })?)
    }
}

/// A foreign event: ggml's or a framework's. It lives for `'a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventRef<'a>(pub(super) sys::CUevent, PhantomData<&'a ()>);

// SAFETY: an event handle is not bound to a thread, and the driver's functions on it may be called from any.
unsafe impl Send for EventRef<'_> {}

impl EventRef<'_> {
    /// Takes an event by its handle (`CUevent`, which is also `cudaEvent_t`).
    ///
    /// # Safety
    /// The handle is a live event of the primary context of the device it is used with. It stays one for as
    /// long as the value or a copy of it is used, which the caller's lifetime may allow for long.
    #[must_use]
    pub unsafe fn from_raw(event: *mut c_void) -> Self {
        Self(event.cast(), PhantomData)
    }

    /// Returns the handle.
    #[must_use]
    pub fn as_raw(self) -> *mut c_void {
        self.0.cast()
    }
}

/// A stream of ours. It waits for other streams only where told to. Dropping it waits for its work.
#[derive(Debug)]
pub struct Stream {
    device: Device,
    raw: sys::CUstream,
}

// SAFETY: a stream handle is not bound to a thread, and this value alone owns it.
unsafe impl Send for Stream {}

impl Stream {
    /// Makes a stream in the device's primary context.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        let _current = device.enter()?;
        let mut raw = ptr::null_mut();
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the pointer is valid and the context current.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut raw, flags) })?;
        Ok(Self { device: device.clone(), raw })
    }

    /// Returns the device of the stream.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Returns a reference to the stream, for launches.
    #[must_use]
    pub fn handle(&self) -> StreamRef<'_> {
        // SAFETY: the stream is of the primary context. It is destroyed when `self` is dropped, which
        // outlives the borrow.
        unsafe { StreamRef::from_raw(self.raw.cast()) }
    }

    /// Records an event after everything that is on the stream now.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn record(&self, event: EventRef<'_>) -> Result<(), CudaError> {
        let _current = self.device.enter()?;
        // SAFETY: the stream is ours, and its context is current.
        Ok(unsafe { record(event, self.raw) }?)
    }

    /// Makes work that is put on the stream later wait for the last recording of the event.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn wait(&self, event: EventRef<'_>) -> Result<(), CudaError> {
        let _current = self.device.enter()?;
        // SAFETY: the stream is ours, and the event is live for its lifetime.
        Ok(check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(self.raw, event.0, 0) })?)
    }

    /// Waits until everything on the stream is done.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for errors of earlier work on the stream.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.device.synchronize(self.handle())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.device.on_drop(|| {
            // SAFETY: the stream is ours.
            let waited = check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.raw) });
            // SAFETY: the stream is ours, has no work left, and is destroyed once.
            let destroyed = check("cuStreamDestroy", unsafe { sys::cuStreamDestroy_v2(self.raw) });
            waited.and(destroyed)
        });
    }
}

/// An event of ours, without time stamps.
#[derive(Debug)]
pub struct Event {
    device: Device,
    raw: sys::CUevent,
}

// SAFETY: an event handle is not bound to a thread, and this value alone owns it.
unsafe impl Send for Event {}

impl Event {
    /// Makes an event.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        let _current = device.enter()?;
        let mut raw = ptr::null_mut();
        let flags = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the pointer is valid and the context current.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut raw, flags) })?;
        Ok(Self { device: device.clone(), raw })
    }

    /// Returns a reference to the event, for streams to record and to wait for.
    #[must_use]
    pub fn handle(&self) -> EventRef<'_> {
        // SAFETY: the event is of the primary context. It is destroyed when `self` is dropped, which outlives
        // the borrow.
        unsafe { EventRef::from_raw(self.raw.cast()) }
    }

    /// Whether the work before the last recording is done. Does not wait. An event without a recording is
    /// done.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn is_done(&self) -> Result<bool, CudaError> {
        is_done(&self.device, self.handle())
    }

    /// Waits until the work before the last recording is done.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for errors of that work.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        let _current = self.device.enter()?;
        // SAFETY: the event is ours.
        Ok(check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.raw) })?)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.device.on_drop(|| {
            // SAFETY: the event is ours and destroyed once. The driver keeps what streams still need of it.
            check("cuEventDestroy", unsafe { sys::cuEventDestroy_v2(self.raw) })
        });
    }
}

/// Records an event after everything that is on a stream now.
///
/// # Safety
/// The stream is a live one of the current context.
pub(super) unsafe fn record(event: EventRef<'_>, stream: sys::CUstream) -> Result<(), DriverError> {
    // SAFETY: the event is live for its lifetime, and the caller promises the stream.
    check("cuEventRecord", unsafe { sys::cuEventRecord(event.0, stream) })
}

/// Whether the work before the last recording of a foreign event is done.
///
/// # Errors
/// [`CudaError::Driver`], also for a handle that is no event.
pub fn is_done(device: &Device, event: EventRef<'_>) -> Result<bool, CudaError> {
    let _current = device.enter()?;
    // SAFETY: the event is live for its lifetime, and its context is current.
    match unsafe { sys::cuEventQuery(event.0) } {
        sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
        result => Ok(check("cuEventQuery", result).map(|()| true)?),
    }
}
