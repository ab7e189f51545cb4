//! AVX2 with FMA and F16C: 16 registers of 8 lanes.

use std::arch::x86_64::*;

use half::{bf16, f16};

use crate::cpu::simd::{Kernel, Simd};

/// The instructions of `avx2`, `fma` and `f16c`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2;

// SAFETY (all blocks): the trait's contract: the instructions are available and the pointers are valid for 8
// values. The memory instructions used are those without an alignment requirement.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    const LANES: usize = 8;
    const ACCUMULATORS: usize = 2;
    type F = __m256;

    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn vectorize<K: Kernel>(kernel: K) -> K::Output {
        unsafe { kernel.run::<Self>() }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> __m256 {
        // A masked load does not touch the memory of lanes outside its mask.
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(count.min(8) as i32), lanes);
            _mm256_maskload_ps(from, mask)
        }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, values: __m256) {
        unsafe { _mm256_storeu_ps(to, values) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store_f16(to: *mut f16, values: __m256) {
        unsafe {
            let narrow = _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(values);
            _mm_storeu_si128(to.cast(), narrow);
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> __m256 {
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(to: *mut bf16, values: __m256) {
        // Adding just under half a unit, or half a unit if the kept part is odd, carries exactly when
        // rounding to nearest even goes up. A NaN is made quiet instead and keeps its upper payload, because
        // the carry could turn it into an infinity.
        unsafe {
            let bits = _mm256_castps_si256(values);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(values, values));
            let kept = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
            // Packing works on each half of the register, so the two results have to be joined.
            let packed = _mm256_packus_epi32(kept, kept);
            let joined = _mm256_permute4x64_epi64::<0b00_00_10_00>(packed);
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(joined));
        }
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn fold_blocks(a: __m256, b: __m256) -> __m256 {
        unsafe {
            let even = _mm256_permute2f128_ps::<0x20>(a, b);
            let odd = _mm256_permute2f128_ps::<0x31>(a, b);
            _mm256_add_ps(even, odd)
        }
    }

    #[inline(always)]
    unsafe fn fold_far(a: __m256, b: __m256) -> __m256 {
        unsafe {
            let low = _mm256_shuffle_ps::<0b01_00_01_00>(a, b);
            let high = _mm256_shuffle_ps::<0b11_10_11_10>(a, b);
            _mm256_add_ps(low, high)
        }
    }

    #[inline(always)]
    unsafe fn fold_near(a: __m256, b: __m256) -> __m256 {
        unsafe {
            let even = _mm256_shuffle_ps::<0b10_00_10_00>(a, b);
            let odd = _mm256_shuffle_ps::<0b11_01_11_01>(a, b);
            _mm256_add_ps(even, odd)
        }
    }

    #[inline(always)]
    unsafe fn fold_threads(x: __m256) -> [f32; 4] {
        unsafe {
            let half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), half);
            sums
        }
    }
}
