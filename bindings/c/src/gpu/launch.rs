//! Launching a call on a GPU.

use std::ffi::c_void;

use crate::failure::Failure;
use crate::gpu::backend;
use crate::gpu::device_table::DeviceTable;
use crate::job::call::Job;
use crate::status::Status;
use crate::{guard, pointer};

/// A launch that starts when the previous one on its stream has ended.
pub const AXISCAP_OVERLAP_NONE: u32 = 0;
/// A launch that may start while the previous one ends (programmatic dependent launch). The previous kernel
/// must not write the table or the weight (docs/cuda.md). Before compute capability 9.0 it is as
/// AXISCAP_OVERLAP_NONE.
pub const AXISCAP_OVERLAP_PROGRAMMATIC: u32 = 1;

/// Puts a call on a stream and returns at once. The result has the bits of axiscap_run. All pointers of the
/// job are addresses on the table's GPU, and statistics are there as well. The job itself is in host memory.
/// Works inside of a capture.
///
/// Fails with the errors of axiscap_run apart from AXISCAP_STATUS_PROFILE, with AXISCAP_STATUS_TOO_MANY and
/// with AXISCAP_STATUS_DRIVER. A row whose profile does not exist goes uncapped, and
/// axiscap_device_table_faults tells.
///
/// Ownership: the job is not kept. Its memory and the table have to stay until the stream has passed the
/// launch, or the last replay of a captured one.
///
/// Threads: any number may call this with the same table.
///
/// # Safety
/// `table` is NULL or a live handle. `job` is NULL or describes live memory of the table's GPU, as for
/// axiscap_run, until the stream has passed the launch. `stream` is a CUstream or cudaStream_t of the primary
/// context of the table's GPU, or NULL for the default stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_launch(
    table: *const DeviceTable,
    job: *const Job,
    stream: *mut c_void,
    overlap: u32,
) -> Status {
    guard::call(|| {
        let programmatic = match overlap {
            AXISCAP_OVERLAP_NONE => false,
            AXISCAP_OVERLAP_PROGRAMMATIC => true,
            other => {
                let message =
                    format!("overlap is {other}; use AXISCAP_OVERLAP_NONE or AXISCAP_OVERLAP_PROGRAMMATIC");
                return Err(Failure::new(Status::InvalidArgument, message));
            }
        };
        // SAFETY: the caller promises a live handle.
        let DeviceTable(table) = unsafe { pointer::shared(table, "table") }?;
        // SAFETY: the caller promises the job, its memory and the stream.
        unsafe { backend::launch(table, job, stream, programmatic) }
    })
}
