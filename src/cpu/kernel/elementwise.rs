//! The element-wise kernels: add, step along an axis, round, scale.

use crate::cpu::simd::{Kernel, Simd};
use crate::cpu::storage::Element;

/// `to = x + residual`, in f32. `to` may be `x` or `residual`. All pointers are valid for `width` values.
pub(crate) struct Add<E> {
    pub(crate) x: *const E,
    pub(crate) residual: *const E,
    pub(crate) to: *mut f32,
    pub(crate) width: usize,
}

impl<E: Element> Kernel for Add<E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { x, residual, to, width } = self;
        let mut i = 0;
        // SAFETY: every access is below `width`, for which the pointers are valid. Each element is read
        // before it is written, so `to` may be one of the summands.
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
}

/// `to = fma(delta, axis, from)`, the step of a cap that acts. `to` may be `from`. All pointers but `next`
/// are valid for `width` values.
pub(crate) struct Step<T> {
    pub(crate) from: *const T,
    pub(crate) to: *mut f32,
    pub(crate) delta: f32,
    pub(crate) axis: *const f32,
    pub(crate) width: usize,
    /// The row that will be read next, to be prefetched. It need not be valid.
    pub(crate) next: *const T,
}

impl<T: Element> Kernel for Step<T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { from, to, delta, axis, width, next } = self;
        let mut i = 0;
        // SAFETY: every access is below `width`, for which the pointers are valid.
        unsafe {
            let all = S::splat(delta);
            while i + 4 * S::LANES <= width {
                for k in 0..4 {
                    let at = i + k * S::LANES;
                    S::prefetch(next.wrapping_add(at).cast());
                    S::store(to.add(at), S::fma(all, S::load(axis.add(at)), T::load::<S>(from.add(at))));
                }
                i += 4 * S::LANES;
            }
            while i + S::LANES <= width {
                S::prefetch(next.wrapping_add(i).cast());
                S::store(to.add(i), S::fma(all, S::load(axis.add(i)), T::load::<S>(from.add(i))));
                i += S::LANES;
            }
            while i < width {
                *to.add(i) = delta.mul_add(*axis.add(i), (*from.add(i)).to_f32());
                i += 1;
            }
        }
    }
}

/// Rounds an f32 row to its type. Both pointers are valid for `width` values.
pub(crate) struct Round<E> {
    pub(crate) from: *const f32,
    pub(crate) to: *mut E,
    pub(crate) width: usize,
}

impl<E: Element> Kernel for Round<E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { from, to, width } = self;
        let mut i = 0;
        // SAFETY: every access is below `width`, for which the pointers are valid.
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
}

/// `to = (from * k) * weight`. All pointers are valid for `width` values.
pub(crate) struct Scale<E, T> {
    pub(crate) from: *const T,
    pub(crate) k: f32,
    pub(crate) weight: *const f32,
    pub(crate) to: *mut E,
    pub(crate) width: usize,
}

impl<E: Element, T: Element> Kernel for Scale<E, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { from, k, weight, to, width } = self;
        let mut i = 0;
        // SAFETY: every access is below `width`, for which the pointers are valid.
        unsafe {
            let all = S::splat(k);
            while i + S::LANES <= width {
                let scaled = S::mul(T::load::<S>(from.add(i)), all);
                E::store::<S>(to.add(i), S::mul(scaled, S::load(weight.add(i))));
                i += S::LANES;
            }
            while i < width {
                *to.add(i) = E::from_f32(((*from.add(i)).to_f32() * k) * *weight.add(i));
                i += 1;
            }
        }
    }
}
