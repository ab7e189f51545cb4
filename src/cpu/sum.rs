//! The fixed-order sum of docs/operation.md: segments, lanes, tree, slots.
//!
//! A *stream* is one segment on its way through the lanes. Four streams are summed at once, either one segment of
//! four rows or four segments of one row: it keeps enough independent chains in flight to hide the latency of the
//! fused multiply-adds, and the last foldings of the tree serve all four.

use crate::cpu::element::Element;
use crate::cpu::simd::Simd;

/// Elements of a segment.
pub(crate) const SEGMENT: usize = 512;

/// Streams summed together.
pub(crate) const STREAMS: usize = 4;

/// Slots that the sums of segments go to.
const SLOTS: usize = 32;

/// The sums over `R` rows as they grow segment by segment.
#[derive(Clone, Copy)]
pub(crate) struct Slots<const R: usize> {
    sums: [[f32; R]; SLOTS],
}

impl<const R: usize> Slots<R> {
    /// Room for the sums.
    pub(crate) const EMPTY: Self = Self { sums: [[0.0; R]; SLOTS] };

    /// Starts sums over `segments` segments: the slots that get none of them are +0.
    #[inline(always)]
    pub(crate) fn start(&mut self, segments: usize) {
        let used = segments.min(SLOTS);
        self.sums[used..used.next_power_of_two()].fill([0.0; R]);
    }

    /// Adds the sums of a segment; segments must come in ascending order.
    #[inline(always)]
    pub(crate) fn add(&mut self, segment: usize, sums: [f32; R]) {
        let slot = &mut self.sums[segment % SLOTS];
        if segment < SLOTS {
            // A slot starts *from* its first segment, not from zero plus it: the sum of a segment can be -0.
            *slot = sums;
        } else {
            for (slot, sum) in slot.iter_mut().zip(sums) {
                *slot += sum;
            }
        }
    }

    /// The sums over all of `segments` segments.
    #[inline(always)]
    pub(crate) fn total(&mut self, segments: usize) -> [f32; R] {
        let mut width = segments.min(SLOTS).next_power_of_two();
        while width > 1 {
            width /= 2;
            let (low, high) = self.sums.split_at_mut(width);
            for (low, high) in low.iter_mut().zip(high) {
                for (low, high) in low.iter_mut().zip(high) {
                    *low += *high;
                }
            }
        }
        self.sums[0]
    }
}

/// The second factor of a sum's terms.
pub(crate) trait Factor: Copy {
    /// Whether the terms are `h * h`; then nothing else is read.
    const SQUARE: bool;
    /// Where the factor of stream `stream` lies.
    fn at(self, stream: usize) -> *const f32;
    /// The factor from element `elements` on.
    fn skip(self, elements: usize) -> Self;
}

/// `h * h`.
#[derive(Clone, Copy)]
pub(crate) struct Itself;

impl Factor for Itself {
    const SQUARE: bool = true;
    #[inline(always)]
    fn at(self, _: usize) -> *const f32 {
        std::ptr::null()
    }
    #[inline(always)]
    fn skip(self, _: usize) -> Self {
        self
    }
}

/// `h * v`, the same `v` for all streams: one segment of several rows.
#[derive(Clone, Copy)]
pub(crate) struct Shared(pub(crate) *const f32);

impl Factor for Shared {
    const SQUARE: bool = false;
    #[inline(always)]
    fn at(self, _: usize) -> *const f32 {
        self.0
    }
    #[inline(always)]
    fn skip(self, elements: usize) -> Self {
        Self(self.0.wrapping_add(elements))
    }
}

/// `h * v`, each stream its segment of `v`: several segments of one row.
#[derive(Clone, Copy)]
pub(crate) struct Successive(pub(crate) *const f32);

impl Factor for Successive {
    const SQUARE: bool = false;
    #[inline(always)]
    fn at(self, stream: usize) -> *const f32 {
        self.0.wrapping_add(stream * SEGMENT)
    }
    #[inline(always)]
    fn skip(self, elements: usize) -> Self {
        Self(self.0.wrapping_add(elements))
    }
}

/// Sums of four segments of which only `count <= 512` elements exist; the others count as +0. `E` fixes the lane map,
/// `T` is the type in memory.
///
/// # Safety
/// `count` values are readable behind each of `rows` and of the factors; the instructions of `S` are available.
#[inline(always)]
pub(crate) unsafe fn four_segments<S: Simd, E: Element, T: Element, V: Factor>(
    rows: [*const T; STREAMS],
    factor: V,
    count: usize,
) -> [f32; STREAMS] {
    // SAFETY: the caller's promise.
    unsafe {
        let x = if S::STREAMS == STREAMS {
            fold_segments::<S, E, T, V, 4>(rows, factor, 0, count)
        } else {
            let low = fold_segments::<S, E, T, V, 2>([rows[0], rows[1]], factor, 0, count);
            let high = fold_segments::<S, E, T, V, 2>([rows[2], rows[3]], factor, 2, count);
            [low[0], low[1], high[0], high[1]]
        };
        S::fold_threads(S::fold_near(S::fold_far(x[0], x[1]), S::fold_far(x[2], x[3])))
    }
}

/// Sum of one segment.
///
/// # Safety
/// As for [`four_segments`].
#[inline(always)]
pub(crate) unsafe fn one_segment<S: Simd, E: Element, T: Element, V: Factor>(
    row: *const T,
    factor: V,
    count: usize,
) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let x = fold_segments::<S, E, T, V, 1>([row], factor, 0, count)[0];
        S::fold_threads(S::fold_near(S::fold_far(x, x), S::fold_far(x, x)))[0]
    }
}

