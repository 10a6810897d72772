//! Softmax of rows with AVX-512, and its gradient for attention. Results have the same bits as the loops in
//! `math` and `attention_softmax`. For those loops the compiler generates far more instructions, because rows
//! are short and partly hidden.

use std::arch::x86_64::*;

use half::bf16;

use super::attention_softmax::{Outputs, Rounded, Rows};
use super::avx512_math::{dot, exp, first, largest_lane, load, load_part, rounded as nearest, store, sum_lanes};
use super::simd::LANES;

#[inline]
#[target_feature(enable = "avx512f,avx")]
fn store_rounded(to: &mut [bf16; LANES], values: __m512) {
    // SAFETY: the array has the size of half a register.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), nearest(values)) }
}

/// [`super::math::softmax_row`] with AVX-512.
#[target_feature(enable = "avx512f,avx512dq,avx")]
pub(super) fn softmax_row(row: &mut [f32]) -> (f32, f32) {
    let infinity = _mm512_set1_ps(f32::NEG_INFINITY);
    let (vectors, rest) = row.as_chunks_mut::<LANES>();
    let mut largest = infinity;
    for values in vectors.iter() {
        largest = _mm512_max_ps(load(values), largest);
    }
    let (values, mask) = load_part(rest);
    largest = _mm512_mask_max_ps(largest, mask, values, largest);
    let largest = largest_lane(largest);
    if largest == f32::NEG_INFINITY {
        let nan = row.iter().any(|x| x.is_nan());
        row.fill(0.0);
        return (largest, if nan { f32::NAN } else { 0.0 });
    }
    let shift = _mm512_set1_ps(largest);
    let mut sums = _mm512_setzero_ps();
    for values in vectors {
        let e = exp(_mm512_sub_ps(load(values), shift));
        store(values, e);
        sums = _mm512_add_ps(sums, e);
    }
    let e = exp(_mm512_sub_ps(values, shift));
    // SAFETY: the mask keeps the store inside the slice.
    unsafe { _mm512_mask_storeu_ps(rest.as_mut_ptr(), mask, e) };
    (largest, sum_lanes(_mm512_mask_add_ps(sums, mask, sums, e)))
}

/// Mask of the lanes of vector `index` that a row sees.
#[inline(always)]
fn seen_in(seen: &std::ops::Range<usize>, index: usize) -> __mmask16 {
    let at = index * LANES;
    first(seen.end.saturating_sub(at)) & !first(seen.start.saturating_sub(at))
}

/// Returns the scaled scores of a vector, with `-inf` where the key is not seen.
#[inline]
#[target_feature(enable = "avx512f")]
fn masked(values: &[f32; LANES], seen: __mmask16, scale: __m512) -> __m512 {
    _mm512_mask_mul_ps(_mm512_set1_ps(f32::NEG_INFINITY), seen, load(values), scale)
}

/// [`super::attention_softmax::softmax_rows`] without a soft cap.
#[target_feature(enable = "avx512f,avx512dq,avx")]
pub(super) fn softmax_rows(scores: &mut [f32], mut rounded: Option<&mut [bf16]>, stats: &mut [[f32; 2]], rows: Rows) {
    let scale = _mm512_set1_ps(rows.scale.unwrap_or(1.0));
    for (group, stats) in stats[..rows.count].chunks_mut(TOGETHER).enumerate() {
        let start = group * TOGETHER;
        for (r, [largest, _]) in (start..).zip(stats.iter_mut()) {
            let seen = rows.seen(r);
            let (row, hidden) = parts(scores, r, &rows);
            let mut lanes = _mm512_set1_ps(f32::NEG_INFINITY);
            for (i, values) in row.iter_mut().enumerate() {
                let scores = masked(values, seen_in(&seen, i), scale);
                lanes = _mm512_max_ps(scores, lanes);
                store(values, scores);
            }
            *largest = largest_lane(lanes);
            hidden.as_flattened_mut().fill(0.0);
        }
        for (r, [largest, sum]) in (start..).zip(stats.iter_mut()) {
            let (row, _) = parts(scores, r, &rows);
            if *largest == f32::NEG_INFINITY {
                let nan = row.as_flattened().iter().any(|x| x.is_nan());
                *sum = if nan { f32::NAN } else { 0.0 };
                row.as_flattened_mut().fill(0.0);
                continue;
            }
            let shift = _mm512_set1_ps(*largest);
            let mut sums = _mm512_setzero_ps();
            for values in row {
                let e = exp(_mm512_sub_ps(load(values), shift));
                store(values, e);
                sums = _mm512_add_ps(sums, e);
            }
            *sum = sum_lanes(sums);
        }
        let Some(rounded) = &mut rounded else { continue };
        for r in start..start + stats.len() {
            let (row, _) = parts(scores, r, &rows);
            let (to, hidden) = parts(rounded, r, &rows);
            for (to, values) in to.iter_mut().zip(row) {
                store_rounded(to, load(values));
            }
            hidden.as_flattened_mut().fill(bf16::ZERO);
        }
    }
}

