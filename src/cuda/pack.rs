//! A table of caps as it lies in device memory.

use std::ops::Range;

use crate::table::{CapParams, CapTable};

/// Elements of a segment (docs/operation.md): axes are padded to whole ones, so that the kernels read them without
/// looking where the row ends.
pub(crate) const SEGMENT: usize = 512;

/// Where the parts of a table lie and how it is laid out. Plain numbers; [`DeviceTable`](super::DeviceTable) owns
/// the memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TableView {
    /// Address of the axes, `[caps][axis_stride]` f32, zero from `width` on; a multiple of 16.
    pub axes: u64,
    /// Address of the bounds and strengths, `[caps]` [`CapParams`].
    pub params: u64,
    /// Address of the profile boundaries, `[profiles]` u32.
    pub ends: u64,
    /// Address of the record of rows at fault, [`ProfileFaults::BYTES`](super::ProfileFaults::BYTES); a multiple of 8.
    /// Launches write it.
    pub faults: u64,
    /// What the addresses hold.
    pub layout: TableLayout,
}

/// The shape of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableLayout {
    /// Width of the rows this table caps.
    pub width: usize,
    /// Elements from one axis to the next: the width, rounded up to a multiple of 512.
    pub axis_stride: usize,
    /// Number of profiles, the empty profile 0 included.
    pub profiles: usize,
    /// First cap of profile 1, which rows without a profile index have.
    pub first: usize,
    /// Number of caps of profile 1.
    pub count: usize,
    /// The most caps of any profile: statistics have that many entries per row.
    pub depth: usize,
}

/// The parts of a table, ready to be copied to a device.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedTable {
    axes: Vec<f32>,
    params: Vec<CapParams>,
    ends: Vec<u32>,
    layout: TableLayout,
}

impl PackedTable {
    /// Pads and lays out a table.
    #[must_use]
    pub fn new(table: &CapTable) -> Self {
        let Range { start: first, end } = table.profile(1).unwrap_or(0..0);
        let layout = TableLayout {
            width: table.width(),
            axis_stride: table.width().next_multiple_of(SEGMENT),
            profiles: table.profiles(),
            first,
            count: end - first,
            depth: table.deepest_profile(),
        };
        let mut axes = vec![0.0; table.caps() * layout.axis_stride];
        for (axis, padded) in table.axes().chunks(layout.width).zip(axes.chunks_mut(layout.axis_stride)) {
            padded[..layout.width].copy_from_slice(axis);
        }
        Self { axes, params: table.params().to_vec(), ends: table.profile_ends().to_vec(), layout }
    }

    /// The axes, `[caps][axis_stride]`.
    #[must_use]
    pub fn axes(&self) -> &[f32] {
        &self.axes
    }

    /// Bounds and strengths.
    #[must_use]
    pub fn params(&self) -> &[CapParams] {
        &self.params
    }

    /// Profile boundaries.
    #[must_use]
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The shape.
    #[must_use]
    pub fn layout(&self) -> TableLayout {
        self.layout
    }
}
