//! The naive definition in f64, and the bounds of the distance to it.
//!
//! It is for tests of this implementation and of others, and shares no code with the kernels.

/// Returns `<h, v>` in f64.
#[must_use]
pub fn projection(h: &[f32], axis: &[f32]) -> f64 {
    h.iter().zip(axis).map(|(&h, &v)| f64::from(h) * f64::from(v)).sum()
}

/// Returns `sum |h[i] v[i]|` in f64. The rounding error of the projection scales with it.
#[must_use]
pub fn magnitude(h: &[f32], axis: &[f32]) -> f64 {
    h.iter().zip(axis).map(|(&h, &v)| (f64::from(h) * f64::from(v)).abs()).sum()
}

/// Returns `||h||` in f64.
#[must_use]
pub fn norm(h: &[f32]) -> f64 {
    projection(h, h).sqrt()
}

/// Returns the row after one cap, in f64: `h + strength * (clamp(<h, v>, lo, hi) - <h, v>) v`.
#[must_use]
pub fn capped(h: &[f64], axis: &[f32], lo: f32, hi: f32, strength: f32) -> Vec<f64> {
    let p: f64 = h.iter().zip(axis).map(|(&h, &v)| h * f64::from(v)).sum();
    let delta = f64::from(strength) * (p.max(f64::from(lo)).min(f64::from(hi)) - p);
    h.iter().zip(axis).map(|(&h, &v)| h + delta * f64::from(v)).collect()
}

/// Returns RMSNorm * weight in f64.
#[must_use]
pub fn rms_norm(h: &[f64], weight: &[f32], eps: f32) -> Vec<f64> {
    let mean = h.iter().map(|h| h * h).sum::<f64>() / h.len() as f64;
    let k = 1.0 / (mean + f64::from(eps)).sqrt();
    h.iter().zip(weight).map(|(h, &w)| h * k * f64::from(w)).collect()
}

/// The unit roundoff `2^-24`: half the distance between 1 and the next f32.
pub const UNIT_ROUNDOFF: f64 = 1.0 / (1u64 << 24) as f64;

/// Returns `k(d)`: the roundings on the longest path of the fixed-order sum over a row of `width` values.
///
/// `vector` is the number of elements in 16 bytes of the row's type: 4 for f32, 8 for f16 and bf16
/// ([`Element::VECTOR`](crate::cpu::Element::VECTOR)).
///
/// ```
/// // 4 multiply-adds, 2 + 5 levels within a segment, 3 levels over 8 segments.
/// assert_eq!(axiscap::cpu::oracle::roundings(4096, 4), 14);
/// ```
#[must_use]
pub fn roundings(width: usize, vector: usize) -> u32 {
    let segments = width.div_ceil(512).max(1);
    let slots = segments.min(32).next_power_of_two();
    let lane = 512 / (32 * vector);
    let within = vector.ilog2() as usize + 5;
    (lane + within + segments.div_ceil(32) - 1 + slots.ilog2() as usize) as u32
}

/// Returns the maximum distance of a row's f32 projection from [`projection`], if nothing overflows or
/// underflows: `k u / (1 - k u) * sum |h[i] v[i]|`.
#[must_use]
pub fn projection_bound(h: &[f32], axis: &[f32], vector: usize) -> f64 {
    let ku = f64::from(roundings(h.len(), vector)) * UNIT_ROUNDOFF;
    ku / (1.0 - ku) * magnitude(h, axis) + underflow(h.len())
}

/// Returns the maximum distance of an f32 row's f64 projection from the bound `c` after a cap of strength 1
/// acted on it: `(k + 3) u (|c| + ||h||)`. For f16 and bf16 rows the rounding of the stored type comes on
/// top.
#[must_use]
pub fn capped_bound(width: usize, vector: usize, c: f32, norm: f64) -> f64 {
    let k = f64::from(roundings(width, vector));
    (k + 3.0) * UNIT_ROUNDOFF * (f64::from(c).abs() + norm) + underflow(width)
}

/// Returns the error from denormals: each rounding near zero errs by up to half the smallest denormal.
fn underflow(width: usize) -> f64 {
    2.0 * width as f64 * f64::from(f32::from_bits(1))
}
