//! The fixed-order sum of docs/operation.md: segments, lanes, tree, slots.
//!
//! The last foldings of the tree work on four segments at once. These are either one segment of four rows,
//! which share the loads of the axis, or four successive segments of one row.

use crate::cpu::simd::Simd;
use crate::cpu::storage::Element;
use crate::op::SEGMENT;

/// Segments whose sums are folded together.
pub(crate) const SEGMENTS_AT_ONCE: usize = 4;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Number of slots. The sum of segment `s` goes to slot `s % SLOTS`.
const SLOTS: usize = 32;

/// The sums over `R` rows, segment by segment.
#[derive(Clone, Copy)]
pub(crate) struct Slots<const R: usize> {
    sums: [[f32; R]; SLOTS],
}

impl<const R: usize> Slots<R> {
    /// Slots without sums.
    pub(crate) const EMPTY: Self = Self { sums: [[0.0; R]; SLOTS] };

    /// Starts sums over `segments` segments. Slots without a segment are +0.
    #[inline(always)]
    pub(crate) fn start(&mut self, segments: usize) {
        let used = segments.min(SLOTS);
        self.sums[used..used.next_power_of_two()].fill([0.0; R]);
    }

    /// Adds the sums of a segment. Segments must come in ascending order.
    #[inline(always)]
    pub(crate) fn add(&mut self, segment: usize, sums: [f32; R]) {
        let slot = &mut self.sums[segment % SLOTS];
        if segment < SLOTS {
            // A slot starts from its first segment and not from zero, because the sum of a segment can be -0.
            *slot = sums;
        } else {
            for (slot, sum) in slot.iter_mut().zip(sums) {
                *slot += sum;
            }
        }
    }

    #[inline(always)]
    fn halve<const WIDTH: usize>(&mut self) {
        for i in 0..WIDTH {
            for r in 0..R {
                self.sums[i][r] += self.sums[i + WIDTH][r];
            }
        }
    }

    /// Returns the sums over all of `segments` segments.
    #[inline(always)]
    pub(crate) fn total(&mut self, segments: usize) -> [f32; R] {
        let used = segments.min(SLOTS);
        // Halvings of constant width. A loop over the width would cost more than the additions.
        if used > 16 {
            self.halve::<16>();
        }
        if used > 8 {
            self.halve::<8>();
        }
        if used > 4 {
            self.halve::<4>();
        }
        if used > 2 {
            self.halve::<2>();
        }
        if used > 1 {
            self.halve::<1>();
        }
        self.sums[0]
    }
}

impl Slots<1> {
    /// Adds the sums of four segments, the first of which is a multiple of four.
    #[inline(always)]
    pub(crate) fn add_four(&mut self, segment: usize, sums: [f32; 4]) {
        let slots = &mut self.sums.as_flattened_mut()[segment % SLOTS..][..4];
        if segment < SLOTS {
            // One store of the width that `halve` loads. Single stores could not be forwarded to that load.
            slots.copy_from_slice(&sums);
        } else {
            for (slot, sum) in slots.iter_mut().zip(sums) {
                *slot += sum;
            }
        }
    }
}

/// The operand that the row is multiplied by, term by term.
pub(crate) trait Operand: Copy {
    /// Whether the operand is the row itself. Nothing else is read then.
    const SQUARE: bool;
    /// Returns the operand's address.
    fn at(self) -> *const f32;
    /// Returns the operand from element `elements` on.
    fn skip(self, elements: usize) -> Self;
}

/// The row itself: terms `h * h`.
#[derive(Clone, Copy)]
pub(crate) struct Square;

impl Operand for Square {
    const SQUARE: bool = true;
    #[inline(always)]
    fn at(self) -> *const f32 {
        std::ptr::null()
    }
    #[inline(always)]
    fn skip(self, _: usize) -> Self {
        self
    }
}

/// A vector at this address: terms `h * v`.
#[derive(Clone, Copy)]
pub(crate) struct Dot(pub(crate) *const f32);

