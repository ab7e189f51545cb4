//! One pass over rows: what happens to a row, and in which order.

use std::marker::PhantomData;

use crate::cpu::element::Element;
use crate::cpu::elementwise::{Add, Round, Scale, Step};
use crate::cpu::one_cap::CapRows;
use crate::cpu::project::{MOST_AT_ONCE, ProjectRows, SumRow};
use crate::cpu::simd::Simd;
use crate::cpu::sum::{Along, Factor, Itself, SEGMENT, STREAMS, Slots};
use crate::cpu::verdict::{Verdict, judge};
use crate::stats::RowStat;
use crate::table::CapTable;

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
    pub(crate) unsafe fn row(self, row: usize) -> *mut T {
        // SAFETY: the caller's promise; the product was checked not to overflow.
        unsafe { self.ptr.add(row * self.stride) }
    }
}

impl<T> Strided<T> {
    /// Where the row after `row` is, if there is one: for hints only.
    #[inline(always)]
    pub(crate) fn after(self, row: usize) -> *mut T {
        self.ptr.wrapping_add((row + 1).wrapping_mul(self.stride))
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
#[allow(missing_debug_implementations, reason = "public only in name, as a parameter of a sealed trait")]
pub struct Pass<'a, E> {
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

/// Runs a pass.
///
/// # Safety
/// As stated at [`Pass`]; the instructions of `S` are available.
pub(crate) unsafe fn run<S: Simd, E: Element>(pass: &mut Pass<'_, E>) {
    let mut row = 0;
    // SAFETY: the caller's promise; the rows exist.
    unsafe {
        if let Some(rows) = pass.one_cap() {
            S::outlined(rows);
            return;
        }
        if pass.count >= STREAMS {
            row = by_fours::<S, E>(pass);
        }
        while row < pass.count {
            one_row::<S, E>(pass, row);
            row += 1;
        }
    }
}

/// Rows in fours of one profile, and those in between alone, until fewer than four are left. Says how far it came.
#[inline(never)]
unsafe fn by_fours<S: Simd, E: Element>(pass: &mut Pass<'_, E>) -> usize {
    let mut slots = [Slots::EMPTY; MOST_AT_ONCE];
    // Where caps act, rows go alone: four of them would have left the nearest cache before they are changed, and
    // projections computed ahead would be void.
    let mut acted = false;
    let mut row = 0;
    while row + STREAMS <= pass.count {
        let together = pass.profiles.is_none_or(|profiles| {
            let next = &profiles[row..row + STREAMS];
            next.iter().all(|&p| p == next[0])
        });
        // SAFETY: the caller's promise; the rows exist.
        unsafe {
            if together && !acted && !pass.alone(row) {
                acted = four_rows::<S, E>(pass, row, &mut slots);
                row += STREAMS;
            } else {
                acted = one_row::<S, E>(pass, row);
                row += 1;
            }
        }
    }
    row
}

/// Four rows of one profile. Says whether a cap acted on any.
unsafe fn four_rows<S: Simd, E: Element>(
    pass: &mut Pass<'_, E>,
    row: usize,
    slots: &mut [Slots<STREAMS>; MOST_AT_ONCE],
) -> bool {
    let caps = pass.caps(row);
    let width = pass.table.width();
    let known = caps.len().min(MOST_AT_ONCE);
    // SAFETY: the caller's promise.
    unsafe {
        for r in 0..STREAMS {
            pass.begin::<S>(row + r, r);
        }
        let axes = pass.table.axes().as_ptr().add(caps.start * width);
        if pass.begins_wide() {
            let h = std::array::from_fn(|r| pass.scratch.add(r * width).cast_const());
            S::outlined(ProjectRows::<E, f32> {
                rows: h,
                axes,
                count: known,
                width,
                slots,
                lane_map: PhantomData,
            });
        } else {
            let h = std::array::from_fn(|r| pass.rows.row(row + r).cast_const());
            S::outlined(ProjectRows::<E, E> {
                rows: h,
                axes,
                count: known,
                width,
                slots,
                lane_map: PhantomData,
            });
        }
        let mut first = [[0.0; MOST_AT_ONCE]; STREAMS];
        for (k, slots) in slots[..known].iter_mut().enumerate() {
            for (first, p) in first.iter_mut().zip(slots.total(width.div_ceil(SEGMENT))) {
                first[k] = p;
            }
        }
        let mut acted = false;
        for (r, first) in first.iter().enumerate() {
            acted |= pass.finish::<S>(row + r, r, &first[..known]);
        }
        acted
    }
}

/// A row alone. Says whether a cap acted on it.
unsafe fn one_row<S: Simd, E: Element>(pass: &mut Pass<'_, E>, row: usize) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        pass.begin::<S>(row, 0);
        pass.finish::<S>(row, 0, &[])
    }
}

impl<E: Element> Pass<'_, E> {
    #[inline(always)]
    fn caps(&self, row: usize) -> std::ops::Range<usize> {
        let profile = self.profiles.map_or(1, |profiles| profiles[row]);
        self.table.profile(profile).unwrap_or(0..0)
    }

