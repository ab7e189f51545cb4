//! Everything the device path asks of a GPU and of ggml's events: the lowest layer, and the only one that the tests
//! replace.

use std::fmt::Debug;

use axiscap::{CapParams, CapTable, RowStat};

use crate::error::HookError;

pub(crate) type Result<T> = std::result::Result<T, HookError>;

/// One launch: the caps of a block's rows, and on request the norm behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Launch {
    /// Whose table to use.
    pub(crate) block: usize,
    /// Where the rows are.
    pub(crate) address: u64,
    /// How many.
    pub(crate) rows: usize,
    /// Elements from one to the next.
    pub(crate) stride: usize,
    /// Which entry of the figures is the first of these rows; without it none are written.
    pub(crate) stats: Option<usize>,
    /// The norm that the launch does too.
    pub(crate) norm: Option<LaunchNorm>,
}

/// RMSNorm * weight of the capped rows, in the place of ggml's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LaunchNorm {
    /// Where the weight is, f32, one per channel.
    pub(crate) weight: u64,
    /// The bits of what is added to the mean of squares; as bits, so that launches can be compared and hashed.
    pub(crate) eps: u32,
    /// Where the normed rows go.
    pub(crate) out: u64,
    /// Elements from one of them to the next.
    pub(crate) stride: usize,
}

impl LaunchNorm {
    pub(crate) fn eps(&self) -> f32 {
        f32::from_bits(self.eps)
    }
}

/// Which kernel a launch runs, by the name of its way through the rows: it depends on how many there are, how wide they
/// are and where they lie.
pub(crate) type Kernel = &'static str;

/// A copy of figures to the host that was ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ticket(pub(crate) u64);

/// A stream of ours on the GPU of one ggml backend, next to the backend's own.
///
/// A *hop* is a pair of events: one that the backend records and our stream waits for, one the other way round.
/// Nothing here waits on the host, apart from `read_rows`, `read_stats`, `micros_between`, and `upload` for its
/// own copy.
pub(crate) trait Driver: Debug + Send {
    /// Whether the rows at this address are in memory of our GPU.
    fn holds(&mut self, address: u64) -> Result<bool>;

    /// Makes sure that there are this many hops, and room for this many figures.
    fn reserve(&mut self, hops: usize, stats: usize) -> Result<()>;

    /// The backend records the hop's first event behind all its work.
    fn record_on_backend(&mut self, hop: usize) -> Result<()>;

    /// Our stream waits for the hop's first event.
    fn wait_on_ours(&mut self, hop: usize) -> Result<()>;

    /// Our stream records the hop's second event.
    fn record_on_ours(&mut self, hop: usize) -> Result<()>;

    /// The backend waits for the hop's second event before anything that it is given later.
    fn wait_on_backend(&mut self, hop: usize) -> Result<()>;

    /// Replaces the table of a block.
    fn upload(&mut self, block: usize, table: &CapTable) -> Result<()>;

    /// Replaces bounds and strengths of a block's table, behind all launches so far.
    fn update(&mut self, block: usize, params: &[CapParams]) -> Result<()>;

    /// Forgets the table of a block.
    fn forget(&mut self, block: usize);

    /// Which kernel a launch will run, once the table of its block is there.
    fn kernel(&self, launch: &Launch) -> Result<Kernel>;

    /// Caps rows on our stream, and norms them where the launch says so.
    ///
    /// # Safety
    /// The rows are `f32`, as wide as the block's table, in memory that `holds` was true for, and so are the norm's
    /// weight and rows, which overlap neither each other nor the rows to cap. The backend does not touch them
    /// between the hop before and the one behind the launch.
    unsafe fn launch(&mut self, launch: &Launch) -> Result<()>;

    /// Reads rows behind everything on our stream, and waits for them.
    ///
    /// # Safety
    /// That many values lie at the address, in memory that `holds` was true for.
    unsafe fn read_rows(&mut self, address: u64, to: &mut [f32]) -> Result<()>;

    /// Reads figures behind everything on our stream, and waits for them.
    fn read_stats(&mut self, first: usize, to: &mut [RowStat]) -> Result<()>;

    /// Orders a copy of the first `count` figures to the host, behind everything on our stream.
    fn fetch_stats(&mut self, count: usize) -> Result<Ticket>;

    /// The figures of a ticket, once; `None` while they are under way and `wait` is false.
    fn take_stats(&mut self, ticket: Ticket, wait: bool) -> Result<Option<Vec<RowStat>>>;

    /// Begins to capture what our stream, and streams that wait for it, are given.
    fn begin_capture(&mut self) -> Attempt;

    /// Ends the capture; an error says why what was given cannot be a graph.
    fn end_capture(&mut self) -> Attempt;

    /// Makes an executable graph from the last capture, in the place of the one of this number if there is one.
    fn instantiate(&mut self, slot: usize) -> Attempt;

    /// Fits the executable graph of this number to the last capture.
    fn update_graph(&mut self, slot: usize) -> Attempt;

    /// Launches the executable graph of this number on our stream.
    ///
    /// # Safety
    /// Everything that was captured uses memory that is still there.
    unsafe fn replay(&mut self, slot: usize) -> Result<()>;

    /// Makes sure that there are this many stamps: events that take the time.
    fn reserve_stamps(&mut self, count: usize) -> Result<()>;

    /// The backend takes the time behind all its work.
    fn stamp_on_backend(&mut self, stamp: usize) -> Result<()>;

    /// Our stream takes the time behind everything on it.
    fn stamp_on_ours(&mut self, stamp: usize) -> Result<()>;

    /// Microseconds from one stamp to another. Waits for both.
    fn micros_between(&mut self, from: usize, to: usize) -> Result<f64>;

    /// Throws all executable graphs away.
    fn discard_graphs(&mut self);
}

/// A step that may fail without harm: the graph runs eagerly instead. The error is the reason.
pub(crate) type Attempt = std::result::Result<(), String>;