impl Operand for Dot {
    const SQUARE: bool = false;
    #[inline(always)]
    fn at(self) -> *const f32 {
        self.0
    }
    #[inline(always)]
    fn skip(self, elements: usize) -> Self {
        Self(self.0.wrapping_add(elements))
    }
}

/// Sums one segment of four rows. Only the first `count <= 512` elements exist, and the others count as +0.
///
/// `E` fixes the lane map, and `T` is the type in memory. For a whole segment the first `fetched` of the
/// segments at `ahead` are prefetched. These pointers need not be valid.
///
/// # Safety
/// `count` values are readable at each of `rows` and at the operand. The CPU has the instructions of `S`.
#[inline(always)]
pub(crate) unsafe fn four_segments<S: Simd, E: Element, T: Element, V: Operand>(
    rows: [*const T; SEGMENTS_AT_ONCE],
    operand: V,
    count: usize,
    ahead: [*const T; SEGMENTS_AT_ONCE],
    fetched: usize,
) -> [f32; SEGMENTS_AT_ONCE] {
    // SAFETY: the caller promises `count` readable values at every pointer, which is what each part of the
    // fold reads.
    unsafe {
        let x = if S::ACCUMULATORS == SEGMENTS_AT_ONCE {
            fold_segments::<S, E, T, V, 4>(rows, operand, count, ahead, fetched)
        } else {
            let (low, high) = ([rows[0], rows[1]], [rows[2], rows[3]]);
            let (ahead_low, ahead_high) = ([ahead[0], ahead[1]], [ahead[2], ahead[3]]);
            let low = fold_segments::<S, E, T, V, 2>(low, operand, count, ahead_low, fetched);
            let more = fetched.saturating_sub(2);
            let high = fold_segments::<S, E, T, V, 2>(high, operand, count, ahead_high, more);
            [low[0], low[1], high[0], high[1]]
        };
        S::fold_threads(S::fold_near(S::fold_far(x[0], x[1]), S::fold_far(x[2], x[3])))
    }
}

/// Sums four successive whole segments of a row, in that order.
///
/// # Safety
/// 2048 values are readable at `row` and at the operand. The CPU has the instructions of `S`.
#[inline(always)]
pub(crate) unsafe fn successive_segments<S: Simd, E: Element, T: Element, V: Operand>(
    row: *const T,
    operand: V,
) -> [f32; SEGMENTS_AT_ONCE] {
    // SAFETY: the four segments are the 2048 values that the caller promises at both pointers.
    unsafe {
        let mut x = [S::zero(); SEGMENTS_AT_ONCE];
        for (r, x) in x.iter_mut().enumerate() {
            let at = r * SEGMENT;
            // No prefetch: it was slower from L1 and L2, and hardly faster from L3.
            *x = fold_segments::<S, E, T, V, 1>([row.add(at)], operand.skip(at), SEGMENT, [row], 0)[0];
        }
        S::fold_threads(S::fold_near(S::fold_far(x[0], x[1]), S::fold_far(x[2], x[3])))
    }
}

/// Sums one segment of one row. Only the first `count <= 512` elements exist, and the others count as +0.
///
/// # Safety
/// `count` values are readable at `row` and at the operand. The CPU has the instructions of `S`.
#[inline(always)]
pub(crate) unsafe fn one_segment<S: Simd, E: Element, T: Element, V: Operand>(
    row: *const T,
    operand: V,
    count: usize,
) -> f32 {
    // SAFETY: the caller promises `count` readable values at both pointers.
    unsafe {
        let x = fold_segments::<S, E, T, V, 1>([row], operand, count, [row], 0)[0];
        S::fold_threads(S::fold_near(S::fold_far(x, x), S::fold_far(x, x)))[0]
    }
}

