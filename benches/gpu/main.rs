//! The kernels on a GPU against a copy, against the unfused chain, and against the addition and the norm alone.
//!
//!     cargo bench --bench gpu --features gpu-bench [-- --json FILE]
//!
//! Device memory is flushed through by size: every buffer set is larger than any L2, or sets take turns. Without a
//! GPU it says so and exits with 3.

mod baselines;
mod harness;

use std::process::ExitCode;
use std::sync::Arc;

use axiscap::cuda::{Device, DeviceNorm, DeviceRows, DeviceTable, Dtype, Job, Overlap};
use axiscap::{Axis, Bound, Cap, CapTable};
use baselines::Baselines;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use harness::{Sample, time, time_node};

const RUNS: usize = 60;
const NODES: usize = 200;

struct Bench {
    device: Device,
    stream: Arc<CudaStream>,
    baselines: Baselines,
    samples: Vec<Sample>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let json = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => None,
        ["--json", file] => Some(file),
        _ => {
            eprintln!("usage: gpu [--json FILE]");
            return ExitCode::from(2);
        }
    };
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(error) => {
            eprintln!("nothing was measured: {error}");
            return ExitCode::from(3);
        }
    };
    let context = device.context().clone();
    context.bind_to_thread().expect("a context");
    // One stream and no events of cudarc's own between the measured launches.
    // SAFETY: everything below runs on one stream and is synchronised before anything is freed.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().expect("a stream");
    let mut bench = Bench { device, stream, baselines: Baselines::load(), samples: Vec::new() };

    let copy = bench.bytes_bound(8192, 8192);
    bench.bytes_bound(8192, 4096);
    bench.halves(8192, 8192);
    for width in [4096, 5120, 8192] {
        bench.latency(width);
    }
    let info = bench.device.info();
    println!("{}, driver for CUDA {}", info.name, info.driver);
    harness::print(&bench.samples, copy);
    if let Some(file) = json {
        let text = harness::json(&info.name, info.driver, &bench.samples, copy);
        if let Err(error) = std::fs::write(file, text) {
            eprintln!("cannot write {file}: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Pseudo-random values: zeros would flatter the memory system.
fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// `caps` caps that act on every row every time (a far floor, approached by a millionth per run), or on none.
fn table(width: usize, caps: usize, acts: bool) -> CapTable {
    let caps: Vec<Cap> = (0..caps)
        .map(|k| {
            let axis = Axis::from_direction(&values(width, 77 + k as u32)).expect("an axis");
            let bound = if acts { Bound::floor(1e6).expect("a bound") } else { Bound::NONE };
            Cap::new(axis, bound).with_strength(if acts { 1e-9 } else { 1.0 }).expect("a strength")
        })
        .collect();
    CapTable::new(&caps).expect("a table")
}

impl Bench {
    fn add(&mut self, name: &str, shape: [usize; 2], microseconds: [f64; 3], bytes: usize) {
        let shape = format!("{} x {}", shape[0], shape[1]);
        let (name, bytes) = (name.to_owned(), bytes as u64);
        eprintln!("{name} {shape}: {:.2} us", microseconds[1]);
        self.samples.push(Sample { name, shape, microseconds, bytes, runs: RUNS });
    }

    fn buffer(&self, elements: usize, seed: u32) -> CudaSlice<f32> {
        self.stream.clone_htod(&values(elements, seed)).expect("device memory")
    }

    fn address(&self, slice: &CudaSlice<f32>) -> u64 {
        slice.device_ptr(&self.stream).0
    }

    fn upload(&self, width: usize, caps: usize, acts: bool) -> DeviceTable {
        self.device.upload(&table(width, caps, acts)).expect("a table")
    }

    fn launch(&self, job: &Job, table: &DeviceTable, overlap: Overlap) {
        // SAFETY: the buffers live until the stream has been synchronised.
        unsafe { self.device.launch(job, table, (&*self.stream).into(), overlap) }.expect("a launch");
    }

    /// Many rows: bytes over time. Returns the copy's GB/s.
    fn bytes_bound(&mut self, rows: usize, width: usize) -> f64 {
        let shape = [rows, width];
        let n = rows * width;
        let (h, x, y) = (self.buffer(n, 1), self.buffer(n, 2), self.buffer(n, 3));
        let weight = self.buffer(width, 4);
        let small = self.buffer(rows, 5);
        let axis = self.buffer(width, 6);
        let [h, x, y, weight, small, axis] = [&h, &x, &y, &weight, &small, &axis].map(|s| self.address(s));
        let stream = self.stream.clone();
        let bytes = n * 4;

        let t = time(&stream, RUNS, |_| {
            // SAFETY: both buffers hold that many bytes.
            let result =
                unsafe { cudarc::driver::sys::cuMemcpyDtoDAsync_v2(y, x, bytes, stream.cu_stream()) };
            assert_eq!(result, cudarc::driver::sys::CUresult::CUDA_SUCCESS);
        });
        self.add("copy", shape, t, 2 * bytes);
        let copy = self.samples[self.samples.len() - 1].gigabytes_per_second();
        let t = time(&stream, RUNS, |_| self.baselines.add(&stream, h, h, x, n));
        self.add("add alone", shape, t, 3 * bytes);
        let t = time(&stream, RUNS, |_| self.baselines.rms_norm(&stream, y, h, weight, shape));
        self.add("RMSNorm alone", shape, t, 2 * bytes);
        let t = time(&stream, RUNS, |_| {
            self.baselines.add(&stream, h, h, x, n);
            self.baselines.rms_norm(&stream, y, h, weight, shape);
        });
        self.add("add, then RMSNorm", shape, t, 5 * bytes);
        let t = time(&stream, RUNS, |_| {
            self.baselines.add(&stream, h, h, x, n);
            self.baselines.project(&stream, small, h, axis, shape);
            self.baselines.clamp(&stream, small, small, -1.0, 1.0, rows);
            self.baselines.axpy(&stream, h, small, axis, shape);
            self.baselines.rms_norm(&stream, y, h, weight, shape);
        });
        self.add("unfused chain of five", shape, t, 8 * bytes);

        let rows_at = |address| DeviceRows { address, stride: width };
        let in_place = Job::in_place(Dtype::F32, rows_at(h), rows);
        let add = Job { add: Some([rows_at(h), rows_at(x)]), ..in_place };
        let norm = Some(DeviceNorm { weight, eps: 1e-5, out: rows_at(y) });
        let jobs = [
            ("cap, none acts", in_place, 1, false, 1),
            ("cap, all act", in_place, 1, true, 2),
            ("5 caps, none acts", in_place, 5, false, 1),
            ("5 caps, all act", in_place, 5, true, 2),
            ("add + cap", add, 1, true, 3),
            ("cap + RMSNorm, none acts", Job { norm, ..in_place }, 1, false, 2),
            ("cap + RMSNorm, all act", Job { norm, ..in_place }, 1, true, 3),
            ("add + cap + RMSNorm", Job { norm, ..add }, 1, true, 4),
        ];
        for (name, job, caps, acts, passes) in jobs {
            let table = self.upload(width, caps, acts);
            let t = time(&stream, RUNS, |_| self.launch(&job, &table, Overlap::None));
            self.add(name, shape, t, passes * bytes);
        }
        copy
    }

    /// The same in half precision, in place.
    fn halves(&mut self, rows: usize, width: usize) {
        // Half as many f32 are as many bytes; which bits they are does not matter for the time, as long as they are
        // finite: the pattern 0x3c00 is 1 in f16 and a small number in bf16.
        let pattern = vec![0x3c00u16; rows * width];
        let memory = self.stream.clone_htod(&pattern).expect("device memory");
        let address = memory.device_ptr(&self.stream).0;
        let stream = self.stream.clone();
        for (name, dtype) in [("cap f16, none acts", Dtype::F16), ("cap bf16, none acts", Dtype::BF16)] {
            let table = self.upload(width, 1, false);
            let job = Job::in_place(dtype, DeviceRows { address, stride: width }, rows);
            let t = time(&stream, RUNS, |_| self.launch(&job, &table, Overlap::None));
            self.add(name, [rows, width], t, rows * width * 2);
        }
    }

    /// One row in a captured graph: the time of one node of a chain.
    fn latency(&mut self, width: usize) {
        let (h, y, weight) = (self.buffer(width, 1), self.buffer(width, 2), self.buffer(width, 3));
        let [h, y, weight] = [&h, &y, &weight].map(|s| self.address(s));
        let stream = self.stream.clone();
        let shape = [1, width];
        let t = time_node(&stream, NODES, RUNS, || self.baselines.empty(&stream));
        self.add("node: empty kernel", shape, t, 0);
        let t = time_node(&stream, NODES, RUNS, || self.baselines.rms_norm(&stream, y, h, weight, shape));
        self.add("node: RMSNorm", shape, t, 0);
        let in_place = Job::in_place(Dtype::F32, DeviceRows { address: h, stride: width }, 1);
        let norm = Some(DeviceNorm { weight, eps: 1e-5, out: DeviceRows { address: y, stride: width } });
        let jobs = [
            ("node: cap, none acts", in_place, 1, false),
            ("node: cap, all act", in_place, 1, true),
            ("node: 5 caps, none acts", in_place, 5, false),
            ("node: 5 caps, all act", in_place, 5, true),
            ("node: cap + RMSNorm", Job { norm, ..in_place }, 1, true),
        ];
        for (name, job, caps, acts) in jobs {
            let table = self.upload(width, caps, acts);
            for (suffix, overlap) in [("", Overlap::None), (", overlapping", Overlap::Programmatic)] {
                let t = time_node(&stream, NODES, RUNS, || self.launch(&job, &table, overlap));
                self.add(&format!("{name}{suffix}"), shape, t, 0);
            }
        }
    }
}
