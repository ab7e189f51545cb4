//! Random shapes and random bits: every instruction set gives the bits of portable Rust.

use axiscap::cpu::{Element, Isa, Job, Rows, RowsMut};
use axiscap::{Bound, Cap, CapTable, Epsilon, RowStat};
use axiscap_testing::numbers::Random;
use proptest::prelude::*;

use crate::support::{assert_same, axis, bits};

/// The parameters of a batch.
#[derive(Debug, Clone)]
struct Batch {
    seed: u64,
    width: usize,
    rows: usize,
    gap: usize,
    caps: Vec<(f32, f32, f32)>,
    split: usize,
    any_bits: bool,
}

fn batches() -> impl Strategy<Value = Batch> {
    let cap = (-2.0f32..2.0, 0.0f32..3.0, prop_oneof![Just(0.0f32), Just(1.0), 0.0f32..=1.0]);
    let width = prop_oneof![1usize..40, 1usize..1200, 2000usize..2600];
    (any::<u64>(), width, 0usize..10, 0usize..5, prop::collection::vec(cap, 1..5), 0usize..5, any::<bool>())
        .prop_map(|(seed, width, rows, gap, caps, split, any_bits)| Batch {
            seed,
            width,
            rows,
            gap,
            split: split.min(caps.len()),
            caps,
            any_bits,
        })
}

/// The results of the four variants: rows, sums, normed rows; and the statistics.
type Outcome<E> = ([Vec<E>; 6], Vec<RowStat>);

fn outcome<E: Element>(batch: &Batch, isa: Isa) -> Outcome<E> {
    let Batch { width, rows, .. } = *batch;
    let mut random = Random(batch.seed);
    let caps: Vec<Cap> = batch
        .caps
        .iter()
        .map(|&(lo, reach, strength)| {
            let bound = Bound::band(lo, lo + reach).unwrap();
            Cap::new(axis(&mut random, width), bound).with_strength(strength).unwrap()
        })
        .collect();
    let caps: Vec<&Cap> = caps.iter().collect();
    let table = CapTable::with_profiles(&[&caps[..batch.split], &caps[batch.split..]]).unwrap();
    let profiles: Vec<u32> = (0..rows).map(|_| (random.bits() >> 61).saturating_sub(5) as u32).collect();
    let stride = width + batch.gap;
    let mut values = || -> Vec<E> {
        (0..rows * stride)
            .map(|_| {
                let any = f32::from_bits(random.bits() as u32);
                // Random bits nearly always give NaN or infinite projections, so most values are small.
                let small = random.activation(1.0);
                E::from_f32(if batch.any_bits && random.bits().is_multiple_of(50) { any } else { small })
            })
            .collect()
    };
    let (x, residual) = (values(), values());
    let weight: Vec<f32> = (0..width).map(|_| random.signed()).collect();
    let epsilon = Epsilon::new(1e-5).unwrap();
    let mut stats = vec![RowStat::default(); rows * table.max_caps_per_row()];
    let mut out: [Vec<E>; 6] = std::array::from_fn(|_| vec![E::default(); rows * stride]);
    out[0].clone_from(&x);
    out[1].clone_from(&x);
    let [rows_0, rows_1, normed_1, sum_2, sum_3, normed_3] = out.each_mut();
    let to = |values| RowsMut::with_stride(values, rows, width, stride).unwrap();
    let from = |values| Rows::with_stride(values, rows, width, stride).unwrap();
    let jobs = [
        Job::cap(to(rows_0)).stats(&mut stats),
        Job::cap(to(rows_1)).norm(&weight, epsilon, to(normed_1)),
        Job::add_cap_into(from(&x), from(&residual), to(sum_2)),
        Job::add_cap_into(from(&x), from(&residual), to(sum_3)).norm(&weight, epsilon, to(normed_3)),
    ];
    for job in jobs {
        job.row_profiles(&profiles).run_on(isa, &table).unwrap();
    }
    (out, stats)
}

fn check<E: Element>(batch: &Batch) {
    let (expected, expected_stats) = outcome::<E>(batch, Isa::Portable);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        let (found, stats) = outcome::<E>(batch, isa);
        for (found, expected) in found.iter().zip(&expected) {
            assert_same(found, expected, &isa.to_string());
        }
        for (found, expected) in stats.iter().zip(&expected_stats) {
            assert_eq!(
                (bits(found.before), bits(found.after)),
                (bits(expected.before), bits(expected.after))
            );
            assert_eq!(found.flags, expected.flags);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn f32_rows(batch in batches()) {
        check::<f32>(&batch);
    }

    #[test]
    fn f16_rows(batch in batches()) {
        check::<half::f16>(&batch);
    }

    #[test]
    fn bf16_rows(batch in batches()) {
        check::<half::bf16>(&batch);
    }
}
