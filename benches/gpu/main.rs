//! The kernels on a GPU, compared with a copy, with the unfused chain, and with the addition and the norm
//! alone. Launches with an index of profiles are compared with launches without one.
//!
//!     cargo bench --bench gpu --features gpu-bench [-- --json FILE]
//!
//! Measurements of bandwidth use sets of buffers in turn, so the L2 cache holds nothing of a run from the
//! previous one. The file is written after each phase and keeps the results of completed phases. Without a
//! GPU the exit status is 3.

mod baselines;
mod harness;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use axiscap::cuda::{Device, DeviceRows, DeviceTable, Job, Overlap, RowProfileBuffer};
use axiscap::{Axis, Bound, Cap, CapTable, Dtype, Epsilon, RowStat};
use baselines::Baselines;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, sys};
use harness::{Pair, Report, Sample, time, time_node, time_node_pair, time_pair, warm_up};

const RUNS: usize = 60;
const NODES: usize = 200;
/// Nodes that each follow a memset.
const COLD_NODES: usize = 20;
/// Nodes of launches with and without an index of profiles.
const INDEX_NODES: usize = 50;

/// Launches whose rows have profile indices: the name, the number of profiles with one cap each, which the
/// rows have in turn, and whether the caps act.
type Indexed = (&'static str, usize, bool);
const INDEXED: [Indexed; 4] = [
    ("cap, none acts, profile 1", 1, false),
    ("cap, all act, profile 1", 1, true),
    ("cap, none acts, 4 profiles", 4, false),
    ("cap, all act, 4 profiles", 4, true),
];
const INDEXED_NODES: [Indexed; 4] = [
    ("node: cap, none acts, profile 1", 1, false),
    ("node: cap, all act, profile 1", 1, true),
    ("node: cap, none acts, 4 profiles", 4, false),
    ("node: cap, all act, 4 profiles", 4, true),
];

struct Bench {
    device: Device,
    stream: Arc<CudaStream>,
    baselines: Baselines,
    report: Report,
    json: Option<PathBuf>,
}

/// Sets of buffers that are used in turn, with the addresses of `h`, `x` and `y` of each.
struct Sets {
    _memory: Vec<[CudaSlice<f32>; 3]>,
    addresses: Vec<[u64; 3]>,
}

impl Sets {
    fn at(&self, turn: usize) -> [u64; 3] {
        self.addresses[turn % self.addresses.len()]
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let json = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => None,
        ["--json", file] => Some(PathBuf::from(file)),
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
    // No events of cudarc between the measured launches.
    // SAFETY: everything below runs on one stream, and is synchronised before memory is freed.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().expect("a stream");
    let l2 =
        context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE).expect("an attribute");
    let info = device.info();
    let report = Report {
        device: info.name.clone(),
        driver: info.driver,
        l2_bytes: u64::try_from(l2).unwrap_or(0),
        ..Report::default()
    };
    let mut bench = Bench { device, stream, baselines: Baselines::load(), report, json };

    type Phase = (&'static str, fn(&mut Bench));
    let phases: [Phase; 7] = [
        ("the copy", |bench| bench.copy("copy", true)),
        ("8192 x 8192", |bench| bench.bytes_bound(8192, 8192)),
        ("8192 x 4096", |bench| bench.bytes_bound(8192, 4096)),
        ("half precision", |bench| bench.halves(8192, 8192)),
        ("nodes", |bench| [4096, 5120, 8192].into_iter().for_each(|width| bench.latency(width))),
        ("the index of profiles", Bench::index),
        ("the copy again", |bench| bench.copy("copy, at the end", false)),
    ];
    let last = phases.len() - 1;
    for (index, (what, phase)) in phases.into_iter().enumerate() {
        phase(&mut bench);
        bench.report.complete = index == last;
        if let Some(file) = &bench.json
            && let Err(error) = bench.report.write(file)
        {
            eprintln!("after {what}: cannot write {}: {error}", file.display());
            return ExitCode::FAILURE;
        }
    }
    bench.report.print();
    ExitCode::SUCCESS
}

/// Returns pseudo-random values. Zeros would make memory look faster.
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

/// Makes `caps` caps that act on every row in every run (a far floor, approached by a millionth per run), or
/// on no row.
fn caps(width: usize, caps: usize, acts: bool) -> Vec<Cap> {
    (0..caps)
        .map(|k| {
            let axis = Axis::from_direction(&values(width, 77 + k as u32)).expect("an axis");
            let bound = if acts { Bound::floor(1e6).expect("a bound") } else { Bound::NONE };
            Cap::new(axis, bound).with_strength(if acts { 1e-9 } else { 1.0 }).expect("a strength")
        })
        .collect()
}

/// Makes a table with one profile of `count` caps.
fn table(width: usize, count: usize, acts: bool) -> CapTable {
    CapTable::new(&caps(width, count, acts)).expect("a table")
}

/// Makes a table with `count` profiles of one cap.
fn table_of_profiles(width: usize, count: usize, acts: bool) -> CapTable {
    let caps = caps(width, count, acts);
    let profiles: Vec<[&Cap; 1]> = caps.iter().map(|cap| [cap]).collect();
    let profiles: Vec<&[&Cap]> = profiles.iter().map(|profile| &profile[..]).collect();
    CapTable::with_profiles(&profiles).expect("a table")
}

fn epsilon() -> Epsilon {
    Epsilon::new(1e-5).expect("a valid epsilon")
}

impl Bench {
    fn add(&mut self, name: &str, shape: [usize; 2], microseconds: [f64; 3], bytes: usize) {
        let shape = format!("{} x {}", shape[0], shape[1]);
        let (name, bytes) = (name.to_owned(), bytes as u64);
        eprintln!("{name} {shape}: {:.2} us", microseconds[1]);
        self.report.samples.push(Sample { name, shape, microseconds, bytes, runs: RUNS, ratios: Vec::new() });
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
        // SAFETY: the buffers live until the stream has been synchronised, and only this stream uses them.
        unsafe { job.launch(table, (&*self.stream).into(), overlap) }.expect("a launch");
    }

    /// Runs a measured job once more, and checks that each of its caps engages on every row, or on none. A row that is
    /// not finite is never written, which looks fast.
    ///
    /// # Panics
    /// If one does not.
    fn check(&self, what: &str, job: &Job, table: &DeviceTable, stats: usize, acts: bool) {
        let bytes = self.stream.alloc_zeros::<u8>(stats * size_of::<RowStat>()).expect("device memory");
        self.launch(&job.stats(bytes.device_ptr(&self.stream).0), table, Overlap::None);
        let found = self.stream.clone_dtoh(&bytes).expect("a copy back");
        let found: Vec<RowStat> = bytemuck::pod_collect_to_vec(&found);
        let wrong = found.iter().find(|stat| stat.engaged() != acts || stat.non_finite());
        assert!(wrong.is_none(), "{what}: {wrong:?}");
    }

    /// Returns the number of buffers of `bytes` bytes that are used in turn. At least four times the size of
    /// the L2 cache passes between two uses of one.
    fn turns(&self, bytes: usize) -> usize {
        1 + (4 * self.report.l2_bytes as usize).div_ceil(bytes).max(1)
    }

    fn sets(&self, elements: usize) -> Sets {
        let first = [1, 2, 3].map(|seed| self.buffer(elements, seed));
        let copy = |slice| self.stream.clone_dtod(slice).expect("device memory");
        let mut memory: Vec<_> = (1..self.turns(elements * 4)).map(|_| first.each_ref().map(copy)).collect();
        memory.push(first);
        let addresses = memory.iter().map(|set| set.each_ref().map(|slice| self.address(slice))).collect();
        Sets { _memory: memory, addresses }
    }

    /// Measures the copy, whose bandwidth is the reference for the others.
    fn copy(&mut self, name: &str, first: bool) {
        let shape = [8192, 8192];
        let elements = shape[0] * shape[1];
        let sets = self.sets(elements);
        let stream = self.stream.clone();
        let copy = |turn| {
            let [_, from, to] = sets.at(turn);
            // SAFETY: both buffers hold `elements` values of 4 bytes.
            let result = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, elements * 4, stream.cu_stream()) };
            assert_eq!(result, sys::CUresult::CUDA_SUCCESS);
        };
        if first {
            // A copy measured while the clocks still rise would make everything after it look faster.
            let mut turn = 0..;
            warm_up(&stream, || turn.next().into_iter().for_each(copy));
        }
        let t = time(&stream, RUNS, copy);
        self.add(name, shape, t, 2 * elements * 4);
        let copies = self.report.samples.last().map(Sample::gigabytes_per_second);
        self.report.copies.extend(copies);
    }

    /// Measures the bandwidth on many rows.
    fn bytes_bound(&mut self, rows: usize, width: usize) {
        let shape = [rows, width];
        let n = rows * width;
        let sets = self.sets(n);
        // A unit axis: the chain diverges with a longer one.
        let axis = Axis::from_direction(&values(width, 6)).expect("an axis");
        let axis = self.stream.clone_htod(axis.values()).expect("device memory");
        let (weight, small) = (self.buffer(width, 4), self.buffer(rows, 5));
        let [weight, small, axis] = [&weight, &small, &axis].map(|s| self.address(s));
        let stream = self.stream.clone();
        let bytes = n * 4;

        let t = time(&stream, RUNS, |turn| {
            let [h, x, _] = sets.at(turn);
            self.baselines.add(&stream, h, h, x, n);
        });
        self.add("add alone", shape, t, 3 * bytes);
        let t = time(&stream, RUNS, |turn| {
            let [h, _, y] = sets.at(turn);
            self.baselines.rms_norm(&stream, y, h, weight, shape);
        });
        self.add("RMSNorm alone", shape, t, 2 * bytes);
        let t = time(&stream, RUNS, |turn| {
            let [h, x, y] = sets.at(turn);
            self.baselines.add(&stream, h, h, x, n);
            self.baselines.rms_norm(&stream, y, h, weight, shape);
        });
        self.add("add, then RMSNorm", shape, t, 5 * bytes);
        let t = time(&stream, RUNS, |turn| {
            let [h, x, y] = sets.at(turn);
            self.baselines.add(&stream, h, h, x, n);
            self.baselines.project(&stream, small, h, axis, shape);
            self.baselines.clamp(&stream, small, small, -1.0, 1.0, rows);
            self.baselines.axpy(&stream, h, small, axis, shape);
            self.baselines.rms_norm(&stream, y, h, weight, shape);
        });
        self.add("unfused chain of five", shape, t, 8 * bytes);

        let rows_at = |address| DeviceRows { dtype: Dtype::F32, address, count: rows, stride: width };
        // name, adds, norms, caps, whether they act, passes over the rows
        let jobs = [
            ("cap, none acts", false, false, 1, false, 1),
            ("cap, all act", false, false, 1, true, 2),
            ("5 caps, none acts", false, false, 5, false, 1),
            ("5 caps, all act", false, false, 5, true, 2),
            ("add + cap", true, false, 1, true, 3),
            ("cap + RMSNorm, none acts", false, true, 1, false, 2),
            ("cap + RMSNorm, all act", false, true, 1, true, 3),
            ("add + cap + RMSNorm", true, true, 1, true, 4),
        ];
        for (name, adds, norms, caps, acts, passes) in jobs {
            let table = self.upload(width, caps, acts);
            let job = |turn| {
                let [h, x, y] = sets.at(turn);
                let h = rows_at(h);
                let job = if adds { Job::add_cap_into(h, rows_at(x), h) } else { Job::cap(h) };
                if norms { job.norm(weight, epsilon(), rows_at(y)) } else { job }
            };
            let t = time(&stream, RUNS, |turn| self.launch(&job(turn), &table, Overlap::None));
            self.add(name, shape, t, passes * bytes);
            self.check(name, &job(0), &table, rows * caps, acts);
        }
    }

    /// Measures the bandwidth in half precision, in place.
    fn halves(&mut self, rows: usize, width: usize) {
        // The time does not depend on the values as long as they are finite. 0x3c00 is 1 in f16 and a small
        // number in bf16.
        let pattern = vec![0x3c00u16; rows * width];
        let stream = self.stream.clone();
        let memory: Vec<_> = (0..self.turns(pattern.len() * 2))
            .map(|_| stream.clone_htod(&pattern).expect("device memory"))
            .collect();
        let addresses: Vec<_> = memory.iter().map(|slice| slice.device_ptr(&stream).0).collect();
        for (name, dtype) in [("cap f16, none acts", Dtype::F16), ("cap bf16, none acts", Dtype::BF16)] {
            let table = self.upload(width, 1, false);
            let job = |turn: usize| {
                let address = addresses[turn % addresses.len()];
                Job::cap(DeviceRows { dtype, address, count: rows, stride: width })
            };
            let t = time(&stream, RUNS, |turn| self.launch(&job(turn), &table, Overlap::None));
            self.add(name, [rows, width], t, rows * width * 2);
            self.check(name, &job(0), &table, rows, false);
        }
    }

    /// Measures one row in a captured graph: the time of one node of a chain.
    fn latency(&mut self, width: usize) {
        let (h, y, weight) = (self.buffer(width, 1), self.buffer(width, 2), self.buffer(width, 3));
        let [h, y, weight] = [&h, &y, &weight].map(|s| self.address(s));
        let stream = self.stream.clone();
        let shape = [1, width];
        let t = time_node(&stream, NODES, RUNS, || self.baselines.empty(&stream));
        self.add("node: empty kernel", shape, t, 0);
        let t = time_node(&stream, NODES, RUNS, || self.baselines.rms_norm(&stream, y, h, weight, shape));
        self.add("node: RMSNorm", shape, t, 0);
        let row_at = |address| DeviceRows { dtype: Dtype::F32, address, count: 1, stride: width };
        let in_place = Job::cap(row_at(h));
        let jobs = [
            ("node: cap, none acts", in_place, 1, false),
            ("node: cap, all act", in_place, 1, true),
            ("node: 5 caps, none acts", in_place, 5, false),
            ("node: 5 caps, all act", in_place, 5, true),
            ("node: cap + RMSNorm", in_place.norm(weight, epsilon(), row_at(y)), 1, true),
        ];
        for (name, job, caps, acts) in jobs {
            let table = self.upload(width, caps, acts);
            for (suffix, overlap) in [("", Overlap::None), (", overlapping", Overlap::Programmatic)] {
                let t = time_node(&stream, NODES, RUNS, || self.launch(&job, &table, overlap));
                self.add(&format!("{name}{suffix}"), shape, t, 0);
            }
            self.check(name, &job, &table, caps, acts);
        }

        // The same with a cold cache, as after other kernels of a model.
        let flush = self.stream.alloc_zeros::<u8>(2 * self.report.l2_bytes as usize).expect("device memory");
        let (flushed, bytes) = (flush.device_ptr(&stream).0, flush.len());
        let flush = || {
            // SAFETY: the buffer has `bytes` bytes.
            let result = unsafe { sys::cuMemsetD8Async(flushed, 0, bytes, stream.cu_stream()) };
            assert_eq!(result, sys::CUresult::CUDA_SUCCESS);
        };
        let [_, alone, _] = time_node(&stream, COLD_NODES, RUNS, flush);
        let t = time_node(&stream, COLD_NODES, RUNS, || {
            flush();
            self.baselines.rms_norm(&stream, y, h, weight, shape);
        });
        self.add("cold: RMSNorm", shape, t.map(|t| t - alone), 0);
        for (name, job, caps, acts) in jobs {
            let table = self.upload(width, caps, acts);
            let t = time_node(&stream, COLD_NODES, RUNS, || {
                flush();
                self.launch(&job, &table, Overlap::None);
            });
            self.add(&name.replace("node:", "cold:"), shape, t.map(|t| t - alone), 0);
        }
    }

    /// Measures what an index of profiles costs: launches in place with one, beside the same launches
    /// without.
    fn index(&mut self) {
        let (rows, width) = (8192, 8192);
        let first = self.buffer(rows * width, 1);
        let copies = 1..self.turns(rows * width * 4);
        let copies: Vec<_> = copies.map(|_| self.stream.clone_dtod(&first).expect("device memory")).collect();
        let addresses: Vec<_> = copies.iter().chain([&first]).map(|slice| self.address(slice)).collect();
        for launches in INDEXED {
            self.indexed(launches, [rows, width], &addresses, None);
        }
        drop((first, copies));
        for (rows, width) in [(1, 8192), (16, 4096), (512, 4096)] {
            let h = self.buffer(rows * width, 1);
            let address = self.address(&h);
            // A single row has one profile.
            for launches in INDEXED_NODES.into_iter().filter(|&(_, profiles, _)| profiles <= rows) {
                self.indexed(launches, [rows, width], &[address], Some(INDEX_NODES));
            }
        }
    }

    /// Measures launches with an index beside launches without, on buffers in turn, or as nodes of a graph on
    /// one buffer. Without an index every row has profile 1.
    fn indexed(&mut self, launches: Indexed, shape: [usize; 2], addresses: &[u64], nodes: Option<usize>) {
        let ((name, profiles, acts), [rows, width]) = (launches, shape);
        let stream = self.stream.clone();
        let table = self.device.upload(&table_of_profiles(width, profiles, acts)).expect("a table");
        let index = RowProfileBuffer::new(&self.device, rows).expect("an index");
        let profile_of = |row: usize| (row % profiles) as u32 + 1;
        let indices: Vec<u32> = (0..rows).map(profile_of).collect();
        index.write(&indices, (&*stream).into()).expect("an update");
        let without = |turn: usize| {
            let address = addresses[turn % addresses.len()];
            Job::cap(DeviceRows { dtype: Dtype::F32, address, count: rows, stride: width })
        };
        let with = |turn| without(turn).row_profiles(index.address());
        let launch = |job: &Job| self.launch(job, &table, Overlap::None);
        let pair = match nodes {
            None => time_pair(&stream, RUNS, |turn| launch(&without(turn)), |turn| launch(&with(turn))),
            Some(nodes) => time_node_pair(&stream, nodes, RUNS, || launch(&without(0)), || launch(&with(0))),
        };
        self.check(name, &with(0), &table, rows, acts);
        assert_eq!(table.faults((&*stream).into()), Ok(None), "{name}");
        let Pair { microseconds, ratios } = pair;
        let passes = if acts { 2 } else { 1 };
        let bytes = if nodes.is_some() { 0 } else { passes * rows * width * 4 };
        self.add(name, shape, microseconds, bytes);
        self.report.samples.last_mut().expect("the sample").ratios = ratios;
    }
}
