//! A driver for tests: it notes what it is asked to do, and caps rows in host memory as late as the events allow.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use axiscap::cpu::{self, Norm, RowsMut};
use axiscap::{CapParams, CapTable, RowStat};

use crate::error::HookError;

use super::driver::{Attempt, Driver, Kernel, Launch, LaunchNorm, Result, Ticket};

/// What the driver was asked to do.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Op {
    RecordOnBackend(usize),
    WaitOnOurs(usize),
    Launch {
        block: usize,
        rows: usize,
        stats: Option<usize>,
    },
    /// A launch that does the norm too.
    LaunchNormed {
        block: usize,
        rows: usize,
        stats: Option<usize>,
    },
    RecordOnOurs(usize),
    WaitOnBackend(usize),
    Upload(usize),
    Update(usize),
    Forget(usize),
    ReadRows(usize),
    Fetch(usize),
    BeginCapture,
    EndCapture,
    Instantiate(usize),
    Refit(usize),
    Replay(usize),
    Discard,
    StampOnBackend(usize),
    StampOnOurs(usize),
    /// Not the driver's: tests note here which nodes ggml was given, under which uid.
    View {
        nodes: usize,
        uid: u64,
    },
    Closed,
}

pub(super) type Log = Arc<Mutex<Vec<Op>>>;

/// Work on our stream that has not run yet.
#[derive(Debug)]
enum Queued {
    Launch(Launch),
    Update(usize, Vec<CapParams>),
    Fetch(Ticket, usize),
    Record(usize),
    Stamp(usize),
}

#[derive(Debug, Default)]
pub(super) struct Recording {
    log: Log,
    tables: HashMap<usize, CapTable>,
    stats: Vec<RowStat>,
    queue: VecDeque<Queued>,
    fetched: HashMap<Ticket, Vec<RowStat>>,
    tickets: u64,
    /// Flips the last bit of the first value of every capped row: a GPU that is not to be trusted.
    pub(super) wrong: bool,
    /// The same of rows that this kernel caps.
    pub(super) wrong_kernel: Option<Kernel>,
    /// The same of every normed row.
    pub(super) wrong_norm: bool,
    /// The step of making a graph, or the update, that fails.
    pub(super) fails: Option<Op>,
    /// Notes nothing and caps nothing: for measurements.
    pub(super) quiet: Arc<AtomicBool>,
    /// Claims to hold no memory.
    pub(super) elsewhere: bool,
    /// Claims not to hold the address of this number, in the order in which it is asked for addresses.
    pub(super) not_held: Option<usize>,
    asked: usize,
    /// Microseconds so far: a launch takes ten, a stamp one.
    now: f64,
    /// When each stamp was reached last.
    stamps: Vec<f64>,
    /// The norms that it was asked for.
    pub(super) norms: Arc<Mutex<Vec<(usize, LaunchNorm)>>>,
}

/// As on a GPU, many rows run another kernel than few.
fn kernel(rows: usize) -> Kernel {
    if rows <= 256 { "direct" } else { "staged" }
}

thread_local! {
    static NOTING: Cell<bool> = const { Cell::new(false) };
    static NEXT: RefCell<Option<Box<dyn Driver>>> = const { RefCell::new(None) };
    static GRAPHS: RefCell<Vec<(u64, Option<u64>)>> = const { RefCell::new(Vec::new()) };
}

/// A graph of this uid and content is computed on this thread.
pub(super) fn note_graph(uid: u64, content: impl FnOnce() -> Option<u64>) {
    if NOTING.get() {
        GRAPHS.with_borrow_mut(|graphs| graphs.push((uid, content())));
    }
}

/// From now on graphs are noted on this thread.
pub(super) fn note_graphs() {
    NOTING.set(true);
}

/// The graphs that were computed on this thread since the last call.
pub(super) fn graphs() -> Vec<(u64, Option<u64>)> {
    GRAPHS.take()
}

/// The driver of the next backend that is hooked on this thread.
pub(super) fn use_next(driver: Recording) {
    NEXT.set(Some(Box::new(driver)));
}

pub(super) fn for_this_thread() -> Option<Box<dyn Driver>> {
    NEXT.take()
}

