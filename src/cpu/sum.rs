//! The fixed-order sum of docs/operation.md: segments, lanes, tree, slots.
//!
//! A *stream* is one segment on its way through the lanes. The last foldings of the tree serve four streams at once:
//! either one segment of four rows, which go through the lanes together so that an axis is read once for all, or four
//! segments of one row, one after the other as they lie in memory.

use crate::cpu::element::Element;
use crate::cpu::simd::Simd;

/// Elements of a segment.
pub(crate) const SEGMENT: usize = 512;

/// Streams summed together.
pub(crate) const STREAMS: usize = 4;

/// Bytes of a cache line.
const LINE: usize = 64;

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

    #[inline(always)]
    fn halve<const WIDTH: usize>(&mut self) {
        for i in 0..WIDTH {
            for r in 0..R {
                self.sums[i][r] += self.sums[i + WIDTH][r];
            }
        }
    }

    /// The sums over all of `segments` segments.
    #[inline(always)]
    pub(crate) fn total(&mut self, segments: usize) -> [f32; R] {
        let used = segments.min(SLOTS);
        // Halvings of known width: a loop over the width would be compiled for any and cost more than the additions.
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
    /// Adds the sums of the four segments from `segment` on, a multiple of four.
    #[inline(always)]
    pub(crate) fn add_four(&mut self, segment: usize, sums: [f32; 4]) {
        let slots = &mut self.sums.as_flattened_mut()[segment % SLOTS..][..4];
        if segment < SLOTS {
            // In one piece, as `halve` will read them: single stores would have to reach the cache first.
            slots.copy_from_slice(&sums);
        } else {
            for (slot, sum) in slots.iter_mut().zip(sums) {
                *slot += sum;
            }
        }
    }
}

/// The second factor of a sum's terms.
pub(crate) trait Factor: Copy {
    /// Whether the terms are `h * h`; then nothing else is read.
    const SQUARE: bool;
    /// Where the factor lies.
    fn at(self) -> *const f32;
    /// The factor from element `elements` on.
    fn skip(self, elements: usize) -> Self;
}

/// `h * h`.
#[derive(Clone, Copy)]
pub(crate) struct Itself;

