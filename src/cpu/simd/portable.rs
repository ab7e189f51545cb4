//! Plain Rust, for every target. Registers are arrays of 16 values, in loops that compilers turn into the
//! target's vector instructions. `f32::mul_add` is one instruction where the target has it. Elsewhere it
//! calls the C library's `fmaf`, which is slow but exact.

use std::array::from_fn;

use half::{bf16, f16};

use crate::cpu::simd::{Kernel, Simd};

/// Registers as arrays of 16 values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

/// A register.
type Register = [f32; LANES];
const LANES: usize = 16;

/// Reads the first `count` values, at most 16. The others are +0.
#[inline(always)]
unsafe fn read<T: Copy + Default>(from: *const T, count: usize, widen: impl Fn(T) -> f32) -> Register {
    let mut values = [0.0; LANES];
    for (i, value) in values.iter_mut().enumerate().take(count) {
        // SAFETY: the caller promises `count` readable values, and `i` is below `count`.
        *value = widen(unsafe { from.add(i).read() });
    }
    values
}

/// Writes 16 values.
#[inline(always)]
unsafe fn write<T>(to: *mut T, values: Register, narrow: impl Fn(f32) -> T) {
    for (i, value) in values.into_iter().enumerate() {
        // SAFETY: the caller promises 16 writable values, and `i` is below 16.
        unsafe { to.add(i).write(narrow(value)) };
    }
}

impl Simd for Portable {
    const LANES: usize = LANES;
    const ACCUMULATORS: usize = 2;
    type F = Register;

    #[inline(never)]
    unsafe fn vectorize<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: the caller promises what the kernel needs, and plain Rust needs no special instructions.
        unsafe { kernel.run::<Self>() }
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}

    #[inline(always)]
    unsafe fn zero() -> Register {
        [0.0; LANES]
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Register {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Register {
        // SAFETY: the trait's contract gives 16 readable values.
        unsafe { from.cast::<Register>().read() }
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Register {
        // SAFETY: the trait's contract gives the values that are read, the first `count`.
        unsafe { read(from, count, |value| value) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, values: Register) {
        // SAFETY: the trait's contract gives 16 writable values.
        unsafe { to.cast::<Register>().write(values) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Register {
        // SAFETY: the trait's contract gives 16 readable values.
        unsafe { read(from, LANES, f16::to_f32) }
    }

    #[inline(always)]
    unsafe fn store_f16(to: *mut f16, values: Register) {
        // SAFETY: the trait's contract gives 16 writable values.
        unsafe { write(to, values, f16::from_f32) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Register {
        // SAFETY: the trait's contract gives 16 readable values.
        unsafe { read(from, LANES, bf16::to_f32) }
    }

    #[inline(always)]
    unsafe fn store_bf16(to: *mut bf16, values: Register) {
        // SAFETY: the trait's contract gives 16 writable values.
        unsafe { write(to, values, bf16::from_f32) }
    }

    #[inline(always)]
    unsafe fn add(a: Register, b: Register) -> Register {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn mul(a: Register, b: Register) -> Register {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn fma(a: Register, b: Register, c: Register) -> Register {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    unsafe fn fold_blocks(a: Register, b: Register) -> Register {
        from_fn(|i| {
            let (from, block, value) = (if i < 8 { &a } else { &b }, i / 4 % 2, i % 4);
            from[8 * block + value] + from[8 * block + 4 + value]
        })
    }

    #[inline(always)]
    unsafe fn fold_far(a: Register, b: Register) -> Register {
        from_fn(|i| {
            let (block, value) = (i / 4 * 4, i % 4);
            let from = if value < 2 { &a } else { &b };
            from[block + value % 2] + from[block + value % 2 + 2]
        })
    }

    #[inline(always)]
    unsafe fn fold_near(a: Register, b: Register) -> Register {
        from_fn(|i| {
            let (block, value) = (i / 4 * 4, i % 4);
            let from = if value < 2 { &a } else { &b };
            from[block + value % 2 * 2] + from[block + value % 2 * 2 + 1]
        })
    }

    #[inline(always)]
    unsafe fn fold_threads(x: Register) -> [f32; 4] {
        from_fn(|i| (x[i] + x[i + 8]) + (x[i + 4] + x[i + 12]))
    }
}
