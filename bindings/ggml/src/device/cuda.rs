//! The driver on a real GPU: axiscap's kernels on a stream of ours, ordered with ggml's stream by ggml's own events.

use std::collections::HashMap;
use std::ffi::c_void;

use axiscap::cuda::{
    Buffer, CapturedGraph, CudaError, Device, DeviceNorm, DeviceRows, DeviceTable, Dtype, Event, EventRef,
    GraphExec, Job, Overlap, PinnedBuffer, Plan, Stream, gpu_of, image, is_done, probe, read,
};
use axiscap::{CapParams, CapTable, RowStat};
use llama_cpp_sys_2 as sys;

use super::driver::{Attempt, Driver, Kernel, Launch, Result, Ticket};
use crate::error::HookError;

/// Whether this process can cap on GPUs at all.
pub(super) fn usable() -> std::result::Result<(), String> {
    probe().map_err(|error| error.to_string())?;
    if image().archs.is_empty() {
        return Err(
            "axiscap was built without nvcc, so without device code; run scripts/setup-nvcc and build again"
                .into(),
        );
    }
    Ok(())
}

/// An event of ggml's, for its backend and, as a `cudaEvent_t`, for our stream.
#[derive(Debug)]
struct GgmlEvent {
    raw: sys::ggml_backend_event_t,
    event: EventRef<'static>,
}

// SAFETY: a handle without ties to a thread.
unsafe impl Send for GgmlEvent {}

impl GgmlEvent {
    /// `ggml_backend_event` is private to ggml: its device, then its context, which on CUDA is the event. The
    /// first is compared with what it must be, and the driver is asked whether the second is an event.
    ///
    /// # Safety
    /// `backend` must be a live backend of ggml's CUDA on `device`.
    unsafe fn new(backend: sys::ggml_backend_t, device: &Device) -> std::result::Result<Self, String> {
        // SAFETY: a live backend has a device, which makes events or returns null.
        let (owner, raw) = unsafe {
            let owner = sys::ggml_backend_get_device(backend);
            (owner, sys::ggml_backend_event_new(owner))
        };
        if raw.is_null() {
            return Err(
                "ggml's CUDA backend makes no events (it was built with GGML_CUDA_NO_PEER_COPY)".into()
            );
        }
        // SAFETY: the event is an allocation of two pointers, which ggml's `new` aligns.
        let [first, context] = unsafe { raw.cast::<[*mut c_void; 2]>().read() };
        // SAFETY: only made use of where it is known to be an event, below; freed on drop.
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
        unsafe { sys::ggml_backend_event_free(self.raw) };
    }
}

/// An event of ours that takes the time, on our stream or on ggml's.
#[derive(Debug)]
struct Stamp {
    event: Event,
    /// The event as ggml knows events, so that its backend records it on its stream: the device and the context that
    /// [`GgmlEvent::new`] has found in ggml's own. Nothing but `ggml_backend_event_record` is given it.
    for_ggml: Box<[*mut c_void; 2]>,
}

// SAFETY: handles without ties to a thread.
unsafe impl Send for Stamp {}

impl Stamp {
    /// # Safety
    /// `backend` must be a live backend of ggml's CUDA on `device`, and outlive the value.
    unsafe fn new(backend: sys::ggml_backend_t, device: &Device) -> std::result::Result<Self, CudaError> {
        let event = Event::with_time(device)?;
        // SAFETY: a live backend has a device.
        let owner = unsafe { sys::ggml_backend_get_device(backend) };
        let for_ggml = Box::new([owner.cast(), event.as_ref().as_raw()]);
        Ok(Self { event, for_ggml })
    }
}

/// Page-locked memory and the event behind the copy into it.
#[derive(Debug)]
struct Landing {
    memory: PinnedBuffer,
    arrived: Event,
    count: usize,
}

/// The GPU of one backend. Fields are dropped in order, after the stream has run dry.
#[derive(Debug)]
pub(super) struct Cuda {
    backend: sys::ggml_backend_t,
    name: String,
    device: Device,
    /// For each hop, the event that the backend records and the one that our stream records.
    hops: Vec<[GgmlEvent; 2]>,
    tables: HashMap<usize, DeviceTable>,
    stats: Option<Buffer>,
    landings: HashMap<Ticket, Landing>,
    free: Vec<Landing>,
    tickets: u64,
    captured: Option<CapturedGraph>,
    /// By number.
    executables: Vec<Option<GraphExec>>,
    stamps: Vec<Stamp>,
    stream: Stream,
}

// SAFETY: the backend is used by whichever thread computes its graph, one at a time, which is when our caller holds
// the lock around this value; everything else may be used from any thread.
unsafe impl Send for Cuda {}

