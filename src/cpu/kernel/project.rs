//! The sums over whole rows: one row alone, or four rows on several axes in one pass.

use std::marker::PhantomData;

use crate::cpu::kernel::sum::{
    Dot, Operand, SEGMENTS_AT_ONCE, Slots, four_segments, one_segment, successive_segments,
};
use crate::cpu::simd::{Kernel, Simd};
use crate::cpu::storage::Element;
use crate::op::SEGMENT;

/// Maximum number of axes that rows are projected on in one pass.
pub(crate) const MAX_AXES_AT_ONCE: usize = 8;

/// Projects four rows on `count` successive axes. Each segment of a row is read from memory once, and each
/// axis once for all four rows.
///
/// The rows are valid for `width` values and the axes for `count * width`.
pub(crate) struct ProjectRows<'a, E, T> {
    pub(crate) rows: [*const T; SEGMENTS_AT_ONCE],
    /// `[count][width]`.
    pub(crate) axes: *const f32,
    pub(crate) count: usize,
    pub(crate) width: usize,
    /// The sums in progress, one set per axis. [`Slots::total`] gives the projections in the end.
    pub(crate) slots: &'a mut [Slots<SEGMENTS_AT_ONCE>; MAX_AXES_AT_ONCE],
    pub(crate) lane_map: PhantomData<E>,
}

impl<E: Element, T: Element> Kernel for ProjectRows<'_, E, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { rows, axes, count, width, slots, .. } = self;
        let segments = width.div_ceil(SEGMENT);
        for slots in &mut slots[..count] {
            slots.start(segments);
        }
        // SAFETY: every segment begins below `width` and is read up to `width` only, for which the pointers
        // are valid.
        unsafe {
            for segment in 0..segments {
                let at = segment * SEGMENT;
                let h = [rows[0].add(at), rows[1].add(at), rows[2].add(at), rows[3].add(at)];
                let exist = SEGMENT.min(width - at);
                for (k, slots) in slots[..count].iter_mut().enumerate() {
                    let v = Dot(axes.add(k * width + at));
                    // The next segments of the four rows are prefetched, shared out among the axes.
                    let next = |r: usize| h[r % SEGMENTS_AT_ONCE].wrapping_add(SEGMENT);
                    let ahead = [
                        next(k * SEGMENTS_AT_ONCE / count),
                        next(k * SEGMENTS_AT_ONCE / count + 1),
                        next(2),
                        next(3),
                    ];
                    let sums = match (exist, count) {
                        (SEGMENT, 1) => four_segments::<S, E, T, _>(h, v, SEGMENT, ahead, 4),
                        (SEGMENT, 2) => four_segments::<S, E, T, _>(h, v, SEGMENT, ahead, 2),
                        (SEGMENT, _) => four_segments::<S, E, T, _>(h, v, SEGMENT, [next(k); 4], 1),
                        _ => four_segments::<S, E, T, _>(h, v, exist, h, 0),
                    };
                    slots.add(segment, sums);
                }
            }
        }
    }
}

/// Sums over one row in the fixed order. The row and the operand are valid for `width` values.
pub(crate) struct SumRow<E, T, V> {
    pub(crate) row: *const T,
    pub(crate) operand: V,
    pub(crate) width: usize,
    pub(crate) lane_map: PhantomData<E>,
}

impl<E: Element, T: Element, V: Operand> Kernel for SumRow<E, T, V> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let Self { row, operand, width, .. } = self;
        let segments = width.div_ceil(SEGMENT);
        let mut slots = Slots::<1>::EMPTY;
        let mut segment = 0;
        // SAFETY: every segment begins below `width` and is read up to `width` only, for which the pointers
        // are valid.
        unsafe {
            while (segment + SEGMENTS_AT_ONCE) * SEGMENT <= width {
                let at = segment * SEGMENT;
                let sums = successive_segments::<S, E, T, _>(row.add(at), operand.skip(at));
                slots.add_four(segment, sums);
                segment += SEGMENTS_AT_ONCE;
            }
            while segment < segments {
                let at = segment * SEGMENT;
                let exist = SEGMENT.min(width - at);
                slots.add(segment, [one_segment::<S, E, T, _>(row.add(at), operand.skip(at), exist)]);
                segment += 1;
            }
        }
        slots.total(segments)[0]
    }
}
