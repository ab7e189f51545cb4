//! A stream of our own, and events by which it and others' streams wait for each other.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr;

use cudarc::driver::{result, sys};

use super::device::{Device, StreamRef};
use super::driver::{self, check};
use super::error::CudaError;

/// An event of someone else's: ggml's or a framework's. It is there for as long as `'a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventRef<'a>(pub(super) sys::CUevent, PhantomData<&'a ()>);

// SAFETY: a handle, without ties to a thread; the driver's functions on it may be called from any.
unsafe impl Send for EventRef<'_> {}

impl EventRef<'_> {
    /// An event by its handle (`CUevent`, which is also `cudaEvent_t`).
    ///
    /// # Safety
    /// The handle is a live event of the primary context of the device it is used with, and stays one for as long as
    /// the value or a copy of it is used, which may be for all of the lifetime that the caller chooses.
    #[must_use]
    pub unsafe fn from_raw(event: *mut c_void) -> Self {
        Self(event.cast(), PhantomData)
    }

    /// The handle.
    #[must_use]
    pub fn as_raw(self) -> *mut c_void {
        self.0.cast()
    }
}

/// A stream of our own, which waits for no other stream unless told to. Dropping it waits for what is on it.
#[derive(Debug)]
pub struct Stream {
    device: Device,
    raw: sys::CUstream,
}

// SAFETY: as for EventRef; the stream is this value's alone.
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

    /// The device it is on.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// For launches.
    #[must_use]
    pub fn as_ref(&self) -> StreamRef<'_> {
        // SAFETY: a stream of the primary context, destroyed when `self` is dropped, which outlives the borrow.
        unsafe { StreamRef::from_raw(self.raw.cast()) }
    }

    /// Records an event behind everything that is on the stream now.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn record(&self, event: EventRef<'_>) -> Result<(), CudaError> {
        let _current = self.device.enter()?;
        // SAFETY: our stream, and its context is current.
        unsafe { record(event, self.raw) }
    }

    /// Makes everything put on the stream later wait for the event as it was recorded last.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn wait(&self, event: EventRef<'_>) -> Result<(), CudaError> {
        let _current = self.device.enter()?;
        // SAFETY: both are live, the event for as long as its lifetime.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(self.raw, event.0, 0) })
    }

    /// Waits until everything on the stream is done.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for what went wrong in earlier work.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.device.synchronize(self.as_ref())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.enter() {
            // SAFETY: our stream, destroyed once, after it has run dry. An error is one of earlier work.
            unsafe {
                let _ = sys::cuStreamSynchronize(self.raw);
                let _ = sys::cuStreamDestroy_v2(self.raw);
            }
        }
    }
}

/// An event of our own.
#[derive(Debug)]
pub struct Event {
    device: Device,
    raw: sys::CUevent,
}

// SAFETY: as for Stream.
unsafe impl Send for Event {}

impl Event {
    /// Makes an event that takes no time stamps.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        Self::with_flags(device, sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING)
    }

    /// Makes an event that takes the time when it is reached, for [`Event::micros_since`].
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn with_time(device: &Device) -> Result<Self, CudaError> {
        Self::with_flags(device, sys::CUevent_flags_enum::CU_EVENT_DEFAULT)
    }

    fn with_flags(device: &Device, flags: sys::CUevent_flags) -> Result<Self, CudaError> {
        let _current = device.enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is valid and the context current.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut raw, flags as u32) })?;
        Ok(Self { device: device.clone(), raw })
    }

    /// For streams to record and to wait for.
    #[must_use]
    pub fn as_ref(&self) -> EventRef<'_> {
        // SAFETY: an event of the primary context, destroyed when `self` is dropped, which outlives the borrow.
        unsafe { EventRef::from_raw(self.raw.cast()) }
    }

    /// Whether what it was recorded behind is done. Does not wait; an event that was never recorded is done.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn is_done(&self) -> Result<bool, CudaError> {
        is_done(&self.device, self.as_ref())
    }

    /// Waits until what it was recorded behind is done.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for what went wrong in earlier work.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        let _current = self.device.enter()?;
        // SAFETY: our event.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.raw) })
    }

    /// Microseconds from an earlier event to this one, to about half a microsecond. Waits for both. Both must take the
    /// time and have been recorded.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn micros_since(&self, earlier: &Self) -> Result<f64, CudaError> {
        earlier.synchronize()?;
        self.synchronize()?;
        let _current = self.device.enter()?;
        // Through cudarc's wrapper: which of two versions of this call there is depends on the interface chosen.
        // SAFETY: both events are ours and live; on events that take no time the driver says so.
        let millis = unsafe { result::event::elapsed(earlier.raw, self.raw) };
        millis
            .map(|millis| f64::from(millis) * 1e3)
            .map_err(|error| driver::failure("cuEventElapsedTime", error.0))
    }
}

/// Records an event behind everything that is on a stream now.
///
/// # Safety
/// The stream is a live one of the current context.
pub(super) unsafe fn record(event: EventRef<'_>, stream: sys::CUstream) -> Result<(), CudaError> {
    // SAFETY: a live event for as long as its lifetime; the caller answers for the stream.
    check("cuEventRecord", unsafe { sys::cuEventRecord(event.0, stream) })
}

/// Whether what an event of someone else's was recorded behind is done; an error also where the handle is none.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn is_done(device: &Device, event: EventRef<'_>) -> Result<bool, CudaError> {
    let _current = device.enter()?;
    // SAFETY: a live event for as long as its lifetime.
    match unsafe { sys::cuEventQuery(event.0) } {
        sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
        result => check("cuEventQuery", result).map(|()| true),
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.enter() {
            // SAFETY: our event, destroyed once; the driver keeps what streams still need of it.
            let _ = unsafe { sys::cuEventDestroy_v2(self.raw) };
        }
    }
}
