//! Statistics: the effect of a cap on one row, and on many.

use bytemuck::{Pod, Zeroable};

/// The effect of one cap on one row. The pass that caps writes it, and the CUDA kernels write the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
#[repr(C)]
pub struct RowStat {
    /// Projection of the row on the axis before this cap, after the earlier caps of the same block.
    pub before: f32,
    /// Projection after this cap. If the cap acted with strength 1 this is the bound, and with less it is
    /// `before` plus the step, rounded once. Otherwise it is `before`. The capped row is not projected again,
    /// so its own projection differs by rounding.
    pub after: f32,
    /// [`RowStat::ENGAGED`], [`RowStat::NON_FINITE`], [`RowStat::BAD_PROFILE`].
    pub flags: u32,
}

impl RowStat {
    /// The projection was outside the bounds.
    pub const ENGAGED: u32 = 1;
    /// The projection or the step towards the bound was NaN or infinite. The row was not written.
    pub const NON_FINITE: u32 = 2;
    /// The row's profile does not exist in the table, and the row went uncapped. Only a GPU writes this flag,
    /// to the row's first entry. The CPU refuses such a call.
    pub const BAD_PROFILE: u32 = 4;

    /// Whether the projection was outside the bounds. The row is unchanged all the same if the strength is 0,
    /// or if the step rounds to zero or overflows ([`RowStat::non_finite`]).
    #[must_use]
    pub fn engaged(&self) -> bool {
        self.flags & Self::ENGAGED != 0
    }

    /// Whether the row was left unchanged because its projection was not finite, or because the step towards
    /// the bound was not finite. In the second case the row is engaged as well.
    #[must_use]
    pub fn non_finite(&self) -> bool {
        self.flags & Self::NON_FINITE != 0
    }

    /// Whether the row went uncapped because its profile does not exist.
    #[must_use]
    pub fn bad_profile(&self) -> bool {
        self.flags & Self::BAD_PROFILE != 0
    }
}

/// The effect of one cap on all rows so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CapStats {
    /// Number of rows.
    pub rows: u64,
    /// Rows whose projection was outside the bounds, without those counted in `non_finite`.
    pub engaged: u64,
    /// Rows without a finite projection, or whose step towards the bound overflowed. They were left
    /// unchanged, and are not part of `engaged` and of the statistics below.
    pub non_finite: u64,
    /// Rows that a [`Policy`](crate::Policy) left alone. They are not part of `rows`.
    pub skipped: u64,
    /// Sum of the projections before the cap.
    pub sum_before: f64,
    /// Smallest projection after the cap; +inf without rows.
    pub min_after: f32,
    /// Largest projection after the cap; -inf without rows.
    pub max_after: f32,
}

impl Default for CapStats {
    fn default() -> Self {
        Self {
            rows: 0,
            engaged: 0,
            non_finite: 0,
            skipped: 0,
            sum_before: 0.0,
            min_after: f32::INFINITY,
            max_after: f32::NEG_INFINITY,
        }
    }
}

impl CapStats {
    /// Counts one row. A row whose profile does not exist had no cap, and is not counted.
    ///
    /// Leave out the entries beyond the caps of a row's profile. They are [`RowStat::default`], which looks
    /// like a row whose projection is 0.
    pub fn add(&mut self, row: &RowStat) {
        if row.bad_profile() {
            return;
        }
        self.rows += 1;
        if row.non_finite() {
            self.non_finite += 1;
            return;
        }
        self.engaged += u64::from(row.engaged());
        self.sum_before += f64::from(row.before);
        self.min_after = self.min_after.min(row.after);
        self.max_after = self.max_after.max(row.after);
    }

    /// Adds the rows that another value counts.
    pub fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.engaged += other.engaged;
        self.non_finite += other.non_finite;
        self.skipped += other.skipped;
        self.sum_before += other.sum_before;
        self.min_after = self.min_after.min(other.min_after);
        self.max_after = self.max_after.max(other.max_after);
    }

    /// Returns the mean projection before the cap, over the rows with a finite one.
    #[must_use]
    pub fn mean_before(&self) -> Option<f64> {
        let rows = self.rows - self.non_finite;
        (rows > 0).then(|| self.sum_before / rows as f64)
    }

    /// Returns the share of the rows on which the cap engaged. A value near 0 or 1 usually means a wrong
    /// sign, norm or block.
    #[must_use]
    pub fn engagement(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.engaged as f64 / self.rows as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_leave_non_finite_rows_out() {
        let mut stats = CapStats::default();
        assert_eq!(stats.mean_before(), None);
        stats.add(&RowStat { before: 1.0, after: 2.0, flags: RowStat::ENGAGED });
        stats.add(&RowStat { before: f32::NAN, after: f32::NAN, flags: RowStat::NON_FINITE });
        stats.add(&RowStat { before: 3.0, after: 3.0, flags: 0 });
        stats.add(&RowStat { flags: RowStat::BAD_PROFILE, ..RowStat::default() });
        // The step overflowed: engaged, and left unchanged.
        let overflow = RowStat { before: -9.0, after: -9.0, flags: RowStat::ENGAGED | RowStat::NON_FINITE };
        assert!(overflow.engaged() && overflow.non_finite() && !overflow.bad_profile());
        stats.add(&overflow);
        assert_eq!((stats.rows, stats.engaged, stats.non_finite), (4, 1, 2));
        assert_eq!(stats.mean_before(), Some(2.0));
        assert_eq!(stats.engagement(), Some(0.25));
        assert_eq!((stats.min_after, stats.max_after), (2.0, 3.0));
        let mut twice = stats;
        twice.skipped = 7;
        twice.merge(&stats);
        assert_eq!((twice.rows, twice.engaged, twice.non_finite, twice.skipped), (8, 2, 4, 7));
        assert_eq!((twice.mean_before(), twice.min_after), (Some(2.0), 2.0));
    }
}
