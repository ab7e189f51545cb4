//! NEON: 32 registers of 4 lanes. f16 and bf16 use scalar conversions, because the vector ones for f16 need a
//! type that is not in stable Rust.

use std::arch::aarch64::*;

use half::{bf16, f16};

use crate::cpu::simd::{Kernel, Simd};

/// The instructions of `neon`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon;

// SAFETY (all blocks): the trait's contract: the instructions are available and the pointers are valid for 4
// values.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Neon {
    const LANES: usize = 4;
    const ACCUMULATORS: usize = 4;
    type F = float32x4_t;

    #[inline(never)]
    #[target_feature(enable = "neon")]
    unsafe fn vectorize<K: Kernel>(kernel: K) -> K::Output {
        unsafe { kernel.run::<Self>() }
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}

    #[inline(always)]
    unsafe fn zero() -> float32x4_t {
        unsafe { vdupq_n_f32(0.0) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> float32x4_t {
        let mut values = [0.0; 4];
        unsafe {
            std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), count.min(4));
            vld1q_f32(values.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, values: float32x4_t) {
        unsafe { vst1q_f32(to, values) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> float32x4_t {
        unsafe { vld1q_f32(from.cast::<[f16; 4]>().read().map(f16::to_f32).as_ptr()) }
    }

    #[inline(always)]
    unsafe fn store_f16(to: *mut f16, values: float32x4_t) {
        let mut array = [0.0; 4];
        unsafe {
            vst1q_f32(array.as_mut_ptr(), values);
            to.cast::<[f16; 4]>().write(array.map(f16::from_f32));
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> float32x4_t {
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn store_bf16(to: *mut bf16, values: float32x4_t) {
        let mut array = [0.0; 4];
        unsafe {
            vst1q_f32(array.as_mut_ptr(), values);
            to.cast::<[bf16; 4]>().write(array.map(bf16::from_f32));
        }
    }

    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    unsafe fn fold_blocks(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn fold_far(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe {
            let low = vcombine_f32(vget_low_f32(a), vget_low_f32(b));
            let high = vcombine_f32(vget_high_f32(a), vget_high_f32(b));
            vaddq_f32(low, high)
        }
    }

    #[inline(always)]
    unsafe fn fold_near(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vpaddq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn fold_threads(x: float32x4_t) -> [f32; 4] {
        let mut sums = [0.0; 4];
        unsafe { vst1q_f32(sums.as_mut_ptr(), x) };
        sums
    }
}
