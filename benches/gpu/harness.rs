//! Timing on a stream by events, and results as a table and as JSON.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaStream, sys};

/// One measurement.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) shape: String,
    /// First quartile, median and third quartile.
    pub(crate) microseconds: [f64; 3],
    /// Minimum number of bytes that move; 0 for a measurement of latency.
    pub(crate) bytes: u64,
    pub(crate) runs: usize,
}

impl Sample {
    pub(crate) fn gigabytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.microseconds[1] / 1e3
    }
}

/// Times `work` on a stream: `runs` times after a warm-up, each between two events. The argument of `work` is
/// its turn, with which it chooses its buffers.
pub(crate) fn time(stream: &Arc<CudaStream>, runs: usize, mut work: impl FnMut(usize)) -> [f64; 3] {
    for turn in 0..runs.div_ceil(5) {
        work(turn);
    }
    let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let event = || stream.record_event(flags).expect("an event");
    let pairs: Vec<_> = (0..runs)
        .map(|turn| {
            let start = event();
            work(turn);
            (start, event())
        })
        .collect();
    stream.synchronize().expect("the work ran");
    let mut times: Vec<f64> =
        pairs.iter().map(|(start, end)| f64::from(start.elapsed_ms(end).expect("a time")) * 1e3).collect();
    times.sort_by(f64::total_cmp);
    [times[runs / 4], times[runs / 2], times[runs * 3 / 4]]
}

/// Keeps the GPU busy for long enough to let its clocks rise.
pub(crate) fn warm_up(stream: &Arc<CudaStream>, mut work: impl FnMut()) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(300) {
        work();
        stream.synchronize().expect("the work ran");
    }
}

/// Times one node of a graph of `nodes` equal nodes.
pub(crate) fn time_node(
    stream: &Arc<CudaStream>,
    nodes: usize,
    runs: usize,
    mut node: impl FnMut(),
) -> [f64; 3] {
    // A kernel may be loaded at its first launch, which would break a capture.
    node();
    stream.synchronize().expect("an idle stream");
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("a capture");
    (0..nodes).for_each(|_| node());
    let flags = sys::CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).expect("a graph").expect("a graph with nodes");
    graph.upload().expect("an upload");
    time(stream, runs, |_| graph.launch().expect("a replay")).map(|t| t / nodes as f64)
}

/// The results so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) device: String,
    pub(crate) driver: i32,
    pub(crate) l2_bytes: u64,
    /// The copy's GB/s, at the beginning and at the end. Shares refer to the larger.
    pub(crate) copies: Vec<f64>,
    pub(crate) samples: Vec<Sample>,
    /// Whether all phases are complete.
    pub(crate) complete: bool,
}

/// Explanations of the results, for readers of the file.
const NOTES: [&str; 3] = [
    "bytes: sets of buffers are used in turn; at least four times the size of the L2 cache passes between two uses of one",
    "node: every node of the graph works on the same row, axes and weight, which are in cache",
    "cold: the same after a memset of twice the size of the L2 cache in the same graph; the time of the memset alone is subtracted; its dirty lines are still to be written back",
];

impl Report {
    fn copy(&self) -> f64 {
        self.copies.iter().copied().fold(0.0, f64::max)
    }

    /// Prints a table, with the share of the copy's bandwidth for measurements of bandwidth.
    pub(crate) fn print(&self) {
        println!("{}, driver for CUDA {}", self.device, self.driver);
        println!(
            "{:<34} {:>16} {:>10} {:>19} {:>8} {:>7}",
            "what", "shape", "us", "quartiles", "GB/s", "copy"
        );
        for s in &self.samples {
            let [low, median, high] = s.microseconds;
            let rate = s.gigabytes_per_second();
            let (rate, share) = if s.bytes > 0 {
                (format!("{rate:.0}"), format!("{:.1}%", 100.0 * rate / self.copy()))
            } else {
                Default::default()
            };
            let quartiles = format!("{low:.2} .. {high:.2}");
            println!("{:<34} {:>16} {median:>10.2} {quartiles:>19} {rate:>8} {share:>7}", s.name, s.shape);
        }
        NOTES.iter().for_each(|note| println!("{note}"));
    }

    /// Writes the results as JSON, whole or not at all.
    pub(crate) fn write(&self, file: &Path) -> io::Result<()> {
        let mut beside = file.as_os_str().to_owned();
        beside.push(".part");
        std::fs::write(&beside, self.json())?;
        std::fs::rename(&beside, file)
    }

    fn json(&self) -> String {
        let mut text = format!(
            "{{\n  \"device\": {:?},\n  \"driver\": {},\n  \"l2_bytes\": {},\n  \"complete\": {},\n  \"copy_gb_per_s\": {:.1},\n  \"copies_gb_per_s\": {:.1?},\n  \"notes\": {NOTES:?},\n  \"samples\": [",
            self.device,
            self.driver,
            self.l2_bytes,
            self.complete,
            self.copy(),
            self.copies,
        );
        for (i, s) in self.samples.iter().enumerate() {
            let [low, median, high] = s.microseconds;
            let _ = write!(
                text,
                "{}\n    {{\"name\": {:?}, \"shape\": {:?}, \"us_q1\": {low:.4}, \"us_median\": {median:.4}, \"us_q3\": {high:.4}, \"bytes\": {}, \"runs\": {}}}",
                if i > 0 { "," } else { "" },
                s.name,
                s.shape,
                s.bytes,
                s.runs
            );
        }
        text.push_str("\n  ]\n}\n");
        text
    }
}