impl Cuda {
    /// Opens the GPU that holds an address.
    ///
    /// # Safety
    /// `backend` must be a live backend of ggml's CUDA, and outlive the value.
    pub(super) unsafe fn open(
        backend: sys::ggml_backend_t,
        name: &str,
        address: u64,
    ) -> std::result::Result<Self, String> {
        let text = |error: CudaError| error.to_string();
        // Making an event makes the backend's context current on this thread, which asking for an address needs.
        // SAFETY: a live backend has a device, which makes events or returns null; an event is freed once.
        unsafe {
            let event = sys::ggml_backend_event_new(sys::ggml_backend_get_device(backend));
            if !event.is_null() {
                sys::ggml_backend_event_free(event);
            }
        }
        let ordinal = gpu_of(address).map_err(text)?;
        let ordinal = ordinal.ok_or("the block outputs are not in GPU memory")?;
        let device = Device::open(ordinal).map_err(text)?;
        // SAFETY: the caller's promise.
        let hop = unsafe { [GgmlEvent::new(backend, &device)?, GgmlEvent::new(backend, &device)?] };
        if hop[0].event == hop[1].event {
            return Err("two events of ggml's have one context".into());
        }
        let stream = Stream::new(&device).map_err(text)?;
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
            hops: vec![hop],
            tables: HashMap::new(),
            stats: None,
            landings: HashMap::new(),
            free: Vec::new(),
            tickets: 0,
            captured: None,
            executables: Vec::new(),
            stamps: Vec::new(),
            stream,
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
        let rows = DeviceRows { address: launch.address, stride: launch.stride };
        let stats = launch.stats.and_then(|first| self.stats_at(first));
        let norm = launch.norm.map(|norm| DeviceNorm {
            weight: norm.weight,
            eps: norm.eps(),
            out: DeviceRows { address: norm.out, stride: norm.stride },
        });
        Job { stats, norm, ..Job::in_place(Dtype::F32, rows, launch.rows) }
    }

    fn stats_at(&self, first: usize) -> Option<u64> {
        self.stats.as_ref().map(|stats| stats.address() + (first * size_of::<RowStat>()) as u64)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if let Err(error) = self.stream.synchronize() {
            tracing::warn!(device = self.name, %error, "the GPU's last caps failed");
            return;
        }
        // SAFETY: only our stream uses tables and figures, and that has run dry.
        unsafe {
            self.tables.drain().for_each(|(_, table)| table.free_idle());
            if let Some(stats) = self.stats.take() {
                stats.free_idle();
            }
        }
    }
}

impl Driver for Cuda {
    fn holds(&mut self, address: u64) -> Result<bool> {
        self.device.holds(address).map_err(|error| self.failed(error))
    }

    fn reserve(&mut self, hops: usize, stats: usize) -> Result<()> {
        while self.hops.len() < hops {
            // SAFETY: `open`'s caller promised that the backend outlives this value.
            let hop = unsafe {
                GgmlEvent::new(self.backend, &self.device)
                    .and_then(|first| Ok([first, GgmlEvent::new(self.backend, &self.device)?]))
            };
            self.hops.push(hop.map_err(|what| self.refused(what))?);
        }
        let bytes = stats * size_of::<RowStat>();
        if stats > 0 && self.stats.as_ref().is_none_or(|buffer| buffer.bytes() < bytes) {
            if let Some(old) = self.stats.take() {
                self.stream.synchronize().map_err(|error| self.failed(error))?;
                // SAFETY: only our stream uses it, and that has run dry.
                unsafe { old.free_idle() };
            }
            let buffer = Buffer::new(&self.device, bytes.next_power_of_two().max(4096));
            self.stats = Some(buffer.map_err(|error| self.failed(error))?);
        }
        Ok(())
    }

    fn record_on_backend(&mut self, hop: usize) -> Result<()> {
        // SAFETY: a live backend and an event of its device.
        unsafe { sys::ggml_backend_event_record(self.hops[hop][0].raw, self.backend) };
        Ok(())
    }

    fn wait_on_ours(&mut self, hop: usize) -> Result<()> {
        self.stream.wait(self.hops[hop][0].event).map_err(|error| self.failed(error))
    }

    fn record_on_ours(&mut self, hop: usize) -> Result<()> {
        self.stream.record(self.hops[hop][1].event).map_err(|error| self.failed(error))
    }

    fn wait_on_backend(&mut self, hop: usize) -> Result<()> {
        // SAFETY: as above.
        unsafe { sys::ggml_backend_event_wait(self.backend, self.hops[hop][1].raw) };
        Ok(())
    }

    fn upload(&mut self, block: usize, table: &CapTable) -> Result<()> {
        let table = self.device.upload(table).map_err(|error| self.failed(error))?;
        self.tables.insert(block, table);
        Ok(())
    }

    fn update(&mut self, block: usize, params: &[CapParams]) -> Result<()> {
        let table = self.table(block)?;
        table.update_params(params, self.stream.as_ref()).map_err(|error| self.failed(error))
    }

