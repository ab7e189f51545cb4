//! Timing on a stream by events, and results as a table and as JSON.

use std::fmt::Write as _;
use std::sync::Arc;

use cudarc::driver::{CudaStream, sys};

/// One measurement.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) shape: String,
    /// Median, and the quartiles: what half of the runs lie within.
    pub(crate) microseconds: [f64; 3],
    /// Bytes that must move at least; 0 where latency is measured.
    pub(crate) bytes: u64,
    pub(crate) runs: usize,
}

impl Sample {
    pub(crate) fn gigabytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.microseconds[1] / 1e3
    }
}

/// Times `work` on a stream: `runs` times after warming up, each between two events. `work` is told its turn, so
/// that it can take other buffers each time.
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

/// A graph of `nodes` equal nodes, and the time of one of them.
pub(crate) fn time_node(
    stream: &Arc<CudaStream>,
    nodes: usize,
    runs: usize,
    mut node: impl FnMut(),
) -> [f64; 3] {
    stream.synchronize().expect("an idle stream");
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("a capture");
    (0..nodes).for_each(|_| node());
    let flags = sys::CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).expect("a graph").expect("a graph with nodes");
    graph.upload().expect("an upload");
    time(stream, runs, |_| graph.launch().expect("a replay")).map(|t| t / nodes as f64)
}

/// Prints a table, and the share of the copy's bandwidth where bytes count.
pub(crate) fn print(samples: &[Sample], copy: f64) {
    println!("{:<34} {:>16} {:>10} {:>19} {:>8} {:>7}", "what", "shape", "us", "quartiles", "GB/s", "copy");
    for s in samples {
        let [low, median, high] = s.microseconds;
        let rate = s.gigabytes_per_second();
        let (rate, share) = if s.bytes > 0 {
            (format!("{rate:.0}"), format!("{:.1}%", 100.0 * rate / copy))
        } else {
            Default::default()
        };
        let quartiles = format!("{low:.2} .. {high:.2}");
        println!("{:<34} {:>16} {median:>10.2} {quartiles:>19} {rate:>8} {share:>7}", s.name, s.shape);
    }
}

/// The samples as JSON, `{"device": ..., "copy_gb_per_s": ..., "samples": [...]}`.
pub(crate) fn json(device: &str, driver: i32, samples: &[Sample], copy: f64) -> String {
    let mut text = format!(
        "{{\n  \"device\": {device:?},\n  \"driver\": {driver},\n  \"copy_gb_per_s\": {copy:.1},\n  \"samples\": ["
    );
    for (i, s) in samples.iter().enumerate() {
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
