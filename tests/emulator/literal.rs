//! docs/operation.md, transcribed line by line, as slowly as it reads.

use axiscap::{CapParams, RowStat};

/// The fixed-order sum of `a[i] * b[i]`, with `vector` elements in 16 bytes.
pub(crate) fn sum(a: &[f32], b: &[f32], vector: usize) -> f32 {
    let lanes = 32 * vector;
    let segments: Vec<f32> = (0..a.len().div_ceil(512)).map(|segment| {
        // Lanes.
        let mut lane = vec![0.0f32; lanes];
        for e in 0..512 {
            let i = segment * 512 + e;
            let (a, b) = if i < a.len() { (a[i], b[i]) } else { (0.0, 0.0) };
            lane[e % lanes] = a.mul_add(b, lane[e % lanes]);
        }
        // Within a thread: lanes V t .. V t + V - 1.
        let threads: Vec<f32> = lane.chunks(vector).map(|lanes| halved(lanes.to_vec())).collect();
        // Across the 32 threads.
        halved(threads)
    }).collect();
    // Slots.
    let n = segments.len();
    let mut slots = vec![0.0f32; n.min(32).next_power_of_two()];
    for (k, slot) in slots.iter_mut().enumerate() {
        let mut mine = segments.iter().skip(k).step_by(32);
        if let Some(first) = mine.next() {
            *slot = mine.fold(*first, |sum, segment| sum + segment);
        }
    }
    halved(slots)
}

/// Adds the upper half to the lower until one value remains.
fn halved(mut x: Vec<f32>) -> f32 {
    while x.len() > 1 {
        let half = x.len() / 2;
        for j in 0..half {
            x[j] += x[j + half];
        }
        x.truncate(half);
    }
    x[0]
}

/// Applies one cap to a row. Returns what to record and whether it acted.
pub(crate) fn cap(h: &mut [f32], axis: &[f32], cap: CapParams, vector: usize) -> (RowStat, bool) {
    let p = sum(h, axis, vector);
    let at_least = if p < cap.lo { cap.lo } else { p };
    let c = if at_least > cap.hi { cap.hi } else { at_least };
    let delta = cap.strength * (c - p);
    let engaged = p.is_finite() && c != p;
    let lost = !p.is_finite() || (engaged && !delta.is_finite());
    let acts = engaged && delta.is_finite() && delta != 0.0;
    if acts {
        for (h, v) in h.iter_mut().zip(axis) {
            *h = delta.mul_add(*v, *h);
        }
    }
    let after = match (acts, cap.strength == 1.0) {
        (false, _) => p,
        (true, true) => c,
        (true, false) => p + delta,
    };
    let flags = if engaged { RowStat::ENGAGED } else { 0 } | if lost { RowStat::NON_FINITE } else { 0 };
    (RowStat { before: p, after, flags }, acts)
}

/// `(h * k) * w` with `k = 1 / sqrt(mean of squares + eps)`.
pub(crate) fn norm(h: &[f32], weight: &[f32], eps: f32, vector: usize) -> Vec<f32> {
    let m = sum(h, h, vector) / h.len() as f32;
    let k = 1.0 / (m + eps).sqrt();
    h.iter().zip(weight).map(|(h, w)| (h * k) * w).collect()
}
