//! Exponential, sigmoid, soft cap and softmax of a row in f32, written so that loops over them vectorise. The
//! error of `exp` is less than 2 units in the last place over the normal range (tested against
//! f64). `exp` is 0 for `-inf`, `inf` above 88.73 and NaN for NaN.

use super::simd::{LANES, fma, sum_lanes, vectorised};

/// Upper clamp of the argument: the exponential is infinite above 88.73.
pub(super) const MAX_ARGUMENT: f32 = 89.0;
/// For this argument and below, the exponential is 0. Half of the smallest subnormal number is e^-103.97.
pub(super) const MIN_ARGUMENT: f32 = -105.0;
/// High part of ln 2. Its product with an integer below 2^9 is exact.
pub(super) const LN_2_HIGH: f32 = 355.0 / 512.0;
/// Low part of ln 2.
pub(super) const LN_2_LOW: f32 = (std::f64::consts::LN_2 - 355.0 / 512.0) as f32;
/// 1.5 * 2^23: adding it leaves the nearest integer in the low bits of the sum.
pub(super) const ROUNDER: f32 = 12_582_912.0;
/// Coefficients of the Taylor polynomial of [`exp`], from the seventh power to the second.
pub(super) const EXP_TERMS: [f32; 6] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5];

/// `e^x`. Splits x = n ln 2 + r with |r| <= ln 2 / 2, evaluates the Taylor polynomial of degree 7
/// in r (truncation error below 1e-8), and multiplies by 2^n in two steps, so that subnormal
/// results are correct.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    let x = if x > MAX_ARGUMENT { MAX_ARGUMENT } else { x };
    // Results of 0 are not computed, because intermediate subnormal numbers would make the computation far
    // slower.
    let vanishes = x <= MIN_ARGUMENT;
    let x = if vanishes { 0.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    let r = fma::<FMA>(n, -LN_2_HIGH, x);
    let r = fma::<FMA>(n, -LN_2_LOW, r);
    let mut p = EXP_TERMS[0];
    for term in &EXP_TERMS[1..] {
        p = fma::<FMA>(p, r, *term);
    }
    let p = 1.0 + fma::<FMA>(p, r * r, r);
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32);
    let half = n >> 1;
    let power = |e: i32| f32::from_bits((e.wrapping_add(127) as u32) << 23);
    let y = p * power(half) * power(n.wrapping_sub(half));
    if vanishes { 0.0 } else { y }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(super) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// Hyperbolic tangent, with a relative error of a few units in the last place. For |x| < 1 it is Lambert's
/// continued fraction up to the term 13, with a truncation error below 1e-10. For larger |x| it uses an
/// exponential, without cancellation.
#[inline(always)]
fn tanh<const FMA: bool>(x: f32) -> f32 {
    let size = x.abs();
    let far = (1.0 - 2.0 / (1.0 + exp::<FMA>(2.0 * size))).copysign(x);
    let y = x * x;
    let over = fma::<FMA>(y, fma::<FMA>(y, y + 378.0, 17_325.0), 135_135.0);
    let under = fma::<FMA>(y, fma::<FMA>(y, fma::<FMA>(y, 28.0, 3_150.0), 62_370.0), 135_135.0);
    if size < 1.0 { x * over / under } else { far }
}

/// Soft cap of an element: `limit tanh(x / limit)`.
#[inline(always)]
pub(super) fn cap<const FMA: bool>(x: f32, limit: f32) -> f32 {
    limit * tanh::<FMA>(x / limit)
}

/// Slope of the soft cap at the value `capped` of [`cap`].
#[inline(always)]
pub(super) fn cap_slope(capped: f32, limit: f32) -> f32 {
    let t = capped / limit;
    1.0 - t * t
}

vectorised! {
    /// Soft cap of a row.
    pub(super) fn cap_row(row: &mut [f32], limit: f32) {
        for x in row {
            *x = cap::<FMA>(*x, limit);
        }
    }
}

vectorised! {
    /// Multiplies gradients by the slopes of the soft cap, at the values `capped` of [`cap_row`].
    pub(super) fn cap_row_bwd(gradients: &mut [f32], capped: &[f32], limit: f32) {
        for (gradient, capped) in gradients.iter_mut().zip(capped) {
            *gradient *= cap_slope(*capped, limit);
        }
    }
}

