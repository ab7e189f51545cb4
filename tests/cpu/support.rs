//! Rows, caps and comparisons for the tests.

use axiscap::cpu::{Element, Isa};
use axiscap::{Axis, Bound, Cap};

/// The instruction sets this machine has.
pub(crate) fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.available())
}

/// SplitMix64: numbers that are the same on every machine and run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    pub(crate) fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Roughly normal, times `scale`, with now and then a massive activation.
    pub(crate) fn activation(&mut self, scale: f32) -> f32 {
        let bell = self.signed() + self.signed() + self.signed();
        let massive = if self.next().is_multiple_of(997) { 300.0 } else { 1.0 };
        bell * massive * scale
    }
}

/// A row of activations.
pub(crate) fn row<E: Element>(random: &mut Random, width: usize, scale: f32) -> Vec<E> {
    (0..width).map(|_| E::from_f32(random.activation(scale))).collect()
}

/// A unit axis.
pub(crate) fn axis(random: &mut Random, width: usize) -> Axis {
    let mut direction: Vec<f32> = (0..width).map(|_| random.signed()).collect();
    direction[0] += 0.5;
    Axis::from_direction(&direction).unwrap()
}

/// A narrow band around zero: most rows of scale 1 are outside.
pub(crate) fn cap(random: &mut Random, width: usize) -> Cap {
    let bound = random.signed().abs() * 0.2;
    Cap::new(axis(random, width), Bound::band(-bound, bound).unwrap())
}

/// A value's bits, widened; every NaN counts as the same.
pub(crate) fn bits<E: Element>(value: E) -> u32 {
    let wide = value.to_f32();
    if wide.is_nan() { f32::NAN.to_bits() } else { wide.to_bits() }
}

/// Asserts that two rows are the same bit for bit, NaN payloads aside.
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
