//! A table of caps in device memory.

use crate::cuda::device::Device;
use crate::cuda::driver::{Allocation, copy_to_device, copy_to_host, zero};
use crate::cuda::error::CudaError;
use crate::cuda::faults::ProfileFaults;
use crate::cuda::stream::{Stream, StreamRef};
use crate::cuda::table::pack::{PackedTable, TableView};
use crate::cuda::table::staging::Staging;
use crate::table::{CapParams, CapTable};

/// A [`CapTable`] on a GPU. Its addresses stay the same while its values change, so bounds, strengths and
/// axes can change between two replays of a captured launch.
#[derive(Debug)]
pub struct DeviceTable {
    device: Device,
    memory: Allocation,
    staging: Staging,
    view: TableView,
    cap_count: usize,
    /// The profile boundaries on the GPU.
    ends: Vec<u32>,
}

impl Device {
    /// Copies a table to the GPU on a stream of ours, and waits for the copy.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn upload(&self, table: &CapTable) -> Result<DeviceTable, CudaError> {
        DeviceTable::new(self, table)
    }
}

impl DeviceTable {
    fn new(device: &Device, table: &CapTable) -> Result<Self, CudaError> {
        let packed = PackedTable::new(table);
        let _current = device.enter()?;
        // In descending order of alignment: axes need that of an allocation, the record 8, the others 4.
        let axes = size_of_val(packed.axes());
        let params = size_of_val(packed.params());
        let memory = Allocation::new(axes + ProfileFaults::BYTES + params + size_of_val(packed.ends()))?;
        let faults = memory.address() + axes as u64;
        let view = TableView {
            axes: memory.address(),
            params: faults + ProfileFaults::BYTES as u64,
            ends: faults + (ProfileFaults::BYTES + params) as u64,
            faults,
            layout: packed.layout(),
        };
        let this = Self {
            device: device.clone(),
            memory,
            staging: Staging::new(device),
            view,
            cap_count: table.cap_count(),
            ends: packed.ends().to_vec(),
        };
        // Not the default stream, which would break a capture on a stream that waits for it.
        let stream = Stream::new(device)?;
        for (to, part) in this.parts(&packed) {
            // SAFETY: the allocation has these parts, and is of the context entered above.
            unsafe { copy_to_device(to, part, stream.handle().0) }?;
        }
        this.clear_faults(stream.handle())?;
        stream.synchronize()?;
        Ok(this)
    }

    /// Returns the addresses of the table's parts.
    #[must_use]
    pub fn view(&self) -> TableView {
        self.view
    }

    /// Returns the GPU of the table.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Replaces all values by those of a table of the same shape, in stream order. Launches already on the
    /// stream use the old values, later ones the new. Returns at once, unless eight updates are still in
    /// progress.
    ///
    /// # Errors
    /// [`CudaError::TableShape`]; [`CudaError::Capturing`] inside a stream capture; [`CudaError::Driver`].
    pub fn update(&self, table: &CapTable, stream: StreamRef<'_>) -> Result<(), CudaError> {
        let packed = PackedTable::new(table);
        if packed.layout() != self.view.layout || table.cap_count() != self.cap_count {
            return Err(CudaError::TableShape { what: "its width, number of caps or profiles" });
        }
        // A launch on another stream may be reading. It may see a mix of old and new values, but half-changed
        // boundaries would lead it out of the table.
        if packed.ends() != self.ends {
            return Err(CudaError::TableShape { what: "which caps belong to which profile" });
        }
        self.copy(&self.parts(&packed), stream)
    }

    /// Replaces bounds and strengths only, 12 bytes per cap, in the manner of [`DeviceTable::update`].
    ///
    /// # Errors
    /// [`CudaError::TableShape`] for another number of caps; [`CudaError::Capturing`]; [`CudaError::Driver`].
    pub fn update_params(&self, params: &[CapParams], stream: StreamRef<'_>) -> Result<(), CudaError> {
        if params.len() != self.cap_count {
            return Err(CudaError::TableShape { what: "its number of caps" });
        }
        self.copy(&[(self.view.params, bytemuck::cast_slice(params))], stream)
    }

    /// Returns the rows that went uncapped because their profile does not exist in this table; `None` if
    /// there are none.
    ///
    /// Waits for everything that is on the stream now. Launches on other streams count as far as they have
    /// run.
    ///
    /// # Errors
    /// [`CudaError::Capturing`] inside a stream capture; [`CudaError::Driver`], also for errors of earlier
    /// work on the stream.
    pub fn faults(&self, stream: StreamRef<'_>) -> Result<Option<ProfileFaults>, CudaError> {
        let mut record = [0; ProfileFaults::BYTES];
        let _current = self.device.enter()?;
        // SAFETY: the record is at this address, in the context entered above.
        unsafe { copy_to_host(&mut record, self.view.faults, stream.0) }?;
        Ok(ProfileFaults::from_bytes(&record))
    }

    /// Clears the record of rows without a profile, in stream order. Can be captured.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn clear_faults(&self, stream: StreamRef<'_>) -> Result<(), CudaError> {
        let _current = self.device.enter()?;
        // SAFETY: the record is at this address, in the context entered above.
        Ok(unsafe { zero(self.view.faults, ProfileFaults::BYTES, stream.0) }?)
    }

    /// Frees the table without waiting for the GPU's other work. A wait for the whole GPU would break a
    /// stream capture on it.
    ///
    /// # Safety
    /// No work on the GPU uses the table any more: the streams of its launches and updates have passed them.
    pub unsafe fn free_without_sync(mut self) {
        let memory = &mut self.memory;
        self.device.on_drop(|| memory.free_without_sync());
    }

    /// Returns each part of the values with its address.
    fn parts<'a>(&self, packed: &'a PackedTable) -> [(u64, &'a [u8]); 3] {
        [
            (self.view.axes, bytemuck::cast_slice(packed.axes())),
            (self.view.params, bytemuck::cast_slice(packed.params())),
            (self.view.ends, bytemuck::cast_slice(packed.ends())),
        ]
    }

    /// Copies parts in stream order. Each has the size that the allocation has at its address.
    fn copy(&self, parts: &[(u64, &[u8])], stream: StreamRef<'_>) -> Result<(), CudaError> {
        let _current = self.device.enter()?;
        // SAFETY: the context was just entered, and the parts fit. `drop` frees the table's memory after the
        // GPU is done with it, and `free_without_sync` leaves that to its caller.
        unsafe { self.staging.copy(parts, stream) }
    }
}

impl Drop for DeviceTable {
    fn drop(&mut self) {
        let memory = &mut self.memory;
        self.device.on_drop(|| memory.free());
    }
}
