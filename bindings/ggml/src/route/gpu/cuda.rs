//! The driver of a real GPU: axiscap's kernels on a stream for caps, ordered with the backend's stream by
//! ggml's events.

use std::collections::HashMap;
use std::ffi::c_void;

use axiscap::cuda::raw::{
    Buffer, CapturedGraph, Event, EventRef, GraphExec, PinnedBuffer, Plan, Stream, gpu_of, is_done, read,
};
use axiscap::cuda::{CudaError, Device, DeviceTable, Job, Overlap, RowProfileBuffer, image, probe};
use axiscap::{CapParams, CapTable, RowStat};

use super::driver::{Attempt, CaptureDriver, Driver, Kernel, Launch, Result, Ticket};
use crate::error::HookError;
use crate::host::{Backend, Event as GgmlEventHandle, api};

/// Returns whether this process can cap on GPUs.
pub(super) fn usable() -> std::result::Result<(), String> {
    probe().map_err(|error| error.to_string())?;
    if image().archs.is_empty() {
        return Err(
            "axiscap was built without device code: without nvcc, or with AXISCAP_CUDA_ARCHS=none".into()
        );
    }
    Ok(())
}

/// An event of ggml's, which the backend uses as such, and the cap stream as a `cudaEvent_t`.
#[derive(Debug)]
struct GgmlEvent {
    raw: GgmlEventHandle,
    event: EventRef<'static>,
}

// SAFETY: a CUDA event may be used from any thread.
unsafe impl Send for GgmlEvent {}

impl GgmlEvent {
    /// Creates an event. `ggml_backend_event` is private to ggml. It holds a device and a context, which on
    /// CUDA is the event. The device is compared with the backend's, and the driver checks that the context
    /// is an event.
    ///
    /// # Safety
    /// `backend` must be a live backend of ggml's CUDA on `device`.
    unsafe fn new(backend: Backend, device: &Device) -> std::result::Result<Self, String> {
        // SAFETY: a live backend has a device, which makes events or returns null.
        let (owner, raw) = unsafe {
            let owner = (api().ggml_backend_get_device)(backend);
            (owner, (api().ggml_backend_event_new)(owner))
        };
        if raw.is_null() {
            return Err(
                "ggml's CUDA backend makes no events (it was built with GGML_CUDA_NO_PEER_COPY)".into()
            );
        }
        // SAFETY: the event is an allocation of two pointers, which ggml's `new` aligns.
        let [first, context] = unsafe { raw.cast::<[*mut c_void; 2]>().read() };
        // SAFETY: used only after the checks below have shown that it is an event, and freed on drop.
        let this = Self { raw, event: unsafe { EventRef::from_raw(context) } };
        if first != owner.cast() || context.is_null() {
            return Err("ggml_backend_event is not laid out as a device and a context".into());
        }
        match is_done(device, this.event) {
            Ok(true) => Ok(this),
            Ok(false) => Err("a new event of ggml's says that it waits for work".into()),
            Err(error) => Err(format!("the context of ggml_backend_event is no CUDA event: {error}")),
        }
    }
}

impl Drop for GgmlEvent {
    fn drop(&mut self) {
        // SAFETY: made by ggml_backend_event_new, freed once.
        unsafe { (api().ggml_backend_event_free)(self.raw) };
    }
}

/// Two events, one per direction.
#[derive(Debug)]
struct EventPair {
    /// Recorded by the backend. The cap stream waits for it.
    of_backend: GgmlEvent,
    /// Recorded by the cap stream. The backend waits for it.
    of_cap_stream: GgmlEvent,
}

impl EventPair {
    /// # Safety
    /// The contract of [`GgmlEvent::new`].
    unsafe fn new(backend: Backend, device: &Device) -> std::result::Result<Self, String> {
        // SAFETY: the caller's promise is the contract of `GgmlEvent::new`.
        unsafe {
            Ok(Self {
                of_backend: GgmlEvent::new(backend, device)?,
                of_cap_stream: GgmlEvent::new(backend, device)?,
            })
        }
    }
}

/// A copy of statistics to page-locked memory, and the event after it.
#[derive(Debug)]
struct StatsReadback {
    memory: PinnedBuffer,
    arrived: Event,
    count: usize,
}