impl Recording {
    pub(super) fn new() -> (Self, Log) {
        let this = Self::default();
        let log = Arc::clone(&this.log);
        (this, log)
    }

    fn note(&self, op: Op) {
        if !self.quiet.load(Ordering::Relaxed) {
            self.log.lock().unwrap().push(op);
        }
    }

    fn attempt(&self, op: Op) -> Attempt {
        let fails = self.fails.as_ref() == Some(&op);
        self.note(op);
        if fails { Err("the test says so".into()) } else { Ok(()) }
    }

    /// Runs our stream up to the record of a hop, or dry.
    fn run(&mut self, until: Option<usize>) {
        while let Some(work) = self.queue.pop_front() {
            match work {
                Queued::Launch(launch) => self.cap(&launch),
                Queued::Update(block, params) => {
                    let table = self.tables.get_mut(&block).expect("the table was uploaded");
                    for (i, params) in params.iter().enumerate() {
                        let bound = axiscap::Bound::band(params.lo, params.hi).unwrap();
                        table.set_bound(i, bound).unwrap();
                        table.set_strength(i, params.strength).unwrap();
                    }
                }
                Queued::Fetch(ticket, count) => {
                    self.fetched.insert(ticket, self.stats[..count].to_vec());
                }
                Queued::Record(hop) if Some(hop) == until => return,
                Queued::Record(_) => {}
                Queued::Stamp(stamp) => self.reach(stamp),
            }
        }
        assert!(until.is_none(), "the backend waits for an event that was never recorded");
    }

    fn reach(&mut self, stamp: usize) {
        self.now += 1.0;
        self.stamps[stamp] = self.now;
    }

    fn cap(&mut self, launch: &Launch) {
        self.now += 10.0;
        if self.quiet.load(Ordering::Relaxed) {
            return;
        }
        let table = &self.tables[&launch.block];
        let depth = table.caps();
        // SAFETY: the planner's launches name rows of tensors in host memory that the test keeps alive.
        let mut rows = unsafe {
            RowsMut::from_raw(launch.address as *mut f32, launch.rows, table.width(), launch.stride).unwrap()
        };
        let options = cpu::Options::new();
        let options = match launch.stats {
            Some(first) => options.stats(&mut self.stats[first..][..launch.rows * depth]),
            None => options,
        };
        match launch.norm {
            None => cpu::cap_rows(table, rows.reborrow(), options).unwrap(),
            Some(norm) => {
                // SAFETY: as above, of the norm's weight and rows.
                let (weight, out) = unsafe {
                    (
                        std::slice::from_raw_parts(norm.weight as *const f32, table.width()),
                        RowsMut::from_raw(norm.out as *mut f32, launch.rows, table.width(), norm.stride),
                    )
                };
                let weighted = Norm::new(weight, norm.eps()).unwrap();
                cpu::cap_norm_rows(table, rows.reborrow(), weighted, out.unwrap(), options).unwrap();
            }
        }
        let flip = |address: u64| {
            // SAFETY: as above.
            unsafe {
                let value = address as *mut u32;
                value.write(value.read() ^ 1);
            }
        };
        if self.wrong || self.wrong_kernel == Some(kernel(launch.rows)) {
            flip(launch.address);
        }
        if let Some(norm) = launch.norm.filter(|_| self.wrong_norm) {
            flip(norm.out);
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.note(Op::Closed);
    }
}

impl Driver for Recording {
    fn holds(&mut self, _: u64) -> Result<bool> {
        self.asked += 1;
        Ok(!self.elsewhere && self.not_held != Some(self.asked))
    }

    fn reserve(&mut self, _: usize, stats: usize) -> Result<()> {
        if self.stats.len() < stats {
            self.run(None);
            self.stats.resize(stats, RowStat::default());
        }
        Ok(())
    }

    fn record_on_backend(&mut self, hop: usize) -> Result<()> {
        self.note(Op::RecordOnBackend(hop));
        Ok(())
    }

    fn wait_on_ours(&mut self, hop: usize) -> Result<()> {
        self.note(Op::WaitOnOurs(hop));
        Ok(())
    }

