//! What the benchmarks share: the plain loops they compare with, rows, and caps that act or do not.

use std::ops::{Deref, DerefMut};

use axiscap::cpu::{Element, Isa};
use axiscap::{Axis, Bound, Cap, CapTable};

/// Sums all values, to measure the cost of reading memory. With 16 accumulators (AVX-512) or 8 (AVX2) only
/// memory limits the speed.
pub(crate) fn read_sum(isa: Isa, values: &[f32]) -> f32 {
    match isa {
        // SAFETY: callers pass only instruction sets of this machine, here AVX-512.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { read_sum_avx512(values) },
        // SAFETY: callers pass only instruction sets of this machine, here AVX2.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { read_sum_avx2(values) },
        _ => sum_lanes::<64>(values),
    }
}

/// Computes `h[i] *= factor`, to measure the cost of changing memory in place.
pub(crate) fn scale(isa: Isa, values: &mut [f32], factor: f32) {
    match isa {
        // SAFETY: callers pass only instruction sets of this machine, here AVX-512.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { scale_avx512(values, factor) },
        // SAFETY: callers pass only instruction sets of this machine, here AVX2.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { scale_avx2(values, factor) },
        _ => values.iter_mut().for_each(|h| *h *= factor),
    }
}

/// Computes `out[i] = x[i] + residual[i]`, to measure the cost of the residual addition without a cap.
pub(crate) fn add(isa: Isa, x: &[f32], residual: &[f32], out: &mut [f32]) {
    match isa {
        // SAFETY: callers pass only instruction sets of this machine, here AVX-512.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { add_avx512(x, residual, out) },
        // SAFETY: callers pass only instruction sets of this machine, here AVX2.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { add_avx2(x, residual, out) },
        _ => add_lanes(x, residual, out),
    }
}

#[inline(always)]
fn sum_lanes<const LANES: usize>(values: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    for values in values.chunks_exact(LANES) {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += value;
        }
    }
    sums.iter().sum::<f32>() + values.chunks_exact(LANES).remainder().iter().sum::<f32>()
}

#[inline(always)]
fn add_lanes(x: &[f32], residual: &[f32], out: &mut [f32]) {
    for ((out, x), residual) in out.iter_mut().zip(x).zip(residual) {
        *out = x + residual;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn read_sum_avx512(values: &[f32]) -> f32 {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_ps(); 16];
    let chunks = values.chunks_exact(256);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: a chunk holds 16 registers.
            *sum = _mm512_add_ps(*sum, unsafe { _mm512_loadu_ps(chunk.as_ptr().add(16 * i)) });
        }
    }
    sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum::<f32>() + rest
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn read_sum_avx2(values: &[f32]) -> f32 {
    use std::arch::x86_64::*;
    let mut sums = [_mm256_setzero_ps(); 8];
    let chunks = values.chunks_exact(64);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: a chunk holds 8 registers.
            *sum = _mm256_add_ps(*sum, unsafe { _mm256_loadu_ps(chunk.as_ptr().add(8 * i)) });
        }
    }
    let mut total = rest;
    for sum in sums {
        let mut lanes = [0.0f32; 8];
        // SAFETY: there is room for 8 lanes.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
        total += lanes.iter().sum::<f32>();
    }
    total
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn scale_avx512(values: &mut [f32], factor: f32) {
    use std::arch::x86_64::*;
    let all = _mm512_set1_ps(factor);
    let mut chunks = values.chunks_exact_mut(64);
    for chunk in &mut chunks {
        for i in 0..4 {
            let at = chunk[16 * i..].as_mut_ptr();
            // SAFETY: a chunk holds 4 registers.
            unsafe { _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), all)) };
        }
    }
    chunks.into_remainder().iter_mut().for_each(|h| *h *= factor);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn scale_avx2(values: &mut [f32], factor: f32) {
    values.iter_mut().for_each(|h| *h *= factor);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn add_avx512(x: &[f32], residual: &[f32], out: &mut [f32]) {
    use std::arch::x86_64::*;
    let whole = out.len() / 16 * 16;
    for i in (0..whole).step_by(16) {
        // SAFETY: all three slices are as long as `out`, which holds the register at `i`.
        unsafe {
            let sum =
                _mm512_add_ps(_mm512_loadu_ps(x[i..].as_ptr()), _mm512_loadu_ps(residual[i..].as_ptr()));
            _mm512_storeu_ps(out[i..].as_mut_ptr(), sum);
        }
    }
    add_lanes(&x[whole..], &residual[whole..], &mut out[whole..]);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_avx2(x: &[f32], residual: &[f32], out: &mut [f32]) {
    add_lanes(x, residual, out);
}

/// Rows that start on a cache line, as ggml's buffers do.
pub(crate) struct Aligned<E> {
    lines: Vec<Line>,
    len: usize,
    element: std::marker::PhantomData<E>,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl<E: Element> Aligned<E> {
    /// Makes `len` values of noise.
    pub(crate) fn noise(len: usize, seed: u64) -> Self {
        let lines = vec![Line([0; 64]); (len * size_of::<E>()).div_ceil(64)];
        let mut aligned = Self { lines, len, element: std::marker::PhantomData };
        for (value, noise) in aligned.iter_mut().zip(noise(len, seed)) {
            *value = E::from_f32(noise);
        }
        aligned
    }
}

impl<E: Element> Deref for Aligned<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        // SAFETY: the lines hold as many values, and any bits are a value of the three element types.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<E: Element> DerefMut for Aligned<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        // SAFETY: the lines hold as many values, and any bits are a value of the three element types. `self`
        // is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// Returns numbers in [-1, 1), the same in every run.
pub(crate) fn noise(len: usize, seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed;
    (0..len).map(move |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    })
}

/// Makes caps with axes of their own, all with this bound.
pub(crate) fn caps(width: usize, count: usize, bound: Bound) -> Vec<Cap> {
    let axis = |k: usize| {
        let direction: Vec<f32> = noise(width, k as u64 + 1).collect();
        Axis::from_direction(&direction).expect("noise has a direction")
    };
    (0..count).map(|k| Cap::new(axis(k), bound)).collect()
}

/// Makes a table of `count` caps, all with this bound.
pub(crate) fn table(width: usize, count: usize, bound: Bound) -> CapTable {
    CapTable::new(&caps(width, count, bound)).expect("caps of one width")
}

/// Makes a table that engages no row.
pub(crate) fn idle(width: usize, caps: usize) -> CapTable {
    table(width, caps, Bound::band(-1e30, 1e30).expect("a band"))
}

/// Makes two tables that move every row back and forth. If calls alternate between them, every cap acts on
/// every row.
pub(crate) fn engaged(width: usize, caps: usize) -> [CapTable; 2] {
    [5.0, -5.0].map(|p| table(width, caps, Bound::band(p, p).expect("a band")))
}
