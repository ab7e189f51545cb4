//! The CPU kernel against plain loops, in interleaved pairs: `cargo bench --bench cpu_ratio > out.json`.
//!
//! Criterion times one function after the other, and on a shared machine the load changes in between. Here
//! each pair runs both sides in succession over the same memory. The result is the median of the pairs'
//! ratios with its 95 % interval (sign test, without an assumption about the distribution).
//!
//! Arguments: `--pairs N` (default 101, at least 6). Any other word keeps only the cases whose name contains
//! it.

mod support;

use std::hint::black_box;
use std::time::Instant;

use axiscap::cpu::{Element, Isa, Job, Rows, RowsMut};
use axiscap::{Axis, Bound, Cap, CapTable, Epsilon};
use axiscap_testing::median::{interval, median, sorted};
use half::{bf16, f16};

use crate::support::Aligned;

/// One comparison.
struct Case<'a> {
    name: String,
    /// The other side of the comparison.
    against: &'static str,
    isa: Isa,
    rows: usize,
    width: usize,
    caps: usize,
    /// Bytes of rows that either side reads and writes.
    bytes: usize,
    /// Runs the other side, e.g. the plain loop.
    plain: Box<dyn FnMut() + 'a>,
    kernel: Box<dyn FnMut() + 'a>,
}

struct Harness {
    pairs: usize,
    filters: Vec<String>,
    printed: bool,
}

impl Harness {
    fn measure(&mut self, mut case: Case<'_>) {
        if !self.filters.is_empty() && !self.filters.iter().any(|f| case.name.contains(f)) {
            return;
        }
        // Short calls are repeated within a sample, to make the cost of reading the clock negligible.
        (case.plain)();
        (case.kernel)();
        let once = seconds(1, &mut case.kernel).max(1e-8);
        let repeats = (2e-4 / once).ceil() as usize;
        let samples: Vec<(f64, f64)> = (0..self.pairs)
            .map(|pair| {
                // The sides take turns in going first.
                if pair % 2 == 0 {
                    let plain = seconds(repeats, &mut case.plain);
                    (plain, seconds(repeats, &mut case.kernel))
                } else {
                    let kernel = seconds(repeats, &mut case.kernel);
                    (seconds(repeats, &mut case.plain), kernel)
                }
            })
            .collect();
        let ratios = sorted(samples.iter().map(|(plain, kernel)| plain / kernel));
        let (low, high) = interval(&ratios).expect("at least 6 pairs");
        let plain = median(&sorted(samples.iter().map(|sample| sample.0)));
        let kernel = median(&sorted(samples.iter().map(|sample| sample.1)));
        let rate = |seconds: f64| case.bytes as f64 / seconds / 1e9;
        println!(
            "{}  {{\"case\": \"{}\", \"against\": \"{}\", \"isa\": \"{}\", \"rows\": {}, \"width\": {}, \"caps\": {}, \
             \"bytes\": {}, \"kernel_us\": {:.3}, \"against_us\": {:.3}, \"kernel_gb_s\": {:.2}, \
             \"against_gb_s\": {:.2}, \"speed_ratio_median\": {:.4}, \"speed_ratio_ci95\": [{low:.4}, {high:.4}], \
             \"pairs\": {}}}",
            if self.printed { ",\n" } else { "" },
            case.name,
            case.against,
            case.isa,
            case.rows,
            case.width,
            case.caps,
            case.bytes,
            kernel * 1e6,
            plain * 1e6,
            rate(kernel),
            rate(plain),
            median(&ratios),
            self.pairs,
        );
        self.printed = true;
    }
}

fn seconds(repeats: usize, work: &mut dyn FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..repeats {
        work();
    }
    start.elapsed().as_secs_f64() / repeats as f64
}

fn cap<E: Element>(table: &CapTable, values: &mut [E], isa: Isa) {
    let rows = RowsMut::from_slice(values, table.width()).expect("whole rows");
    Job::cap(rows).run_on(isa, black_box(table)).expect("rows of the table's width");
}

/// Memory that both sides of a pair use in turn.
#[derive(Clone, Copy)]
struct Memory<E>(*mut E, usize);

impl<E> Memory<E> {
    fn of(values: &mut [E]) -> Self {
        Self(values.as_mut_ptr(), values.len())
    }

    #[allow(clippy::mut_from_ref)]
    fn get<'a>(self) -> &'a mut [E] {
        // SAFETY: the two sides of a pair run one after the other, and each holds the slice for one call
        // only.
        unsafe { std::slice::from_raw_parts_mut(self.0, self.1) }
    }
}

