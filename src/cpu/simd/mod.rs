//! What the kernel needs of an instruction set: registers of f32, a fused multiply-add, and the three foldings of
//! the fixed-order sum. Everything else is written once, in terms of these.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;

use half::{bf16, f16};

/// A register of `LANES` f32 values, seen as *blocks* of four.
///
/// # Safety of the methods
/// All of them need the instructions they are named for; the pointers must be valid for `LANES` values. No
/// alignment beyond the element's is asked for.
///
/// Every implementation of a method must give the same bits, NaN payloads aside.
pub trait Simd: Copy {
    /// f32 values in a register: 4, 8 or 16.
    const LANES: usize;

    /// Streams of a sum that are accumulated at once, 4 registers each: 4 where there are 32 registers, else 2.
    const STREAMS: usize;

    /// A register.
    type F: Copy;

    /// All lanes +0.
    unsafe fn zero() -> Self::F;
    /// All lanes `value`.
    unsafe fn splat(value: f32) -> Self::F;
    /// Reads f32.
    unsafe fn load(from: *const f32) -> Self::F;
    /// Reads the first `count < LANES` lanes; the others are +0 and their memory is not touched.
    unsafe fn load_part(from: *const f32, count: usize) -> Self::F;
    /// Writes f32.
    unsafe fn store(to: *mut f32, values: Self::F);
    /// Reads and widens f16.
    unsafe fn load_f16(from: *const f16) -> Self::F;
    /// Rounds to nearest even and writes f16.
    unsafe fn store_f16(to: *mut f16, values: Self::F);
    /// Reads and widens bf16.
    unsafe fn load_bf16(from: *const bf16) -> Self::F;
    /// Rounds to nearest even and writes bf16.
    unsafe fn store_bf16(to: *mut bf16, values: Self::F);

    /// `a + b`.
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;

    /// Blocks `2i` and `2i + 1` of the pair `(a, b)`, taken as one long register, added: the first halving of the
    /// eight lanes of a thread.
    unsafe fn fold_blocks(a: Self::F, b: Self::F) -> Self::F;
    /// In each block `(a0 + a2, a1 + a3, b0 + b2, b1 + b3)`: halving at distance 2.
    unsafe fn fold_far(a: Self::F, b: Self::F) -> Self::F;
    /// In each block `(a0 + a1, a2 + a3, b0 + b1, b2 + b3)`: halving at distance 1.
    unsafe fn fold_near(a: Self::F, b: Self::F) -> Self::F;
    /// The blocks of a register halved until one is left: block `i` + block `i + B/2`, then `B/4`, ...
    unsafe fn fold_threads(x: Self::F) -> [f32; 4];
}
