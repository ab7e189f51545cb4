//! One pass over rows: add, cap, round and norm each row, in this order.

use std::marker::PhantomData;

use crate::cpu::kernel::cap_step::{CapStep, clamp_projection};
use crate::cpu::kernel::elementwise::{Add, Round, Scale, Step};
use crate::cpu::kernel::one_cap::CapRows;
use crate::cpu::kernel::project::{MAX_AXES_AT_ONCE, ProjectRows, SumRow};
use crate::cpu::kernel::sum::{Dot, Operand, SEGMENTS_AT_ONCE, Slots, Square};
use crate::cpu::rows::Strided;
use crate::cpu::simd::Simd;
use crate::cpu::storage::Element;
use crate::op::SEGMENT;
use crate::stats::RowStat;
use crate::table::CapTable;

/// Rows that are projected together. They share the loads of the axes.
pub(crate) const ROWS_AT_ONCE: usize = SEGMENTS_AT_ONCE;

/// RMSNorm * weight after the caps.
#[derive(Clone, Copy)]
pub(crate) struct NormPass<E> {
    pub(crate) weight: *const f32,
    pub(crate) epsilon: f32,
    pub(crate) out: Strided<E>,
}

/// A pass over rows on one thread.
///
/// All rows are valid for `count` rows of the table's width. Rows that are written overlap no other rows, but
/// the summands may be exactly the rows that take the sum. The weight is as wide as the table, `profiles` and
/// `stats` have the lengths given below, and every profile exists.
pub(crate) struct Pass<'a, E> {
    pub(crate) table: &'a CapTable,
    pub(crate) count: usize,
    /// The rows that are capped in place, or that take the capped sum.
    pub(crate) rows: Strided<E>,
    /// The summands of the residual addition.
    pub(crate) add: Option<[Strided<E>; 2]>,
    pub(crate) norm: Option<NormPass<E>>,
    /// The profile of each row, `[count]`. Without it every row has profile 1.
    pub(crate) profiles: Option<&'a [u32]>,
    /// Statistics, `[count][max_caps_per_row]`.
    pub(crate) stats: Option<&'a mut [RowStat]>,
    /// Room for `ROWS_AT_ONCE` f32 rows, at most `count`. Only used where `E` is not f32.
    pub(crate) scratch: *mut f32,
}

/// Where the current values of a row are: in memory in their own type, or in scratch as f32.
#[derive(Clone, Copy)]
enum Row<E> {
    Memory(*mut E),
    Scratch(*mut f32),
}

/// Runs a pass.
///
/// # Safety
/// The pass keeps what [`Pass`] says of its fields. The CPU has the instructions of `S`. The same holds for
/// every function of this file, and every row index is below `count`.
pub(crate) unsafe fn run<S: Simd, E: Element>(pass: &mut Pass<'_, E>) {
    let mut row = 0;
    // SAFETY: the caller promises valid rows and the instructions. `row` stays below `count`.
    unsafe {
        if let Some(rows) = pass.one_cap() {
            S::vectorize(rows);
            return;
        }
        if pass.count >= ROWS_AT_ONCE {
            row = by_fours::<S, E>(pass);
        }
        while row < pass.count {
            one_row::<S, E>(pass, row);
            row += 1;
        }
    }
}

/// Takes rows of one profile in fours, and others one by one, until fewer than four rows are left. Returns
/// the number of rows done.
#[inline(never)]
unsafe fn by_fours<S: Simd, E: Element>(pass: &mut Pass<'_, E>) -> usize {
    let mut slots = [Slots::EMPTY; MAX_AXES_AT_ONCE];
    // After rows on which a cap acted, the next row goes alone. Four rows would leave the nearest cache
    // before they are changed, and their projections on further axes would be void.
    let mut acted = false;
    let mut row = 0;
    while row + ROWS_AT_ONCE <= pass.count {
        let together = pass.profiles.is_none_or(|profiles| {
            let next = &profiles[row..row + ROWS_AT_ONCE];
            next.iter().all(|&p| p == next[0])
        });
        // SAFETY: the loop condition keeps `row + ROWS_AT_ONCE` within `count`.
        unsafe {
            if together && !acted && !pass.alone(row) {
                acted = four_rows::<S, E>(pass, row, &mut slots);
                row += ROWS_AT_ONCE;
            } else {
                acted = one_row::<S, E>(pass, row);
                row += 1;
            }
        }
    }
    row
}