/// Accumulates the lanes of `R` segments and folds them to one register each.
///
/// Thread `t = q * B + b` is value `q` of block `b`, with `B` blocks in a register. The register that is left
/// still has to be halved over `q`, then over `b`.
///
/// The 32 threads first fill `32 / LANES` registers. Their halving is written out, because a loop over an
/// array of registers would spill them to memory.
///
/// # Safety
/// `count` values are readable at each of `rows` and at the operand. The CPU has the instructions of `S`.
#[inline(always)]
unsafe fn fold_segments<S: Simd, E: Element, T: Element, V: Operand, const R: usize>(
    rows: [*const T; R],
    operand: V,
    count: usize,
    ahead: [*const T; R],
    fetched: usize,
) -> [S::F; R] {
    let lanes = Lanes::<T, V, R> { rows, operand, count, ahead, fetched };
    // SAFETY: the registers asked for cover the lanes of one segment, of which only `count` values are read.
    unsafe {
        match S::LANES {
            16 => lanes.two::<S, E>(0, 1),
            8 => lanes.four::<S, E>(0, 1),
            _ => add_each::<S, R>(lanes.four::<S, E>(0, 2), lanes.four::<S, E>(1, 2)),
        }
    }
}

/// Adds the registers pairwise.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
unsafe fn add_each<S: Simd, const R: usize>(mut a: [S::F; R], b: [S::F; R]) -> [S::F; R] {
    for (a, b) in a.iter_mut().zip(b) {
        // SAFETY: the caller promises the instructions, and no memory is accessed.
        *a = unsafe { S::add(*a, b) };
    }
    a
}

// Functions and not closures: the compiler does not inline a closure into a function with more target
// features than the one it was written in.

/// Folds four registers of lanes, for threads of four lanes, to one sum per thread.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
unsafe fn fold4<S: Simd>(a: [S::F; 4]) -> S::F {
    // SAFETY: the caller promises the instructions, and no memory is accessed.
    unsafe { S::fold_near(S::fold_far(a[0], a[1]), S::fold_far(a[2], a[3])) }
}

/// Folds four registers of lanes, for threads of eight lanes, to two sums per thread that are still to be
/// added.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
unsafe fn fold8<S: Simd>(a: [S::F; 4]) -> S::F {
    // SAFETY: the caller promises the instructions, and no memory is accessed.
    unsafe { S::fold_far(S::fold_blocks(a[0], a[1]), S::fold_blocks(a[2], a[3])) }
}

/// `R` segments on their way through the lanes.
///
/// # Safety of the methods
/// `count` values are readable at each of `rows` and at the operand, and the CPU has the instructions of `S`.
#[derive(Clone, Copy)]
struct Lanes<T, V, const R: usize> {
    rows: [*const T; R],
    operand: V,
    /// Number of elements that exist.
    count: usize,
    /// Segments that will be read soon, and how many of them to prefetch. The number is a literal at every
    /// call, which lets the compiler resolve it outside the loops.
    ahead: [*const T; R],
    fetched: usize,
}

impl<T: Element, V: Operand, const R: usize> Lanes<T, V, R> {
    /// Returns registers `m`, `m + gap`, `m + 2 gap` and `m + 3 gap` of threads, halved to one.
    #[inline(always)]
    unsafe fn four<S: Simd, E: Element>(self, m: usize, gap: usize) -> [S::F; R] {
        // SAFETY: `two` asks for what the caller promises of this value.
        unsafe { add_each::<S, R>(self.two::<S, E>(m, 2 * gap), self.two::<S, E>(m + gap, 2 * gap)) }
    }

    /// Returns registers `m` and `m + gap` of threads, added.
    #[inline(always)]
    unsafe fn two<S: Simd, E: Element>(self, m: usize, gap: usize) -> [S::F; R] {
        let lanes = E::VECTOR * S::LANES;
        let (first, second) = (m * lanes, (m + gap) * lanes);
        // SAFETY: the lanes asked for are those of one segment, and the caller promises what reading them
        // needs.
        unsafe {
            if E::VECTOR == 4 {
                let [a, b] = self.pair::<S, E>([first, second]);
                let mut folded = [S::zero(); R];
                for r in 0..R {
                    folded[r] = S::add(fold4::<S>(a[r]), fold4::<S>(b[r]));
                }
                folded
            } else {
                add_each::<S, R>(self.thread8::<S, E>(first), self.thread8::<S, E>(second))
            }
        }
    }