fn in_place(harness: &mut Harness, isa: Isa, rows: usize, width: usize, caps: usize) {
    let mut values = Aligned::<f32>::noise(rows * width, 7);
    let memory = Memory::of(&mut values);
    let bytes = rows * width * 4;
    let case = |name: &str, against, bytes, plain, kernel| Case {
        name: format!("{name} {isa} {rows}x{width} caps={caps}"),
        against,
        isa,
        rows,
        width,
        caps,
        bytes,
        plain,
        kernel,
    };
    let table = support::idle(width, caps);
    harness.measure(case(
        "idle",
        "read-sum",
        bytes,
        Box::new(move || {
            black_box(support::read_sum(isa, memory.get()));
        }),
        Box::new(|| cap(&table, memory.get(), isa)),
    ));
    let tables = support::engaged(width, caps);
    let mut turn = 0;
    harness.measure(case(
        "engaged",
        "read-modify-write",
        2 * bytes,
        Box::new(move || support::scale(isa, memory.get(), black_box(1.0))),
        Box::new(|| {
            turn += 1;
            cap(&tables[turn % 2], memory.get(), isa);
        }),
    ));
}

/// Compares many caps with one cap. The ratio is the time of one cap over theirs.
fn many_caps(harness: &mut Harness, isa: Isa, rows: usize, width: usize, caps: usize) {
    let mut values = Aligned::<f32>::noise(rows * width, 7);
    let memory = Memory::of(&mut values);
    let case = |name: &str, bytes, plain, kernel| Case {
        name: format!("{name} {isa} {rows}x{width} caps={caps}"),
        against: "one cap",
        isa,
        rows,
        width,
        caps,
        bytes,
        plain,
        kernel,
    };
    let (one, many) = (support::idle(width, 1), support::idle(width, caps));
    harness.measure(case(
        "caps-idle",
        rows * width * 4,
        Box::new(|| cap(&one, memory.get(), isa)),
        Box::new(|| cap(&many, memory.get(), isa)),
    ));
    let (one, many) = (support::engaged(width, 1), support::engaged(width, caps));
    let (mut turn, mut other) = (0, 0);
    harness.measure(case(
        "caps-engaged",
        rows * width * 8,
        Box::new(|| {
            turn += 1;
            cap(&one[turn % 2], memory.get(), isa);
        }),
        Box::new(|| {
            other += 1;
            cap(&many[other % 2], memory.get(), isa);
        }),
    ));
}

/// Makes a table of `count` profiles of one cap each, all with this bound and with axes of their own.
fn profiles_of(width: usize, count: usize, bound: Bound) -> CapTable {
    let caps = support::caps(width, count, bound);
    let each: Vec<[&Cap; 1]> = caps.iter().map(|cap| [cap]).collect();
    let each: Vec<&[&Cap]> = each.iter().map(|cap| &cap[..]).collect();
    CapTable::with_profiles(&each).expect("caps of one width")
}

/// Compares rows that name a profile each with rows that all have the first one. The ratio is the time without
/// names over the time with them.
fn indexed(harness: &mut Harness, isa: Isa, rows: usize, width: usize, profiles: usize) {
    let mut values = Aligned::<f32>::noise(rows * width, 7);
    let memory = Memory::of(&mut values);
    let names: Vec<u32> = (0..rows).map(|row| (row % profiles) as u32 + 1).collect();
    let run = |table: &CapTable, row_profiles: Option<&[u32]>| {
        let rows = RowsMut::from_slice(memory.get(), width).expect("whole rows");
        Job { row_profiles, ..Job::cap(rows) }.run_on(isa, black_box(table)).expect("rows");
    };
    let case = |name: &str, bytes, plain, kernel| Case {
        name: format!("{name} {isa} {rows}x{width} profiles={profiles}"),
        against: "rows without a profile each",
        isa,
        rows,
        width,
        caps: 1,
        bytes,
        plain,
        kernel,
    };
    let wide = profiles_of(width, profiles, Bound::band(-1e30, 1e30).expect("a band"));
    harness.measure(case(
        "profiles-idle",
        rows * width * 4,
        Box::new(|| run(&wide, None)),
        Box::new(|| run(&wide, Some(&names))),
    ));
    // Every cap acts on every row, as in `support::engaged`.
    let [up, down] = [5.0, -5.0].map(|p| profiles_of(width, profiles, Bound::band(p, p).expect("a band")));
    let tables = [up, down];
    let (mut turn, mut other) = (0, 0);
    harness.measure(case(
        "profiles-engaged",
        rows * width * 8,
        Box::new(|| {
            turn += 1;
            run(&tables[turn % 2], None);
        }),
        Box::new(|| {
            other += 1;
            run(&tables[other % 2], Some(&names));
        }),
    ));
}

fn half<E: Element>(harness: &mut Harness, kind: &str, isa: Isa, rows: usize, width: usize, caps: usize) {
    let mut values = Aligned::<E>::noise(rows * width, 7);
    let memory = Memory::of(&mut values);
    let bytes = rows * width * 2;
    let case = |name: &str, against, bytes, plain, kernel| Case {
        name: format!("{name}-{kind} {isa} {rows}x{width} caps={caps}"),
        against,
        isa,
        rows,
        width,
        caps,
        bytes,
        plain,
        kernel,
    };
    // The plain loops work on as many bytes of f32.
    let mut plain = Aligned::<f32>::noise(rows * width / 2, 7);
    let plain = Memory::of(&mut plain);
    let table = support::idle(width, caps);
    harness.measure(case(
        "idle",
        "read-sum",
        bytes,
        Box::new(move || {
            black_box(support::read_sum(isa, plain.get()));
        }),
        Box::new(|| cap(&table, memory.get(), isa)),
    ));
    let tables = support::engaged(width, caps);
    let mut turn = 0;
    harness.measure(case(
        "engaged",
        "read-modify-write",
        2 * bytes,
        Box::new(move || support::scale(isa, plain.get(), black_box(1.0))),
        Box::new(|| {
            turn += 1;
            cap(&tables[turn % 2], memory.get(), isa);
        }),
    ));
}

