//! Timing on a stream by events, and results as a table and as JSON.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaGraph, CudaStream, sys};

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
    /// Each run's time over the time of other work in the same run. Empty if there was no other work.
    pub(crate) ratios: Vec<f64>,
}

impl Sample {
    pub(crate) fn gigabytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.microseconds[1] / 1e3
    }

    /// Returns the median of the ratios, if there are any.
    pub(crate) fn ratio(&self) -> Option<f64> {
        (!self.ratios.is_empty()).then(|| quartiles(self.ratios.clone())[1])
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
    quartiles(
        pairs.iter().map(|(start, end)| f64::from(start.elapsed_ms(end).expect("a time")) * 1e3).collect(),
    )
}

/// Two kinds of work, timed beside each other.
pub(crate) struct Pair {
    /// First quartile, median and third quartile of the second kind, in microseconds.
    pub(crate) microseconds: [f64; 3],
    /// The second kind's time over the first's, one value per run.
    pub(crate) ratios: Vec<f64>,
}

/// Times two kinds of work beside each other. Each run has the order first, second, second, first, so that
/// clocks which rise or fall, and two buffers used in turn, affect both alike. The argument of the work is
/// its turn.
pub(crate) fn time_pair(
    stream: &Arc<CudaStream>,
    runs: usize,
    mut first: impl FnMut(usize),
    mut second: impl FnMut(usize),
) -> Pair {
    let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let event = || stream.record_event(flags).expect("an event");
    let mut run = |turn: usize| {
        let start = event();
        first(turn);
        let after_first = event();
        second(turn + 1);
        let between = event();
        second(turn + 2);
        let after_second = event();
        first(turn + 3);
        [start, after_first, between, after_second, event()]
    };
    for turn in 0..runs.div_ceil(5) {
        run(4 * turn);
    }
    let events: Vec<_> = (0..runs).map(|turn| run(4 * turn)).collect();
    stream.synchronize().expect("the work ran");
    let (mut times, mut ratios) = (Vec::new(), Vec::new());
    for marks in &events {
        let elapsed =
            |from: usize| f64::from(marks[from].elapsed_ms(&marks[from + 1]).expect("a time")) * 1e3;
        let (first, second) = (elapsed(0) + elapsed(3), elapsed(1) + elapsed(2));
        times.push(second / 2.0);
        ratios.push(second / first);
    }
    Pair { microseconds: quartiles(times), ratios }
}

/// Returns first quartile, median and third quartile.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
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
pub(crate) fn time_node(stream: &Arc<CudaStream>, nodes: usize, runs: usize, node: impl FnMut()) -> [f64; 3] {
    let graph = graph(stream, nodes, node);
    time(stream, runs, |_| graph.launch().expect("a replay")).map(|t| t / nodes as f64)
}

/// Times one node of each of two graphs of `nodes` equal nodes, beside each other.
pub(crate) fn time_node_pair(
    stream: &Arc<CudaStream>,
    nodes: usize,
    runs: usize,
    first: impl FnMut(),
    second: impl FnMut(),
) -> Pair {
    let [first, second] = [graph(stream, nodes, first), graph(stream, nodes, second)];
    let replay = |graph: &CudaGraph| graph.launch().expect("a replay");
    let Pair { microseconds, ratios } = time_pair(stream, runs, |_| replay(&first), |_| replay(&second));
    Pair { microseconds: microseconds.map(|t| t / nodes as f64), ratios }
}

/// Captures a graph of `nodes` equal nodes.
fn graph(stream: &Arc<CudaStream>, nodes: usize, mut node: impl FnMut()) -> CudaGraph {
    // A kernel may be loaded at its first launch, which would break a capture.
    node();
    stream.synchronize().expect("an idle stream");
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("a capture");
    (0..nodes).for_each(|_| node());
    let flags = sys::CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).expect("a graph").expect("a graph with nodes");
    graph.upload().expect("an upload");
    graph
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
const NOTES: [&str; 4] = [
    "bytes: sets of buffers are used in turn; at least four times the size of the L2 cache passes between two uses of one",
    "node: every node of the graph works on the same row, axes and weight, which are in cache",
    "cold: the same after a memset of twice the size of the L2 cache in the same graph; the time of the memset alone is subtracted; its dirty lines are still to be written back",
    "ratio: a launch whose rows have profile indices, over the same launch without; each run has both twice, in the order without, with, with, without",
];

impl Report {
    fn copy(&self) -> f64 {
        self.copies.iter().copied().fold(0.0, f64::max)
    }

    /// Prints a table, with the share of the copy's bandwidth for measurements of bandwidth.
    pub(crate) fn print(&self) {
        println!("{}, driver for CUDA {}", self.device, self.driver);
        println!(
            "{:<34} {:>16} {:>10} {:>19} {:>8} {:>7} {:>7}",
            "what", "shape", "us", "quartiles", "GB/s", "copy", "ratio"
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
            let ratio = s.ratio().map_or_else(String::new, |ratio| format!("{ratio:.4}"));
            let line = format!(
                "{:<34} {:>16} {median:>10.2} {quartiles:>19} {rate:>8} {share:>7} {ratio:>7}",
                s.name, s.shape
            );
            println!("{}", line.trim_end());
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
            let ratios =
                if s.ratios.is_empty() { String::new() } else { format!(", \"ratios\": {:.5?}", s.ratios) };
            let _ = write!(
                text,
                "{}\n    {{\"name\": {:?}, \"shape\": {:?}, \"us_q1\": {low:.4}, \"us_median\": {median:.4}, \"us_q3\": {high:.4}, \"bytes\": {}, \"runs\": {}{ratios}}}",
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
