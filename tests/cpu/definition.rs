//! The bits of docs/operation.md, for every variant, element type, instruction set and shape.

use axiscap::cpu::{Element, Isa, Job, Rows, RowsMut};
use axiscap::{Bound, Cap, CapParams, CapTable, Epsilon, RowStat};
use axiscap_testing::literal;
use axiscap_testing::numbers::Random;

use crate::support::{assert_same, bits, cap, row};

/// Widths around every edge of the lane map: registers, segments, threads, slots; and widths of models.
const WIDTHS: [usize; 24] = [
    1, 2, 3, 15, 16, 17, 111, 127, 511, 512, 513, 576, 1000, 1023, 2048, 3072, 3584, 4096, 5120, 8191, 8192,
    16384, 16385, 20000,
];

/// The definition's result for a batch.
struct Expected<E> {
    /// The rows, or their sum, after the caps.
    rows: Vec<E>,
    normed: Vec<E>,
    stats: Vec<RowStat>,
}

fn expected<E: Element>(
    x: &[E],
    residual: Option<&[E]>,
    caps: &[Cap],
    weight: &[f32],
    eps: f32,
) -> Expected<E> {
    let width = caps[0].axis().width();
    let caps: Vec<(&[f32], CapParams)> = caps.iter().map(|c| (c.axis().values(), c.into())).collect();
    let mut result = Expected { rows: x.to_vec(), normed: Vec::new(), stats: Vec::new() };
    for (r, x) in x.chunks(width).enumerate() {
        let mut h: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
        if let Some(residual) = residual {
            for (h, residual) in h.iter_mut().zip(&residual[r * width..]) {
                *h += residual.to_f32();
            }
        }
        let (stats, acted) = literal::caps(&mut h, &caps, E::VECTOR);
        result.stats.extend(stats);
        if acted || residual.is_some() {
            for (to, &h) in result.rows[r * width..].iter_mut().zip(&h) {
                *to = E::from_f32(h);
            }
        }
        result.normed.extend(literal::rms_norm::<E>(&h, weight, eps));
    }
    result
}

fn assert_stats(found: &[RowStat], expected: &[RowStat], what: &str) {
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let same = bits(f.before) == bits(e.before) && bits(f.after) == bits(e.after) && f.flags == e.flags;
        assert!(same, "{what}: statistic {i} is {f:?}, expected {e:?}");
    }
}

fn rows_of<E: Element>(values: &mut [E], width: usize) -> RowsMut<'_, E> {
    RowsMut::from_slice(values, width).unwrap()
}

/// Checks all variants on one batch.
fn check_batch<E: Element>(isa: Isa, x: &[E], residual: &[E], caps: &[Cap], what: &str) {
    let width = caps[0].axis().width();
    let rows = x.len() / width;
    let table = CapTable::new(caps).unwrap();
    let mut random = Random(width as u64);
    let weight: Vec<f32> = (0..width).map(|_| 1.0 + random.signed()).collect();
    let epsilon = Epsilon::new(1e-5).unwrap();
    let mut stats = vec![RowStat::default(); rows * caps.len()];
    let mut out = vec![E::default(); x.len()];

    let alone = expected(x, None, caps, &weight, 1e-5);
    let mut h = x.to_vec();
    Job::cap(rows_of(&mut h, width)).stats(&mut stats).run_on(isa, &table).unwrap();
    assert_same(&h, &alone.rows, &format!("{what}, in place"));
    assert_stats(&stats, &alone.stats, what);

    let mut h = x.to_vec();
    let job = Job::cap(rows_of(&mut h, width)).norm(&weight, epsilon, rows_of(&mut out, width));
    job.stats(&mut stats).run_on(isa, &table).unwrap();
    assert_same(&h, &alone.rows, &format!("{what}, cap + norm: rows"));
    assert_same(&out, &alone.normed, &format!("{what}, cap + norm: normed"));
    assert_stats(&stats, &alone.stats, what);

    let summed = expected(x, Some(residual), caps, &weight, 1e-5);
    let (x, residual) = (Rows::from_slice(x, width).unwrap(), Rows::from_slice(residual, width).unwrap());
    let job = Job::add_cap_into(x, residual, rows_of(&mut h, width));
    job.stats(&mut stats).run_on(isa, &table).unwrap();
    assert_same(&h, &summed.rows, &format!("{what}, add + cap"));
    assert_stats(&stats, &summed.stats, what);

    h.fill(E::default());
    let job = Job::add_cap_into(x, residual, rows_of(&mut h, width));
    let job = job.norm(&weight, epsilon, rows_of(&mut out, width));
    job.stats(&mut stats).run_on(isa, &table).unwrap();
    assert_same(&h, &summed.rows, &format!("{what}, add + cap + norm: rows"));
    assert_same(&out, &summed.normed, &format!("{what}, add + cap + norm: normed"));
    assert_stats(&stats, &summed.stats, what);
}

