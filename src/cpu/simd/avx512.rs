//! AVX-512F: 32 registers of 16 lanes. A segment of an f32 row is 8 accumulators of 4 fused multiply-adds
//! each.

use std::arch::x86_64::*;

use half::{bf16, f16};

use crate::cpu::simd::{Kernel, Simd};

/// The instructions of `avx512f`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512;

// SAFETY (all blocks): the trait's contract: the instructions are available and the pointers are valid for 16
// values. The memory instructions used are those without an alignment requirement.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx512 {
    const LANES: usize = 16;
    const ACCUMULATORS: usize = 4;
    type F = __m512;

    #[inline(never)]
    #[target_feature(enable = "avx512f")]
    unsafe fn vectorize<K: Kernel>(kernel: K) -> K::Output {
        unsafe { kernel.run::<Self>() }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> __m512 {
        // A masked load does not touch the memory of lanes outside its mask.
        unsafe { _mm512_maskz_loadu_ps(((1u32 << count.min(16)) - 1) as u16, from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, values: __m512) {
        unsafe { _mm512_storeu_ps(to, values) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store_f16(to: *mut f16, values: __m512) {
        unsafe {
            let narrow = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(values);
            _mm256_storeu_si256(to.cast(), narrow);
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(to: *mut bf16, values: __m512) {
        // Not `vcvtneps2bf16`, which flushes denormals. Adding just under half a unit, or half when the kept
        // part is odd, carries into it exactly when rounding to nearest even goes up; a NaN keeps its upper
        // payload and is made quiet instead, because the carry could turn it into an infinity.
        unsafe {
            let bits = _mm512_castps_si512(values);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(values, values);
            let kept = _mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(rounded, nan, quiet));
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(kept));
        }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn fold_blocks(a: __m512, b: __m512) -> __m512 {
        unsafe {
            let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
            let odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
            _mm512_add_ps(even, odd)
        }
    }

    #[inline(always)]
    unsafe fn fold_far(a: __m512, b: __m512) -> __m512 {
        unsafe {
            let low = _mm512_shuffle_ps::<0b01_00_01_00>(a, b);
            let high = _mm512_shuffle_ps::<0b11_10_11_10>(a, b);
            _mm512_add_ps(low, high)
        }
    }

    #[inline(always)]
    unsafe fn fold_near(a: __m512, b: __m512) -> __m512 {
        unsafe {
            let even = _mm512_shuffle_ps::<0b10_00_10_00>(a, b);
            let odd = _mm512_shuffle_ps::<0b11_01_11_01>(a, b);
            _mm512_add_ps(even, odd)
        }
    }

    #[inline(always)]
    unsafe fn fold_threads(x: __m512) -> [f32; 4] {
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(x)));
            let half = _mm256_add_ps(_mm512_castps512_ps256(x), high);
            let quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), quarter);
            sums
        }
    }
}
