//! Conversions to bf16 with AVX-512 BF16.

use std::arch::x86_64::*;

use half::bf16;

use super::avx512_math::{load, load_part, rounded_fast};
use super::simd::LANES;

/// Rounds elements as [`super::element::upper`] does, up to the length of the shorter slice.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx")]
pub(super) fn round(to: &mut [bf16], from: &[f32]) {
    let length = to.len().min(from.len());
    let (vectors, rest) = to[..length].as_chunks_mut::<LANES>();
    let (values, rest_of_values) = from[..length].as_chunks::<LANES>();
    let values = &values[..vectors.len()];
    for i in 0..vectors.len() {
        // SAFETY: the array has the size of half a register.
        unsafe { _mm256_storeu_si256(vectors[i].as_mut_ptr().cast(), rounded_fast(load(&values[i]))) }
    }
    if !rest.is_empty() {
        let (values, mask) = load_part(rest_of_values);
        // SAFETY: the mask keeps the store inside the slice.
        unsafe { _mm256_mask_storeu_epi16(rest.as_mut_ptr().cast(), mask, rounded_fast(values)) }
    }
}
