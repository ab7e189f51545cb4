//! Plain Rust: correct wherever Rust runs. Registers are arrays of four, which compilers turn into the baseline's
//! vector registers. `f32::mul_add` is one instruction where the target has it, and else a call of the C library's
//! `fmaf`: slow, and right.

use half::{bf16, f16};

use crate::cpu::simd::Simd;

/// Arrays of four.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

impl Simd for Portable {
    const LANES: usize = 4;
    const STREAMS: usize = 2;
    type F = [f32; 4];

    #[inline(always)]
    unsafe fn zero() -> [f32; 4] {
        [0.0; 4]
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; 4] {
        [value; 4]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; 4] {
        // SAFETY: four readable values, by the trait's contract.
        unsafe { from.cast::<[f32; 4]>().read() }
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> [f32; 4] {
        let mut values = [0.0; 4];
        for (i, value) in values.iter_mut().enumerate().take(count) {
            // SAFETY: `count` readable values, by the trait's contract.
            *value = unsafe { from.add(i).read() };
        }
        values
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, values: [f32; 4]) {
        // SAFETY: four writable values, by the trait's contract.
        unsafe { to.cast::<[f32; 4]>().write(values) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> [f32; 4] {
        // SAFETY: four readable values, by the trait's contract.
        unsafe { from.cast::<[f16; 4]>().read() }.map(f16::to_f32)
    }

    #[inline(always)]
    unsafe fn store_f16(to: *mut f16, values: [f32; 4]) {
        // SAFETY: four writable values, by the trait's contract.
        unsafe { to.cast::<[f16; 4]>().write(values.map(f16::from_f32)) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> [f32; 4] {
        // SAFETY: four readable values, by the trait's contract.
        unsafe { from.cast::<[bf16; 4]>().read() }.map(bf16::to_f32)
    }

    #[inline(always)]
    unsafe fn store_bf16(to: *mut bf16, values: [f32; 4]) {
        // SAFETY: four writable values, by the trait's contract.
        unsafe { to.cast::<[bf16; 4]>().write(values.map(bf16::from_f32)) }
    }

    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]]
    }

    #[inline(always)]
    unsafe fn mul(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] * b[0], a[1] * b[1], a[2] * b[2], a[3] * b[3]]
    }

    #[inline(always)]
    unsafe fn fma(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        [
            a[0].mul_add(b[0], c[0]),
            a[1].mul_add(b[1], c[1]),
            a[2].mul_add(b[2], c[2]),
            a[3].mul_add(b[3], c[3]),
        ]
    }

    #[inline(always)]
    unsafe fn fold_blocks(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]]
    }

    #[inline(always)]
    unsafe fn fold_far(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] + a[2], a[1] + a[3], b[0] + b[2], b[1] + b[3]]
    }

    #[inline(always)]
    unsafe fn fold_near(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] + a[1], a[2] + a[3], b[0] + b[1], b[2] + b[3]]
    }

    #[inline(always)]
    unsafe fn fold_threads(x: [f32; 4]) -> [f32; 4] {
        x
    }
}
