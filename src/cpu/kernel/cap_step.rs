//! The step of one cap on one projection, as in `kernels/cap_step.cuh`.

use crate::stats::RowStat;
use crate::table::CapParams;

/// The effect of one cap on one row.
pub(crate) struct CapStep {
    pub(crate) stat: RowStat,
    /// The step along the axis; `None` where the cap does not act.
    pub(crate) delta: Option<f32>,
}

/// Clamps a projection into the bounds, and returns the step that takes the row there.
#[inline(always)]
pub(crate) fn clamp_projection(p: f32, params: &CapParams) -> CapStep {
    if !p.is_finite() {
        return CapStep { stat: RowStat { before: p, after: p, flags: RowStat::NON_FINITE }, delta: None };
    }
    let c = if p < params.lo {
        params.lo
    } else if p > params.hi {
        params.hi
    } else {
        return CapStep { stat: RowStat { before: p, after: p, flags: 0 }, delta: None };
    };
    let delta = params.strength * (c - p);
    let mut stat = RowStat { before: p, after: p, flags: RowStat::ENGAGED };
    if !delta.is_finite() {
        stat.flags |= RowStat::NON_FINITE;
        return CapStep { stat, delta: None };
    }
    if delta == 0.0 {
        return CapStep { stat, delta: None };
    }
    stat.after = if params.strength == 1.0 { c } else { p + delta };
    CapStep { stat, delta: Some(delta) }
}
