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

/// The most registers that are left of a segment once every thread has one value: 32 threads in 4 lanes.
const MOST_REGISTERS: usize = 8;

/// The sum over one row as it grows segment by segment.
#[derive(Clone, Copy)]
pub(crate) struct Slots {
    sums: [f32; SLOTS],
}

impl Slots {
    /// Not yet a sum of anything.
    pub(crate) const EMPTY: Self = Self { sums: [0.0; SLOTS] };

    /// Adds the sum of a segment; segments must come in ascending order.
    #[inline(always)]
    pub(crate) fn add(&mut self, segment: usize, sum: f32) {
        let slot = &mut self.sums[segment % SLOTS];
        // A slot starts *from* its first segment, not from zero plus it: the sum of a segment can be -0.
        *slot = if segment < SLOTS { sum } else { *slot + sum };
    }

    /// The sum over all of `segments` segments.
    #[inline(always)]
    pub(crate) fn total(&self, segments: usize) -> f32 {
        let mut sums = self.sums;
        let mut width = segments.min(SLOTS).next_power_of_two();
        while width > 1 {
            width /= 2;
            for k in 0..width {
                sums[k] += sums[k + width];
            }
        }
        sums[0]
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

/// Sums of four whole segments. `E` fixes the lane map, `T` is the type in memory.
///
/// # Safety
/// 512 values are readable behind each of `rows` and of the factors; the instructions of `S` are available.
#[inline(always)]
pub(crate) unsafe fn four_segments<S: Simd, E: Element, T: Element, V: Factor>(
    rows: [*const T; STREAMS],
    factor: V,
) -> [f32; STREAMS] {
    // SAFETY: the caller's promise.
    unsafe {
        let x = if S::STREAMS == STREAMS {
            fold_segments::<S, E, T, V, 4>(rows, factor, 0, SEGMENT)
        } else {
            let low = fold_segments::<S, E, T, V, 2>([rows[0], rows[1]], factor, 0, SEGMENT);
            let high = fold_segments::<S, E, T, V, 2>([rows[2], rows[3]], factor, 2, SEGMENT);
            [low[0], low[1], high[0], high[1]]
        };
        S::fold_threads(S::fold_near(S::fold_far(x[0], x[1]), S::fold_far(x[2], x[3])))
    }
}

/// Sum of one segment of which only `count <= 512` elements exist; the others count as +0.
///
/// # Safety
/// As for [`four_segments`], with `count` values.
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
#[inline(always)]
unsafe fn fold_segments<S: Simd, E: Element, T: Element, V: Factor, const R: usize>(
    rows: [*const T; R],
    factor: V,
    first: usize,
    count: usize,
) -> [S::F; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let registers = 32 / S::LANES;
        let mut x = [[S::zero(); R]; MOST_REGISTERS];
        for (m, x) in x.iter_mut().enumerate().take(registers) {
            // One register of thread values takes V registers of lanes.
            let lane = m * E::VECTOR * S::LANES;
            *x = if E::VECTOR == 4 {
                let a = accumulate::<S, E, T, V, R>(rows, factor, first, lane, count);
                let mut folded = [S::zero(); R];
                for r in 0..R {
                    folded[r] = S::fold_near(S::fold_far(a[r][0], a[r][1]), S::fold_far(a[r][2], a[r][3]));
                }
                folded
            } else {
                let a = accumulate::<S, E, T, V, R>(rows, factor, first, lane, count);
                let mut low = [S::zero(); R];
                for r in 0..R {
                    low[r] = S::fold_far(S::fold_blocks(a[r][0], a[r][1]), S::fold_blocks(a[r][2], a[r][3]));
                }
                let a = accumulate::<S, E, T, V, R>(rows, factor, first, lane + 4 * S::LANES, count);
                let mut folded = [S::zero(); R];
                for r in 0..R {
                    let high =
                        S::fold_far(S::fold_blocks(a[r][0], a[r][1]), S::fold_blocks(a[r][2], a[r][3]));
                    folded[r] = S::fold_near(low[r], high);
                }
                folded
            };
        }
        let mut width = registers;
        while width > 1 {
            width /= 2;
            for m in 0..width {
                let far = x[m + width];
                for (x, far) in x[m].iter_mut().zip(far) {
                    *x = S::add(*x, far);
                }
            }
        }
        x[0]
    }
}

/// The lanes `lane .. lane + 4 * LANES` of `R` streams: four registers each.
#[inline(always)]
unsafe fn accumulate<S: Simd, E: Element, T: Element, V: Factor, const R: usize>(
    rows: [*const T; R],
    factor: V,
    first: usize,
    lane: usize,
    count: usize,
) -> [[S::F; 4]; R] {
    let lanes = 32 * E::VECTOR;
    // SAFETY: the caller's promise; `read` stays within `count`.
    unsafe {
        let mut sums = [[S::zero(); 4]; R];
        for step in 0..SEGMENT / lanes {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let at = step * lanes + lane + i * S::LANES;
                    let h = read::<S, T>(rows[r], at, count);
                    let v = if V::SQUARE { h } else { read::<S, f32>(factor.at(first + r), at, count) };
                    *sum = S::fma(h, v, *sum);
                }
            }
        }
        sums
    }
}

/// A register of values from `at` on; those from `count` on are +0. When `count` is the constant 512 the tests go
/// away.
#[inline(always)]
unsafe fn read<S: Simd, T: Element>(values: *const T, at: usize, count: usize) -> S::F {
    // SAFETY: the caller has `count` values behind `values`, and no others are read.
    unsafe {
        if at + S::LANES <= count {
            T::load::<S>(values.add(at))
        } else if at >= count {
            S::zero()
        } else {
            T::load_part::<S>(values.add(at), count - at)
        }
    }
}