/// The GPU of one backend. Fields are dropped in order, when the cap stream is idle.
#[derive(Debug)]
pub(super) struct Cuda {
    backend: Backend,
    name: String,
    device: Device,
    pairs: Vec<EventPair>,
    tables: HashMap<usize, DeviceTable>,
    /// Profiles of rows.
    profiles: Option<RowProfileBuffer>,
    stats: Option<Buffer>,
    readbacks: HashMap<Ticket, StatsReadback>,
    idle_readbacks: Vec<StatsReadback>,
    tickets: u64,
    captured: Option<CapturedGraph>,
    /// By slot.
    executables: Vec<Option<GraphExec>>,
    cap_stream: Stream,
}

// SAFETY: one thread at a time computes a graph of the backend, and holds the lock around this value while it
// does. Everything else may be used from any thread.
unsafe impl Send for Cuda {}

impl Cuda {
    /// Opens the GPU that holds an address.
    ///
    /// # Safety
    /// `backend` must be a live backend of ggml's CUDA, and outlive the value.
    pub(super) unsafe fn open(
        backend: Backend,
        name: &str,
        address: u64,
    ) -> std::result::Result<Self, String> {
        let text = |error: CudaError| error.to_string();
        // A new event makes the backend's context current on this thread, which `gpu_of` needs.
        // SAFETY: a live backend has a device, which makes events or returns null. The event is freed once.
        unsafe {
            let event = (api().ggml_backend_event_new)((api().ggml_backend_get_device)(backend));
            if !event.is_null() {
                (api().ggml_backend_event_free)(event);
            }
        }
        let ordinal = gpu_of(address).map_err(text)?;
        let ordinal = ordinal.ok_or("the block outputs are not in GPU memory")?;
        let device = Device::open(ordinal).map_err(text)?;
        // SAFETY: the caller promises a live backend of ggml's CUDA, and `device` is its GPU.
        let pair = unsafe { EventPair::new(backend, &device)? };
        if pair.of_backend.event == pair.of_cap_stream.event {
            return Err("two events of ggml's have one context".into());
        }
        let cap_stream = Stream::new(&device).map_err(text)?;
        tracing::info!(
            device = name,
            gpu = ordinal,
            card = device.info().name,
            "axiscap's kernels are on the GPU"
        );
        Ok(Self {
            backend,
            name: name.into(),
            device,
            pairs: vec![pair],
            tables: HashMap::new(),
            profiles: None,
            stats: None,
            readbacks: HashMap::new(),
            idle_readbacks: Vec::new(),
            tickets: 0,
            captured: None,
            executables: Vec::new(),
            cap_stream,
        })
    }

    fn failed(&self, error: CudaError) -> HookError {
        self.refused(error.to_string())
    }

    fn refused(&self, what: impl Into<String>) -> HookError {
        HookError::Device { device: self.name.clone(), what: what.into() }
    }

    fn table(&self, block: usize) -> Result<&DeviceTable> {
        self.tables
            .get(&block)
            .ok_or_else(|| self.refused(format!("no table of block {block} is on the GPU")))
    }

    fn job(&self, launch: &Launch) -> Job {
        let stats = launch.stats.and_then(|first| self.stats_at(first));
        Job { row_profiles: launch.profiles.and_then(|first| self.profiles_at(first)), stats, ..launch.job }
    }

    fn profiles_at(&self, first: usize) -> Option<u64> {
        self.profiles.as_ref().map(|buffer| buffer.address() + (first * size_of::<u32>()) as u64)
    }

    fn stats_at(&self, first: usize) -> Option<u64> {
        self.stats.as_ref().map(|stats| stats.address() + (first * size_of::<RowStat>()) as u64)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if let Err(error) = self.cap_stream.synchronize() {
            // `finish` has returned this error, unless the driver is dropped by a panic.
            tracing::warn!(device = self.name, %error, "the GPU's last caps failed");
            return;
        }
        // SAFETY: only the cap stream uses tables and statistics, and it is idle.
        unsafe {
            self.tables.drain().for_each(|(_, table)| table.free_without_sync());
            if let Some(stats) = self.stats.take() {
                stats.free_without_sync();
            }
            if let Some(profiles) = self.profiles.take() {
                profiles.free_without_sync();
            }
        }
    }
}

impl Driver for Cuda {
    fn holds(&mut self, address: u64) -> Result<bool> {
        self.device.holds(address).map_err(|error| self.failed(error))
    }

