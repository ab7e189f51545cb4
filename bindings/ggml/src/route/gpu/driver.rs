//! What the GPU route needs of a GPU and of ggml's events. The lowest layer, and the only one that tests
//! replace.

use std::fmt::Debug;

use axiscap::op::DeviceJob;
use axiscap::{CapParams, CapTable, RowStat};

use crate::error::HookError;
use crate::host::{Backend, Device};

pub(crate) type Result<T> = std::result::Result<T, HookError>;

/// A step of making a graph. It may fail without harm, because the graph then runs eagerly. The error is the
/// reason.
pub(crate) type Attempt = std::result::Result<(), String>;

/// One launch: the caps of a block's rows, and on request the norm after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Launch {
    /// The block whose table is used.
    pub(crate) block: usize,
    /// Rows and norm. The driver adds the addresses of profiles and statistics.
    pub(crate) job: DeviceJob,
    /// Index of the first row's profile among those of [`Driver::write_profiles`]. Without it every row has
    /// the first profile of the table.
    pub(crate) profiles: Option<usize>,
    /// Index of the first row's statistics. Without it no statistics are written.
    pub(crate) stats: Option<usize>,
}

impl Launch {
    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.job.rows.count
    }
}

/// Name of the kernel that a launch runs. It depends on the number, width and alignment of the rows.
pub(crate) type Kernel = &'static str;

/// A copy of statistics to the host that was submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ticket(pub(crate) u64);

/// A stream for caps on the GPU of one ggml backend, next to the backend's own stream.
///
/// The host waits in `read_rows`, `read_stats` and `finish`, in `take_stats` on request, and in `upload` for
/// its own copy. Everything else is only submitted.
pub(crate) trait Driver: CaptureDriver + Debug + Send {
    /// Returns whether an address is in memory of this GPU.
    fn holds(&mut self, address: u64) -> Result<bool>;

    /// Makes sure that this many event pairs, statistics and profiles of rows are there.
    fn reserve(&mut self, pairs: usize, stats: usize, profiles: usize) -> Result<()>;

    /// Replaces the first profiles of rows, after all launches so far. There is space for as many.
    fn write_profiles(&mut self, profiles: &[u32]) -> Result<()>;

    /// Makes the cap stream wait, by an event of the pair, for everything that the backend was given so far.
    fn hand_to_cap_stream(&mut self, pair: usize) -> Result<()>;

    /// Makes the backend wait, by the other event of the pair, for everything on the cap stream so far.
    fn hand_to_backend(&mut self, pair: usize) -> Result<()>;

    /// Replaces the table of a block.
    fn upload(&mut self, block: usize, table: &CapTable) -> Result<()>;

    /// Replaces bounds and strengths of a block's table, after all launches so far.
    fn update(&mut self, block: usize, params: &[CapParams]) -> Result<()>;

    /// Removes the table of a block.
    fn forget(&mut self, block: usize);

    /// Returns the kernel that a launch will run. The table of its block must be there.
    fn kernel(&self, launch: &Launch) -> Result<Kernel>;

    /// Launches caps, and the norm where there is one, on the cap stream.
    ///
    /// # Safety
    /// The rows must be f32, as wide as the block's table, in memory for which `holds` returned true. The
    /// same is true of the norm's weight and rows, which must overlap neither each other nor the capped rows.
    /// The backend must not use them between `hand_to_cap_stream` before the launch and `hand_to_backend`
    /// after it.
    unsafe fn launch(&mut self, launch: &Launch) -> Result<()>;

    /// Waits for the cap stream and reads rows.
    ///
    /// # Safety
    /// As many values must lie at the address, in memory for which `holds` returned true.
    unsafe fn read_rows(&mut self, address: u64, to: &mut [f32]) -> Result<()>;

    /// Waits for the cap stream and reads statistics.
    fn read_stats(&mut self, first: usize, to: &mut [RowStat]) -> Result<()>;

    /// Submits a copy of the first `count` statistics to the host, after everything on the cap stream.
    fn fetch_stats(&mut self, count: usize) -> Result<Ticket>;

    /// Takes the statistics of a ticket, once. Returns `None` if they have not arrived, unless `wait` is
    /// true.
    fn take_stats(&mut self, ticket: Ticket, wait: bool) -> Result<Option<Vec<RowStat>>>;

    /// Waits for the cap stream, before the driver is dropped. Returns an error of its work that was not seen
    /// yet.
    fn finish(&mut self) -> Result<()>;
}

/// Captures work of both streams as executable graphs, which are numbered by their slot.
pub(crate) trait CaptureDriver {
    /// Begins to capture what the cap stream, and streams that wait for it, are given.
    fn begin_capture(&mut self) -> Attempt;

    /// Ends the capture. An error is the reason why the work cannot be a graph.
    fn end_capture(&mut self) -> Attempt;

    /// Makes an executable graph from the last capture, in the place of the one in this slot if there is one.
    fn instantiate(&mut self, slot: usize) -> Attempt;

    /// Updates the executable graph in this slot to the last capture.
    fn update_graph(&mut self, slot: usize) -> Attempt;

    /// Launches the executable graph in this slot on the cap stream.
    ///
    /// # Safety
    /// All memory that the captured work uses must still be there.
    unsafe fn replay(&mut self, slot: usize) -> Result<()>;

    /// Discards all executable graphs.
    fn discard_graphs(&mut self);
}

/// Opens drivers for backends.
pub(crate) trait DriverFactory: Debug + Send + Sync {
    /// Returns whether backends of a device can have a driver, with the reason if they cannot. Returns `None`
    /// for a device that is not a GPU of ggml's CUDA backend.
    fn usable(&self, device: Device) -> Option<std::result::Result<(), String>>;

    /// Opens the GPU whose memory has this address.
    ///
    /// # Safety
    /// `backend` must be a live backend of a device that is usable, and must outlive the driver.
    unsafe fn open(
        &self,
        backend: Backend,
        name: &str,
        address: u64,
    ) -> std::result::Result<Box<dyn Driver>, String>;
}
