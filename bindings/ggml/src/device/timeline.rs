//! When the views and caps of a graph ran on a GPU, by events that take the time.
//!
//! ```text
//! backend's stream   b [view 1] s r0 ........................ w1 s [view 2] e
//! our stream                          w0 s [cap] s r1
//! ```
//!
//! The stamps (b, s, e) of a graph have ascending numbers in the order in which they are ordered here. They are read
//! afterwards, when somebody asks.

use super::driver::{Driver, Result};

/// Graphs whose times are kept before the host waits for them and reads them.
const MOST: usize = 64;

/// Stamps around one launch.
const AROUND: usize = 4;

/// When one graph with capped blocks ran on a GPU ([`Session::set_timeline`](crate::Session::set_timeline)).
#[derive(Debug, Clone, PartialEq)]
pub struct GraphTimeline {
    /// ggml's name of the device.
    pub device: String,
    /// Microseconds from its begin to its end on the backend's stream.
    pub micros: f64,
    /// Whether it was launched as one graph, so that nothing is known of its blocks.
    pub replayed: bool,
    /// Its capped blocks in order.
    pub blocks: Vec<BlockTiming>,
}

/// When the caps of one block ran, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockTiming {
    /// The block.
    pub block: usize,
    /// Its rows.
    pub rows: usize,
    /// From the end of the view on the backend's stream to where our stream may launch.
    pub handover: f64,
    /// The launch: the kernel, and what the GPU needs to begin it.
    pub launch: f64,
    /// From the end of the launch to where the backend's stream goes on.
    pub handback: f64,
}

/// A stream that takes the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Backend,
    Ours,
}

/// Takes and reads times. One per backend.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// Stamps given out since they were read last.
    stamps: usize,
    open: Option<Timed>,
    closed: Vec<Timed>,
    read: Vec<GraphTimeline>,
}

#[derive(Debug)]
struct Timed {
    first: usize,
    replayed: bool,
    /// With the rows of each.
    blocks: Vec<(usize, usize)>,
}

impl Clock {
    /// A graph of this many launches begins.
    pub(super) fn begin(
        &mut self,
        driver: &mut dyn Driver,
        device: &str,
        launches: usize,
        replayed: bool,
    ) -> Result<()> {
        if self.closed.len() == MOST {
            self.read(driver, device)?;
        }
        // What a failed graph has stamped is stamped over.
        let first = self.closed.last().map_or(0, |timed| timed.first + stamps_of(timed.blocks.len()));
        self.stamps = first;
        driver.reserve_stamps(first + stamps_of(launches))?;
        self.open = Some(Timed { first, replayed, blocks: Vec::new() });
        self.stamp(driver, Side::Backend)
    }

    /// The time behind everything that the stream was given so far, if a graph is being timed.
    pub(super) fn stamp(&mut self, driver: &mut dyn Driver, side: Side) -> Result<()> {
        if self.open.is_none() {
            return Ok(());
        }
        let stamp = self.stamps;
        self.stamps += 1;
        match side {
            Side::Backend => driver.stamp_on_backend(stamp),
            Side::Ours => driver.stamp_on_ours(stamp),
        }
    }

    /// The stamps around a launch have been taken.
    pub(super) fn launched(&mut self, block: usize, rows: usize) {
        if let Some(open) = &mut self.open {
            open.blocks.push((block, rows));
        }
    }

    /// The graph ends.
    pub(super) fn end(&mut self, driver: &mut dyn Driver) -> Result<()> {
        self.stamp(driver, Side::Backend)?;
        self.closed.extend(self.open.take());
        Ok(())
    }

    /// The graph failed: its times are of no use.
    pub(super) fn abandon(&mut self) {
        self.open = None;
    }

    /// Everything timed since the last call. Waits for it.
    pub(super) fn take(&mut self, driver: &mut dyn Driver, device: &str) -> Result<Vec<GraphTimeline>> {
        self.read(driver, device)?;
        Ok(std::mem::take(&mut self.read))
    }

    fn read(&mut self, driver: &mut dyn Driver, device: &str) -> Result<()> {
        for timed in self.closed.drain(..) {
            let last = stamps_of(timed.blocks.len()) - 1;
            let at = (0..=last).map(|stamp| driver.micros_between(timed.first, timed.first + stamp));
            let at: Vec<f64> = at.collect::<Result<_>>()?;
            let blocks = timed.blocks.iter().zip(at[1..last].chunks(AROUND)).map(|(&(block, rows), at)| {
                let [handover, launch, handback] = [1, 2, 3].map(|i| at[i] - at[i - 1]);
                BlockTiming { block, rows, handover, launch, handback }
            });
            self.read.push(GraphTimeline {
                device: device.into(),
                micros: at[last],
                replayed: timed.replayed,
                blocks: blocks.collect(),
            });
        }
        Ok(())
    }
}

/// Stamps of a graph with this many launches.
fn stamps_of(launches: usize) -> usize {
    2 + AROUND * launches
}
