//! The CPU kernel, measured by criterion with declared bytes: `cargo bench --bench cpu`.
//!
//! `cpu_ratio` measures ratios to the plain loops better, because it runs both in pairs.

mod support;

use std::hint::black_box;

use axiscap::cpu::{Element, Isa, Job, Rows, RowsMut};
use axiscap::{CapTable, Epsilon};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_main};
use half::{bf16, f16};

use crate::support::Aligned;

const WIDTH: usize = 4096;

fn rows_of<E: Element>(values: &mut [E]) -> RowsMut<'_, E> {
    RowsMut::from_slice(values, WIDTH).expect("whole rows")
}

/// Caps in place, with no row engaged and with every row engaged.
fn in_place<E: Element>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    isa: Isa,
    kind: &str,
    rows: usize,
    caps: usize,
) {
    let bytes = (rows * WIDTH * size_of::<E>()) as u64;
    let mut h = Aligned::<E>::noise(rows * WIDTH, 7);
    let table = support::idle(WIDTH, caps);
    group.throughput(Throughput::Bytes(bytes));
    group.bench_function(format!("{kind}/{isa}/{rows} rows/{caps} caps/idle"), |b| {
        b.iter(|| Job::cap(rows_of(&mut h)).run_on(isa, black_box(&table)));
    });
    let tables: [CapTable; 2] = support::engaged(WIDTH, caps);
    let mut turn = 0;
    group.throughput(Throughput::Bytes(2 * bytes));
    group.bench_function(format!("{kind}/{isa}/{rows} rows/{caps} caps/engaged"), |b| {
        b.iter(|| {
            turn += 1;
            Job::cap(rows_of(&mut h)).run_on(isa, black_box(&tables[turn % 2]))
        });
    });
}

fn caps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cap");
    let best = Isa::best();
    for rows in [1, 16, 64, 512] {
        for caps in [1, 2, 5] {
            in_place::<f32>(&mut group, best, "f32", rows, caps);
        }
    }
    for caps in [1, 5] {
        in_place::<f16>(&mut group, best, "f16", 512, caps);
        in_place::<bf16>(&mut group, best, "bf16", 512, caps);
    }
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available() && *isa != best) {
        in_place::<f32>(&mut group, isa, "f32", 64, 1);
    }
    group.finish();
}

fn plain(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plain");
    let best = Isa::best();
    for rows in [1, 16, 64, 512] {
        let bytes = (rows * WIDTH * 4) as u64;
        let mut h = Aligned::<f32>::noise(rows * WIDTH, 7);
        group.throughput(Throughput::Bytes(bytes));
        group.bench_function(format!("f32/{best}/{rows} rows/read-sum"), |b| {
            b.iter(|| support::read_sum(best, black_box(&h)));
        });
        group.throughput(Throughput::Bytes(2 * bytes));
        group.bench_function(format!("f32/{best}/{rows} rows/read-modify-write"), |b| {
            b.iter(|| support::scale(best, black_box(&mut h), black_box(1.0)));
        });
    }
    group.finish();
}

fn fused(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fused");
    let (rows, best) = (512, Isa::best());
    let bytes = (rows * WIDTH * 4) as u64;
    let table = support::idle(WIDTH, 1);
    let (x, residual) = (Aligned::<f32>::noise(rows * WIDTH, 7), Aligned::<f32>::noise(rows * WIDTH, 8));
    let (mut sum, mut out) =
        (Aligned::<f32>::noise(rows * WIDTH, 9), Aligned::<f32>::noise(rows * WIDTH, 10));
    let weight: Vec<f32> = support::noise(WIDTH, 11).collect();
    let epsilon = Epsilon::new(1e-5).expect("a valid epsilon");
    let read = |values| Rows::from_slice(values, WIDTH).expect("whole rows");
    group.throughput(Throughput::Bytes(3 * bytes));
    group.bench_function("add", |b| b.iter(|| support::add(best, black_box(&x), &residual, &mut sum)));
    group.bench_function("add + cap", |b| {
        b.iter(|| Job::add_cap_into(read(&x), read(&residual), rows_of(&mut sum)).run(&table));
    });
    group.throughput(Throughput::Bytes(2 * bytes));
    group.bench_function("cap + norm", |b| {
        b.iter(|| Job::cap(rows_of(&mut sum)).norm(&weight, epsilon, rows_of(&mut out)).run(&table));
    });
    group.throughput(Throughput::Bytes(4 * bytes));
    group.bench_function("add + cap + norm", |b| {
        b.iter(|| {
            let (sum, out) = (rows_of(&mut sum), rows_of(&mut out));
            Job::add_cap_into(read(&x), read(&residual), sum).norm(&weight, epsilon, out).run(&table)
        });
    });
    group.finish();
}

#[allow(missing_docs, reason = "the macro's items have none")]
mod groups {
    use super::{caps, fused, plain};

    criterion::criterion_group!(benches, caps, plain, fused);
}
use groups::benches;
criterion_main!(benches);