fn every_width<E: Element>(isa: Isa) {
    for width in WIDTHS {
        let mut random = Random(0x5eed + width as u64);
        // Five rows are four together and one alone.
        let rows = if width < 5000 || isa != Isa::Portable { 5 } else { 1 };
        let x: Vec<E> = row(&mut random, rows * width, 1.0);
        let residual: Vec<E> = row(&mut random, rows * width, 2.0);
        for count in [1, 2, 5] {
            let caps: Vec<Cap> = (0..count).map(|_| cap(&mut random, width)).collect();
            check_batch(isa, &x, &residual, &caps, &format!("{isa}, width {width}, {count} caps"));
        }
    }
}

/// Rows with NaN, infinities and denormals, and rows whose sums overflow.
fn unusual_values<E: Element>(isa: Isa) {
    for width in [1, 16, 130, 512, 700] {
        let mut random = Random(99);
        let caps = [cap(&mut random, width), cap(&mut random, width)];
        let ordinary: Vec<E> = row(&mut random, width, 1.0);
        let specials = [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::MAX,
            f32::MIN,
            65504.0,
            f32::MIN_POSITIVE,
            f32::from_bits(1),
            -f32::from_bits(0x0012_3456),
            6e-8,
            -0.0,
        ];
        // Alone in an ordinary row at either end, and everywhere.
        let mut x: Vec<E> = Vec::new();
        for special in specials.map(E::from_f32) {
            for at in [0, width - 1] {
                x.extend(&ordinary);
                let start = x.len() - width;
                x[start + at] = special;
            }
            x.extend(std::iter::repeat_n(special, width));
        }
        // A sum with inf - inf.
        x.extend((0..width).map(|i| E::from_f32(if i % 2 == 0 { f32::INFINITY } else { f32::NEG_INFINITY })));
        let residual: Vec<E> = row(&mut random, x.len(), 1e-3);
        check_batch(isa, &x, &residual, &caps, &format!("{isa}, width {width}, unusual values"));
    }
}

/// A step that overflows, one that underflows to zero, and bounds beyond every projection.
fn unusual_bounds<E: Element>(isa: Isa) {
    let width = 600;
    let mut random = Random(7);
    let x: Vec<E> = row(&mut random, 6 * width, 1000.0);
    let bounds = [
        Bound::floor(f32::MAX).unwrap(),
        Bound::ceiling(f32::MIN).unwrap(),
        Bound::band(0.0, 0.0).unwrap(),
        Bound::band(f32::from_bits(1), f32::from_bits(1)).unwrap(),
        Bound::NONE,
    ];
    for bound in bounds {
        for strength in [0.0, f32::from_bits(1), 0.3, 1.0] {
            let caps = [
                cap(&mut random, width).with_bound(bound).with_strength(strength).unwrap(),
                cap(&mut random, width).with_strength(0.5).unwrap(),
            ];
            check_batch(isa, &x, &x, &caps, &format!("{isa}, {bound}, strength {strength}"));
        }
    }
    // One tiny value: every product underflows.
    let mut tiny = vec![E::from_f32(0.0); width];
    tiny[5] = E::from_f32(1e-38);
    let caps = [cap(&mut random, width).with_bound(Bound::floor(1e-44).unwrap())];
    check_batch(isa, &tiny, &tiny, &caps, &format!("{isa}, underflow"));
}