/// Lanes and the tree down to one register per stream: thread `t = q * B + b` is value `q` of block `b`, with `B`
/// blocks in a register; what remains is to halve over `q`, then over `b`.
///
/// The 32 threads first fill `32 / LANES` registers. These are halved here, written out because a loop over an array
/// of registers would send them through memory.
#[inline(always)]
unsafe fn fold_segments<S: Simd, E: Element, T: Element, V: Factor, const R: usize>(
    rows: [*const T; R],
    factor: V,
    first: usize,
    count: usize,
) -> [S::F; R] {
    let lanes = Lanes::<T, V, R> { rows, factor, first, count };
    // SAFETY: the caller's promise.
    unsafe {
        match S::LANES {
            16 => lanes.two::<S, E>(0, 1),
            8 => lanes.four::<S, E>(0, 1),
            _ => add_each::<S, R>(lanes.four::<S, E>(0, 2), lanes.four::<S, E>(1, 2)),
        }
    }
}

#[inline(always)]
unsafe fn add_each<S: Simd, const R: usize>(mut a: [S::F; R], b: [S::F; R]) -> [S::F; R] {
    for (a, b) in a.iter_mut().zip(b) {
        // SAFETY: the caller's promise.
        *a = unsafe { S::add(*a, b) };
    }
    a
}

/// `R` streams on their way through the lanes.
#[derive(Clone, Copy)]
struct Lanes<T, V, const R: usize> {
    rows: [*const T; R],
    factor: V,
    /// Number of the first stream.
    first: usize,
    /// Elements that exist.
    count: usize,
}

impl<T: Element, V: Factor, const R: usize> Lanes<T, V, R> {
    /// Registers `m`, `m + gap`, `m + 2 gap`, `m + 3 gap` of threads, halved to one.
    #[inline(always)]
    unsafe fn four<S: Simd, E: Element>(self, m: usize, gap: usize) -> [S::F; R] {
        // SAFETY: the caller's promise.
        unsafe { add_each::<S, R>(self.two::<S, E>(m, 2 * gap), self.two::<S, E>(m + gap, 2 * gap)) }
    }

    /// Registers `m` and `m + gap` of threads, added.
    #[inline(always)]
    unsafe fn two<S: Simd, E: Element>(self, m: usize, gap: usize) -> [S::F; R] {
        // SAFETY: the caller's promise.
        unsafe { add_each::<S, R>(self.threads::<S, E>(m), self.threads::<S, E>(m + gap)) }
    }

    /// Register `m` of threads: V registers of lanes, halved until each thread has one value.
    #[inline(always)]
    unsafe fn threads<S: Simd, E: Element>(self, m: usize) -> [S::F; R] {
        let lane = m * E::VECTOR * S::LANES;
        // SAFETY: the caller's promise.
        unsafe {
            let mut folded = [S::zero(); R];
            if E::VECTOR == 4 {
                let a = self.accumulate::<S, E>(lane);
                for (folded, a) in folded.iter_mut().zip(a) {
                    *folded = S::fold_near(S::fold_far(a[0], a[1]), S::fold_far(a[2], a[3]));
                }
            } else {
                let far = |a: [S::F; 4]| S::fold_far(S::fold_blocks(a[0], a[1]), S::fold_blocks(a[2], a[3]));
                let a = self.accumulate::<S, E>(lane);
                for (folded, a) in folded.iter_mut().zip(a) {
                    *folded = far(a);
                }
                let a = self.accumulate::<S, E>(lane + 4 * S::LANES);
                for (folded, a) in folded.iter_mut().zip(a) {
                    *folded = S::fold_near(*folded, far(a));
                }
            }
            folded
        }
    }

    /// The lanes `lane .. lane + 4 * LANES`: four registers for each stream.
    #[inline(always)]
    unsafe fn accumulate<S: Simd, E: Element>(self, lane: usize) -> [[S::F; 4]; R] {
        let lanes = 32 * E::VECTOR;
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[S::zero(); 4]; R];
            if self.count == SEGMENT {
                for step in 0..SEGMENT / lanes {
                    self.terms::<S, true>(step * lanes + lane, &mut sums);
                }
            } else {
                for step in 0..self.count.div_ceil(lanes) {
                    self.terms::<S, false>(step * lanes + lane, &mut sums);
                }
                // The steps left out would add +0 * +0. That changes a lane at most once: from -0 to +0.
                for sums in &mut sums {
                    for sum in sums {
                        *sum = S::add(*sum, S::zero());
                    }
                }
            }
            sums
        }
    }

    /// One fused multiply-add per lane, for the elements from `at` on.
    #[inline(always)]
    unsafe fn terms<S: Simd, const WHOLE: bool>(self, at: usize, sums: &mut [[S::F; 4]; R]) {
        for (r, sums) in sums.iter_mut().enumerate() {
            for (i, sum) in sums.iter_mut().enumerate() {
                let at = at + i * S::LANES;
                // SAFETY: the caller's promise; of a segment that is not whole no element from `count` on is read.
                unsafe {
                    let h = self.rows[r].wrapping_add(at);
                    let left = self.count.saturating_sub(at);
                    let h = if WHOLE { T::load::<S>(h) } else { T::load_part::<S>(h, left) };
                    let v = if V::SQUARE {
                        h
                    } else {
                        let v = self.factor.at(self.first + r).wrapping_add(at);
                        if WHOLE { S::load(v) } else { S::load_part(v, left) }
                    };
                    *sum = S::fma(h, v, *sum);
                }
            }
        }
    }
}
