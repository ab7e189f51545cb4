//! Tallies: what caps did to the rows of all contexts that have them, also of contexts that have ended.

use std::sync::{Mutex, MutexGuard};

use axiscap::{Bound, CapStats, RowStat};

use crate::record::lock;

/// Edges of the buckets that [`CapTotal::excess`] counts rows in, in units of the residual stream.
///
/// The edge 0 parts the rows within the bound from those that the cap engages on. The others are powers of four,
/// because projections of models differ by orders of magnitude. They do not depend on the bound, so that counts
/// under different bounds can be added and compared.
pub const EXCESS_EDGES: [f32; 15] =
    [-1024.0, -256.0, -64.0, -16.0, -4.0, -1.0, -0.25, 0.0, 0.25, 1.0, 4.0, 16.0, 64.0, 256.0, 1024.0];

/// What one cap did to the rows of all its contexts.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct CapTotal {
    /// The statistics of all rows.
    pub stats: CapStats,
    /// Sum of the projections before the cap that are above 0.
    pub positive: f64,
    /// Sum of the projections before the cap that are below 0, without their sign. Both sums only grow.
    pub negative: f64,
    /// Rows with a finite projection, by their excess: how far the projection before the cap lies beyond the
    /// bound, negative within it. Bucket `i` holds those above `EXCESS_EDGES[i - 1]` and up to
    /// [`EXCESS_EDGES`]`[i]`. All are 0 for a cap without a bound.
    pub excess: [u64; EXCESS_EDGES.len() + 1],
}

impl CapTotal {
    /// Counts one row under this bound.
    pub(crate) fn add(&mut self, bound: Bound, row: &RowStat) {
        self.stats.add(row);
        if row.bad_profile() || row.non_finite() {
            return;
        }
        let before = f64::from(row.before);
        self.positive += before.max(0.0);
        self.negative += (-before).max(0.0);
        // -inf without a bound.
        let excess = (f64::from(bound.lo()) - before).max(before - f64::from(bound.hi()));
        if excess.is_finite() {
            self.excess[EXCESS_EDGES.partition_point(|&edge| f64::from(edge) < excess)] += 1;
        }
    }

    /// Adds the rows that another value counts.
    pub fn merge(&mut self, other: &Self) {
        self.stats.merge(&other.stats);
        self.positive += other.positive;
        self.negative += other.negative;
        for (own, other) in self.excess.iter_mut().zip(&other.excess) {
            *own += other;
        }
    }
}

/// The totals of each cap of a set, which the contexts with these caps share.
#[derive(Debug)]
pub(crate) struct Tally(Mutex<Vec<CapTotal>>);

impl Tally {
    pub(crate) fn new(caps: usize) -> Self {
        Self(Mutex::new(vec![CapTotal::default(); caps]))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Vec<CapTotal>> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(before: f32, flags: u32) -> RowStat {
        RowStat { before, after: before, flags }
    }

    #[test]
    fn rows_are_counted_by_how_far_they_lie_beyond_the_bound() {
        let count = |bound: Bound, before: f32| {
            let mut total = CapTotal::default();
            total.add(bound, &row(before, 0));
            total.excess.iter().position(|&rows| rows == 1)
        };
        let zero = EXCESS_EDGES.iter().position(|&edge| edge == 0.0);
        let floor = Bound::floor(10.0).unwrap();
        assert_eq!(count(floor, 10.0), zero, "on the bound is within it");
        assert_eq!(count(floor, 9.999_999), zero.map(|zero| zero + 1));
        assert_eq!(count(floor, 10.2), zero, "above -0.25");
        assert_eq!(count(floor, 10.25), zero.map(|zero| zero - 1), "an edge belongs to the bucket below it");
        assert_eq!(count(floor, 1e9), Some(0));
        assert_eq!(count(floor, -1e9), Some(EXCESS_EDGES.len()));
        assert_eq!(count(Bound::ceiling(-2.0).unwrap(), 2.0), zero.map(|zero| zero + 3), "4 above it");
        let band = Bound::band(-1.0, 1.0).unwrap();
        assert_eq!(count(band, -3.0), count(band, 3.0));
        assert_eq!(count(Bound::NONE, 3.0), None);
        assert_eq!(count(Bound::floor(f32::MIN).unwrap(), f32::MAX), Some(0));
    }

    #[test]
    fn rows_beyond_the_bound_are_those_that_engaged() {
        let bound = Bound::band(-1.5, 3.25).unwrap();
        let mut total = CapTotal::default();
        for step in -4000..4000_i16 {
            let before = f32::from(step) / 128.0;
            let engaged = before.clamp(bound.lo(), bound.hi()) != before;
            total.add(bound, &row(before, u32::from(engaged) * RowStat::ENGAGED));
        }
        let beyond: u64 = total.excess.iter().zip(0..).filter(|&(_, i)| i > 7).map(|(rows, _)| rows).sum();
        assert_eq!(beyond, total.stats.engaged);
        assert_eq!(total.excess.iter().sum::<u64>(), total.stats.rows);
        assert_eq!(total.positive - total.negative, total.stats.sum_before);
    }

    #[test]
    fn rows_without_a_finite_projection_are_in_no_bucket_and_no_sum() {
        let bound = Bound::floor(0.0).unwrap();
        let mut total = CapTotal::default();
        total.add(bound, &row(f32::NAN, RowStat::NON_FINITE));
        total.add(bound, &row(f32::INFINITY, RowStat::NON_FINITE));
        total.add(bound, &row(0.0, RowStat::BAD_PROFILE));
        assert_eq!((total.stats.rows, total.stats.non_finite), (2, 2));
        assert_eq!((total.positive, total.negative, total.excess), (0.0, 0.0, [0; 16]));
        total.add(bound, &row(2.0, 0));
        total.add(bound, &row(-3.0, RowStat::ENGAGED));
        let mut twice = total;
        twice.merge(&total);
        assert_eq!((twice.positive, twice.negative, twice.stats.rows), (4.0, 6.0, 8));
        assert_eq!(twice.excess.iter().sum::<u64>(), 4);
    }
}
