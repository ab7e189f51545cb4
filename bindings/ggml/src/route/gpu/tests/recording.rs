//! A driver that notes its calls, and caps rows in host memory as late as the calls allow. A missing
//! `hand_to_backend` leaves rows uncapped.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use axiscap::cpu::{Job, RowsMut};
use axiscap::op::DeviceRows;
use axiscap::{CapParams, CapTable, RowStat};

use super::super::driver::{Attempt, CaptureDriver, Driver, DriverFactory, Kernel, Launch, Result, Ticket};
use crate::error::HookError;
use crate::host::{Backend, Device};

/// A call of the driver.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Op {
    /// `hand_to_cap_stream`
    ToCapStream(usize),
    Launch {
        block: usize,
        rows: usize,
        stats: Option<usize>,
    },
    /// A launch that includes the norm.
    LaunchWithNorm {
        block: usize,
        rows: usize,
        stats: Option<usize>,
    },
    /// `hand_to_backend`
    ToBackend(usize),
    WriteProfiles(usize),
    Upload(usize),
    Update(usize),
    Forget(usize),
    ReadRows(usize),
    Fetch(usize),
    BeginCapture,
    EndCapture,
    Instantiate(usize),
    /// `update_graph`
    UpdateGraph(usize),
    Replay(usize),
    Discard,
    /// No call of the driver. Tests note here the nodes and the uid of the graph that ggml was given.
    View {
        nodes: usize,
        uid: u64,
    },
    /// The driver was dropped.
    Closed,
}

pub(super) type Log = Arc<Mutex<Vec<Op>>>;

/// Takes the calls since the last time.
pub(super) fn taken(log: &Log) -> Vec<Op> {
    std::mem::take(&mut *log.lock().unwrap())
}

/// Work on the cap stream that has not run yet.
#[derive(Debug)]
enum Queued {
    Launch(Launch),
    Update(usize, Vec<CapParams>),
    WriteProfiles(Vec<u32>),
    Fetch(Ticket, usize),
}

#[derive(Debug, Default)]
pub(super) struct Recording {
    log: Log,
    tables: HashMap<usize, CapTable>,
    stats: Vec<RowStat>,
    profiles: Vec<u32>,
    queue: VecDeque<Queued>,
    fetched: HashMap<Ticket, Vec<RowStat>>,
    tickets: u64,
    /// Flips the last bit of the first value of all rows that it caps.
    pub(super) wrong_rows: bool,
    /// Flips the last bit of the first value of all rows that this kernel caps.
    pub(super) wrong_kernel: Option<Kernel>,
    /// Flips the last bit of the first value of all normed rows.
    pub(super) wrong_norm: bool,
    /// The call that fails.
    pub(super) fails: Option<Op>,
    /// Holds no memory.
    pub(super) holds_nothing: bool,
    /// Does not hold the address of this number, in the order in which `holds` is called.
    pub(super) not_held: Option<usize>,
    /// After so many launches, reports their first rows as ones whose profile it does not have.
    pub(super) loses_profiles_after: Option<usize>,
    /// Launches that have run.
    launched: usize,
    /// Calls of `holds`.
    asked: usize,
}

/// Returns the kernel for a number of rows. As on a GPU, many rows run another kernel than few.
fn kernel(rows: usize) -> Kernel {
    if rows <= 256 { "direct" } else { "staged" }
}

impl Recording {
    pub(super) fn new() -> (Self, Log) {
        let driver = Self::default();
        let log = Arc::clone(&driver.log);
        (driver, log)
    }

    /// Returns a factory whose drivers cannot be opened.
    pub(super) fn failing_factory() -> Arc<dyn DriverFactory> {
        Arc::new(OneDriver(Mutex::new(None)))
    }

    /// Returns a factory that opens this driver for one backend of the CPU.
    pub(super) fn factory(self) -> Arc<dyn DriverFactory> {
        Arc::new(OneDriver(Mutex::new(Some(self))))
    }

    fn note(&self, op: Op) {
        self.log.lock().unwrap().push(op);
    }

    fn attempt(&self, op: Op) -> Attempt {
        let fails = self.fails.as_ref() == Some(&op);
        self.note(op);
        if fails { Err("as the test asked".into()) } else { Ok(()) }
    }

