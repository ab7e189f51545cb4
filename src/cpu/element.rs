//! The types a row's values can have.

use half::{bf16, f16};

use crate::cpu::simd::Simd;

/// Lanes of the widest register.
const MOST_LANES: usize = 16;

/// The type of a row's values: `f32`, [`half::f16`] or [`half::bf16`]. Sealed: the lane map is fixed for these.
pub trait Element: Copy + Default + Send + Sync + 'static + sealed::Sealed {
    /// Elements in 16 bytes: 4 or 8. It fixes the lane map (docs/operation.md).
    const VECTOR: usize;

    /// The value as f32; exact.
    fn to_f32(self) -> f32;

    /// The nearest value of this type, ties to even.
    fn from_f32(value: f32) -> Self;
}

pub(crate) mod sealed {
    use super::Simd;

    /// Registers from and to memory of the type.
    pub trait Sealed: Sized {
        /// Whether rows of this type can hold the f32 row of the caps.
        const IS_F32: bool;

        /// `S::LANES` values, widened.
        ///
        /// # Safety
        /// That many values are readable at `from`, and the instructions of `S` are available.
        unsafe fn load<S: Simd>(from: *const Self) -> S::F;

        /// The first `count < S::LANES` values, widened; the other lanes are +0.
        ///
        /// # Safety
        /// `count` values are readable at `from`, and the instructions of `S` are available.
        unsafe fn load_part<S: Simd>(from: *const Self, count: usize) -> S::F;

        /// `S::LANES` values, rounded to nearest even.
        ///
        /// # Safety
        /// That many values are writable at `to`, and the instructions of `S` are available.
        unsafe fn store<S: Simd>(to: *mut Self, values: S::F);
    }
}

impl Element for f32 {
    const VECTOR: usize = 4;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
}

impl sealed::Sealed for f32 {
    const IS_F32: bool = true;

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::F {
        // SAFETY: the caller's promise is the one asked for.
        unsafe { S::load(from) }
    }

    #[inline(always)]
    unsafe fn load_part<S: Simd>(from: *const Self, count: usize) -> S::F {
        // SAFETY: the caller's promise is the one asked for.
        unsafe { S::load_part(from, count) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut Self, values: S::F) {
        // SAFETY: the caller's promise is the one asked for.
        unsafe { S::store(to, values) }
    }
}

impl Element for f16 {
    const VECTOR: usize = 8;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
}

impl sealed::Sealed for f16 {
    const IS_F32: bool = false;

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::F {
        // SAFETY: the caller's promise is the one asked for.
        unsafe { S::load_f16(from) }
    }

    #[inline(always)]
    unsafe fn load_part<S: Simd>(from: *const Self, count: usize) -> S::F {
        let mut padded = [Self::ZERO; MOST_LANES];
        // SAFETY: `count` values are readable, and fewer than there is room for.
        unsafe {
            std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), count);
            S::load_f16(padded.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut Self, values: S::F) {
        // SAFETY: the caller's promise is the one asked for.
        unsafe { S::store_f16(to, values) }
    }
}

impl Element for bf16 {
    const VECTOR: usize = 8;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
}

impl sealed::Sealed for bf16 {
    const IS_F32: bool = false;

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::F {
        // SAFETY: the caller's promise is the one asked for.
        unsafe { S::load_bf16(from) }
    }

    #[inline(always)]
    unsafe fn load_part<S: Simd>(from: *const Self, count: usize) -> S::F {
        let mut padded = [Self::ZERO; MOST_LANES];
        // SAFETY: `count` values are readable, and fewer than there is room for.
        unsafe {
            std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), count);
            S::load_bf16(padded.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut Self, values: S::F) {
        // SAFETY: the caller's promise is the one asked for.
        unsafe { S::store_bf16(to, values) }
    }
}
