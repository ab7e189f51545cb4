//! One cap on many long rows of f32, in place: the usual case, in one piece of code without calls in between.
//!
//! What lies between the rows of a pass (which caps, what form, where the figures go) is the same for all of them
//! here. It costs 7 % of the time of a row that a cap acts on (4096 values, from L3).

use std::marker::PhantomData;

use crate::cpu::elementwise::Step;
use crate::cpu::project::SumRow;
use crate::cpu::row::Strided;
use crate::cpu::simd::{Simd, Work};
use crate::cpu::sum::Along;
use crate::cpu::verdict::judge;
use crate::stats::RowStat;
use crate::table::CapParams;

/// Rows, their cap, and one figure per row if there is room for any.
pub(crate) struct CapRows<'a> {
    pub(crate) rows: Strided<f32>,
    pub(crate) count: usize,
    pub(crate) width: usize,
    pub(crate) axis: *const f32,
    pub(crate) params: CapParams,
    pub(crate) stats: Option<&'a mut [RowStat]>,
}

impl Work for CapRows<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { rows, count, width, axis, params, mut stats } = self;
        for row in 0..count {
            // SAFETY: there are `count` rows, and `width` values behind each and behind the axis, by the promise of
            // whoever runs this.
            unsafe {
                let h = rows.row(row);
                let sum = SumRow::<f32, f32, _> { row: h, factor: Along(axis), width, lane_map: PhantomData };
                let verdict = judge(sum.run::<S>(), &params);
                if let Some(stats) = &mut stats {
                    stats[row] = verdict.stat;
                }
                if let Some(delta) = verdict.delta {
                    let next = rows.after(row).cast_const();
                    Step::<f32> { from: h, to: h, delta, axis, width, next }.run::<S>();
                }
            }
        }
    }
}