    fn forget(&mut self, block: usize) {
        // Where waiting fails, dropping the table waits for the whole GPU.
        if let (Some(table), Ok(())) = (self.tables.remove(&block), self.stream.synchronize()) {
            // SAFETY: only our stream uses it, and that has run dry.
            unsafe { table.free_idle() };
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
        // SAFETY: the caller answers for the rows and for the norm's weight and rows; the figures have room since
        // `reserve`, and table and figures live until the stream has run dry.
        unsafe { self.device.launch(&job, table, self.stream.as_ref(), Overlap::None) }
            .map_err(|error| self.failed(error))
    }

    unsafe fn read_rows(&mut self, address: u64, to: &mut [f32]) -> Result<()> {
        // SAFETY: f32 are plain bytes, of which any are valid.
        let bytes = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast(), size_of_val(to)) };
        // SAFETY: the caller's promise.
        unsafe { read(bytes, address, &self.stream) }.map_err(|error| self.failed(error))
    }

    fn read_stats(&mut self, first: usize, to: &mut [RowStat]) -> Result<()> {
        let Some(from) = self.stats_at(first) else { return Err(self.refused("there are no figures")) };
        // SAFETY: figures are plain bytes, of which any are valid.
        let bytes = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast(), size_of_val(to)) };
        // SAFETY: the buffer has room for the figures that were reserved.
        unsafe { read(bytes, from, &self.stream) }.map_err(|error| self.failed(error))
    }

    fn fetch_stats(&mut self, count: usize) -> Result<Ticket> {
        let bytes = count * size_of::<RowStat>();
        let from = self.stats_at(0).ok_or_else(|| self.refused("there are no figures"))?;
        let landing = match self.free.iter().position(|landing| landing.memory.bytes() >= bytes) {
            Some(i) => Ok(self.free.swap_remove(i)),
            None => PinnedBuffer::new(&self.device, bytes.next_power_of_two().max(4096))
                .and_then(|memory| Ok(Landing { memory, arrived: Event::new(&self.device)?, count: 0 })),
        };
        let mut landing = landing.map_err(|error| self.failed(error))?;
        landing.count = count;
        // SAFETY: the figures lie there; the memory is read and dropped only after `arrived`, or after the stream
        // has run dry.
        let ordered = unsafe { landing.memory.copy_from(from, bytes, &self.stream) }
            .and_then(|()| self.stream.record(landing.arrived.as_ref()));
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.landings.insert(ticket, landing);
        ordered.map_err(|error| self.failed(error))?;
        Ok(ticket)
    }

    fn take_stats(&mut self, ticket: Ticket, wait: bool) -> Result<Option<Vec<RowStat>>> {
        let Some(landing) = self.landings.remove(&ticket) else {
            return Err(self.refused("figures were asked for twice"));
        };
        let arrived =
            if wait { landing.arrived.synchronize().map(|()| true) } else { landing.arrived.is_done() };
        match arrived {
            Ok(true) => {}
            Ok(false) => {
                self.landings.insert(ticket, landing);
                return Ok(None);
            }
            Err(error) => {
                // The copy may still be under way: kept until the stream has run dry.
                self.landings.insert(ticket, landing);
                return Err(self.failed(error));
            }
        }
        let mut stats = vec![RowStat::default(); landing.count];
        // SAFETY: the copy has arrived; as many figures were copied, and any bytes are figures.
        unsafe {
            let from = landing.memory.as_bytes();
            stats.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(from.as_ptr(), size_of_val(&stats[..]));
        }
        self.free.push(landing);
        Ok(Some(stats))
    }

    fn begin_capture(&mut self) -> Attempt {
        self.stream.begin_capture().map_err(|error| error.to_string())
    }

    fn end_capture(&mut self) -> Attempt {
        self.captured = Some(self.stream.end_capture().map_err(|error| error.to_string())?);
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
        // SAFETY: the caller's promise.
        unsafe { self.stream.launch_graph(executable) }.map_err(|error| self.failed(error))
    }

    fn reserve_stamps(&mut self, count: usize) -> Result<()> {
        while self.stamps.len() < count {
            // SAFETY: `open`'s caller promised that the backend outlives this value.
            let stamp = unsafe { Stamp::new(self.backend, &self.device) };
            self.stamps.push(stamp.map_err(|error| self.failed(error))?);
        }
        Ok(())
    }

    fn stamp_on_backend(&mut self, stamp: usize) -> Result<()> {
        let for_ggml = std::ptr::from_ref(&*self.stamps[stamp].for_ggml).cast_mut();
        // SAFETY: a live backend, and what recording reads of an event of its device; `open` has seen that ggml's own
        // events begin with the same two words. ggml keeps no pointer to it.
        unsafe { sys::ggml_backend_event_record(for_ggml.cast(), self.backend) };
        Ok(())
    }

    fn stamp_on_ours(&mut self, stamp: usize) -> Result<()> {
        self.stream.record(self.stamps[stamp].event.as_ref()).map_err(|error| self.failed(error))
    }

    fn micros_between(&mut self, from: usize, to: usize) -> Result<f64> {
        let [from, to] = [from, to].map(|stamp| &self.stamps[stamp].event);
        to.micros_since(from).map_err(|error| self.failed(error))
    }

    fn discard_graphs(&mut self) {
        self.executables.clear();
    }
}
