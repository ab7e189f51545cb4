//! What a cap says about a projection, as in `kernels/verdict.cuh`.

use crate::stats::RowStat;
use crate::table::CapParams;

/// What a cap says.
pub(crate) struct Verdict {
    pub(crate) stat: RowStat,
    /// The step along the axis, where the cap acts.
    pub(crate) delta: Option<f32>,
}

/// Where the projection is to go, and how far that is.
#[inline(always)]
pub(crate) fn judge(p: f32, params: &CapParams) -> Verdict {
    if !p.is_finite() {
        return Verdict { stat: RowStat { before: p, after: p, flags: RowStat::NON_FINITE }, delta: None };
    }
    let c = if p < params.lo {
        params.lo
    } else if p > params.hi {
        params.hi
    } else {
        return Verdict { stat: RowStat { before: p, after: p, flags: 0 }, delta: None };
    };
    let delta = params.strength * (c - p);
    let mut stat = RowStat { before: p, after: p, flags: RowStat::ENGAGED };
    if !delta.is_finite() {
        stat.flags |= RowStat::NON_FINITE;
        return Verdict { stat, delta: None };
    }
    if delta == 0.0 {
        return Verdict { stat, delta: None };
    }
    stat.after = if params.strength == 1.0 { c } else { p + delta };
    Verdict { stat, delta: Some(delta) }
}