/// Does four rows of one profile. Returns whether a cap acted on any of them.
unsafe fn four_rows<S: Simd, E: Element>(
    pass: &mut Pass<'_, E>,
    row: usize,
    slots: &mut [Slots<ROWS_AT_ONCE>; MAX_AXES_AT_ONCE],
) -> bool {
    let caps = pass.caps(row);
    let width = pass.table.width();
    let known = caps.len().min(MAX_AXES_AT_ONCE);
    // SAFETY: the caller promises four rows from `row` on. The axes of a profile are successive in the table,
    // and the scratch has room for four rows.
    unsafe {
        for r in 0..ROWS_AT_ONCE {
            pass.begin::<S>(row + r, r);
        }
        let axes = pass.table.axes().as_ptr().add(caps.start * width);
        if pass.begins_in_scratch() {
            let h = std::array::from_fn(|r| pass.scratch.add(r * width).cast_const());
            S::vectorize(ProjectRows::<E, f32> {
                rows: h,
                axes,
                count: known,
                width,
                slots,
                lane_map: PhantomData,
            });
        } else {
            let h = std::array::from_fn(|r| pass.rows.row(row + r).cast_const());
            S::vectorize(ProjectRows::<E, E> {
                rows: h,
                axes,
                count: known,
                width,
                slots,
                lane_map: PhantomData,
            });
        }
        let mut first = [[0.0; MAX_AXES_AT_ONCE]; ROWS_AT_ONCE];
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

/// Does one row. Returns whether a cap acted on it.
unsafe fn one_row<S: Simd, E: Element>(pass: &mut Pass<'_, E>, row: usize) -> bool {
    // SAFETY: the caller promises that the row exists, and the scratch has room for at least one row.
    unsafe {
        pass.begin::<S>(row, 0);
        pass.finish::<S>(row, 0, &[])
    }
}

impl<'a, E> Pass<'a, E> {
    /// Returns the same pass over elements of another type.
    ///
    /// # Safety
    /// `T` is the same type as `E`.
    pub(crate) unsafe fn cast<T>(self) -> Pass<'a, T> {
        Pass {
            table: self.table,
            count: self.count,
            rows: self.rows.cast(),
            add: self.add.map(|both| both.map(Strided::cast)),
            norm: self.norm.map(|NormPass { weight, epsilon, out }| NormPass {
                weight,
                epsilon,
                out: out.cast(),
            }),
            profiles: self.profiles,
            stats: self.stats,
            scratch: self.scratch,
        }
    }
}

impl<E: Element> Pass<'_, E> {
    #[inline(always)]
    fn caps(&self, row: usize) -> std::ops::Range<usize> {
        let profile = self.profiles.map_or(1, |profiles| profiles[row]);
        self.table.profile(profile).unwrap_or(0..0)
    }

    /// Returns the whole pass as one kernel, if it is one cap at most on long rows of f32 in place.
    fn one_cap(&mut self) -> Option<CapRows<'_>> {
        let plain = E::IS_F32 && self.add.is_none() && self.norm.is_none();
        let max_caps = self.table.max_caps_per_row();
        let one_stat = self.stats.is_none() || max_caps == 1;
        let caps = if self.profiles.is_some() { max_caps } else { self.caps(0).len() };
        (plain && one_stat && caps == 1 && self.long()).then(|| CapRows {
            rows: self.rows.cast(),
            count: self.count,
            table: self.table,
            profiles: self.profiles,
            stats: self.stats.as_deref_mut(),
        })
    }

    /// Whether rows go one by one even where caps do not act. A long row with one cap gains nothing from its
    /// neighbours, and memory is faster in the order of its addresses.
    #[inline(always)]
    fn alone(&self, row: usize) -> bool {
        self.caps(row).len() <= 1 && self.long()
    }

    #[inline(always)]
    fn long(&self) -> bool {
        self.table.width() >= ROWS_AT_ONCE * SEGMENT
    }

    /// Whether the first cap finds the row in scratch.
    #[inline(always)]
    fn begins_in_scratch(&self) -> bool {
        self.add.is_some() && !E::IS_F32
    }

    /// Puts the row where the first cap reads it. `slot` is the row's place in scratch.
    unsafe fn begin<S: Simd>(&self, row: usize, slot: usize) {
        let Some([x, residual]) = self.add else { return };
        let width = self.table.width();
        // SAFETY: the caller promises the row in all three batches, and `slot` is below the rows that fit the
        // scratch.
        unsafe {
            let to = if E::IS_F32 { self.rows.row(row).cast() } else { self.scratch.add(slot * width) };
            S::vectorize(Add { x: x.row(row), residual: residual.row(row), to, width });
        }
    }

    /// Caps, stores and norms the row. `known` holds the projections of the unchanged row on its first axes.
    /// Returns whether a cap acted.
    unsafe fn finish<S: Simd>(&mut self, row: usize, slot: usize, known: &[f32]) -> bool {
        let width = self.table.width();
        let caps = self.caps(row);
        let max_caps = self.table.max_caps_per_row();
        let mut acted = false;
        // SAFETY: the caller promises the row in every batch of the pass. Where the row is wide, `wide` is
        // its place in scratch; f32 rows without scratch never take it. The statistics have `max_caps`
        // entries per row.
        unsafe {
            let wide = self.scratch.wrapping_add(slot * width);
            let mut place =
                if self.begins_in_scratch() { Row::Scratch(wide) } else { Row::Memory(self.rows.row(row)) };
            for (k, cap) in caps.clone().enumerate() {
                let axis = self.table.axis(cap).as_ptr();
                let p = match known.get(k) {
                    Some(&p) if !acted => p,
                    _ => match place {
                        Row::Memory(h) => sum::<S, E, E, _>(h, Dot(axis), width),
                        Row::Scratch(h) => sum::<S, E, f32, _>(h, Dot(axis), width),
                    },
                };
                let CapStep { stat, delta } = clamp_projection(p, &self.table.params()[cap]);
                if let Some(stats) = &mut self.stats {
                    stats[row * max_caps + k] = stat;
                }
                let Some(delta) = delta else { continue };
                // While the row is changed in the nearest cache, memory is free to deliver the next one.
                let next = if acted { self.rows.row(row) } else { self.rows.after(row) }.cast_const();
                acted = true;
                place = match place {
                    Row::Memory(h) if E::IS_F32 => {
                        let h = h.cast();
                        S::vectorize(Step::<f32> { from: h, to: h, delta, axis, width, next: next.cast() });
                        place
                    }
                    Row::Memory(h) => {
                        S::vectorize(Step::<E> { from: h, to: wide, delta, axis, width, next });
                        Row::Scratch(wide)
                    }
                    Row::Scratch(wide) => {
                        let next = wide.cast_const();
                        S::vectorize(Step::<f32> { from: wide, to: wide, delta, axis, width, next });
                        place
                    }
                };
            }
            if let Some(stats) = &mut self.stats {
                stats[row * max_caps + caps.len()..(row + 1) * max_caps].fill(RowStat::default());
            }
            if let Row::Scratch(wide) = place {
                S::vectorize(Round { from: wide, to: self.rows.row(row), width });
            }
            if let Some(norm) = self.norm {
                let out = norm.out.row(row);
                match place {
                    Row::Memory(h) => rms_norm::<S, E, E>(h, &norm, out, width),
                    Row::Scratch(h) => rms_norm::<S, E, f32>(h, &norm, out, width),
                }
            }
        }
        acted
    }
}

/// Sums over one row in the fixed order.
unsafe fn sum<S: Simd, E: Element, T: Element, V: Operand>(row: *const T, operand: V, width: usize) -> f32 {
    // SAFETY: the caller promises `width` readable values at both pointers.
    unsafe { S::vectorize(SumRow::<E, T, V> { row, operand, width, lane_map: PhantomData }) }
}

/// `out = (h * k) * weight` with `k = 1 / sqrt(mean of squares + eps)`.
unsafe fn rms_norm<S: Simd, E: Element, T: Element>(
    h: *const T,
    norm: &NormPass<E>,
    out: *mut E,
    width: usize,
) {
    // SAFETY: the caller promises `width` values at the row, at the weight and at `out`.
    unsafe {
        let mean = sum::<S, E, T, _>(h, Square, width) / width as f32;
        let k = 1.0 / (mean + norm.epsilon).sqrt();
        S::vectorize(Scale { from: h, k, weight: norm.weight, to: out, width });
    }
}