    fn reserve(&mut self, pairs: usize, stats: usize, profiles: usize) -> Result<()> {
        while self.pairs.len() < pairs {
            // SAFETY: `open`'s caller promised that the backend outlives this value.
            let pair = unsafe { EventPair::new(self.backend, &self.device) };
            self.pairs.push(pair.map_err(|what| self.refused(what))?);
        }
        let bytes = stats * size_of::<RowStat>();
        if stats > 0 && self.stats.as_ref().is_none_or(|buffer| buffer.bytes() < bytes) {
            if let Some(old) = self.stats.take() {
                self.cap_stream.synchronize().map_err(|error| self.failed(error))?;
                // SAFETY: only the cap stream uses it, and it is idle.
                unsafe { old.free_without_sync() };
            }
            let buffer = Buffer::new(&self.device, bytes.next_power_of_two().max(4096));
            self.stats = Some(buffer.map_err(|error| self.failed(error))?);
        }
        if self.profiles.as_ref().map_or(0, RowProfileBuffer::rows) < profiles {
            if let Some(old) = self.profiles.take() {
                self.cap_stream.synchronize().map_err(|error| self.failed(error))?;
                // SAFETY: only the cap stream uses it, and it is idle.
                unsafe { old.free_without_sync() };
            }
            let buffer = RowProfileBuffer::new(&self.device, profiles.next_power_of_two().max(1024));
            self.profiles = Some(buffer.map_err(|error| self.failed(error))?);
        }
        Ok(())
    }

    fn write_profiles(&mut self, profiles: &[u32]) -> Result<()> {
        let Some(buffer) = &self.profiles else {
            return Err(self.refused("there is no space for the profiles of rows"));
        };
        buffer.write(profiles, self.cap_stream.handle()).map_err(|error| self.failed(error))
    }

    fn hand_to_cap_stream(&mut self, pair: usize) -> Result<()> {
        let event = &self.pairs[pair].of_backend;
        // SAFETY: a live backend and an event of its device.
        unsafe { (api().ggml_backend_event_record)(event.raw, self.backend) };
        self.cap_stream.wait(event.event).map_err(|error| self.failed(error))
    }

    fn hand_to_backend(&mut self, pair: usize) -> Result<()> {
        let event = &self.pairs[pair].of_cap_stream;
        self.cap_stream.record(event.event).map_err(|error| self.failed(error))?;
        // SAFETY: a live backend and an event of its device.
        unsafe { (api().ggml_backend_event_wait)(self.backend, event.raw) };
        Ok(())
    }

    fn upload(&mut self, block: usize, table: &CapTable) -> Result<()> {
        let table = self.device.upload(table).map_err(|error| self.failed(error))?;
        self.tables.insert(block, table);
        Ok(())
    }

    fn update(&mut self, block: usize, params: &[CapParams]) -> Result<()> {
        let table = self.table(block)?;
        table.update_params(params, self.cap_stream.handle()).map_err(|error| self.failed(error))
    }

    fn forget(&mut self, block: usize) {
        // Where waiting fails, dropping the table waits for the whole GPU.
        if let (Some(table), Ok(())) = (self.tables.remove(&block), self.cap_stream.synchronize()) {
            // SAFETY: only the cap stream uses it, and it is idle.
            unsafe { table.free_without_sync() };
        }
    }

    fn kernel(&self, launch: &Launch) -> Result<Kernel> {
        let table = self.table(launch.block)?;
        let limits = &self.device.info().limits;
        match Plan::new(&self.job(launch), &table.view(), limits).map_err(|error| self.failed(error))? {
            Some(plan) => Ok(plan.shape().path.name()),
            None => Err(self.refused("a launch without rows has no kernel")),
        }
    }

    unsafe fn launch(&mut self, launch: &Launch) -> Result<()> {
        let (table, job) = (self.table(launch.block)?, self.job(launch));
        // SAFETY: the caller promises the rows, and the norm's weight and rows. `reserve` made space for the
        // statistics. Table and statistics live until the cap stream is idle.
        unsafe { job.launch(table, self.cap_stream.handle(), Overlap::None) }
            .map_err(|error| self.failed(error))
    }

