//! A literal transcription of docs/operation.md: the bits that every implementation must give.
//!
//! It is written from the text alone and not for speed. All 512 elements, all lanes, all threads and all
//! slots are in plain vectors, and each line below can be compared with its line of the text.

use axiscap::cpu::Element;
use axiscap::{CapParams, RowStat};

/// Computes "The fixed-order sum" of the terms `h[i] * v[i]`, with `vector` elements in 16 bytes.
///
/// # Panics
/// If the threads of a segment end with different sums.
#[must_use]
pub fn fixed_order_sum(h: &[f32], v: &[f32], vector: usize) -> f32 {
    let lanes = 32 * vector;
    // 1. Segments of 512, the last one padded with +0.
    let sums: Vec<f32> = h
        .chunks(512)
        .zip(v.chunks(512))
        .map(|(h, v)| {
            let pad =
                |x: &[f32]| x.iter().copied().chain(std::iter::repeat(0.0)).take(512).collect::<Vec<f32>>();
            let (h, v) = (pad(h), pad(v));
            // 2. Element e belongs to lane e mod L; each lane starts at +0 and takes its elements in order.
            let mut lane = vec![0.0f32; lanes];
            for e in 0..512 {
                lane[e % lanes] = h[e].mul_add(v[e], lane[e % lanes]);
            }
            // 3. The lanes V t .. V t + V - 1 of thread t are halved.
            let mut thread: Vec<f32> = lane.chunks(vector).map(halved).collect();
            // 4. Butterfly with distances 16, 8, 4, 2, 1.
            for distance in [16, 8, 4, 2, 1] {
                thread = (0..32).map(|t: usize| thread[t] + thread[t ^ distance]).collect();
            }
            assert!(thread.iter().all(|x| x.to_bits() == thread[0].to_bits() || x.is_nan()));
            thread[0]
        })
        .collect();
    // 5. Slot k is the sum of segments k, k + 32, ..., starting from the first of them.
    let count = sums.len().min(32).next_power_of_two();
    let mut slots = vec![0.0f32; count];
    for (k, slot) in slots.iter_mut().enumerate() {
        let mut own = sums.iter().skip(k).step_by(32);
        if let Some(&first) = own.next() {
            *slot = own.fold(first, |sum, &segment| sum + segment);
        }
    }
    // 6. Across the slots.
    halved(&slots)
}

/// Applies `x[j] = x[j] + x[j + n/2]` until one value remains.
fn halved(x: &[f32]) -> f32 {
    if x.len() == 1 {
        return x[0];
    }
    let (low, high) = x.split_at(x.len() / 2);
    halved(&low.iter().zip(high).map(|(a, b)| a + b).collect::<Vec<_>>())
}

/// Applies "What is computed" for one cap on an f32 row. Returns whether the cap acted.
pub fn cap(h: &mut [f32], v: &[f32], params: CapParams, vector: usize) -> (RowStat, bool) {
    let CapParams { lo, hi, strength: a } = params;
    let p = fixed_order_sum(h, v, vector);
    if !p.is_finite() {
        return (RowStat { before: p, after: p, flags: RowStat::NON_FINITE }, false);
    }
    let c = if p < lo { lo } else { p };
    let c = if c > hi { hi } else { c };
    if c == p {
        return (RowStat { before: p, after: p, flags: 0 }, false);
    }
    let difference = c - p;
    let delta = a * difference;
    if !delta.is_finite() {
        return (RowStat { before: p, after: p, flags: RowStat::ENGAGED | RowStat::NON_FINITE }, false);
    }
    if delta == 0.0 {
        return (RowStat { before: p, after: p, flags: RowStat::ENGAGED }, false);
    }
    for (h, &v) in h.iter_mut().zip(v) {
        *h = delta.mul_add(v, *h);
    }
    let after = if a == 1.0 { c } else { p + delta };
    (RowStat { before: p, after, flags: RowStat::ENGAGED }, true)
}

/// Applies all caps of a row in order, on its f32 values. Returns their statistics, and whether any cap
/// acted.
pub fn caps(h: &mut [f32], caps: &[(&[f32], CapParams)], vector: usize) -> (Vec<RowStat>, bool) {
    let done: Vec<_> = caps.iter().map(|&(v, params)| cap(h, v, params, vector)).collect();
    (done.iter().map(|d| d.0).collect(), done.iter().any(|d| d.1))
}

/// Computes the norm of "cap + RMSNorm * weight" from the f32 row.
#[must_use]
pub fn rms_norm<E: Element>(h: &[f32], weight: &[f32], eps: f32) -> Vec<E> {
    let s = fixed_order_sum(h, h, E::VECTOR);
    let m = s / h.len() as f32;
    let k = 1.0 / (m + eps).sqrt();
    h.iter().zip(weight).map(|(&h, &w)| E::from_f32((h * k) * w)).collect()
}
