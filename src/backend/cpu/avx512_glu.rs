//! SwiGLU and its gradient for a row of bf16 with AVX-512 BF16. Results have the same bits as the loops in
//! `glu`. Values stay in registers from the bf16 load to the rounded store.

use std::arch::x86_64::*;

use half::bf16;

use super::avx512_math::{exp, first, rounded_fast, widened};
use super::simd::LANES;

/// Loads up to [`LANES`] elements of a row, from `at` on, as f32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx")]
fn load(row: &[bf16], at: usize) -> __m512 {
    let row = &row[at..];
    // SAFETY: the mask keeps the load inside the row.
    widened(unsafe { _mm256_maskz_loadu_epi16(first(row.len()), row.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx")]
fn store(row: &mut [bf16], at: usize, values: __m512) {
    let row = &mut row[at..];
    // SAFETY: the mask keeps the store inside the row.
    unsafe { _mm256_mask_storeu_epi16(row.as_mut_ptr().cast(), first(row.len()), rounded_fast(values)) }
}

/// [`super::math::sigmoid`] of each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn sigmoid(x: __m512) -> __m512 {
    let one = _mm512_set1_ps(1.0);
    _mm512_div_ps(one, _mm512_add_ps(one, exp(_mm512_xor_ps(x, _mm512_set1_ps(-0.0)))))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx")]
pub(super) fn glu_row(act: &mut [bf16], gate: &[bf16], up: &[bf16]) {
    for at in (0..act.len()).step_by(LANES) {
        let gate = load(gate, at);
        store(act, at, _mm512_mul_ps(_mm512_mul_ps(gate, sigmoid(gate)), load(up, at)));
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx")]
pub(super) fn glu_row_bwd(dgate: &mut [bf16], dup: &mut [bf16], gate: &[bf16], up: &[bf16], dact: &[bf16]) {
    let one = _mm512_set1_ps(1.0);
    for at in (0..dact.len()).step_by(LANES) {
        let [gate, up, dact] = [load(gate, at), load(up, at), load(dact, at)];
        let s = sigmoid(gate);
        let slope = _mm512_mul_ps(s, _mm512_add_ps(one, _mm512_mul_ps(gate, _mm512_sub_ps(one, s))));
        store(dgate, at, _mm512_mul_ps(_mm512_mul_ps(dact, up), slope));
        store(dup, at, _mm512_mul_ps(dact, _mm512_mul_ps(gate, s)));
    }
}
