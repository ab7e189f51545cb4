//! The layout of a table of caps in device memory.

use std::ops::Range;

use crate::op::SEGMENT;
use crate::table::{CapParams, CapTable};

/// The addresses of a table's parts, and its layout. [`DeviceTable`](crate::cuda::DeviceTable) owns the
/// memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TableView {
    /// Address of the axes, `[caps][axis_stride]` f32, zero from `width` on. A multiple of 16.
    pub axes: u64,
    /// Address of the bounds and strengths, `[caps]` [`CapParams`].
    pub params: u64,
    /// Address of the profile boundaries, `[profile_count]` u32.
    pub ends: u64,
    /// Address of the record of rows without a profile,
    /// [`ProfileFaults::BYTES`](crate::cuda::ProfileFaults::BYTES) long. Launches write it. A multiple of 8.
    pub faults: u64,
    /// The shape of what is at the addresses.
    pub layout: TableLayout,
}

/// The shape of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableLayout {
    /// Width of the rows that this table caps.
    pub width: usize,
    /// Elements from one axis to the next: the width, rounded up to whole segments of 512. The kernels then
    /// read axes without a check for the row's end.
    pub axis_stride: usize,
    /// Number of profiles, including the empty profile 0.
    pub profile_count: usize,
    /// First cap of profile 1, which is the profile of rows without an index.
    pub first: usize,
    /// Number of caps of profile 1.
    pub count: usize,
    /// Caps of the longest profile. Statistics have that many entries per row.
    pub max_caps_per_row: usize,
}

/// The parts of a table, padded and ready to be copied to a device.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedTable {
    axes: Vec<f32>,
    params: Vec<CapParams>,
    ends: Vec<u32>,
    layout: TableLayout,
}

impl PackedTable {
    /// Lays out a table.
    #[must_use]
    pub fn new(table: &CapTable) -> Self {
        let Range { start: first, end } = table.profile(1).unwrap_or(0..0);
        let layout = TableLayout {
            width: table.width(),
            axis_stride: table.width().next_multiple_of(SEGMENT),
            profile_count: table.profile_count(),
            first,
            count: end - first,
            max_caps_per_row: table.max_caps_per_row(),
        };
        let mut axes = vec![0.0; table.cap_count() * layout.axis_stride];
        for (axis, padded) in table.axes().chunks(layout.width).zip(axes.chunks_mut(layout.axis_stride)) {
            padded[..layout.width].copy_from_slice(axis);
        }
        Self { axes, params: table.params().to_vec(), ends: table.profile_ends().to_vec(), layout }
    }

    /// Returns the axes, `[caps][axis_stride]`.
    #[must_use]
    pub fn axes(&self) -> &[f32] {
        &self.axes
    }

    /// Returns the bounds and strengths.
    #[must_use]
    pub fn params(&self) -> &[CapParams] {
        &self.params
    }

    /// Returns the profile boundaries.
    #[must_use]
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Returns the shape.
    #[must_use]
    pub fn layout(&self) -> TableLayout {
        self.layout
    }
}
