//! Host memory from which a table's values are copied: it stays what it is until the GPU has read it.
//!
//! From most host memory the driver has taken the bytes when an asynchronous copy returns, but not from page-locked
//! memory, nor where a GPU reads the host's page tables; and nobody can tell what a caller's slice lies in. So every
//! copy is made from memory of our own, which is used again when an event says that the copy is behind it. The host
//! waits for nothing unless it is [`MOST`] updates ahead of the GPU.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys;

use super::device::{Device, StreamRef};
use super::driver::{RelaxedCapture, copy_to_device_async, not_capturing};
use super::error::CudaError;
use super::stream::{Event, record};

/// Updates under way at once.
const MOST: usize = 8;

/// An update under way, or one that has landed.
#[derive(Debug)]
struct Flight {
    bytes: Vec<u8>,
    /// Recorded behind its last copy.
    landed: Event,
}

/// The updates of one table.
#[derive(Debug, Default)]
pub(super) struct Staging {
    flights: Mutex<Vec<Flight>>,
}

impl Staging {
    /// Copies each part to its address in stream order, and does not wait: the parts may change at once.
    ///
    /// # Safety
    /// The device's context is current, and each address is its memory for as many bytes until the stream has passed the
    /// copies.
    pub(super) unsafe fn copy(
        &self,
        device: &Device,
        parts: &[(u64, &[u8])],
        stream: StreamRef<'_>,
    ) -> Result<(), CudaError> {
        not_capturing(stream.0)?;
        // A panic while the lock is held leaves whole flights in the list.
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let mut flight = Self::free(&mut flights, device)?;
        flight.bytes.clear();
        let mut ranges = Vec::with_capacity(parts.len());
        for (to, part) in parts {
            let start = flight.bytes.len();
            flight.bytes.extend_from_slice(part);
            ranges.push((*to, start..flight.bytes.len()));
        }
        // SAFETY: the caller's promise; the bytes are not touched before the event says that the copies are done.
        match unsafe { flight.depart(&ranges, stream.0) } {
            Ok(()) => flights.push(flight),
            Err(error) => {
                // Some copy may be under way, and there is no event to say when it is done: the bytes stay for good.
                std::mem::forget(flight.bytes);
                return Err(error);
            }
        }
        Ok(())
    }

    /// A flight that has landed, or a new one.
    fn free(flights: &mut Vec<Flight>, device: &Device) -> Result<Flight, CudaError> {
        let landed = {
            // Asking about an event is a call that somebody else's capture, in its strictest mode, does not survive.
            let _relaxed = RelaxedCapture::enter()?;
            // More than one are more than the host needs: the others are dropped.
            flights.extract_if(.., |flight| flight.landed.is_done() == Ok(true)).last()
        };
        if let Some(flight) = landed {
            return Ok(flight);
        }
        if flights.len() < MOST {
            return Ok(Flight { bytes: Vec::new(), landed: Event::new(device)? });
        }
        flights[0].landed.synchronize()?;
        Ok(flights.remove(0))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _relaxed = RelaxedCapture::enter();
        for flight in self.flights.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if flight.landed.synchronize().is_err() {
                // Nobody can say that the copy is over.
                std::mem::forget(flight.bytes);
            }
        }
    }
}

impl Flight {
    /// # Safety
    /// As for [`Staging::copy`]; the bytes stay what they are until the event is reached.
    unsafe fn depart(&self, ranges: &[(u64, Range<usize>)], stream: sys::CUstream) -> Result<(), CudaError> {
        for (to, range) in ranges {
            // SAFETY: the caller's promise.
            unsafe { copy_to_device_async(*to, &self.bytes[range.clone()], stream) }?;
        }
        // SAFETY: our event and the caller's stream, both of the current context.
        unsafe { record(self.landed.as_ref(), stream) }
    }
}
