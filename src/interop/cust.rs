//! On `cust`'s types: streams and device pointers, converted.
//!
//! `cust` links the driver at build time. Its contexts made by `cust::quick_init` are primary contexts, the same
//! that [`Device`](crate::cuda::Device) uses.

use cust::memory::{DeviceCopy, DevicePointer};
use cust::stream::Stream;

use crate::cuda::{DeviceRows, StreamRef};

/// The stream, for [`Device::launch`](crate::cuda::Device::launch).
///
/// # Safety
/// The stream is one of the primary context: `cust` does not say which context a stream is of.
#[must_use]
pub unsafe fn stream(stream: &Stream) -> StreamRef<'_> {
    // SAFETY: live for as long as it is borrowed; its context is the caller's promise.
    unsafe { StreamRef::from_raw(stream.as_inner().cast()) }
}

/// Rows at a device pointer, `stride` elements apart.
#[must_use]
pub fn rows<T: DeviceCopy>(pointer: DevicePointer<T>, stride: usize) -> DeviceRows {
    DeviceRows { address: pointer.as_raw(), stride }
}
