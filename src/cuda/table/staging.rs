//! Host memory from which a table's values are copied. It stays unchanged until the GPU has read it.
//!
//! `cuMemcpyHtoDAsync` may return before it has read its source, if that is pinned or if the GPU shares the
//! host's page tables (ATS). The kind of a caller's slice is unknown, so every copy is made from memory of
//! our own. An event says when that memory can be used again. The host waits only if it is [`MAX_COPIES`]
//! updates ahead of the GPU.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys;

use crate::cuda::device::Device;
use crate::cuda::driver::{RelaxedCapture, copy_to_device_async, keep_error, not_capturing};
use crate::cuda::error::{CudaError, DriverError};
use crate::cuda::stream::{Event, StreamRef, record};

/// Maximum number of updates in progress.
const MAX_COPIES: usize = 8;

/// An update that is in progress or done.
#[derive(Debug)]
struct StagedCopy {
    bytes: Vec<u8>,
    /// Recorded after the last of its copies.
    done: Event,
}

/// The updates of one table.
#[derive(Debug)]
pub(super) struct Staging {
    device: Device,
    copies: Mutex<Vec<StagedCopy>>,
}

impl Staging {
    pub(super) fn new(device: &Device) -> Self {
        Self { device: device.clone(), copies: Mutex::default() }
    }

    /// Copies each part to its address in stream order, and does not wait. The parts may change as soon as
    /// this returns.
    ///
    /// # Safety
    /// The device's context is current. Each address is its memory for as many bytes until the stream has
    /// passed the copies.
    pub(super) unsafe fn copy(&self, parts: &[(u64, &[u8])], stream: StreamRef<'_>) -> Result<(), CudaError> {
        not_capturing(stream.0)?;
        // A panic while the lock is held leaves whole entries in the list.
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        let mut copy = Self::free(&mut copies, &self.device)?;
        copy.bytes.clear();
        let mut ranges = Vec::with_capacity(parts.len());
        for (to, part) in parts {
            let start = copy.bytes.len();
            copy.bytes.extend_from_slice(part);
            ranges.push((*to, start..copy.bytes.len()));
        }
        // SAFETY: the caller promises the addresses. The bytes do not change before the event says that the
        // copies are done.
        match unsafe { copy.submit(&ranges, stream.0) } {
            Ok(()) => copies.push(copy),
            Err(error) => {
                // Some copy may be in progress without an event that says when it is done. Its source must
                // never be freed.
                std::mem::forget(copy.bytes);
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Returns an entry whose copies are done, or a new one.
    fn free(copies: &mut Vec<StagedCopy>, device: &Device) -> Result<StagedCopy, CudaError> {
        {
            // A query of an event would break another thread's capture in the strictest mode.
            let _relaxed = RelaxedCapture::enter(device.ordinal())?;
            let mut free = None;
            let mut index = 0;
            while index < copies.len() {
                // One entry is enough. The others that are done are dropped.
                if copies[index].done.is_done()? { free = Some(copies.remove(index)) } else { index += 1 }
            }
            if let Some(copy) = free {
                return Ok(copy);
            }
        }
        if copies.len() < MAX_COPIES {
            return Ok(StagedCopy { bytes: Vec::new(), done: Event::new(device)? });
        }
        copies[0].done.synchronize()?;
        Ok(copies.remove(0))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let ordinal = self.device.ordinal();
        let relaxed = RelaxedCapture::enter(ordinal);
        for copy in self.copies.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if let Err(error) = copy.done.synchronize() {
                // The copy may still be in progress, so its source must never be freed.
                std::mem::forget(copy.bytes);
                if let CudaError::Driver(error) = error {
                    keep_error(ordinal, Err(error));
                }
            }
        }
        keep_error(ordinal, relaxed.map(drop));
    }
}

impl StagedCopy {
    /// Puts the copies and then the event on a stream.
    ///
    /// # Safety
    /// As for [`Staging::copy`]. The bytes stay unchanged until the event is reached.
    unsafe fn submit(
        &self,
        ranges: &[(u64, Range<usize>)],
        stream: sys::CUstream,
    ) -> Result<(), DriverError> {
        for (to, range) in ranges {
            // SAFETY: the caller promises the address, and that the bytes stay unchanged until the copy is
            // done.
            unsafe { copy_to_device_async(*to, &self.bytes[range.clone()], stream) }?;
        }
        // SAFETY: the event is ours, the stream is the caller's, and both are of the current context.
        unsafe { record(self.done.handle(), stream) }
    }
}
