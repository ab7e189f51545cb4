//! The statistics of a row for C.

use std::mem::offset_of;

/// A flag of statistics: the projection was outside the bounds.
pub const AXISCAP_ENGAGED: u32 = 1;
/// A flag of statistics: the projection, or the step towards the bound, was NaN or infinite. The row was left
/// unchanged.
pub const AXISCAP_NON_FINITE: u32 = 2;
/// A flag of statistics: the row's profile does not exist in the table, and the row went uncapped. Only a GPU
/// sets it, in the row's first entry. The CPU refuses such a call.
pub const AXISCAP_BAD_PROFILE: u32 = 4;

/// The effect of one cap on one row.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RowStat {
    /// Projection of the row on the axis before this cap, after the earlier caps of the same block.
    pub before: f32,
    /// Projection after this cap: the bound if the cap acted with strength 1. The capped row is not projected
    /// again, so its own projection differs by rounding.
    pub after: f32,
    /// AXISCAP_ENGAGED, AXISCAP_NON_FINITE, AXISCAP_BAD_PROFILE, or 0.
    pub flags: u32,
}

// Pointers to one are used as pointers to the other. Both have three fields of four bytes without padding.
const _: () = {
    use axiscap::RowStat as Core;
    assert!(size_of::<RowStat>() == size_of::<Core>() && align_of::<RowStat>() == align_of::<Core>());
    assert!(offset_of!(RowStat, before) == offset_of!(Core, before));
    assert!(offset_of!(RowStat, after) == offset_of!(Core, after));
    assert!(offset_of!(RowStat, flags) == offset_of!(Core, flags));
    assert!(AXISCAP_ENGAGED == Core::ENGAGED && AXISCAP_NON_FINITE == Core::NON_FINITE);
    assert!(AXISCAP_BAD_PROFILE == Core::BAD_PROFILE);
};
