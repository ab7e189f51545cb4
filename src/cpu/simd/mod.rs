//! The instruction sets, under one trait: registers of f32, a fused multiply-add, and the foldings of the
//! fixed-order sum. The kernels are written once in terms of these.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;

use half::{bf16, f16};

/// A kernel, written for any instruction set. `run` must be inlined into [`Simd::vectorize`].
pub trait Kernel {
    /// The kernel's result.
    type Output;

    /// Runs the kernel.
    ///
    /// # Safety
    /// The pointers of the kernel are valid as its type says. The CPU has the instructions of `S`.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// A register of `LANES` f32 values, seen as *blocks* of four.
///
/// # Safety of the methods
/// The CPU has the instructions of the implementation, and the pointers are valid for `LANES` values. No
/// alignment beyond the element's is needed.
///
/// Every implementation of a method must give the same bits, except for NaN payloads.
pub trait Simd: Copy {
    /// f32 values in a register: 4, 8 or 16.
    const LANES: usize;

    /// Segments that are accumulated at once, in 4 registers each: 4 on machines with 32 registers, else 2.
    const ACCUMULATORS: usize;

    /// A register.
    type F: Copy;

    /// Runs a kernel in a separate function, for which the instructions are enabled. Everything that the
    /// kernel calls must be inlined into it.
    ///
    /// One function per kernel keeps the code small, because each kernel is compiled once for all its
    /// callers.
    unsafe fn vectorize<K: Kernel>(kernel: K) -> K::Output;

    /// Prefetches the cache line at `at`, which need not be valid.
    unsafe fn prefetch(at: *const u8);
    /// All lanes +0.
    unsafe fn zero() -> Self::F;
    /// All lanes `value`.
    unsafe fn splat(value: f32) -> Self::F;
    /// Reads f32.
    unsafe fn load(from: *const f32) -> Self::F;
    /// Reads the first `count` lanes, at most all of them. The others are +0, and their memory is not
    /// accessed.
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

    /// Adds blocks `2i` and `2i + 1` of the pair `(a, b)`, taken as one long register. This is the first
    /// halving of the eight lanes of a thread.
    unsafe fn fold_blocks(a: Self::F, b: Self::F) -> Self::F;
    /// Gives `(a0 + a2, a1 + a3, b0 + b2, b1 + b3)` in each block: halving at distance 2.
    unsafe fn fold_far(a: Self::F, b: Self::F) -> Self::F;
    /// Gives `(a0 + a1, a2 + a3, b0 + b1, b2 + b3)` in each block: halving at distance 1.
    unsafe fn fold_near(a: Self::F, b: Self::F) -> Self::F;
    /// Halves the blocks of a register until one is left: block `i` + block `i + B/2`, then `B/4`, ...
    unsafe fn fold_threads(x: Self::F) -> [f32; 4];
}