impl Factor for Itself {
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

/// `h * v`, with `v` at this address.
#[derive(Clone, Copy)]
pub(crate) struct Along(pub(crate) *const f32);

impl Factor for Along {
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

/// Sums of one segment of four rows of which only `count <= 512` elements exist; the others count as +0. `E` fixes the
/// lane map, `T` is the type in memory. With a whole segment, the segments at `ahead` are asked for meanwhile, the first
/// `fetched` of them; any pointers do.
///
/// # Safety
/// `count` values are readable behind each of `rows` and of the factor; the instructions of `S` are available.
#[inline(always)]
pub(crate) unsafe fn four_segments<S: Simd, E: Element, T: Element, V: Factor>(
    rows: [*const T; STREAMS],
    factor: V,
    count: usize,
    ahead: [*const T; STREAMS],
    fetched: usize,
) -> [f32; STREAMS] {
    // SAFETY: the caller's promise.
    unsafe {
        let x = if S::STREAMS == STREAMS {
            fold_segments::<S, E, T, V, 4>(rows, factor, count, ahead, fetched)
        } else {
            let (low, high) = ([rows[0], rows[1]], [rows[2], rows[3]]);
            let (ahead_low, ahead_high) = ([ahead[0], ahead[1]], [ahead[2], ahead[3]]);
            let low = fold_segments::<S, E, T, V, 2>(low, factor, count, ahead_low, fetched);
            let more = fetched.saturating_sub(2);
            let high = fold_segments::<S, E, T, V, 2>(high, factor, count, ahead_high, more);
            [low[0], low[1], high[0], high[1]]
        };
        S::fold_threads(S::fold_near(S::fold_far(x[0], x[1]), S::fold_far(x[2], x[3])))
    }
}

/// Sums of four whole segments, one behind the other, in that order.
///
/// # Safety
/// 2048 values are readable behind `row` and the factor; the instructions of `S` are available.
#[inline(always)]
pub(crate) unsafe fn successive_segments<S: Simd, E: Element, T: Element, V: Factor>(
    row: *const T,
    factor: V,
) -> [f32; STREAMS] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut x = [S::zero(); STREAMS];
        for (r, x) in x.iter_mut().enumerate() {
            let at = r * SEGMENT;
            // Asking for memory ahead made it slower from L1 and L2 and hardly faster from L3.
            *x = fold_segments::<S, E, T, V, 1>([row.add(at)], factor.skip(at), SEGMENT, [row], 0)[0];
        }
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
        let x = fold_segments::<S, E, T, V, 1>([row], factor, count, [row], 0)[0];
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
    count: usize,
    ahead: [*const T; R],
    fetched: usize,
) -> [S::F; R] {
    let lanes = Lanes::<T, V, R> { rows, factor, count, ahead, fetched };
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

// Functions, not closures: the compiler does not inline a closure into code with more instructions switched on than
// it was written under.

/// Four registers of lanes of threads of four lanes each: their sums by thread.
#[inline(always)]
unsafe fn fold4<S: Simd>(a: [S::F; 4]) -> S::F {
    // SAFETY: the caller's promise.
    unsafe { S::fold_near(S::fold_far(a[0], a[1]), S::fold_far(a[2], a[3])) }
}

/// Four registers of lanes of threads of eight lanes each: two sums by thread, still to be added.
#[inline(always)]
unsafe fn fold8<S: Simd>(a: [S::F; 4]) -> S::F {
    // SAFETY: the caller's promise.
    unsafe { S::fold_far(S::fold_blocks(a[0], a[1]), S::fold_blocks(a[2], a[3])) }
}

/// `R` streams on their way through the lanes.
#[derive(Clone, Copy)]
struct Lanes<T, V, const R: usize> {
    rows: [*const T; R],
    factor: V,
    /// Elements that exist.
    count: usize,
    /// Segments that will be read soon, and how many of them to fetch meanwhile. The number is a literal wherever
    /// this is called, so that nothing of it is left in the loops.
    ahead: [*const T; R],
    fetched: usize,
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
        let lanes = E::VECTOR * S::LANES;
        let (first, second) = (m * lanes, (m + gap) * lanes);
        // SAFETY: the caller's promise.
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

    /// A register of threads of eight lanes each: eight registers of lanes, halved until each thread has one value.
    #[inline(always)]
    unsafe fn thread8<S: Simd, E: Element>(self, lane: usize) -> [S::F; R] {
        // SAFETY: the caller's promise.
        unsafe {
            let [a, b] = self.pair::<S, E>([lane, lane + 4 * S::LANES]);
            let mut folded = [S::zero(); R];
            for r in 0..R {
                folded[r] = S::fold_near(fold8::<S>(a[r]), fold8::<S>(b[r]));
            }
            folded
        }
    }

    /// Two times four registers of lanes for each stream: at once where one stream alone would leave the multipliers
    /// waiting for its sums.
    #[inline(always)]
    unsafe fn pair<S: Simd, E: Element>(self, lanes: [usize; 2]) -> [[[S::F; 4]; R]; 2] {
        // SAFETY: the caller's promise.
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

    /// The lanes `lane .. lane + 4 * LANES`: four registers for each stream.
    #[inline(always)]
    unsafe fn accumulate<S: Simd, E: Element, const N: usize>(self, lane: [usize; N]) -> [[[S::F; 4]; R]; N] {
        let lanes = 32 * E::VECTOR;
        // SAFETY: the caller's promise.
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
                // The steps left out would add +0 * +0. That changes a lane at most once: from -0 to +0.
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

    /// One fused multiply-add per lane, for the elements from `at` on.
    #[inline(always)]
    unsafe fn terms<S: Simd, const WHOLE: bool>(self, at: usize, sums: &mut [[S::F; 4]; R]) {
        for (r, sums) in sums.iter_mut().enumerate() {
            for (i, sum) in sums.iter_mut().enumerate() {
                // Once per cache line.
                let fetch = WHOLE && r < self.fetched && (i * S::LANES * size_of::<T>()).is_multiple_of(LINE);
                let at = at + i * S::LANES;
                // SAFETY: the caller's promise; of a segment that is not whole no element from `count` on is read.
                unsafe {
                    let h = self.rows[r].wrapping_add(at);
                    let left = self.count.saturating_sub(at);
                    let h = if WHOLE { T::load::<S>(h) } else { T::load_part::<S>(h, left) };
                    let v = if V::SQUARE {
                        h
                    } else {
                        let v = self.factor.at().wrapping_add(at);
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