    /// The whole pass, where it is one cap on long rows of f32 in place.
    fn one_cap(&mut self) -> Option<CapRows<'_>> {
        let plain = E::IS_F32 && self.add.is_none() && self.norm.is_none() && self.profiles.is_none();
        let figures = self.stats.is_none() || self.table.deepest_profile() == 1;
        if !plain || !figures {
            return None;
        }
        let caps = self.caps(0);
        (caps.len() == 1 && self.alone(0)).then(|| CapRows {
            rows: Strided { ptr: self.rows.ptr.cast(), stride: self.rows.stride },
            count: self.count,
            width: self.table.width(),
            axis: self.table.axis(caps.start).as_ptr(),
            params: self.table.params()[caps.start],
            stats: self.stats.as_deref_mut(),
        })
    }

    /// Whether rows go one by one even where caps do not act: a long row with one cap gains nothing from its
    /// neighbours, and memory is faster in the order of its addresses.
    #[inline(always)]
    fn alone(&self, row: usize) -> bool {
        self.caps(row).len() <= 1 && self.table.width() >= STREAMS * SEGMENT
    }

    /// Whether the first cap finds the row in scratch, as f32.
    #[inline(always)]
    fn begins_wide(&self) -> bool {
        self.add.is_some() && !E::IS_F32
    }

    /// Puts the row where the first cap reads it.
    unsafe fn begin<S: Simd>(&self, row: usize, stream: usize) {
        let Some([x, residual]) = self.add else { return };
        let width = self.table.width();
        // SAFETY: the caller's promise.
        unsafe {
            let to = if E::IS_F32 { self.rows.row(row).cast() } else { self.scratch.add(stream * width) };
            S::outlined(Add { x: x.row(row), residual: residual.row(row), to, width });
        }
    }

    /// The caps, the store, the norm. `known` are projections of the row as it is, on its first caps. Says whether
    /// a cap acted.
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
                        Row::Memory(h) => sum::<S, E, E, _>(h, Along(axis), width),
                        Row::Wide(h) => sum::<S, E, f32, _>(h, Along(axis), width),
                    },
                };
                let Verdict { stat, delta } = judge(p, &self.table.params()[cap]);
                if let Some(stats) = &mut self.stats {
                    stats[row * depth + k] = stat;
                }
                let Some(delta) = delta else { continue };
                // While the row is changed in the nearest cache, memory is free for the next one.
                let next = if acted { self.rows.row(row) } else { self.rows.after(row) }.cast_const();
                acted = true;
                place = match place {
                    Row::Memory(h) if E::IS_F32 => {
                        let h = h.cast();
                        S::outlined(Step::<f32> { from: h, to: h, delta, axis, width, next: next.cast() });
                        place
                    }
                    Row::Memory(h) => {
                        S::outlined(Step::<E> { from: h, to: wide, delta, axis, width, next });
                        Row::Wide(wide)
                    }
                    Row::Wide(wide) => {
                        let next = wide.cast_const();
                        S::outlined(Step::<f32> { from: wide, to: wide, delta, axis, width, next });
                        place
                    }
                };
            }
            if let Some(stats) = &mut self.stats {
                stats[row * depth + caps.len()..(row + 1) * depth].fill(RowStat::default());
            }
            if let Row::Wide(wide) = place {
                S::outlined(Round { from: wide, to: self.rows.row(row), width });
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

/// The fixed-order sum over one row.
unsafe fn sum<S: Simd, E: Element, T: Element, V: Factor>(row: *const T, factor: V, width: usize) -> f32 {
    // SAFETY: the caller's promise.
    unsafe { S::outlined(SumRow::<E, T, V> { row, factor, width, lane_map: PhantomData }) }
}

/// `out = (h * k) * weight` with `k = 1 / sqrt(mean of squares + eps)`.
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
        S::outlined(Scale { from: h, k, weight: norm.weight, to: out, width });
    }
}
