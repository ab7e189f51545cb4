//! The types that a row's values can have, and how registers are loaded from and stored to them.

use half::{bf16, f16};

use crate::cpu::simd::Simd;
use crate::op::Dtype;

/// Lanes of the widest register.
const MAX_LANES: usize = 16;

/// The type of a row's values: `f32`, [`half::f16`] or [`half::bf16`].
///
/// The trait is sealed, because the lane map is fixed for these three.
pub trait Element: Copy + Default + Send + Sync + 'static + sealed::Sealed {
    /// The type as a value.
    const DTYPE: Dtype;

    /// Values in 16 bytes: 4 or 8. This number fixes the lane map (docs/operation.md).
    const VECTOR: usize = Self::DTYPE.vector();

    /// Returns the value as f32, which is exact.
    fn to_f32(self) -> f32;

    /// Returns the nearest value of this type, ties to even.
    fn from_f32(value: f32) -> Self;
}

pub(crate) mod sealed {
    use super::Simd;

    /// Registers from and to memory of the type.
    pub trait Sealed: Sized {
        /// Whether rows of this type can hold the f32 row of the caps.
        const IS_F32: bool;

        /// Loads `S::LANES` values and widens them.
        ///
        /// # Safety
        /// `S::LANES` values are readable at `from`. The CPU has the instructions of `S`.
        unsafe fn load<S: Simd>(from: *const Self) -> S::F;

        /// Loads the first `count` values, at most `S::LANES`, and widens them. The other lanes are +0.
        ///
        /// # Safety
        /// `count.min(S::LANES)` values are readable at `from`. The CPU has the instructions of `S`.
        unsafe fn load_part<S: Simd>(from: *const Self, count: usize) -> S::F;

        /// Rounds `S::LANES` values to nearest even and stores them.
        ///
        /// # Safety
        /// `S::LANES` values are writable at `to`. The CPU has the instructions of `S`.
        unsafe fn store<S: Simd>(to: *mut Self, values: S::F);
    }
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;

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
        // SAFETY: `S::load` needs `S::LANES` readable values and the instructions of `S`, both promised by
        // the caller.
        unsafe { S::load(from) }
    }

    #[inline(always)]
    unsafe fn load_part<S: Simd>(from: *const Self, count: usize) -> S::F {
        // SAFETY: `S::load_part` reads no more than the first `count` values, which the caller promises.
        unsafe { S::load_part(from, count) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut Self, values: S::F) {
        // SAFETY: `S::store` needs `S::LANES` writable values and the instructions of `S`, both promised by
        // the caller.
        unsafe { S::store(to, values) }
    }
}

/// Stamps the two 16-bit types, which differ in the conversions only.
macro_rules! half_element {
    ($type:ident, $dtype:ident, $load:ident, $store:ident) => {
        impl Element for $type {
            const DTYPE: Dtype = Dtype::$dtype;

            #[inline(always)]
            fn to_f32(self) -> f32 {
                Self::to_f32(self)
            }

            #[inline(always)]
            fn from_f32(value: f32) -> Self {
                Self::from_f32(value)
            }
        }

        impl sealed::Sealed for $type {
            const IS_F32: bool = false;

            #[inline(always)]
            unsafe fn load<S: Simd>(from: *const Self) -> S::F {
                // SAFETY: the conversion reads `S::LANES` values with the instructions of `S`, both promised
                // by the caller.
                unsafe { S::$load(from) }
            }

            #[inline(always)]
            unsafe fn load_part<S: Simd>(from: *const Self, count: usize) -> S::F {
                let mut padded = [Self::ZERO; MAX_LANES];
                // SAFETY: the caller promises that the values which are copied are readable. At most
                // `S::LANES`, which is at most `MAX_LANES`, are copied. `padded` then holds a whole register.
                unsafe {
                    std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), count.min(S::LANES));
                    S::$load(padded.as_ptr())
                }
            }

            #[inline(always)]
            unsafe fn store<S: Simd>(to: *mut Self, values: S::F) {
                // SAFETY: the conversion writes `S::LANES` values with the instructions of `S`, both promised
                // by the caller.
                unsafe { S::$store(to, values) }
            }
        }
    };
}

half_element!(f16, F16, load_f16, store_f16);
half_element!(bf16, BF16, load_bf16, store_bf16);