    unsafe fn read_rows(&mut self, address: u64, to: &mut [f32]) -> Result<()> {
        // SAFETY: f32 are plain bytes, of which any are valid.
        let bytes = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast(), size_of_val(to)) };
        // SAFETY: the caller promises that many values at the address.
        unsafe { read(bytes, address, &self.cap_stream) }.map_err(|error| self.failed(error))
    }

    fn read_stats(&mut self, first: usize, to: &mut [RowStat]) -> Result<()> {
        let Some(from) = self.stats_at(first) else { return Err(self.refused(NO_STATS)) };
        // SAFETY: statistics are plain bytes, of which any are valid.
        let bytes = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast(), size_of_val(to)) };
        // SAFETY: the buffer has space for the statistics that were reserved.
        unsafe { read(bytes, from, &self.cap_stream) }.map_err(|error| self.failed(error))
    }

    fn fetch_stats(&mut self, count: usize) -> Result<Ticket> {
        let bytes = count * size_of::<RowStat>();
        let from = self.stats_at(0).ok_or_else(|| self.refused(NO_STATS))?;
        let readback = match self.idle_readbacks.iter().position(|idle| idle.memory.bytes() >= bytes) {
            Some(i) => Ok(self.idle_readbacks.swap_remove(i)),
            None => PinnedBuffer::new(&self.device, bytes.next_power_of_two().max(4096)).and_then(|memory| {
                Ok(StatsReadback { memory, arrived: Event::new(&self.device)?, count: 0 })
            }),
        };
        let mut readback = readback.map_err(|error| self.failed(error))?;
        readback.count = count;
        // SAFETY: the buffer holds as many statistics. The memory is read and dropped only after `arrived`,
        // or when the cap stream is idle.
        let submitted = unsafe { readback.memory.copy_from(from, bytes, &self.cap_stream) }
            .and_then(|()| self.cap_stream.record(readback.arrived.handle()));
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.readbacks.insert(ticket, readback);
        submitted.map_err(|error| self.failed(error))?;
        Ok(ticket)
    }

    fn take_stats(&mut self, ticket: Ticket, wait: bool) -> Result<Option<Vec<RowStat>>> {
        let Some(readback) = self.readbacks.remove(&ticket) else {
            return Err(self.refused("the statistics of a graph were taken twice"));
        };
        let arrived =
            if wait { readback.arrived.synchronize().map(|()| true) } else { readback.arrived.is_done() };
        if !matches!(arrived, Ok(true)) {
            // After an error the copy may still be in progress. Its memory is kept until the cap stream is
            // idle.
            self.readbacks.insert(ticket, readback);
            return arrived.map(|_| None).map_err(|error| self.failed(error));
        }
        let mut stats = vec![RowStat::default(); readback.count];
        // SAFETY: the copy of as many statistics is done, and any bytes are valid statistics.
        unsafe {
            let from = readback.memory.as_bytes();
            stats.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(from.as_ptr(), size_of_val(&stats[..]));
        }
        self.idle_readbacks.push(readback);
        Ok(Some(stats))
    }

    fn finish(&mut self) -> Result<()> {
        self.cap_stream.synchronize().map_err(|error| self.failed(error))
    }
}

impl CaptureDriver for Cuda {
    fn begin_capture(&mut self) -> Attempt {
        self.cap_stream.begin_capture().map_err(|error| error.to_string())
    }

    fn end_capture(&mut self) -> Attempt {
        self.captured = Some(self.cap_stream.end_capture().map_err(|error| error.to_string())?);
        Ok(())
    }

    fn instantiate(&mut self, slot: usize) -> Attempt {
        let captured = self.captured.take().ok_or("nothing was captured")?;
        let executable = captured.instantiate().map_err(|error| error.to_string())?;
        if self.executables.len() <= slot {
            self.executables.resize_with(slot + 1, || None);
        }
        self.executables[slot] = Some(executable);
        Ok(())
    }

    fn update_graph(&mut self, slot: usize) -> Attempt {
        let (Some(Some(executable)), Some(captured)) = (self.executables.get_mut(slot), &self.captured)
        else {
            return Err("there is nothing to update".into());
        };
        executable.update(captured).map_err(|error| error.to_string())?;
        self.captured = None;
        Ok(())
    }

    unsafe fn replay(&mut self, slot: usize) -> Result<()> {
        let Some(Some(executable)) = self.executables.get(slot) else {
            return Err(self.refused("there is no graph to launch"));
        };
        // SAFETY: the caller promises that the memory of the captured work is still there.
        unsafe { self.cap_stream.launch_graph(executable) }.map_err(|error| self.failed(error))
    }

    fn discard_graphs(&mut self) {
        self.executables.clear();
    }
}

const NO_STATS: &str = "there is no buffer of statistics";
