//! Functions of `math` and `simd` for AVX-512 registers. Results have the same bits as those of the loops in
//! these modules.

use std::arch::x86_64::*;

use super::math::{EXP_TERMS, LN_2_HIGH, LN_2_LOW, MAX_ARGUMENT, MIN_ARGUMENT, ROUNDER};
use super::simd::LANES;

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(from: &[f32; LANES]) -> __m512 {
    // SAFETY: the array has the size of a register.
    unsafe { _mm512_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store(to: &mut [f32; LANES], values: __m512) {
    // SAFETY: the array has the size of a register.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), values) }
}

/// Mask of the first `elements` lanes, or of all lanes if there are more elements.
#[inline(always)]
pub(super) fn first(elements: usize) -> __mmask16 {
    if elements >= LANES { !0 } else { (1 << elements) - 1 }
}

/// Loads the first elements of a slice, and returns the mask of their lanes. The other lanes are 0.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_part(from: &[f32]) -> (__m512, __mmask16) {
    let mask = first(from.len());
    // SAFETY: the mask keeps the load inside the slice.
    (unsafe { _mm512_maskz_loadu_ps(mask, from.as_ptr()) }, mask)
}

/// [`super::math::exp`] of each lane.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn exp(x: __m512) -> __m512 {
    // `_mm512_min_ps` returns its second operand if one is NaN, so a NaN in x stays NaN.
    let x = _mm512_min_ps(_mm512_set1_ps(MAX_ARGUMENT), x);
    let counts = _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(x, _mm512_set1_ps(MIN_ARGUMENT));
    let x = _mm512_maskz_mov_ps(counts, x);
    let rounder = _mm512_set1_ps(ROUNDER);
    let shifted = _mm512_add_ps(_mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)), rounder);
    let n = _mm512_sub_ps(shifted, rounder);
    let r = _mm512_fmadd_ps(n, _mm512_set1_ps(-LN_2_HIGH), x);
    let r = _mm512_fmadd_ps(n, _mm512_set1_ps(-LN_2_LOW), r);
    let mut p = _mm512_set1_ps(EXP_TERMS[0]);
    for term in &EXP_TERMS[1..] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*term));
    }
    let p = _mm512_add_ps(_mm512_set1_ps(1.0), _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r));
    let n = _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_castps_si512(rounder));
    let half = _mm512_srai_epi32::<1>(n);
    // This code avoids closures, which become calls unless the compiler optimises across codegen units.
    let bias = _mm512_set1_epi32(127);
    let low = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(half, bias)));
    let high = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(_mm512_sub_epi32(n, half), bias)));
    _mm512_maskz_mul_ps(counts, _mm512_mul_ps(p, low), high)
}

/// [`super::simd::sum_lanes`].
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx")]
pub(super) fn sum_lanes(x: __m512) -> f32 {
    let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
}

/// Returns the largest lane. No lane may be NaN.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx")]
pub(super) fn largest_lane(x: __m512) -> f32 {
    let x = _mm256_max_ps(_mm512_extractf32x8_ps::<1>(x), _mm512_castps512_ps256(x));
    let x = _mm_max_ps(_mm256_extractf128_ps::<1>(x), _mm256_castps256_ps128(x));
    let x = _mm_max_ps(_mm_movehl_ps(x, x), x);
    _mm_cvtss_f32(_mm_max_ss(_mm_shuffle_ps::<1>(x, x), x))
}

/// [`super::simd::dot`].
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx")]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = _mm512_setzero_ps();
    let b = &b[..a.len()];
    for i in 0..a.len() {
        sums = _mm512_fmadd_ps(load(&a[i]), load(&b[i]), sums);
    }
    let ((a, mask), (b, _)) = (load_part(a_rest), load_part(b_rest));
    sum_lanes(_mm512_mask3_fmadd_ps(a, b, sums, mask))
}

/// The values of bf16 elements.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn widened(elements: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(elements)))
}

/// Rounds to bf16 as [`super::element::upper`] does.
#[inline]
#[target_feature(enable = "avx512f,avx")]
pub(super) fn rounded(values: __m512) -> __m256i {
    let bits = _mm512_castps_si512(values);
    let high = _mm512_srli_epi32::<16>(bits);
    let tie = _mm512_and_si512(high, _mm512_set1_epi32(1));
    let nearest = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, _mm512_add_epi32(_mm512_set1_epi32(0x7fff), tie)));
    let size = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fff_ffff));
    let nan = _mm512_cmpgt_epi32_mask(size, _mm512_set1_epi32(0x7f80_0000));
    _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(nearest, nan, high, _mm512_set1_epi32(0x40)))
}

/// [`rounded`] with the instruction of AVX-512 BF16. The instruction treats subnormal numbers as zero, so a
/// vector with a subnormal number is rounded without it.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bf16,avx")]
pub(super) fn rounded_fast(values: __m512) -> __m256i {
    if _mm512_fpclass_ps_mask::<SUBNORMAL>(values) != 0 {
        return rounded(values);
    }
    // SAFETY: both types have 32 bytes, and all bit patterns are valid.
    unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values)) }
}

/// Bit of subnormal numbers in the classes of `_mm512_fpclass_ps_mask`.
const SUBNORMAL: i32 = 0x20;
