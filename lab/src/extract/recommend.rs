//! Which blocks to cap.

use std::ops::RangeInclusive;

use super::BlockAxis;
use crate::calibrate::default_blocks;

/// The ranges that are considered lie within this part of the depth: the paper caps middle to late blocks.
const DEPTH: RangeInclusive<f64> = 0.5..=0.95;

/// Returns the range, as long as [`default_blocks`], whose blocks tell the two groups apart best on what the axes
/// were not made from: the largest mean d'. Ranges that are equally good within 2 % lose to the one nearest to
/// [`default_blocks`], which the paper's caps have.
pub(super) fn blocks(axes: &[BlockAxis]) -> RangeInclusive<usize> {
    let default = default_blocks(axes.len());
    let length = default.end() - default.start() + 1;
    let (first, last) = (
        (DEPTH.start() * axes.len() as f64).round() as usize,
        ((DEPTH.end() * axes.len() as f64).round() as usize).min(axes.len()),
    );
    let score = |start: usize| {
        let d_primes = axes[start..start + length].iter().map(|axis| axis.held_out.d_prime);
        d_primes.map(|d| if d.is_nan() { 0.0 } else { d }).sum::<f64>() / length as f64
    };
    let starts: Vec<usize> = (first..).take_while(|start| start + length <= last).collect();
    let best = starts.iter().map(|&start| score(start)).fold(f64::NEG_INFINITY, f64::max);
    let good = starts.into_iter().filter(|&start| best <= 0.0 || score(start) >= 0.98 * best);
    match good.min_by_key(|start| start.abs_diff(*default.start())) {
        Some(start) => start..=start + length - 1,
        None => default,
    }
}
