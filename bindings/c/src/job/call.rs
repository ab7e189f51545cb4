//! The description of a call for C.

use std::ffi::c_void;

use crate::job::row_stat::RowStat;

/// A type of values: float.
pub const AXISCAP_F32: u32 = 1;
/// A type of values: IEEE half precision.
pub const AXISCAP_F16: u32 = 2;
/// A type of values: bfloat16.
pub const AXISCAP_BF16: u32 = 3;

/// An operation: h = cap(h), in place. A row on which no cap acts is not written.
pub const AXISCAP_CAP: u32 = 1;
/// An operation: h = cap(x + residual). Every row of h is written.
pub const AXISCAP_ADD_CAP: u32 = 2;
/// An operation: h = cap(h), and normed = RMSNorm(h) * weight. Every row of normed is written.
pub const AXISCAP_CAP_NORM: u32 = 3;
/// An operation: h = cap(x + residual), and normed = RMSNorm(h) * weight. Every row of both is written.
pub const AXISCAP_ADD_CAP_NORM: u32 = 4;

/// A call on rows: what axiscap_run does in host memory, and axiscap_launch in the memory of a GPU. All
/// pointers are to that memory.
///
/// Set it to zeros first, then the fields that the operation uses. A pointer that it does not use stays NULL.
///
/// Rows of one pointer must not overlap each other. x and residual may be exactly the rows of h, with one
/// pointer and stride. Apart from that, memory that is written must overlap nothing else of the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Job {
    /// sizeof(axiscap_job). Another number is refused, because the caller then has another version's header.
    pub size: usize,
    /// AXISCAP_CAP, AXISCAP_ADD_CAP, AXISCAP_CAP_NORM or AXISCAP_ADD_CAP_NORM.
    pub operation: u32,
    /// The type of the values of h, x, residual and normed: AXISCAP_F32, AXISCAP_F16 or AXISCAP_BF16.
    pub dtype: u32,
    /// Number of rows. With 0 the pointers of rows may be NULL.
    pub rows: usize,
    /// Values per row: the table's width.
    pub width: usize,
    /// The rows that are capped in place, or that take the capped sum. All operations use it.
    pub h: *mut c_void,
    /// Values (not bytes) from one row of h to the next, at least the width. What lies between the rows is
    /// neither read nor written. A multiple of 16 bytes is faster, for pointers as well.
    pub h_stride: usize,
    /// The first summand.
    pub x: *const c_void,
    /// Values from one row of x to the next.
    pub x_stride: usize,
    /// The second summand. For an addition in place it is h, with the stride of h.
    pub residual: *const c_void,
    /// Values from one row of residual to the next.
    pub residual_stride: usize,
    /// The normed rows.
    pub normed: *mut c_void,
    /// Values from one row of normed to the next.
    pub normed_stride: usize,
    /// The weight of the norm, one float per value of a row.
    pub weight: *const f32,
    /// What the norm adds to the mean of the squares: the model's own, e.g. 1e-5.
    pub epsilon: f32,
    /// The profile of each row. NULL gives every row profile 1. Profile 0 leaves a row uncapped.
    pub profiles: *const u32,
    /// Number of profiles: that of the rows, or 0 with NULL.
    pub profile_count: usize,
    /// Where statistics go, `[rows][max_caps_per_row]` with the number that axiscap_table_describe tells. NULL
    /// asks for none. Entries beyond the caps of a row's profile become zero.
    pub stats: *mut RowStat,
    /// Number of statistics: rows * max_caps_per_row, or 0 with NULL.
    pub stat_count: usize,
}
