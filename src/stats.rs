//! What capping did to a row, and to many.

use bytemuck::{Pod, Zeroable};

/// What one cap did to one row. Written by the same pass that caps; the CUDA kernels write the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
#[repr(C)]
pub struct RowStat {
    /// Projection of the row on the axis before this cap (and after the caps ahead of it on the same block).
    pub before: f32,
    /// Projection after it: where the cap acted, the bound with strength 1 and `before` plus the step, rounded once,
    /// with less; `before` where it did not. Not projected again: the row's own differs by rounding.
    pub after: f32,
    /// [`RowStat::ENGAGED`], [`RowStat::NON_FINITE`], [`RowStat::BAD_PROFILE`].
    pub flags: u32,
}

impl RowStat {
    /// The projection was outside the bounds.
    pub const ENGAGED: u32 = 1;
    /// The projection (or the step towards the bound) was NaN or infinite: nothing was written.
    pub const NON_FINITE: u32 = 2;

    /// The row asked for a profile that the table does not have, and went uncapped. Only on a GPU, in a row's first
    /// entry: on the CPU such a call is refused.
    pub const BAD_PROFILE: u32 = 4;

    /// Whether the projection was outside the bounds. That alone does not say that the row was changed: with strength
    /// 0, or where the step rounds to zero or overflows ([`RowStat::non_finite`]), it was not.
    #[must_use]
    pub fn engaged(&self) -> bool {
        self.flags & Self::ENGAGED != 0
    }

    /// Whether the row had no finite projection, or the step towards the bound was not finite (then it is engaged as
    /// well), so that it was left as it was.
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

/// What one cap did to all rows so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CapStats {
    /// Rows seen.
    pub rows: u64,
    /// Rows whose projection was outside the bounds, but for those that are counted in `non_finite`.
    pub engaged: u64,
    /// Rows without a finite projection, or whose step towards the bound overflowed: left as they were and kept out of
    /// `engaged` and of the figures below.
    pub non_finite: u64,
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
            sum_before: 0.0,
            min_after: f32::INFINITY,
            max_after: f32::NEG_INFINITY,
        }
    }
}

impl CapStats {
    /// Counts one row; one whose profile does not exist had no cap, and is not counted.
    ///
    /// The entries beyond the caps of a row's profile are [`RowStat::default`], which nothing distinguishes from a row
    /// whose projection is 0: leave them out.
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

    /// Mean projection before the cap, over the rows that had one.
    #[must_use]
    pub fn mean_before(&self) -> Option<f64> {
        let rows = self.rows - self.non_finite;
        (rows > 0).then(|| self.sum_before / rows as f64)
    }

    /// Share of the rows on which the cap engaged. Near 0 or 1 it usually means a wrong sign, norm or layer.
    #[must_use]
    pub fn engagement(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.engaged as f64 / self.rows as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_leave_non_finite_rows_out() {
        let mut stats = CapStats::default();
        assert_eq!(stats.mean_before(), None);
        stats.add(&RowStat { before: 1.0, after: 2.0, flags: RowStat::ENGAGED });
        stats.add(&RowStat { before: f32::NAN, after: f32::NAN, flags: RowStat::NON_FINITE });
        stats.add(&RowStat { before: 3.0, after: 3.0, flags: 0 });
        stats.add(&RowStat { flags: RowStat::BAD_PROFILE, ..RowStat::default() });
        // The step overflowed: engaged and yet left alone.
        let overflow = RowStat { before: -9.0, after: -9.0, flags: RowStat::ENGAGED | RowStat::NON_FINITE };
        assert!(overflow.engaged() && overflow.non_finite() && !overflow.bad_profile());
        stats.add(&overflow);
        assert_eq!((stats.rows, stats.engaged, stats.non_finite), (4, 1, 2));
        assert_eq!(stats.mean_before(), Some(2.0));
        assert_eq!(stats.engagement(), Some(0.25));
        assert_eq!((stats.min_after, stats.max_after), (2.0, 3.0));
    }
}