    /// Returns one register of threads of eight lanes: eight registers of lanes, halved until each thread has
    /// one value.
    #[inline(always)]
    unsafe fn thread8<S: Simd, E: Element>(self, lane: usize) -> [S::F; R] {
        // SAFETY: the lanes asked for are those of one segment, and the caller promises what reading them
        // needs.
        unsafe {
            let [a, b] = self.pair::<S, E>([lane, lane + 4 * S::LANES]);
            let mut folded = [S::zero(); R];
            for r in 0..R {
                folded[r] = S::fold_near(fold8::<S>(a[r]), fold8::<S>(b[r]));
            }
            folded
        }
    }

    /// Accumulates two times four registers of lanes per segment. A single segment does both in one loop,
    /// because one set of sums alone would leave the multipliers waiting.
    #[inline(always)]
    unsafe fn pair<S: Simd, E: Element>(self, lanes: [usize; 2]) -> [[[S::F; 4]; R]; 2] {
        // SAFETY: `accumulate` asks for what the caller promises of this value.
        unsafe {
            if R == 1 {
                self.accumulate::<S, E, 2>(lanes)
            } else {
                let [a] = self.accumulate::<S, E, 1>([lanes[0]]);
                let [b] = self.accumulate::<S, E, 1>([lanes[1]]);
                [a, b]
            }
        }
    }

    /// Accumulates the lanes `lane .. lane + 4 * LANES` of each segment in four registers.
    #[inline(always)]
    unsafe fn accumulate<S: Simd, E: Element, const N: usize>(self, lane: [usize; N]) -> [[[S::F; 4]; R]; N] {
        let lanes = 32 * E::VECTOR;
        // SAFETY: `terms` reads whole registers only where the segment is whole, and elements below `count`
        // otherwise.
        unsafe {
            let mut sums = [[[S::zero(); 4]; R]; N];
            if self.count == SEGMENT {
                for step in 0..SEGMENT / lanes {
                    for (sums, lane) in sums.iter_mut().zip(lane) {
                        self.terms::<S, true>(step * lanes + lane, sums);
                    }
                }
            } else {
                for step in 0..self.count.div_ceil(lanes) {
                    for (sums, lane) in sums.iter_mut().zip(lane) {
                        self.terms::<S, false>(step * lanes + lane, sums);
                    }
                }
                // The steps that are left out would add +0 * +0. That changes a lane at most once, from -0 to
                // +0.
                for sums in &mut sums {
                    for sums in sums {
                        for sum in sums {
                            *sum = S::add(*sum, S::zero());
                        }
                    }
                }
            }
            sums
        }
    }

    /// Does one fused multiply-add per lane, for the elements from `at` on.
    #[inline(always)]
    unsafe fn terms<S: Simd, const WHOLE: bool>(self, at: usize, sums: &mut [[S::F; 4]; R]) {
        for (r, sums) in sums.iter_mut().enumerate() {
            for (i, sum) in sums.iter_mut().enumerate() {
                // Once per cache line.
                let fetch = WHOLE && r < self.fetched && (i * S::LANES * size_of::<T>()).is_multiple_of(LINE);
                let at = at + i * S::LANES;
                // SAFETY: the caller promises `count` readable values. In a whole segment `at` and the rest
                // of its register are below `count`; otherwise `load_part` reads no element from `count` on.
                unsafe {
                    let h = self.rows[r].wrapping_add(at);
                    let left = self.count.saturating_sub(at);
                    let h = if WHOLE { T::load::<S>(h) } else { T::load_part::<S>(h, left) };
                    let v = if V::SQUARE {
                        h
                    } else {
                        let v = self.operand.at().wrapping_add(at);
                        if WHOLE { S::load(v) } else { S::load_part(v, left) }
                    };
                    *sum = S::fma(h, v, *sum);
                    if fetch {
                        S::prefetch(self.ahead[r].wrapping_add(at).cast());
                    }
                }
            }
        }
    }
}