fn fused(harness: &mut Harness, isa: Isa, rows: usize, width: usize) {
    let x = Aligned::<f32>::noise(rows * width, 7);
    let residual = Aligned::<f32>::noise(rows * width, 8);
    let weight: Vec<f32> = support::noise(width, 9).collect();
    let mut sum = Aligned::<f32>::noise(rows * width, 10);
    let mut out = Aligned::<f32>::noise(rows * width, 11);
    let (sum, out) = (Memory::of(&mut sum), Memory::of(&mut out));
    let bytes = rows * width * 4;
    let case = |name: &str, against, bytes, plain, kernel| Case {
        name: format!("{name} {isa} {rows}x{width} caps=1"),
        against,
        isa,
        rows,
        width,
        caps: 1,
        bytes,
        plain,
        kernel,
    };
    let rows_of = |values| Rows::from_slice(values, width).expect("whole rows");
    let to = |memory: Memory<f32>| RowsMut::from_slice(memory.get(), width).expect("whole rows");
    let epsilon = Epsilon::new(1e-5).expect("a valid epsilon");
    let idle = support::idle(width, 1);
    let add_cap = |table: &CapTable| {
        Job::add_cap_into(rows_of(&x), rows_of(&residual), to(sum)).run_on(isa, table).expect("rows");
    };
    harness.measure(case(
        "add-cap",
        "add",
        3 * bytes,
        Box::new(|| support::add(isa, &x, &residual, sum.get())),
        Box::new(|| add_cap(&idle)),
    ));
    let norm_alone = CapTable::new(&[Cap::new(
        Axis::from_direction(&weight).expect("noise has a direction"),
        Bound::NONE,
    )])
    .expect("a table");
    // Profile 0 has no cap, so the same code gives the norm alone.
    let uncapped = vec![0u32; rows];
    let cap_norm = |table: &CapTable, row_profiles: Option<&[u32]>| {
        let job = Job::cap(to(sum)).norm(&weight, epsilon, to(out));
        Job { row_profiles, ..job }.run_on(isa, table).expect("rows");
    };
    harness.measure(case(
        "cap-norm",
        "norm",
        2 * bytes,
        Box::new(|| cap_norm(&norm_alone, Some(&uncapped))),
        Box::new(|| cap_norm(&idle, None)),
    ));
    harness.measure(case(
        "add-cap-norm",
        "add-cap, then cap-norm without a cap",
        4 * bytes,
        Box::new(|| {
            add_cap(&idle);
            cap_norm(&norm_alone, Some(&uncapped));
        }),
        Box::new(|| {
            let (x, residual) = (rows_of(&x), rows_of(&residual));
            let job = Job::add_cap_into(x, residual, to(sum)).norm(&weight, epsilon, to(out));
            job.run_on(isa, &idle).expect("rows");
        }),
    ));
}

fn main() {
    let mut harness = Harness { pairs: 101, filters: Vec::new(), printed: false };
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    while let Some(argument) = arguments.next() {
        if argument == "--pairs" {
            let given = arguments.next().and_then(|n| n.parse().ok());
            harness.pairs = given.filter(|&n| n >= 6).unwrap_or_else(|| {
                eprintln!("--pairs needs a number of pairs, at least 6, e.g. --pairs 101");
                std::process::exit(2);
            });
        } else {
            harness.filters.push(argument);
        }
    }
    let best = Isa::best();
    println!("[");
    for isa in Isa::ALL.into_iter().rev().filter(|isa| isa.available() && *isa != Isa::Portable) {
        in_place(&mut harness, isa, 512, 4096, 1);
    }
    for (rows, width) in [(1, 4096), (16, 4096), (64, 4096), (512, 576), (512, 8192), (16384, 4096)] {
        in_place(&mut harness, best, rows, width, 1);
    }
    for (rows, caps) in [(1, 5), (16, 5), (512, 2), (512, 5), (16384, 2), (16384, 5)] {
        many_caps(&mut harness, best, rows, 4096, caps);
    }
    for (rows, profiles) in [(1, 1), (16, 1), (16, 4), (512, 1), (512, 4), (16384, 1), (16384, 4)] {
        indexed(&mut harness, best, rows, 4096, profiles);
    }
    for caps in [1, 5] {
        half::<f16>(&mut harness, "f16", best, 512, 4096, caps);
        half::<bf16>(&mut harness, "bf16", best, 512, 4096, caps);
    }
    fused(&mut harness, best, 512, 4096);
    println!("\n]");
}
