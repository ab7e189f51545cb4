//! The distance to the f64 oracle is within the bounds of docs/operation.md.

use approx::assert_relative_eq;
use axiscap::cpu::{Element, Isa, oracle};
use axiscap::{Bound, CapTable};
use axiscap_testing::literal;
use axiscap_testing::numbers::Random;

use crate::support::{cap, cap_rows, row, wide};

const WIDTHS: [usize; 14] = [1, 3, 16, 111, 511, 576, 1023, 3072, 4096, 8191, 8192, 16384, 16385, 20000];

/// Returns how far rounding to the stored type can move a projection: half a unit of each value, or half of
/// the smallest denormal.
pub(crate) fn storage_bound<E: Element>(row: &[f32], axis: &[f32]) -> f64 {
    // Unit roundoff and half the smallest denormal.
    let (u, denormal) = match (E::VECTOR, E::from_f32(65536.0).to_f32().is_finite()) {
        (4, _) => return 0.0,
        (_, false) => (2f64.powi(-11), 2f64.powi(-25)),
        (_, true) => (2f64.powi(-8), 2f64.powi(-134)),
    };
    let ones: f64 = axis.iter().map(|v| f64::from(v.abs())).sum();
    u / (1.0 - u) * oracle::magnitude(row, axis) + denormal * ones
}

fn projections<E: Element>(isa: Isa) {
    for width in WIDTHS {
        let mut random = Random(width as u64);
        let cap = cap(&mut random, width).with_bound(Bound::NONE);
        let table = CapTable::new([&cap]).unwrap();
        for scale in [1e-3, 1.0, 30.0] {
            let mut rows: Vec<E> = row(&mut random, 5 * width, scale);
            let stats = cap_rows(isa, &table, &mut rows);
            for (h, stat) in rows.chunks(width).zip(stats) {
                let (h, v) = (wide(h), cap.axis().values());
                let error = (f64::from(stat.before) - oracle::projection(&h, v)).abs();
                let bound = oracle::projection_bound(&h, v, E::VECTOR);
                assert!(error <= bound, "{isa}, width {width}: off by {error:e}, allowed {bound:e}");
            }
        }
    }
}

fn capped_projections<E: Element>(isa: Isa) {
    for width in WIDTHS {
        let mut random = Random(width as u64);
        for _ in 0..3 {
            let cap = cap(&mut random, width);
            let table = CapTable::new([&cap]).unwrap();
            let before: Vec<E> = row(&mut random, 5 * width, 1.0);
            let mut after = before.clone();
            let stats = cap_rows(isa, &table, &mut after);
            for ((before, after), stat) in before.chunks(width).zip(after.chunks(width)).zip(stats) {
                if !stat.engaged() {
                    continue;
                }
                let (before, after, v) = (wide(before), wide(after), cap.axis().values());
                let error = (oracle::projection(&after, v) - f64::from(stat.after)).abs();
                let bound = oracle::capped_bound(width, E::VECTOR, stat.after, oracle::norm(&before))
                    + storage_bound::<E>(&after, v);
                assert!(error <= bound, "{isa}, width {width}: off by {error:e}, allowed {bound:e}");
            }
        }
    }
}

/// Each element of the f32 row is within rounding of the f64 row.
fn rows<E: Element>(isa: Isa) {
    for width in WIDTHS {
        let mut random = Random(width as u64);
        let cap = cap(&mut random, width).with_strength(0.75).unwrap();
        let (v, bound) = (cap.axis().values(), cap.bound());
        let table = CapTable::new([&cap]).unwrap();
        let before: Vec<E> = row(&mut random, 2 * width, 1.0);
        let mut after = before.clone();
        cap_rows(isa, &table, &mut after);
        for (before, after) in before.chunks(width).zip(after.chunks(width)) {
            let before = wide(before);
            let exact: Vec<f64> = before.iter().map(|&h| f64::from(h)).collect();
            let exact = oracle::capped(&exact, v, bound.lo(), bound.hi(), cap.strength());
            let u = oracle::UNIT_ROUNDOFF;
            let norm = oracle::norm(&before);
            // The step is off by the projection's error and three roundings.
            let step =
                oracle::projection_bound(&before, v, E::VECTOR) + 3.0 * u * (norm + f64::from(bound.hi()));
            for (i, (exact, after)) in exact.iter().zip(after).enumerate() {
                let own = [v[i]];
                let stored = storage_bound::<E>(&[after.to_f32()], &[1.0]);
                let allowed = step * f64::from(own[0].abs()) + u * exact.abs() * (1.0 + u) + stored + 1e-44;
                let error = (f64::from(after.to_f32()) - exact).abs();
                assert!(error <= allowed, "{isa}, width {width}, {i}: off by {error:e}, allowed {allowed:e}");
            }
        }
    }
}

#[test]
fn rms_norm_of_the_oracle_is_that_of_the_definition() {
    let mut random = Random(4);
    for width in [1, 576, 4096] {
        let h: Vec<f32> = row(&mut random, width, 1.0);
        let weight: Vec<f32> = row(&mut random, width, 1.0);
        let exact: Vec<f64> = h.iter().map(|&h| f64::from(h)).collect();
        let exact = oracle::rms_norm(&exact, &weight, 1e-5);
        let found: Vec<f32> = literal::rms_norm(&h, &weight, 1e-5);
        for (found, exact) in found.iter().zip(&exact) {
            assert_relative_eq!(f64::from(*found), *exact, epsilon = 0.0, max_relative = 1e-5);
        }
    }
}

/// The bounds that the other tests use, as numbers: 14 roundings for 4096 values of f32.
#[test]
fn the_bounds_are_those_of_the_definition() {
    assert_eq!(oracle::UNIT_ROUNDOFF, 2f64.powi(-24));
    let unit = 2f64.powi(-24);
    // Terms of 1 / 64 each.
    let bound = oracle::projection_bound(&[1.0; 4096], &[1.0 / 64.0; 4096], 4);
    assert_relative_eq!(bound, 14.0 * unit / (1.0 - 14.0 * unit) * 64.0, epsilon = 0.0, max_relative = 1e-12);
    assert_relative_eq!(bound, 5.3405806e-5, epsilon = 0.0, max_relative = 1e-7);
    let bound = oracle::capped_bound(4096, 4, -2.0, 10.0);
    assert_relative_eq!(bound, 17.0 * unit * 12.0, epsilon = 0.0, max_relative = 1e-12);
    // Near zero only denormals are left.
    assert_eq!(oracle::capped_bound(4096, 4, 0.0, 0.0), 8192.0 * 2f64.powi(-149));
    assert_eq!(oracle::projection_bound(&[0.0; 4096], &[0.0; 4096], 4), 8192.0 * 2f64.powi(-149));
}

on_every_isa!(projections, capped_projections, rows);
