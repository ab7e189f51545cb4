//! One pass over rows: what happens to a row, and in which order. Generic over the instruction set, the element
//! type; everything here is inlined into one function per instruction set, which switches the instructions on.

use crate::cpu::element::Element;
use crate::cpu::simd::Simd;
use crate::cpu::sum::{
    Factor, Itself, SEGMENT, STREAMS, Shared, Slots, Successive, four_segments, one_segment,
};
use crate::stats::RowStat;
use crate::table::{CapParams, CapTable};

/// The most projections computed in one pass over a row.
const MOST_AT_ONCE: usize = 8;

/// Rows somewhere, by pointer and stride.
#[derive(Clone, Copy)]
pub(crate) struct Strided<T> {
    pub(crate) ptr: *mut T,
    pub(crate) stride: usize,
}

impl<T> Strided<T> {
    /// # Safety
    /// There is such a row.
    #[inline(always)]
    unsafe fn row(self, row: usize) -> *mut T {
        // SAFETY: the caller's promise; the product was checked not to overflow.
        unsafe { self.ptr.add(row * self.stride) }
    }
}

/// RMSNorm * weight behind the caps.
#[derive(Clone, Copy)]
pub(crate) struct NormPass<E> {
    pub(crate) weight: *const f32,
    pub(crate) eps: f32,
    pub(crate) out: Strided<E>,
}

/// Everything one thread is to do. All pointers are valid for `count` rows of the table's width.
pub(crate) struct Pass<'a, E> {
    pub(crate) table: &'a CapTable,
    pub(crate) count: usize,
    /// Where the rows are capped in place, or where their sum goes.
    pub(crate) rows: Strided<E>,
    /// The two summands of add + cap.
    pub(crate) add: Option<[Strided<E>; 2]>,
    pub(crate) norm: Option<NormPass<E>>,
    /// Profile per row, all valid; without it, `everyone`.
    pub(crate) profiles: Option<&'a [u32]>,
    /// Statistics, `[count][depth]`.
    pub(crate) stats: Option<&'a mut [RowStat]>,
    /// Room for `STREAMS` f32 rows; only used where `E` is not f32.
    pub(crate) scratch: *mut f32,
}

/// The current values of a row: as they lie in memory, or as f32.
#[derive(Clone, Copy)]
enum Row<E> {
    Memory(*mut E),
    Wide(*mut f32),
}

/// What a cap says about a projection.
struct Verdict {
    stat: RowStat,
    /// The step along the axis, where the cap acts.
    delta: Option<f32>,
}

#[inline(always)]
fn judge(p: f32, params: &CapParams) -> Verdict {
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

/// Runs a pass.
///
/// # Safety
/// As stated at [`Pass`]; the instructions of `S` are available.
#[inline(always)]
pub(crate) unsafe fn run<S: Simd, E: Element>(pass: &mut Pass<'_, E>) {
    let mut row = 0;
    // Projections on caps after the first are worth computing ahead only where the first ones do not act.
    let mut ahead = true;
    while row < pass.count {
        let together = match pass.profiles {
            None => pass.count - row >= STREAMS,
            Some(profiles) => {
                let rest = &profiles[row..];
                rest.len() >= STREAMS && rest[1..STREAMS].iter().all(|&p| p == rest[0])
            }
        };
        // SAFETY: the caller's promise; the rows exist.
        unsafe {
            if together {
                ahead = !four_rows::<S, E>(pass, row, ahead);
                row += STREAMS;
            } else {
                one_row::<S, E>(pass, row);
                row += 1;
            }
        }
    }
}

/// Four rows of one profile. Says whether a cap acted on any.
#[inline(always)]
unsafe fn four_rows<S: Simd, E: Element>(pass: &mut Pass<'_, E>, row: usize, ahead: bool) -> bool {
    let caps = pass.caps(row);
    let width = pass.table.width();
    let mut first = [[0.0; MOST_AT_ONCE]; STREAMS];
    let known = caps.len().min(if ahead { MOST_AT_ONCE } else { 1 });
    // SAFETY: the caller's promise.
    unsafe {
        for r in 0..STREAMS {
            pass.begin::<S>(row + r, r);
        }
        let axes = pass.table.axes().as_ptr().add(caps.start * width);
        if pass.begins_wide() {
            let h = std::array::from_fn(|r| pass.scratch.add(r * width).cast_const());
            project_rows::<S, E, f32>(h, axes, known, width, &mut first);
        } else {
            let h = std::array::from_fn(|r| pass.rows.row(row + r).cast_const());
            project_rows::<S, E, E>(h, axes, known, width, &mut first);
        }
        let mut acted = false;
        for (r, first) in first.iter().enumerate() {
            acted |= pass.finish::<S>(row + r, r, &first[..known]);
        }
        acted
    }
}

/// A row alone.
#[inline(always)]
unsafe fn one_row<S: Simd, E: Element>(pass: &mut Pass<'_, E>, row: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        pass.begin::<S>(row, 0);
        pass.finish::<S>(row, 0, &[]);
    }
}

