//! A table of caps in device memory.

use super::device::{Device, StreamRef};
use super::driver::{Memory, copy_to_device, copy_to_host, zero};
use super::error::CudaError;
use super::faults::ProfileFaults;
use super::pack::{PackedTable, TableView};
use super::staging::Staging;
use super::stream::Stream;
use crate::table::{CapParams, CapTable};

/// A [`CapTable`] on a GPU. Its addresses stay what they are while its values change, so that captured launches
/// keep working: bounds, strengths and axes can change between two replays of a graph.
#[derive(Debug)]
pub struct DeviceTable {
    device: Device,
    memory: Memory,
    staging: Staging,
    view: TableView,
    caps: usize,
    /// Where each profile's caps end, as on the GPU.
    ends: Vec<u32>,
}

impl DeviceTable {
    pub(super) fn new(device: &Device, table: &CapTable) -> Result<Self, CudaError> {
        let packed = PackedTable::new(table);
        let _current = device.enter()?;
        // The order in which alignments fall: axes need what an allocation has, the record 8, the others 4.
        let axes = size_of_val(packed.axes());
        let params = size_of_val(packed.params());
        let memory = Memory::new(axes + ProfileFaults::BYTES + params + size_of_val(packed.ends()))?;
        let faults = memory.address() + axes as u64;
        let view = TableView {
            axes: memory.address(),
            params: faults + ProfileFaults::BYTES as u64,
            ends: faults + (ProfileFaults::BYTES + params) as u64,
            faults,
            layout: packed.layout(),
        };
        let caps = table.caps();
        let ends = packed.ends().to_vec();
        let this = Self { device: device.clone(), memory, staging: Staging::default(), view, caps, ends };
        // Not the default stream: it would break a capture that somebody has under way on a stream that waits for it.
        let stream = Stream::new(device)?;
        for (to, part) in this.parts(&packed) {
            // SAFETY: the allocation was made for parts of these sizes, in the context entered above.
            unsafe { copy_to_device(to, part, stream.as_ref().0) }?;
        }
        this.clear_faults(stream.as_ref())?;
        stream.synchronize()?;
        Ok(this)
    }

    /// Where everything lies.
    #[must_use]
    pub fn view(&self) -> TableView {
        self.view
    }

    /// The GPU it is on.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Replaces every value by those of a table of the same shape, in stream order: launches already on the stream
    /// use the old values, later ones the new. Returns at once, unless eight updates are still under way.
    ///
    /// # Errors
    /// [`CudaError::TableShape`]; [`CudaError::Capturing`] inside a stream capture; [`CudaError::Driver`].
    pub fn update(&self, table: &CapTable, stream: StreamRef<'_>) -> Result<(), CudaError> {
        let packed = PackedTable::new(table);
        if packed.layout() != self.view.layout || table.caps() != self.caps {
            return Err(CudaError::TableShape { what: "its width, number of caps or profiles" });
        }
        // A launch on another stream may be reading: of values it may see old ones and new ones, but half-changed
        // boundaries would lead it out of the table.
        if packed.ends() != self.ends {
            return Err(CudaError::TableShape { what: "which caps belong to which profile" });
        }
        self.copy(&self.parts(&packed), stream)
    }

    /// Replaces bounds and strengths only: 12 bytes per cap. Otherwise as [`DeviceTable::update`].
    ///
    /// # Errors
    /// [`CudaError::TableShape`] for another number of caps; [`CudaError::Capturing`]; [`CudaError::Driver`].
    pub fn update_params(&self, params: &[CapParams], stream: StreamRef<'_>) -> Result<(), CudaError> {
        if params.len() != self.caps {
            return Err(CudaError::TableShape { what: "its number of caps" });
        }
        self.copy(&[(self.view.params, bytemuck::cast_slice(params))], stream)
    }

    /// Rows of launches that asked for a profile which this table does not have, and so went uncapped; `None` when
    /// all was well. Looks behind everything that is on the stream now, and waits for it. Launches on other streams
    /// count as far as they have come.
    ///
    /// Without waiting: copy [`ProfileFaults::BYTES`] from [`TableView::faults`] in stream order
    /// ([`PinnedBuffer::copy_from`](super::PinnedBuffer::copy_from)) and read them when that is done
    /// ([`ProfileFaults::from_bytes`]).
    ///
    /// # Errors
    /// [`CudaError::Capturing`] inside a stream capture; [`CudaError::Driver`], also for what went wrong in earlier
    /// work.
    pub fn faults(&self, stream: StreamRef<'_>) -> Result<Option<ProfileFaults>, CudaError> {
        let mut record = [0; ProfileFaults::BYTES];
        let _current = self.device.enter()?;
        // SAFETY: the record lies there, in the device's context.
        unsafe { copy_to_host(&mut record, self.view.faults, stream.0) }?;
        Ok(ProfileFaults::from_bytes(&record))
    }

    /// Forgets the rows of launches that are on the stream now. In stream order; can be captured.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn clear_faults(&self, stream: StreamRef<'_>) -> Result<(), CudaError> {
        let _current = self.device.enter()?;
        // SAFETY: the record lies there, in the device's context.
        unsafe { zero(self.view.faults, ProfileFaults::BYTES, stream.0) }
    }

    /// Drops it without waiting for the GPU's other work. Waiting for a whole GPU is what a stream capture of
    /// somebody else's on it does not survive.
    ///
    /// # Safety
    /// Nothing on the GPU uses it any more: the streams of its launches and updates have passed them.
    pub unsafe fn free_idle(mut self) {
        if let Ok(_current) = self.device.enter() {
            self.memory.free_idle();
        }
    }

    /// Where each part of the values goes.
    fn parts<'a>(&self, packed: &'a PackedTable) -> [(u64, &'a [u8]); 3] {
        [
            (self.view.axes, bytemuck::cast_slice(packed.axes())),
            (self.view.params, bytemuck::cast_slice(packed.params())),
            (self.view.ends, bytemuck::cast_slice(packed.ends())),
        ]
    }

    /// Each part has the size of what the allocation was made for at its address.
    fn copy(&self, parts: &[(u64, &[u8])], stream: StreamRef<'_>) -> Result<(), CudaError> {
        let _current = self.device.enter()?;
        // SAFETY: the context was just entered, and `parts` fit. The table's memory is freed when the GPU is done with
        // it, which `free_idle` leaves to its caller.
        unsafe { self.staging.copy(&self.device, parts, stream) }
    }
}

impl Drop for DeviceTable {
    fn drop(&mut self) {
        // Freeing waits for kernels that may still read it.
        if let Ok(_current) = self.device.enter() {
            self.memory.free();
        }
    }
}
