//! One cap at most on each of many long rows of f32, in place: the usual case, as one kernel without calls inside.
//!
//! All rows have the same form here. The general pass decides that per row, which takes 7 % of the time of a row
//! that a cap acts on (4096 values, from L3), and 8 to 18 % if none acts.

use std::marker::PhantomData;

use crate::cpu::kernel::cap_step::clamp_projection;
use crate::cpu::kernel::elementwise::Step;
use crate::cpu::kernel::project::SumRow;
use crate::cpu::kernel::sum::Dot;
use crate::cpu::rows::Strided;
use crate::cpu::simd::{Kernel, Simd};
use crate::stats::RowStat;
use crate::table::CapTable;

/// Rows with one cap at most. There are `count` rows, valid for `width` values of the table each. `profiles` has
/// one entry per row, and so has `stats`. Without profiles every row has the first one.
pub(crate) struct CapRows<'a> {
    pub(crate) rows: Strided<f32>,
    pub(crate) count: usize,
    pub(crate) table: &'a CapTable,
    pub(crate) profiles: Option<&'a [u32]>,
    pub(crate) stats: Option<&'a mut [RowStat]>,
}

impl Kernel for CapRows<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { rows, count, table, profiles, mut stats } = self;
        let width = table.width();
        let cap_of = |profile: u32| {
            let cap = table.profile(profile).and_then(|caps| caps.into_iter().next())?;
            Some((table.axis(cap).as_ptr(), table.params()[cap]))
        };
        // Neighbours often have the same profile.
        let mut profile = 1;
        let mut cap = cap_of(profile);
        for row in 0..count {
            if let Some(profiles) = profiles
                && profiles[row] != profile
            {
                profile = profiles[row];
                cap = cap_of(profile);
            }
            let Some((axis, params)) = cap else {
                if let Some(stats) = &mut stats {
                    stats[row] = RowStat::default();
                }
                continue;
            };
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
