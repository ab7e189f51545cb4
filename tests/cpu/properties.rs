//! What a cap must leave unchanged, and what its result must not depend on.

use axiscap::cpu::{Element, Isa, Job, RowsMut, oracle};
use axiscap::{Bound, Cap, CapTable, Epsilon, RowStat};
use axiscap_testing::numbers::Random;
use bytemuck::Pod;

use crate::oracle::storage_bound;
use crate::support::{assert_same_bytes, axis, cap, cap_rows, row, wide};

const WIDTHS: [usize; 8] = [1, 17, 111, 512, 576, 1023, 4096, 8191];

/// Makes rows of all kinds of values, with zeros of both signs, denormals and NaN payloads among them.
fn all_kinds<E: Element + Pod>(random: &mut Random, width: usize) -> Vec<E> {
    let mut rows: Vec<E> = row(random, 6 * width, 1.0);
    let special = [-0.0, 0.0, 1e-40, -6e-8, f32::MIN_POSITIVE];
    for (i, value) in rows[..width].iter_mut().enumerate() {
        *value = E::from_f32(special[i % special.len()]);
    }
    // A quiet NaN with a payload: the upper bits 0x7fd5 are one in all three types.
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut rows[width..=width]);
    let upper = bytes.len() - 2;
    bytes[upper..].copy_from_slice(&0x7fd5u16.to_le_bytes());
    assert!(rows[width].to_f32().is_nan());
    rows
}

fn inside_the_bounds_nothing_changes<E: Element + Pod>(isa: Isa) {
    for width in WIDTHS {
        let mut random = Random(width as u64);
        let wide_open = Bound::band(-1e30, 1e30).unwrap();
        let caps: Vec<Cap> = [Bound::NONE, wide_open, Bound::floor(-1e30).unwrap()]
            .map(|bound| cap(&mut random, width).with_bound(bound))
            .into();
        let before: Vec<E> = all_kinds(&mut random, width);
        let mut after = before.clone();
        let stats = cap_rows(isa, &CapTable::new(&caps).unwrap(), &mut after);
        assert!(stats.iter().all(|stat| !stat.engaged()));
        assert_same_bytes(&after, &before, &format!("{isa}, width {width}"));
    }
}

fn strength_zero_observes<E: Element + Pod>(isa: Isa) {
    for width in WIDTHS {
        let mut random = Random(width as u64);
        let cap = Cap::new(axis(&mut random, width), Bound::floor(1e6).unwrap()).with_strength(0.0).unwrap();
        let before: Vec<E> = all_kinds(&mut random, width);
        let mut after = before.clone();
        let stats = cap_rows(isa, &CapTable::new([&cap]).unwrap(), &mut after);
        assert_same_bytes(&after, &before, &format!("{isa}, width {width}"));
        assert!(stats.iter().filter(|stat| !stat.non_finite()).all(|stat| stat.engaged()));
        assert!(stats.iter().any(|stat| stat.engaged() && stat.before.to_bits() == stat.after.to_bits()));
    }
}

/// A second application starts within the first one's error of the bound: it moves the projection by no more
/// than that error and its own, and where it does not engage it changes nothing.
fn idempotence<E: Element + Pod>(isa: Isa) {
    for width in WIDTHS {
        let mut random = Random(width as u64);
        let cap = cap(&mut random, width);
        let (table, v) = (CapTable::new([&cap]).unwrap(), cap.axis().values());
        let original: Vec<E> = row(&mut random, 9 * width, 1.0);
        let mut once = original.clone();
        let first = cap_rows(isa, &table, &mut once);
        let mut twice = once.clone();
        let second = cap_rows(isa, &table, &mut twice);
        for r in 0..9 {
            let at = r * width..(r + 1) * width;
            if !second[r].engaged() {
                assert_same_bytes(&twice[at.clone()], &once[at], "a cap that does not engage");
                continue;
            }
            assert!(first[r].engaged());
            let (before, after) = (wide(&original[at.clone()]), wide(&once[at]));
            let allowed = oracle::capped_bound(width, E::VECTOR, first[r].after, oracle::norm(&before))
                + oracle::projection_bound(&after, v, E::VECTOR)
                + storage_bound::<E>(&after, v);
            let moved = f64::from((second[r].after - second[r].before).abs());
            assert!(moved <= allowed, "{isa}, width {width}: {moved:e}, allowed {allowed:e}");
        }
    }
}

