//! Comparison losses and the gradient of the scores, in f32; sums over a batch accumulate in f64.
//! Serial: a batch has at most a few thousand comparisons.

use super::Cpu;
use crate::backend::contract::*;

/// `softplus(-z)`, `softplus(z)`, `sigmoid(-z)` and `sigmoid(z)` from a single exponential.
fn logistic(z: f32) -> [f32; 4] {
    let e = (-z.abs()).exp();
    let (tail, large, small) = (e.ln_1p(), 1.0 / (1.0 + e), e / (1.0 + e));
    // NaN takes the second branch. Its exponential is NaN, and so is every result.
    if z >= 0.0 { [tail, z + tail, small, large] } else { [-z + tail, tail, large, small] }
}

/// f(z) and f'(z), as defined by [`crate::backend::contract::curve::value_and_slope`].
fn value_and_slope(curve: Curve, z: f32, beta: f32) -> (f32, f32) {
    let [lower, upper, sigmoid_lower, sigmoid_upper] = logistic(z);
    match curve {
        // At e = 0 the smoothed terms are omitted, because 0 * softplus(inf) is NaN.
        Curve::Sigmoid { smoothing: 0.0 } | Curve::Robust { smoothing: 0.0 } => (lower, -sigmoid_lower),
        Curve::Sigmoid { smoothing } => {
            let (e, rest) = (smoothing as f32, (1.0 - smoothing) as f32);
            (rest * lower + e * upper, e * sigmoid_upper - rest * sigmoid_lower)
        }
        Curve::Robust { smoothing } => {
            let (e, rest, norm) = (smoothing as f32, (1.0 - smoothing) as f32, (1.0 - 2.0 * smoothing) as f32);
            ((rest * lower - e * upper) / norm, (-rest * sigmoid_lower - e * sigmoid_upper) / norm)
        }
        Curve::Hinge => match z.partial_cmp(&1.0) {
            None => (z, z),
            Some(std::cmp::Ordering::Less) => (1.0 - z, -1.0),
            Some(_) => (0.0, 0.0),
        },
        Curve::Ipo => {
            let distance = (z - 0.5) / beta;
            (distance * distance, 2.0 * distance / beta)
        }
    }
}

pub(super) fn preference_fwd(a: PreferenceFwd<'_, Cpu>) {
    let (score, table) = (a.score.slice(), &a.table);
    let (sequence, sign, kind) = (table.term_sequence.slice(), table.term_sign.slice(), table.kind.slice());
    let (scale, weight, clip) = (table.scale.slice(), table.weight.slice(), table.detached_clip.slice());
    let (margin, kind_scale) = (table.margin.slice(), table.kind_scale.slice());
    let (loss, logit, dscore) = (a.loss.into_slice(), a.logit.into_slice(), a.dscore.into_slice());
    let reference = a.reference.map(|r| r.slice());
    let center = a.center as f32;
    match a.direct {
        Some(direct) => dscore.copy_from_slice(direct.slice()),
        None => dscore.fill(0.0),
    }
    let mut sums = [[0.0f64; SUM_FIELDS]; KINDS];
    for c in 0..a.comparisons {
        let terms = || {
            let slots = c * TERMS..(c + 1) * TERMS;
            slots.filter(|&i| sequence[i] >= 0).map(|i| (sequence[i] as usize, sign[i]))
        };
        // Sums of the trained and of the detached terms, signed and scaled.
        let mut signed = [0.0f32; 2];
        let mut pair_sum = 0.0f32;
        for (s, sign) in terms() {
            let rho = scale[c] * (score[s] - reference.map_or(0.0, |r| r[s]));
            signed[usize::from(sign.abs() == 2)] += sign.signum() as f32 * rho;
            pair_sum += score[s];
        }
        logit[c] = signed[0] + clamp(signed[1], clip[2 * c], clip[2 * c + 1]);
        let kind = kind[c] as usize;
        let centred = center != 0.0 && kind == 0 && terms().count() == 2;
        let pair_sum = if centred { pair_sum } else { 0.0 };
        loss[c] = 0.0;
        if weight[c] != 0.0 {
            let (f, slope) = value_and_slope(a.curve, logit[c] - margin[c], scale[c]);
            loss[c] = weight[c] * (f + center * pair_sum * pair_sum);
            // The slope may be finite although logit or loss is not (-1 at -inf). NaN marks the
            // step as bad.
            let slope = if logit[c].is_finite() && loss[c].is_finite() { slope } else { f32::NAN };
            let factor = kind_scale[kind] * weight[c];
            for (s, sign) in terms() {
                let trained = if sign.abs() == 2 { 0.0 } else { sign as f32 * scale[c] * slope };
                dscore[s] += factor * (trained + 2.0 * center * pair_sum);
            }
        }
        let row = &mut sums[kind];
        row[SUM_LOSS] += f64::from(loss[c]);
        row[SUM_COUNT] += 1.0;
        row[SUM_CORRECT] += f64::from(u8::from(logit[c] > 0.0));
        row[SUM_TIES] += f64::from(u8::from(logit[c] == 0.0));
        row[SUM_LOGIT] += f64::from(logit[c]);
    }
    a.sums.into_slice().iter_mut().zip(sums.as_flattened()).for_each(|(to, sum)| *to = *sum as f32);
}

/// Clamps `value` to the bounds. NaN stays NaN, and bounds in the wrong order do not panic.
fn clamp(value: f32, low: f32, high: f32) -> f32 {
    let raised = if value < low { low } else { value };
    if raised > high { high } else { raised }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::contract::curve;

    #[test]
    fn curves_agree_with_their_definition() {
        let sigmoid = |smoothing| Curve::Sigmoid { smoothing };
        let robust = |smoothing| Curve::Robust { smoothing };
        for curve in [sigmoid(0.0), sigmoid(0.3), robust(0.0), robust(0.2), Curve::Hinge, Curve::Ipo] {
            for z in [-80.0f32, -20.0, -1.5, -0.0, 0.0, 1e-4, 0.5, 1.0, 3.0, 20.0, 80.0] {
                let (f, df) = value_and_slope(curve, z, 0.125);
                let (f64_, df64) = curve::value_and_slope(curve, f64::from(z), 0.125);
                assert!((f64::from(f) - f64_).abs() <= 4e-7 * f64_.abs() + 1e-7 * f64::from(z.abs()), "{curve:?} {z}");
                assert!((f64::from(df) - df64).abs() <= 4e-7 * df64.abs(), "slope of {curve:?} at {z}: {df} {df64}");
            }
        }
        assert_eq!(value_and_slope(sigmoid(0.0), 0.0, 1.0), (std::f32::consts::LN_2, -0.5));
        assert_eq!(value_and_slope(sigmoid(0.0), f32::NEG_INFINITY, 1.0), (f32::INFINITY, -1.0));
        for curve in [sigmoid(0.0), sigmoid(0.1), robust(0.1), Curve::Hinge, Curve::Ipo] {
            let (f, df) = value_and_slope(curve, f32::NAN, 1.0);
            assert!(f.is_nan() && df.is_nan(), "{curve:?}");
        }
    }
}