    /// Runs everything on the cap stream.
    fn run(&mut self) {
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
                Queued::WriteProfiles(profiles) => self.profiles[..profiles.len()].copy_from_slice(&profiles),
                Queued::Fetch(ticket, count) => {
                    self.fetched.insert(ticket, self.stats[..count].to_vec());
                }
            }
        }
    }

    fn cap(&mut self, launch: &Launch) {
        let table = &self.tables[&launch.block];
        let rows_of = |rows: DeviceRows| {
            // SAFETY: the planner's launches name rows of tensors in host memory that the test keeps alive.
            unsafe {
                RowsMut::from_raw(rows.address as *mut f32, rows.count, table.width(), rows.stride).unwrap()
            }
        };
        let mut job = Job::cap(rows_of(launch.job.rows));
        if let Some(first) = launch.stats {
            job = job.stats(&mut self.stats[first..][..launch.rows() * table.max_caps_per_row()]);
        }
        if let Some(first) = launch.profiles {
            job = job.row_profiles(&self.profiles[first..][..launch.rows()]);
        }
        if let Some(norm) = launch.job.norm {
            // SAFETY: the planner's launches name weights in host memory that the test keeps alive.
            let weight = unsafe { std::slice::from_raw_parts(norm.weight as *const f32, table.width()) };
            job = job.norm(weight, norm.epsilon, rows_of(norm.out));
        }
        job.run(table).unwrap();
        let lost = self.loses_profiles_after.is_some_and(|launches| self.launched >= launches);
        self.launched += 1;
        if let Some(first) = launch.stats.filter(|_| lost) {
            self.stats[first].flags |= RowStat::BAD_PROFILE;
        }
        let flip = |rows: DeviceRows| {
            // SAFETY: the address is that of the first row, which the test keeps alive.
            unsafe {
                let value = rows.address as *mut u32;
                value.write(value.read() ^ 1);
            }
        };
        if self.wrong_rows || self.wrong_kernel == Some(kernel(launch.rows())) {
            flip(launch.job.rows);
        }
        if let Some(norm) = launch.job.norm.filter(|_| self.wrong_norm) {
            flip(norm.out);
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.note(Op::Closed);
    }
}

/// A factory with one driver.
#[derive(Debug)]
struct OneDriver(Mutex<Option<Recording>>);

impl DriverFactory for OneDriver {
    fn usable(&self, _: Device) -> Option<std::result::Result<(), String>> {
        Some(Ok(()))
    }

    unsafe fn open(&self, _: Backend, _: &str, _: u64) -> std::result::Result<Box<dyn Driver>, String> {
        let driver = self.0.lock().unwrap().take();
        Ok(Box::new(driver.ok_or("the test has one driver")?))
    }
}

impl Driver for Recording {
    fn holds(&mut self, _: u64) -> Result<bool> {
        self.asked += 1;
        Ok(!self.holds_nothing && self.not_held != Some(self.asked))
    }

    fn reserve(&mut self, _: usize, stats: usize, profiles: usize) -> Result<()> {
        if self.profiles.len() < profiles {
            self.run();
            // What was written before is lost, as in a new buffer.
            self.profiles = vec![u32::MAX; profiles];
        }
        if self.stats.len() < stats {
            self.run();
            self.stats.resize(stats, RowStat::default());
        }
        Ok(())
    }

    fn write_profiles(&mut self, profiles: &[u32]) -> Result<()> {
        self.note(Op::WriteProfiles(profiles.len()));
        self.queue.push_back(Queued::WriteProfiles(profiles.to_vec()));
        Ok(())
    }

    fn hand_to_cap_stream(&mut self, pair: usize) -> Result<()> {
        self.note(Op::ToCapStream(pair));
        Ok(())
    }

    fn hand_to_backend(&mut self, pair: usize) -> Result<()> {
        self.note(Op::ToBackend(pair));
        self.run();
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
        self.run();
        self.tables.remove(&block);
    }

    fn kernel(&self, launch: &Launch) -> Result<Kernel> {
        assert!(self.tables.contains_key(&launch.block), "the table was uploaded");
        Ok(kernel(launch.rows()))
    }

    unsafe fn launch(&mut self, launch: &Launch) -> Result<()> {
        let (block, rows, stats) = (launch.block, launch.rows(), launch.stats);
        self.note(match launch.job.norm {
            None => Op::Launch { block, rows, stats },
            Some(_) => Op::LaunchWithNorm { block, rows, stats },
        });
        self.queue.push_back(Queued::Launch(*launch));
        Ok(())
    }

    unsafe fn read_rows(&mut self, address: u64, to: &mut [f32]) -> Result<()> {
        self.note(Op::ReadRows(to.len()));
        self.run();
        // SAFETY: the caller promises as many values at the address, which is in host memory.
        unsafe { to.as_mut_ptr().copy_from_nonoverlapping(address as *const f32, to.len()) };
        Ok(())
    }

    fn read_stats(&mut self, first: usize, to: &mut [RowStat]) -> Result<()> {
        self.run();
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
            self.run();
        }
        Ok(self.fetched.remove(&ticket))
    }

    fn finish(&mut self) -> Result<()> {
        self.run();
        match &self.fails {
            Some(Op::Closed) => {
                Err(HookError::Device { device: "test".into(), what: "as the test asked".into() })
            }
            _ => Ok(()),
        }
    }
}

impl CaptureDriver for Recording {
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
        self.attempt(Op::UpdateGraph(slot))
    }

    unsafe fn replay(&mut self, slot: usize) -> Result<()> {
        self.note(Op::Replay(slot));
        Ok(())
    }

    fn discard_graphs(&mut self) {
        self.note(Op::Discard);
    }
}
