//! The profiles of a batch's rows in device memory.

use crate::cuda::device::Device;
use crate::cuda::driver::Allocation;
use crate::cuda::error::CudaError;
use crate::cuda::stream::StreamRef;
use crate::cuda::table::staging::Staging;

/// One profile index per row on a GPU, for [`Job::row_profiles`](crate::op::Job::row_profiles). The address
/// stays the same while the indices change, so rows can change their profile between two replays of a
/// captured launch.
#[derive(Debug)]
pub struct RowProfileBuffer {
    device: Device,
    memory: Allocation,
    staging: Staging,
    rows: usize,
}

impl RowProfileBuffer {
    /// Allocates a buffer for as many rows.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn new(device: &Device, rows: usize) -> Result<Self, CudaError> {
        let _current = device.enter()?;
        let memory = Allocation::new(rows * size_of::<u32>())?;
        Ok(Self { device: device.clone(), memory, staging: Staging::new(device), rows })
    }

    /// Returns the address of the first row's index.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.memory.address()
    }

    /// Returns the number of rows that the buffer has space for.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Replaces the indices of the first rows in stream order. Launches already on the stream read the old
    /// ones, later launches the new. Returns at once, unless eight updates are still in progress.
    ///
    /// # Errors
    /// [`CudaError::TableShape`] for more rows than there is space for; [`CudaError::Capturing`] inside a
    /// stream capture; [`CudaError::Driver`].
    pub fn write(&self, profiles: &[u32], stream: StreamRef<'_>) -> Result<(), CudaError> {
        if profiles.len() > self.rows {
            return Err(CudaError::TableShape { what: "the number of rows with profiles" });
        }
        let _current = self.device.enter()?;
        let part = (self.memory.address(), bytemuck::cast_slice(profiles));
        // SAFETY: the context was just entered, and the indices fit. `drop` frees the memory after the GPU is
        // done with it, and `free_without_sync` leaves that to its caller.
        unsafe { self.staging.copy(&[part], stream) }
    }

    /// Frees the buffer without waiting for the GPU's other work, as
    /// [`DeviceTable::free_without_sync`](crate::cuda::DeviceTable::free_without_sync).
    ///
    /// # Safety
    /// No work on the GPU uses the buffer any more.
    pub unsafe fn free_without_sync(mut self) {
        let memory = &mut self.memory;
        self.device.on_drop(|| memory.free_without_sync());
    }
}

impl Drop for RowProfileBuffer {
    fn drop(&mut self) {
        let memory = &mut self.memory;
        self.device.on_drop(|| memory.free());
    }
}