/// More caps than are projected together, idle and acting, and some of each.
fn many_caps<E: Element>(isa: Isa) {
    for width in [600, 2100] {
        for count in [9, 11] {
            let mut random = Random((width + count) as u64);
            let x: Vec<E> = row(&mut random, 5 * width, 1.0);
            let acting: Vec<Cap> = (0..count).map(|_| cap(&mut random, width)).collect();
            let idle: Vec<Cap> = acting.iter().map(|cap| cap.clone().with_bound(Bound::NONE)).collect();
            // Only the last cap acts, after all that are projected together.
            let last: Vec<Cap> = idle[1..].iter().chain(&acting[..1]).cloned().collect();
            for (caps, which) in [(&acting, "acting"), (&idle, "idle"), (&last, "the last one")] {
                check_batch(isa, &x, &x, caps, &format!("{isa}, width {width}, {count} caps, {which}"));
            }
        }
    }
}

/// More segments than slots, in four rows at once.
fn very_long_rows<E: Element>(isa: Isa) {
    let width = 40_000;
    let mut random = Random(40);
    let x: Vec<E> = row(&mut random, 4 * width, 1.0);
    let caps = [cap(&mut random, width), cap(&mut random, width)];
    check_batch(isa, &x, &x, &caps, &format!("{isa}, acting"));
    let caps = caps.map(|cap| cap.with_bound(Bound::NONE));
    check_batch(isa, &x, &x, &caps, &format!("{isa}, idle"));
}

/// Terms that all underflow to -0 keep their sign in lanes, segments and slots without padding. One +0 from
/// padding or from an empty slot removes it.
#[test]
fn zeros_have_the_sign_that_the_sum_gives_them() {
    let widths = [
        (128, false),
        (256, false),
        (384, false),
        (512, true),
        (513, false),
        (1024, true),
        (1536, false),
        (2048, true),
        (16384, true),
        (16896, true),
    ];
    for (width, negative) in widths {
        let mut random = Random(width as u64);
        let caps = [0, 1].map(|_| {
            let direction: Vec<f32> =
                (0..width).map(|_| random.signed()).map(|x| x + 0.5f32.copysign(x)).collect();
            Cap::new(axiscap::Axis::from_direction(&direction).unwrap(), Bound::NONE)
        });
        let against = |cap: &Cap| -> Vec<f32> {
            cap.axis().values().iter().map(|&v| -f32::from_bits(1).copysign(v)).collect()
        };
        for (cap, others) in [(&caps[0], 0), (&caps[0], 1), (&caps[1], 1)] {
            let table = CapTable::new(caps.iter().take(others + 1)).unwrap();
            let index = usize::from(std::ptr::eq(cap, &caps[1]));
            // Alone, and four at once followed by one.
            for rows in [1, 5] {
                for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
                    let mut h = against(cap).repeat(rows);
                    let expected = literal::fixed_order_sum(&h[..width], cap.axis().values(), 4);
                    assert_eq!(expected.to_bits(), if negative { -0f32 } else { 0.0 }.to_bits(), "{width}");
                    let stats = crate::support::cap_rows(isa, &table, &mut h);
                    for stat in stats.chunks(others + 1).map(|stats| stats[index]) {
                        let found = (stat.before.to_bits(), stat.after.to_bits());
                        assert_eq!(found, (expected.to_bits(), expected.to_bits()), "{isa}, width {width}");
                    }
                }
            }
        }
    }
}

on_every_isa!(every_width, unusual_values, unusual_bounds, many_caps, very_long_rows);