/// Number of rows that are processed together, step by step. In a row each step waits for the previous one,
/// so the latencies of several rows overlap.
const TOGETHER: usize = 8;

/// Splits the vectors of a row after the last key that the row sees.
#[inline(always)]
fn parts<'a, T>(data: &'a mut [T], row: usize, rows: &Rows) -> (&'a mut [[T; LANES]], &'a mut [[T; LANES]]) {
    let (vectors, _) = data[row * rows.stride..][..rows.keys].as_chunks_mut::<LANES>();
    vectors.split_at_mut(rows.seen(row).end.div_ceil(LANES))
}

/// [`super::attention_softmax::softmax_rows_bwd`] without a soft cap.
#[target_feature(enable = "avx512f,avx512dq,avx")]
pub(super) fn softmax_rows_bwd(
    scores: &mut [f32],
    dscores: &mut [f32],
    mut rounded: Option<Rounded<'_>>,
    outputs: Outputs<'_>,
    rows: Rows,
) {
    let scale = _mm512_set1_ps(rows.scale.unwrap_or(1.0));
    for r in 0..rows.count {
        let (o, dout, lse) = outputs.row(r, rows.group);
        let (delta, lse) = (_mm512_set1_ps(dot(o, dout)), _mm512_set1_ps(lse));
        let seen = rows.seen(r);
        let (p, hidden) = parts(scores, r, &rows);
        hidden.as_flattened_mut().fill(0.0);
        let (ds, hidden) = parts(dscores, r, &rows);
        hidden.as_flattened_mut().fill(0.0);
        let ds = &mut ds[..p.len()];
        match &mut rounded {
            None => {
                for i in 0..p.len() {
                    let seen = seen_in(&seen, i);
                    let probability = exp(_mm512_sub_ps(masked(&p[i], seen, scale), lse));
                    let gradient = _mm512_sub_ps(_mm512_maskz_mov_ps(seen, load(&ds[i])), delta);
                    store(&mut ds[i], _mm512_mul_ps(probability, gradient));
                    store(&mut p[i], probability);
                }
            }
            Some(rounded) => {
                let factor = _mm512_set1_ps(rounded.scale);
                let (to_p, hidden) = parts(rounded.probabilities, r, &rows);
                hidden.as_flattened_mut().fill(bf16::ZERO);
                let (to_ds, hidden) = parts(rounded.dscores, r, &rows);
                hidden.as_flattened_mut().fill(bf16::ZERO);
                let (to_p, to_ds) = (&mut to_p[..p.len()], &mut to_ds[..p.len()]);
                for i in 0..p.len() {
                    let seen = seen_in(&seen, i);
                    let probability = exp(_mm512_sub_ps(masked(&p[i], seen, scale), lse));
                    let gradient = _mm512_sub_ps(_mm512_maskz_mov_ps(seen, load(&ds[i])), delta);
                    let gradient = _mm512_mul_ps(_mm512_mul_ps(probability, gradient), factor);
                    store_rounded(&mut to_p[i], probability);
                    store_rounded(&mut to_ds[i], gradient);
                }
            }
        }
    }
}