/// Replaces every element by `e^(element - shift)` and returns the sum of the exponentials. The
/// order of the sum depends only on the length.
#[inline(always)]
fn exp_sum<const FMA: bool>(values: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let mut blocks = values.chunks_exact_mut(LANES);
    for block in &mut blocks {
        for i in 0..LANES {
            block[i] = exp::<FMA>(block[i] - shift);
            lanes[i] += block[i];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(blocks.into_remainder()) {
        *x = exp::<FMA>(*x - shift);
        *lane += *x;
    }
    sum_lanes(lanes)
}

/// Returns the largest element of a row and the sum of `e^(element - largest)`, and overwrites
/// the row with these exponentials. The result is (-inf, 0) if all elements are `-inf`; the sum
/// is NaN if the row contains NaN or `+inf`.
pub(super) fn softmax_row(row: &mut [f32]) -> (f32, f32) {
    #[cfg(target_arch = "x86_64")]
    if super::simd::level() == super::simd::Level::Avx512 {
        // SAFETY: `level` has detected the instructions.
        return unsafe { super::avx512_softmax::softmax_row(row) };
    }
    softmax_loop(row)
}

vectorised! {
    /// [`softmax_row`] on any processor.
    fn softmax_loop(row: &mut [f32]) -> (f32, f32) {
        let largest = super::simd::max(row);
        if largest == f32::NEG_INFINITY {
            let nan = row.iter().any(|x| x.is_nan());
            row.fill(0.0);
            return (largest, if nan { f32::NAN } else { 0.0 });
        }
        (largest, exp_sum::<FMA>(row, largest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    vectorised! {
        fn exp_all(values: &mut [f32]) {
            for x in values {
                *x = exp::<FMA>(*x);
            }
        }
    }

    #[test]
    fn exponential_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0f64;
        let arguments: Vec<f32> = (0..2_000_000).map(|i| -87.0 + 175.5 * i as f32 / 2e6).collect();
        let mut values = arguments.clone();
        exp_all(&mut values);
        for (x, y) in arguments.iter().zip(&values) {
            let exact = f64::from(*x).exp();
            let ulp = f64::from(f32::EPSILON) * 2f64.powf(exact.log2().floor());
            worst = worst.max((f64::from(*y) - exact).abs() / ulp);
        }
        assert!(worst < 2.0, "{worst} units in the last place");
    }

    #[test]
    fn soft_caps_have_small_relative_errors_and_keep_nan() {
        let arguments: Vec<f32> = (-60_000..60_000).map(|i| i as f32 * 1e-2 + 3e-4).chain([1e-20, -1e-6]).collect();
        let mut values = arguments.clone();
        cap_row(&mut values, 50.0);
        for (x, y) in arguments.iter().zip(&values) {
            let exact = 50.0 * (f64::from(*x) / 50.0).tanh();
            let error = (f64::from(*y) - exact).abs() / exact.abs();
            assert!(error < 5e-7, "{x}: {y} instead of {exact}");
        }
        let mut extreme = [f32::INFINITY, f32::NEG_INFINITY, 0.0, f32::NAN];
        cap_row(&mut extreme, 30.0);
        assert_eq!(extreme[..3], [30.0, -30.0, 0.0]);
        assert!(extreme[3].is_nan());
    }

    #[test]
    fn exponential_of_extreme_arguments() {
        let mut values = [f32::NEG_INFINITY, -104.5, -103.0, 0.0, -0.0, 88.8, 1e30, f32::INFINITY, f32::NAN];
        exp_all(&mut values);
        assert_eq!(values[..2], [0.0, 0.0]);
        assert!(values[2] > 0.0 && values[2] < 3e-45);
        assert_eq!(values[3..5], [1.0, 1.0]);
        assert_eq!(values[5..8], [f32::INFINITY; 3]);
        assert!(values[8].is_nan());
    }

    #[test]
    fn softmax_rows_with_infinities() {
        let mut row = [f32::NEG_INFINITY, 1.0, 1.0];
        assert_eq!(softmax_row(&mut row), (1.0, 2.0));
        assert_eq!(row, [0.0, 1.0, 1.0]);
        assert_eq!(softmax_row(&mut [f32::NEG_INFINITY; 20]), (f32::NEG_INFINITY, 0.0));
        assert!(softmax_row(&mut [1.0, f32::INFINITY]).1.is_nan());
        assert!(softmax_row(&mut [1.0, f32::NAN]).1.is_nan());
    }

    #[test]
    fn softmax_rows_have_the_bits_of_the_loop_at_every_length() {
        let bits = |x: &f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
        for length in (1..70).chain([1000]) {
            for (at, value) in [(0, 0.5), (length / 2, f32::NEG_INFINITY), (length - 1, f32::NAN), (length - 1, -200.0)]
            {
                let mut row: Vec<f32> = (0..length).map(|i| ((i * 7919 + 17) % 2003) as f32 / 50.0 - 20.0).collect();
                row[at] = value;
                let mut looped = row.clone();
                let ((largest, sum), expected) = (softmax_row(&mut row), softmax_loop(&mut looped));
                assert_eq!(
                    [largest, sum].each_ref().map(bits),
                    [expected.0, expected.1].each_ref().map(bits),
                    "{length}"
                );
                assert!(row.iter().map(bits).eq(looped.iter().map(bits)), "{length} elements, {value} at {at}");
            }
            let (mut hidden, mut looped) = (vec![f32::NEG_INFINITY; length], vec![f32::NEG_INFINITY; length]);
            assert_eq!((softmax_row(&mut hidden), &hidden), (softmax_loop(&mut looped), &looped));
        }
    }
}
