//! Bit for bit what docs/operation.md says: every variant, element type, instruction set and shape.

use axiscap::cpu::{self, Element, Isa, Norm, Options, Rows, RowsMut};
use axiscap::{Cap, CapParams, CapTable, RowStat};
use half::{bf16, f16};

use crate::literal;
use crate::support::{Random, assert_same, bits, cap, isas, row};

/// Widths around every edge of the lane map: registers, segments, threads, slots, and models' own.
const WIDTHS: [usize; 24] = [
    1, 2, 3, 15, 16, 17, 111, 127, 511, 512, 513, 576, 1000, 1023, 2048, 3072, 3584, 4096, 5120, 8191, 8192,
    16384, 16385, 20000,
];

/// What the definition makes of a batch.
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

/// All variants on one batch.
fn check_batch<E: Element>(isa: Isa, x: &[E], residual: &[E], caps: &[Cap], what: &str) {
    let width = caps[0].axis().width();
    let rows = x.len() / width;
    let table = CapTable::new(caps).unwrap();
    let mut random = Random(width as u64);
    let weight: Vec<f32> = (0..width).map(|_| 1.0 + random.signed()).collect();
    let norm = Norm::new(&weight, 1e-5).unwrap();
    let mut stats = vec![RowStat::default(); rows * caps.len()];
    let mut out = vec![E::default(); x.len()];

    let alone = expected(x, None, caps, &weight, 1e-5);
    let mut h = x.to_vec();
    cpu::cap_rows(&table, rows_of(&mut h, width), Options::new().isa(isa).stats(&mut stats)).unwrap();
    assert_same(&h, &alone.rows, &format!("{what}, in place"));
    assert_stats(&stats, &alone.stats, what);

    let mut h = x.to_vec();
    let options = Options::new().isa(isa).stats(&mut stats);
    cpu::cap_norm_rows(&table, rows_of(&mut h, width), norm, rows_of(&mut out, width), options).unwrap();
    assert_same(&h, &alone.rows, &format!("{what}, cap + norm: rows"));
    assert_same(&out, &alone.normed, &format!("{what}, cap + norm: normed"));
    assert_stats(&stats, &alone.stats, what);

    let summed = expected(x, Some(residual), caps, &weight, 1e-5);
    let (x, residual) = (Rows::from_slice(x, width).unwrap(), Rows::from_slice(residual, width).unwrap());
    let options = Options::new().isa(isa).stats(&mut stats);
    cpu::add_cap_rows(&table, x, residual, rows_of(&mut h, width), options).unwrap();
    assert_same(&h, &summed.rows, &format!("{what}, add + cap"));
    assert_stats(&stats, &summed.stats, what);

    h.fill(E::default());
    let options = Options::new().isa(isa).stats(&mut stats);
    let (to, normed) = (rows_of(&mut h, width), rows_of(&mut out, width));
    cpu::add_cap_norm_rows(&table, x, residual, to, norm, normed, options).unwrap();
    assert_same(&h, &summed.rows, &format!("{what}, add + cap + norm: rows"));
    assert_same(&out, &summed.normed, &format!("{what}, add + cap + norm: normed"));
    assert_stats(&stats, &summed.stats, what);
}

fn every_width<E: Element>(isa: Isa) {
    for width in WIDTHS {
        let mut random = Random(0x5eed + width as u64);
        // 5 rows: four together and one alone.
        let rows = if width < 5000 || isa != Isa::Portable { 5 } else { 1 };
        let x: Vec<E> = row(&mut random, rows * width, 1.0);
        let residual: Vec<E> = row(&mut random, rows * width, 2.0);
        for count in [1, 2, 5] {
            let caps: Vec<Cap> = (0..count).map(|_| cap(&mut random, width)).collect();
            check_batch(isa, &x, &residual, &caps, &format!("{isa}, width {width}, {count} caps"));
        }
    }
}

#[test]
fn f32_rows() {
    isas().for_each(every_width::<f32>);
}

#[test]
fn f16_rows() {
    isas().for_each(every_width::<f16>);
}

#[test]
fn bf16_rows() {
    isas().for_each(every_width::<bf16>);
}