    fn record_on_ours(&mut self, hop: usize) -> Result<()> {
        self.note(Op::RecordOnOurs(hop));
        self.queue.push_back(Queued::Record(hop));
        Ok(())
    }

    fn wait_on_backend(&mut self, hop: usize) -> Result<()> {
        self.note(Op::WaitOnBackend(hop));
        self.run(Some(hop));
        Ok(())
    }

    fn upload(&mut self, block: usize, table: &CapTable) -> Result<()> {
        self.note(Op::Upload(block));
        self.tables.insert(block, table.clone());
        Ok(())
    }

    fn update(&mut self, block: usize, params: &[CapParams]) -> Result<()> {
        let outcome = self.attempt(Op::Update(block));
        outcome.map_err(|what| HookError::Device { device: "test".into(), what })?;
        self.queue.push_back(Queued::Update(block, params.to_vec()));
        Ok(())
    }

    fn forget(&mut self, block: usize) {
        self.note(Op::Forget(block));
        self.run(None);
        self.tables.remove(&block);
    }

    fn kernel(&self, launch: &Launch) -> Result<Kernel> {
        assert!(self.tables.contains_key(&launch.block), "the table was uploaded");
        Ok(kernel(launch.rows))
    }

    unsafe fn launch(&mut self, launch: &Launch) -> Result<()> {
        let Launch { block, rows, stats, norm, .. } = *launch;
        match norm {
            None => self.note(Op::Launch { block, rows, stats }),
            Some(norm) => {
                self.note(Op::LaunchNormed { block, rows, stats });
                self.norms.lock().unwrap().push((block, norm));
            }
        }
        self.queue.push_back(Queued::Launch(*launch));
        Ok(())
    }

    unsafe fn read_rows(&mut self, address: u64, to: &mut [f32]) -> Result<()> {
        self.note(Op::ReadRows(to.len()));
        self.run(None);
        // SAFETY: the caller's promise, on host memory.
        unsafe { to.as_mut_ptr().copy_from_nonoverlapping(address as *const f32, to.len()) };
        Ok(())
    }

    fn read_stats(&mut self, first: usize, to: &mut [RowStat]) -> Result<()> {
        self.run(None);
        to.copy_from_slice(&self.stats[first..][..to.len()]);
        Ok(())
    }

    fn fetch_stats(&mut self, count: usize) -> Result<Ticket> {
        self.note(Op::Fetch(count));
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.queue.push_back(Queued::Fetch(ticket, count));
        Ok(ticket)
    }

    fn take_stats(&mut self, ticket: Ticket, wait: bool) -> Result<Option<Vec<RowStat>>> {
        if wait {
            self.run(None);
        }
        Ok(self.fetched.remove(&ticket))
    }

    fn begin_capture(&mut self) -> Attempt {
        self.attempt(Op::BeginCapture)
    }

    fn end_capture(&mut self) -> Attempt {
        self.attempt(Op::EndCapture)
    }

    fn instantiate(&mut self, slot: usize) -> Attempt {
        self.attempt(Op::Instantiate(slot))
    }

    fn update_graph(&mut self, slot: usize) -> Attempt {
        self.attempt(Op::Refit(slot))
    }

    unsafe fn replay(&mut self, slot: usize) -> Result<()> {
        self.note(Op::Replay(slot));
        Ok(())
    }

    fn reserve_stamps(&mut self, count: usize) -> Result<()> {
        self.stamps.resize(self.stamps.len().max(count), f64::NAN);
        Ok(())
    }

    fn stamp_on_backend(&mut self, stamp: usize) -> Result<()> {
        self.note(Op::StampOnBackend(stamp));
        self.reach(stamp);
        Ok(())
    }

    fn stamp_on_ours(&mut self, stamp: usize) -> Result<()> {
        self.note(Op::StampOnOurs(stamp));
        self.queue.push_back(Queued::Stamp(stamp));
        Ok(())
    }

    fn micros_between(&mut self, from: usize, to: usize) -> Result<f64> {
        self.run(None);
        Ok(self.stamps[to] - self.stamps[from])
    }

    fn discard_graphs(&mut self) {
        self.note(Op::Discard);
    }
}