/// A direction orthogonal to the axis sees no more than the rounding of the elements.
fn the_orthogonal_part_stays<E: Element + Pod>(isa: Isa) {
    for width in WIDTHS.into_iter().filter(|&width| width > 1) {
        let mut random = Random(width as u64);
        let cap = cap(&mut random, width);
        let v = cap.axis().values();
        let before: Vec<E> = row(&mut random, 5 * width, 1.0);
        let mut after = before.clone();
        let stats = cap_rows(isa, &CapTable::new([&cap]).unwrap(), &mut after);
        let other = axis(&mut random, width);
        let overlap = oracle::projection(other.values(), v);
        let w: Vec<f32> = other
            .values()
            .iter()
            .zip(v)
            .map(|(&w, &v)| (f64::from(w) - overlap * f64::from(v)) as f32)
            .collect();
        let left = oracle::projection(&w, v).abs();
        for ((before, after), stat) in before.chunks(width).zip(after.chunks(width)).zip(stats) {
            let (before, after) = (wide(before), wide(after));
            let moved = (oracle::projection(&after, &w) - oracle::projection(&before, &w)).abs();
            let delta = f64::from(stat.after - stat.before).abs();
            let allowed = 1.01 * oracle::UNIT_ROUNDOFF * oracle::magnitude(&after, &w)
                + 1.01 * delta * left
                + storage_bound::<E>(&after, &w)
                + 1e-14 * oracle::magnitude(&before, &w);
            assert!(moved <= allowed, "{isa}, width {width}: {moved:e}, allowed {allowed:e}");
        }
    }
}

fn the_negated_axis_with_mirrored_bounds_is_the_same_cap<E: Element + Pod>(isa: Isa) {
    for width in WIDTHS {
        let mut random = Random(width as u64);
        let caps: Vec<Cap> = (0..3).map(|_| cap(&mut random, width).with_strength(0.9).unwrap()).collect();
        let negated: Vec<Cap> = caps.iter().map(Cap::negated).collect();
        let mut one: Vec<E> = row(&mut random, 5 * width, 1.0);
        let mut other = one.clone();
        let stats = cap_rows(isa, &CapTable::new(&caps).unwrap(), &mut one);
        let mirrored = cap_rows(isa, &CapTable::new(&negated).unwrap(), &mut other);
        assert_same_bytes(&one, &other, &format!("{isa}, width {width}"));
        for (stat, mirrored) in stats.iter().zip(mirrored) {
            let back = RowStat { before: -mirrored.before, after: -mirrored.after, ..mirrored };
            assert_eq!(*stat, back);
        }
    }
}

/// The rows are in read-only memory. A store would end the process, even of the same bits.
#[test]
fn rows_on_which_no_cap_acts_are_not_stored() {
    const VALUES: usize = 5 * 2100;
    static F32: [f32; VALUES] = [0.25; VALUES];
    static F16: [half::f16; VALUES] = [half::f16::from_f32_const(0.25); VALUES];
    static BF16: [half::bf16; VALUES] = [half::bf16::from_f32_const(0.25); VALUES];
    not_stored(&F32);
    not_stored(&F16);
    not_stored(&BF16);
}

fn not_stored<E: Element>(read_only: &'static [E]) {
    for width in [600, 2100] {
        let mut random = Random(1);
        let (idle, observing) = (cap(&mut random, width).with_bound(Bound::NONE), cap(&mut random, width));
        // Outside its bounds, but of strength 0.
        let observing = observing.with_bound(Bound::floor(1e6).unwrap()).with_strength(0.0).unwrap();
        let tables =
            [CapTable::new([&idle]), CapTable::new([&observing]), CapTable::new([&idle, &observing, &idle])];
        let weight = vec![1.0; width];
        let epsilon = Epsilon::new(1e-5).unwrap();
        for table in tables.map(Result::unwrap) {
            for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
                // Four together and one alone, and fewer than four.
                for count in [5, 3] {
                    // SAFETY: the memory is valid and nothing else writes it. The test checks that the call
                    // does not write it either.
                    let rows =
                        || unsafe { RowsMut::from_raw(read_only.as_ptr().cast_mut(), count, width, width) };
                    Job::cap(rows().unwrap()).run_on(isa, &table).unwrap();
                    let mut normed = vec![E::default(); count * width];
                    let out = RowsMut::from_slice(&mut normed, width).unwrap();
                    Job::cap(rows().unwrap()).norm(&weight, epsilon, out).run_on(isa, &table).unwrap();
                    assert!(normed.iter().all(|y| (y.to_f32() - 1.0).abs() < 0.01));
                }
            }
        }
    }
}

on_every_isa!(
    inside_the_bounds_nothing_changes,
    strength_zero_observes,
    idempotence,
    the_orthogonal_part_stays,
    the_negated_axis_with_mirrored_bounds_is_the_same_cap,
);
