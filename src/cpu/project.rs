//! Sums over rows: one row alone, or four rows on several axes in one pass.

use std::marker::PhantomData;

use crate::cpu::element::Element;
use crate::cpu::simd::{Simd, Work};
use crate::cpu::sum::{
    Along, Factor, SEGMENT, STREAMS, Slots, four_segments, one_segment, successive_segments,
};

/// The most projections computed in one pass over a row.
pub(crate) const MOST_AT_ONCE: usize = 8;

/// Projections of four rows on `count` successive axes. Each segment is read from memory once and each axis once for
/// all four rows.
pub(crate) struct ProjectRows<'a, E, T> {
    pub(crate) rows: [*const T; STREAMS],
    /// `[count][width]`.
    pub(crate) axes: *const f32,
    pub(crate) count: usize,
    pub(crate) width: usize,
    /// What grows; [`Slots::total`] then gives the projections on an axis.
    pub(crate) slots: &'a mut [Slots<STREAMS>; MOST_AT_ONCE],
    pub(crate) lane_map: PhantomData<E>,
}

impl<E: Element, T: Element> Work for ProjectRows<'_, E, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { rows, axes, count, width, slots, .. } = self;
        let segments = width.div_ceil(SEGMENT);
        for slots in &mut slots[..count] {
            slots.start(segments);
        }
        // SAFETY: `width` values behind each pointer, by the promise of whoever runs this.
        unsafe {
            for segment in 0..segments {
                let at = segment * SEGMENT;
                let h = [rows[0].add(at), rows[1].add(at), rows[2].add(at), rows[3].add(at)];
                let exist = SEGMENT.min(width - at);
                for (k, slots) in slots[..count].iter_mut().enumerate() {
                    let v = Along(axes.add(k * width + at));
                    // The four rows' next segments are fetched meanwhile, shared out among the axes.
                    let next = |r: usize| h[r % STREAMS].wrapping_add(SEGMENT);
                    let ahead = [next(k * STREAMS / count), next(k * STREAMS / count + 1), next(2), next(3)];
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

/// The fixed-order sum over one row.
pub(crate) struct SumRow<E, T, V> {
    pub(crate) row: *const T,
    pub(crate) factor: V,
    pub(crate) width: usize,
    pub(crate) lane_map: PhantomData<E>,
}

impl<E: Element, T: Element, V: Factor> Work for SumRow<E, T, V> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let Self { row, factor, width, .. } = self;
        let segments = width.div_ceil(SEGMENT);
        let mut slots = Slots::<1>::EMPTY;
        let mut segment = 0;
        // SAFETY: `width` values behind each pointer, by the promise of whoever runs this.
        unsafe {
            while (segment + STREAMS) * SEGMENT <= width {
                let at = segment * SEGMENT;
                let sums = successive_segments::<S, E, T, _>(row.add(at), factor.skip(at));
                slots.add_four(segment, sums);
                segment += STREAMS;
            }
            while segment < segments {
                let at = segment * SEGMENT;
                let exist = SEGMENT.min(width - at);
                slots.add(segment, [one_segment::<S, E, T, _>(row.add(at), factor.skip(at), exist)]);
                segment += 1;
            }
        }
        slots.total(segments)[0]
    }
}