impl<E: Element> Pass<'_, E> {
    #[inline(always)]
    fn caps(&self, row: usize) -> std::ops::Range<usize> {
        let profile = self.profiles.map_or(1, |profiles| profiles[row]);
        self.table.profile(profile).unwrap_or(0..0)
    }

    /// Whether the first cap finds the row in scratch, as f32.
    #[inline(always)]
    fn begins_wide(&self) -> bool {
        self.add.is_some() && !E::IS_F32
    }

    /// Puts the row where the first cap reads it.
    #[inline(always)]
    unsafe fn begin<S: Simd>(&self, row: usize, stream: usize) {
        let Some([x, residual]) = self.add else { return };
        let width = self.table.width();
        // SAFETY: the caller's promise.
        unsafe {
            let to = if E::IS_F32 { self.rows.row(row).cast() } else { self.scratch.add(stream * width) };
            add::<S, E>(x.row(row), residual.row(row), to, width);
        }
    }

    /// The caps, the store, the norm. `known` are projections of the row as it is, on its first caps. Says whether
    /// a cap acted.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&mut self, row: usize, stream: usize, known: &[f32]) -> bool {
        let width = self.table.width();
        let caps = self.caps(row);
        let depth = self.table.deepest_profile();
        let mut acted = false;
        // SAFETY: the caller's promise.
        unsafe {
            let wide = self.scratch.wrapping_add(stream * width);
            let mut place =
                if self.begins_wide() { Row::Wide(wide) } else { Row::Memory(self.rows.row(row)) };
            for (k, cap) in caps.clone().enumerate() {
                let axis = self.table.axis(cap).as_ptr();
                let p = match known.get(k) {
                    Some(&p) if !acted => p,
                    _ => match place {
                        Row::Memory(h) => sum::<S, E, E, _>(h, Successive(axis), width),
                        Row::Wide(h) => sum::<S, E, f32, _>(h, Successive(axis), width),
                    },
                };
                let Verdict { stat, delta } = judge(p, &self.table.params()[cap]);
                if let Some(stats) = &mut self.stats {
                    stats[row * depth + k] = stat;
                }
                let Some(delta) = delta else { continue };
                acted = true;
                place = match place {
                    Row::Memory(h) if E::IS_F32 => {
                        step::<S, f32>(h.cast(), h.cast(), delta, axis, width);
                        place
                    }
                    Row::Memory(h) => {
                        step::<S, E>(h, wide, delta, axis, width);
                        Row::Wide(wide)
                    }
                    Row::Wide(wide) => {
                        step::<S, f32>(wide, wide, delta, axis, width);
                        place
                    }
                };
            }
            if let Some(stats) = &mut self.stats {
                stats[row * depth + caps.len()..(row + 1) * depth].fill(RowStat::default());
            }
            if let Row::Wide(wide) = place {
                round::<S, E>(wide, self.rows.row(row), width);
            }
            if let Some(norm) = self.norm {
                let out = norm.out.row(row);
                match place {
                    Row::Memory(h) => rms_norm::<S, E, E>(h, &norm, out, width),
                    Row::Wide(h) => rms_norm::<S, E, f32>(h, &norm, out, width),
                }
            }
        }
        acted
    }
}

/// Projections of four rows on `count` successive axes, in one pass over the rows.
#[inline(always)]
unsafe fn project_rows<S: Simd, E: Element, T: Element>(
    rows: [*const T; STREAMS],
    axes: *const f32,
    count: usize,
    width: usize,
    projections: &mut [[f32; MOST_AT_ONCE]; STREAMS],
) {
    let segments = width.div_ceil(SEGMENT);
    let mut slots = [[Slots::EMPTY; STREAMS]; MOST_AT_ONCE];
    // SAFETY: the caller's promise.
    unsafe {
        for segment in 0..segments {
            let at = segment * SEGMENT;
            let h = [rows[0].add(at), rows[1].add(at), rows[2].add(at), rows[3].add(at)];
            for (k, slots) in slots.iter_mut().enumerate().take(count) {
                let v = Shared(axes.add(k * width + at));
                if at + SEGMENT <= width {
                    let sums = four_segments::<S, E, T, _>(h, v);
                    for r in 0..STREAMS {
                        slots[r].add(segment, sums[r]);
                    }
                } else {
                    for r in 0..STREAMS {
                        slots[r].add(segment, one_segment::<S, E, T, _>(h[r], v, width - at));
                    }
                }
            }
        }
    }
    for k in 0..count {
        for r in 0..STREAMS {
            projections[r][k] = slots[k][r].total(segments);
        }
    }
}

