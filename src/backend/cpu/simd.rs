//! Run-time dispatch of vector instructions. The functions are plain loops that the compiler vectorises. The
//! macro `vectorised` compiles each of them three times (AVX-512, AVX2 with FMA, baseline) and calls the best
//! version that the processor supports.
//!
//! Results may differ between processors with and without fused multiply-add, but not between
//! thread counts.

#[cfg(target_arch = "x86_64")]
use std::sync::atomic::{AtomicU8, Ordering};

/// Defines a function that is compiled for several instruction sets. In the body, the constant
/// `FMA` tells whether the processor has fused multiply-add; it is the const argument of [`fma`].
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(unused_mut, clippy::too_many_arguments)]
            fn body<const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body::<true>($($arg),*)
                }
                match $crate::backend::cpu::simd::level() {
                    // SAFETY: `level` has detected every feature that the function enables.
                    $crate::backend::cpu::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::backend::cpu::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::backend::cpu::simd::Level::Baseline => {}
                }
            }
            body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(super) use vectorised;

/// Instruction sets that a vectorised function is compiled for.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Avx512 = 0,
    Avx2 = 1,
    Baseline = 2,
}

/// Returns the best instruction set of this processor.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) fn level() -> Level {
    static LEVEL: AtomicU8 = AtomicU8::new(u8::MAX);
    match LEVEL.load(Ordering::Relaxed) {
        0 => Level::Avx512,
        1 => Level::Avx2,
        2 => Level::Baseline,
        _ => {
            let level = detected();
            LEVEL.store(level as u8, Ordering::Relaxed);
            level
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[cold]
fn detected() -> Level {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq");
    match (avx2, avx512) {
        (true, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        (false, _) => Level::Baseline,
    }
}

/// `a * b + c`, with a single rounding if the processor has fused multiply-add.
#[inline(always)]
pub(super) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Number of partial sums of a row reduction: one AVX-512 register or two AVX2 registers.
pub(super) const LANES: usize = 16;

/// Sum of the lanes by a fixed reduction tree.
#[inline(always)]
pub(super) fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Dot product. The order of summation depends only on the length.
#[inline(always)]
pub(super) fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((a_blocks, a_tail), (b_blocks, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let b_blocks = &b_blocks[..a_blocks.len()];
    for block in 0..a_blocks.len() {
        for i in 0..LANES {
            lanes[i] = fma::<FMA>(a_blocks[block][i], b_blocks[block][i], lanes[i]);
        }
    }
    if let (Some(x), Some(y), HALF) = (a_tail.first_chunk::<HALF>(), b_tail.first_chunk::<HALF>(), a_tail.len()) {
        // With a constant length, the compiler keeps the lanes in a register.
        for i in 0..HALF {
            lanes[i] = fma::<FMA>(x[i], y[i], lanes[i]);
        }
    } else {
        let b_tail = &b_tail[..a_tail.len()];
        for i in 0..a_tail.len() {
            lanes[i] = fma::<FMA>(a_tail[i], b_tail[i], lanes[i]);
        }
    }
    sum_lanes(lanes)
}

/// Half of a vector.
const HALF: usize = LANES / 2;

/// Largest lane. Ignores NaN lanes.
#[inline(always)]
pub(super) fn largest_lane(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut width = HALF;
    while width > 0 {
        for i in 0..width {
            lanes[i] = if lanes[i + width] > lanes[i] { lanes[i + width] } else { lanes[i] };
        }
        width /= 2;
    }
    lanes[0]
}

/// Largest element, `-inf` if there is none. Ignores NaN elements; a caller sees them in the sum of the
/// exponentials, which is then NaN.
#[inline(always)]
pub(super) fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let blocks = values.chunks_exact(LANES);
    let tail = blocks.remainder();
    for x in blocks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], x[i]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *lane = larger(*lane, *x);
    }
    largest_lane(lanes)
}

/// Number of rows, and of columns, that [`transpose`] transposes.
pub(super) const SQUARE: usize = 8;

/// Transposes a square: `to[j * to_stride + i] = from[i * from_stride + j]`.
#[inline]
pub(super) fn transpose(to: &mut [f32], to_stride: usize, from: &[f32], from_stride: usize) {
    let holds = |len: usize, stride: usize| len >= SQUARE && (len - SQUARE) / (SQUARE - 1) >= stride;
    assert!(holds(to.len(), to_stride) && holds(from.len(), from_stride), "a square outside its slice");
    #[cfg(target_arch = "x86_64")]
    if level() != Level::Baseline {
        // SAFETY: `level` has detected AVX2, and the slices hold the rows of both squares.
        return unsafe { transpose_avx2(to.as_mut_ptr(), to_stride, from.as_ptr(), from_stride) };
    }
    for i in 0..SQUARE {
        for j in 0..SQUARE {
            to[j * to_stride + i] = from[i * from_stride + j];
        }
    }
}

/// Transposes by swapping elements, pairs and halves: 24 shuffles for 64 elements instead of 64
/// scalar stores. Loops have constant bounds, so that the squares stay in registers.
///
/// # Safety
/// The processor has AVX2, and all rows of both squares are inside their allocations.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[allow(clippy::needless_range_loop)]
pub(super) unsafe fn transpose_avx2(to: *mut f32, to_stride: usize, from: *const f32, from_stride: usize) {
    use std::arch::x86_64::*;
    let mut rows = [_mm256_setzero_ps(); SQUARE];
    for i in 0..SQUARE {
        // SAFETY: the caller guarantees the rows of `from`.
        rows[i] = unsafe { _mm256_loadu_ps(from.add(i * from_stride)) };
    }
    let mut pairs = rows;
    for i in 0..4 {
        pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    let mut fours = pairs;
    for half in [0, 4] {
        for i in 0..2 {
            fours[half + 2 * i] = _mm256_shuffle_ps::<0x44>(pairs[half + i], pairs[half + 2 + i]);
            fours[half + 2 * i + 1] = _mm256_shuffle_ps::<0xEE>(pairs[half + i], pairs[half + 2 + i]);
        }
    }
    for i in 0..4 {
        let columns = [
            _mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]),
            _mm256_permute2f128_ps::<0x31>(fours[i], fours[i + 4]),
        ];
        // SAFETY: the caller guarantees the rows of `to`.
        unsafe {
            _mm256_storeu_ps(to.add(i * to_stride), columns[0]);
            _mm256_storeu_ps(to.add((i + 4) * to_stride), columns[1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_are_transposed() {
        let (from_stride, to_stride) = (SQUARE + 3, SQUARE + 5);
        let from: Vec<f32> = (0..7 * from_stride + SQUARE).map(|i| i as f32).collect();
        let mut to = vec![-1.0; 7 * to_stride + SQUARE];
        transpose(&mut to, to_stride, &from, from_stride);
        for (at, x) in to.iter().enumerate() {
            let (row, column) = (at / to_stride, at % to_stride);
            let expected = if column < SQUARE { from[column * from_stride + row] } else { -1.0 };
            assert_eq!(*x, expected, "row {row}, column {column}");
        }
    }
}
