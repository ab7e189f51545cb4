//! Rows, caps and comparisons for the tests.

use axiscap::cpu::{Element, Isa, Job, RowsMut};
use axiscap::{Axis, Bound, Cap, CapTable, RowStat};

use axiscap_testing::numbers::Random;

/// Runs a test if the machine has the instruction set, and prints a line otherwise.
pub(crate) fn if_available(isa: Isa, test: fn(Isa)) {
    if isa.available() {
        test(isa);
    } else {
        eprintln!("not tested: this machine has no {isa}");
    }
}

/// Makes a row of activations.
pub(crate) fn row<E: Element>(random: &mut Random, width: usize, scale: f32) -> Vec<E> {
    (0..width).map(|_| E::from_f32(random.activation(scale))).collect()
}

/// Makes a unit axis.
pub(crate) fn axis(random: &mut Random, width: usize) -> Axis {
    let mut direction: Vec<f32> = (0..width).map(|_| random.signed()).collect();
    direction[0] += 0.5;
    Axis::from_direction(&direction).unwrap()
}

/// Makes a cap with a narrow band around zero. Most rows of scale 1 are outside.
pub(crate) fn cap(random: &mut Random, width: usize) -> Cap {
    let bound = random.signed().abs() * 0.2;
    Cap::new(axis(random, width), Bound::band(-bound, bound).unwrap())
}

/// Returns the bits of a value as f32. Every NaN gives the same bits.
pub(crate) fn bits<E: Element>(value: E) -> u32 {
    let wide = value.to_f32();
    if wide.is_nan() { f32::NAN.to_bits() } else { wide.to_bits() }
}

/// Asserts that two rows are the same bit for bit, except for NaN payloads.
#[track_caller]
pub(crate) fn assert_same<E: Element>(found: &[E], expected: &[E], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            bits(found) == bits(expected),
            "{what}: element {i} is {:e} ({:#010x}), expected {:e} ({:#010x})",
            found.to_f32(),
            bits(found),
            expected.to_f32(),
            bits(expected)
        );
    }
}

/// Asserts that two rows are the same bytes.
#[track_caller]
pub(crate) fn assert_same_bytes<E: Element + bytemuck::Pod>(found: &[E], expected: &[E], what: &str) {
    let (found, expected): (&[u8], &[u8]) = (bytemuck::cast_slice(found), bytemuck::cast_slice(expected));
    assert!(found == expected, "{what}: bytes differ");
}

/// Caps rows in place and returns the statistics.
pub(crate) fn cap_rows<E: Element>(isa: Isa, table: &CapTable, rows: &mut [E]) -> Vec<RowStat> {
    let count = rows.len() / table.width();
    let mut stats = vec![RowStat::default(); count * table.max_caps_per_row()];
    let rows = RowsMut::from_slice(rows, table.width()).unwrap();
    Job::cap(rows).stats(&mut stats).run_on(isa, table).unwrap();
    stats
}

/// Returns a row's values as f32.
pub(crate) fn wide<E: Element>(row: &[E]) -> Vec<f32> {
    row.iter().map(|value| value.to_f32()).collect()
}