/// The fixed-order sum over one row.
#[inline(always)]
unsafe fn sum<S: Simd, E: Element, T: Element, V: Factor>(row: *const T, factor: V, width: usize) -> f32 {
    let segments = width.div_ceil(SEGMENT);
    let mut slots = Slots::EMPTY;
    let mut segment = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while (segment + STREAMS) * SEGMENT <= width {
            let at = segment * SEGMENT;
            let h = row.add(at);
            let h = [h, h.add(SEGMENT), h.add(2 * SEGMENT), h.add(3 * SEGMENT)];
            let sums = four_segments::<S, E, T, _>(h, factor.skip(at));
            for (r, sum) in sums.into_iter().enumerate() {
                slots.add(segment + r, sum);
            }
            segment += STREAMS;
        }
        while segment < segments {
            let at = segment * SEGMENT;
            let count = SEGMENT.min(width - at);
            slots.add(segment, one_segment::<S, E, T, _>(row.add(at), factor.skip(at), count));
            segment += 1;
        }
    }
    slots.total(segments)
}

/// `to = x + residual`.
#[inline(always)]
unsafe fn add<S: Simd, E: Element>(x: *const E, residual: *const E, to: *mut f32, width: usize) {
    let mut i = 0;
    // SAFETY: the caller's promise: `width` values behind each.
    unsafe {
        while i + S::LANES <= width {
            S::store(to.add(i), S::add(E::load::<S>(x.add(i)), E::load::<S>(residual.add(i))));
            i += S::LANES;
        }
        while i < width {
            *to.add(i) = (*x.add(i)).to_f32() + (*residual.add(i)).to_f32();
            i += 1;
        }
    }
}

/// `to = fma(delta, axis, from)`.
#[inline(always)]
unsafe fn step<S: Simd, T: Element>(
    from: *const T,
    to: *mut f32,
    delta: f32,
    axis: *const f32,
    width: usize,
) {
    let mut i = 0;
    // SAFETY: the caller's promise: `width` values behind each.
    unsafe {
        let all = S::splat(delta);
        while i + S::LANES <= width {
            S::store(to.add(i), S::fma(all, S::load(axis.add(i)), T::load::<S>(from.add(i))));
            i += S::LANES;
        }
        while i < width {
            *to.add(i) = delta.mul_add(*axis.add(i), (*from.add(i)).to_f32());
            i += 1;
        }
    }
}

/// Rounds a row to its type.
#[inline(always)]
unsafe fn round<S: Simd, E: Element>(from: *const f32, to: *mut E, width: usize) {
    let mut i = 0;
    // SAFETY: the caller's promise: `width` values behind each.
    unsafe {
        while i + S::LANES <= width {
            E::store::<S>(to.add(i), S::load(from.add(i)));
            i += S::LANES;
        }
        while i < width {
            *to.add(i) = E::from_f32(*from.add(i));
            i += 1;
        }
    }
}

/// `out = (h * k) * weight` with `k = 1 / sqrt(mean of squares + eps)`.
#[inline(always)]
unsafe fn rms_norm<S: Simd, E: Element, T: Element>(
    h: *const T,
    norm: &NormPass<E>,
    out: *mut E,
    width: usize,
) {
    // SAFETY: the caller's promise: `width` values behind each.
    unsafe {
        let mean = sum::<S, E, T, _>(h, Itself, width) / width as f32;
        let k = 1.0 / (mean + norm.eps).sqrt();
        let all = S::splat(k);
        let mut i = 0;
        while i + S::LANES <= width {
            let scaled = S::mul(T::load::<S>(h.add(i)), all);
            E::store::<S>(out.add(i), S::mul(scaled, S::load(norm.weight.add(i))));
            i += S::LANES;
        }
        while i < width {
            *out.add(i) = E::from_f32(((*h.add(i)).to_f32() * k) * *norm.weight.add(i));
            i += 1;
        }
    }
}
