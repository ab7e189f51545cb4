//! Conversions of `cust`'s streams and device pointers.
//!
//! `cust` links the driver at build time. Contexts made by `cust::quick_init` are primary contexts, the same
//! that [`Device`](crate::cuda::Device) uses.

use cust::memory::{DeviceCopy, DevicePointer};
use cust::stream::Stream;

use crate::cuda::{DeviceRows, StreamRef};
use crate::op::Dtype;

/// Returns a reference to the stream, for [`cuda::Job::launch`](crate::cuda::Job::launch).
///
/// # Safety
/// The stream is one of the primary context. `cust` does not say which context a stream is of.
#[must_use]
pub unsafe fn stream(stream: &Stream) -> StreamRef<'_> {
    // SAFETY: the stream is live for as long as it is borrowed, and the caller promises its context.
    unsafe { StreamRef::from_raw(stream.as_inner().cast()) }
}

/// Returns `count` rows at a device pointer, `stride` elements apart.
#[must_use]
pub fn rows<T: DeviceCopy>(
    pointer: DevicePointer<T>,
    dtype: Dtype,
    count: usize,
    stride: usize,
) -> DeviceRows {
    DeviceRows { dtype, address: pointer.as_raw(), count, stride }
}
