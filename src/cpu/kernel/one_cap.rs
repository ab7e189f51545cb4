//! One cap on many long rows of f32, in place: the usual case, as one kernel without calls inside.
//!
//! All rows have the same cap and the same form here. The general pass decides both per row, which takes 7 %
//! of the time of a row that a cap acts on (4096 values, from L3).

use std::marker::PhantomData;

use crate::cpu::kernel::cap_step::clamp_projection;
use crate::cpu::kernel::elementwise::Step;
use crate::cpu::kernel::project::SumRow;
use crate::cpu::kernel::sum::Dot;
use crate::cpu::rows::Strided;
use crate::cpu::simd::{Kernel, Simd};
use crate::stats::RowStat;
use crate::table::CapParams;

/// Rows and their cap. `stats` has one entry per row. There are `count` rows, valid for `width` values each,
/// as is the axis.
pub(crate) struct CapRows<'a> {
    pub(crate) rows: Strided<f32>,
    pub(crate) count: usize,
    pub(crate) width: usize,
    pub(crate) axis: *const f32,
    pub(crate) params: CapParams,
    pub(crate) stats: Option<&'a mut [RowStat]>,
}

impl Kernel for CapRows<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { rows, count, width, axis, params, mut stats } = self;
        for row in 0..count {
            // SAFETY: `row` is below `count`, and the row and the axis are valid for `width` values.
            unsafe {
                let h = rows.row(row);
                let sum = SumRow::<f32, f32, _> { row: h, operand: Dot(axis), width, lane_map: PhantomData };
                let step = clamp_projection(sum.run::<S>(), &params);
                if let Some(stats) = &mut stats {
                    stats[row] = step.stat;
                }
                if let Some(delta) = step.delta {
                    let next = rows.after(row).cast_const();
                    Step::<f32> { from: h, to: h, delta, axis, width, next }.run::<S>();
                }
            }
        }
    }
}
