//! Comparison losses and the gradient of the scores, in f32; sums over a batch accumulate in f64. The ops are
//! serial, because a batch has at most a few thousand comparisons.

use super::Cpu;
use super::element::Element;
use crate::backend::contract::curve::{self, SortKeys};
use crate::backend::contract::*;

/// `softplus(-z)`, `softplus(z)`, `sigmoid(-z)` and `sigmoid(z)` from a single exponential.
fn logistic(z: f32) -> [f32; 4] {
    let e = (-z.abs()).exp();
    let (tail, large, small) = (e.ln_1p(), 1.0 / (1.0 + e), e / (1.0 + e));
    // NaN takes the second branch. Its exponential is NaN, and so is every result.
    if z >= 0.0 { [tail, z + tail, small, large] } else { [-z + tail, tail, large, small] }
}

/// Value of a curve and its slopes with respect to the rho of positive and of negative terms, as defined by
/// [`crate::backend::contract::curve::value_and_slopes`].
fn value_and_slopes(curve: Curve, z: f32, [a, b]: [f32; 2], beta: f32) -> (f32, [f32; 2]) {
    let [lower, upper, sigmoid_lower, sigmoid_upper] = logistic(z);
    let of_z = |value: f32, slope: f32| (value, [slope, -slope]);
    match curve {
        // At e = 0 the smoothed terms are omitted, because 0 * softplus(inf) is NaN.
        Curve::Sigmoid { smoothing: 0.0 }
        | Curve::Robust { smoothing: 0.0 }
        | Curve::Aot { smoothing: 0.0 }
        | Curve::AotUnpaired { smoothing: 0.0 } => of_z(lower, -sigmoid_lower),
        Curve::Sigmoid { smoothing } | Curve::Aot { smoothing } | Curve::AotUnpaired { smoothing } => {
            let (e, rest) = (smoothing as f32, (1.0 - smoothing) as f32);
            of_z(rest * lower + e * upper, e * sigmoid_upper - rest * sigmoid_lower)
        }
        Curve::Robust { smoothing } => {
            let (e, rest, norm) = (smoothing as f32, (1.0 - smoothing) as f32, (1.0 - 2.0 * smoothing) as f32);
            of_z((rest * lower - e * upper) / norm, (-rest * sigmoid_lower - e * sigmoid_upper) / norm)
        }
        Curve::Hinge => match z.partial_cmp(&1.0) {
            None => of_z(z, z),
            Some(std::cmp::Ordering::Less) => of_z(1.0 - z, -1.0),
            Some(_) => of_z(0.0, 0.0),
        },
        Curve::Ipo => {
            let distance = (z - 0.5) / beta;
            of_z(distance * distance, 2.0 * distance / beta)
        }
        Curve::Exo { smoothing } => {
            let (log_kept, log_flipped) = ((-smoothing).ln_1p() as f32, smoothing.ln() as f32);
            let value = sigmoid_upper * (-lower - log_kept) + sigmoid_lower * (-upper - log_flipped);
            of_z(value, sigmoid_upper * sigmoid_lower * (z - (log_kept - log_flipped)))
        }
        Curve::DiscoPop { temperature } => {
            let t = temperature as f32;
            let [mixed_lower, _, rest, m] = logistic(z / t);
            // m exp(-z) is computed as one exponential, because exp(-z) overflows where m is 0.
            let exponential = (-z - mixed_lower).exp();
            let logistic_slope = -rest * sigmoid_lower - lower * m * rest / t;
            of_z(rest * lower + exponential, logistic_slope + exponential * (rest / t - 1.0))
        }
        Curve::ApoZero => {
            let ([.., a_lower, a_upper], [.., b_lower, b_upper]) = (logistic(a), logistic(b));
            (a_lower + b_upper, [-a_upper * a_lower, b_upper * b_lower])
        }
        Curve::ApoDown => {
            let ([.., a_lower, a_upper], [.., gap_lower, gap_upper]) = (logistic(a), logistic(a - b));
            let (own, gap) = (a_upper * a_lower, gap_upper * gap_lower);
            (a_upper + gap_lower, [own - gap, gap])
        }
        Curve::NcaPair => {
            let ([tail, head, a_lower, a_upper], [_, b_head, _, b_upper]) = (logistic(a), logistic(b));
            (tail + 0.5 * head + 0.5 * b_head, [0.5 * a_upper - a_lower, 0.5 * b_upper])
        }
        Curve::BcoPair => {
            let ([tail, _, a_lower, _], [_, b_head, _, b_upper]) = (logistic(a), logistic(b));
            (tail + b_head, [-a_lower, b_upper])
        }
        Curve::SppoHard => {
            let (win, lose) = ((a - 0.5) / beta, (b + 0.5) / beta);
            (win * win + lose * lose, [2.0 * win / beta, 2.0 * lose / beta])
        }
        Curve::Kto | Curve::ApoZeroUnpaired => of_z(sigmoid_lower, -sigmoid_upper * sigmoid_lower),
        Curve::Own(own) => {
            let (value, slope) = (own.at)(f64::from(z));
            of_z(value as f32, slope as f32)
        }
    }
}

/// Value and slope of a link at u, as defined by [`crate::backend::contract::curve::linked`].
fn linked(link: Link, u: f32) -> (f32, f32) {
    let [lower, _, sigmoid_lower, _] = logistic(u);
    match link {
        Link::Identity => (u, 1.0),
        Link::ForwardKl => (-(-u).exp_m1(), (-u).exp()),
        Link::JensenShannon => (std::f32::consts::LN_2 - lower, sigmoid_lower),
        Link::Alpha { alpha } => {
            let (power, bound) = ((alpha - 1.0) as f32, ALPHA_BOUND as f32);
            match power * u {
                t if t > bound => (bound.exp_m1() / power, 0.0),
                t => (t.exp_m1() / power, t.exp()),
            }
        }
        Link::Odds => {
            let log_rest = if u > -std::f32::consts::LN_2 { (-u.exp_m1()).ln() } else { (-u.exp()).ln_1p() };
            (u - log_rest, -1.0 / u.exp_m1())
        }
    }
}

/// Sums over the terms of a comparison for one curve.
#[derive(Default)]
struct Sums {
    /// Sums of the signed rho of trained and of detached terms.
    signed: [f32; 2],
    /// Sum of the signs of trained terms.
    signs: f32,
    /// Sums of the rho of trained terms with a positive and with a negative sign.
    by_sign: [f32; 2],
    /// Sum of the scores of all terms.
    scores: f32,
}

/// Returns the arguments of a sorting curve for each comparison, NaN for a comparison with weight 0. Sorting
/// f32 values as f64 keeps their order.
fn matched<A: Element>(a: &PreferenceFwd<'_, Cpu<A>>, curve: Curve) -> Vec<[f32; 2]> {
    let (score, table) = (a.score.slice(), &a.table);
    let (sequence, sign, kind) = (table.term_sequence.slice(), table.term_sign.slice(), table.kind.slice());
    let (scale, weight) = (table.scale.slice(), table.weight.slice());
    let reference = |s: usize| a.reference.map_or(0.0, |r| r.slice()[s]);
    let members: Vec<usize> = (0..a.comparisons).filter(|&c| weight[c] != 0.0).collect();
    let keys: Vec<SortKeys> = members
        .iter()
        .map(|&c| {
            let mut sums = [0.0f32; 2];
            for slot in (c * TERMS..(c + 1) * TERMS).filter(|&slot| sequence[slot] >= 0 && sign[slot].abs() == 1) {
                let (s, sign) = (sequence[slot] as usize, sign[slot]);
                match curve {
                    Curve::AotUnpaired { .. } => sums[usize::from(sign < 0)] += scale[c] * (score[s] - reference(s)),
                    _ => {
                        sums[0] += sign as f32 * (scale[c] * score[s]);
                        sums[1] += sign as f32 * (scale[c] * reference(s));
                    }
                }
            }
            SortKeys { kind: kind[c] as usize, x: f64::from(sums[0]), y: f64::from(sums[1]) }
        })
        .collect();
    let mut all = vec![[f32::NAN; 2]; a.comparisons];
    for (c, arguments) in members.into_iter().zip(curve::matched(&keys)) {
        all[c] = arguments.map(|argument| argument as f32);
    }
    all
}

pub(super) fn preference_fwd<A: Element>(a: PreferenceFwd<'_, Cpu<A>>) {
    let matched: Vec<Option<Vec<[f32; 2]>>> =
        a.curves.iter().map(|part| part.curve.sorts().then(|| matched(&a, part.curve))).collect();
    let (score, table) = (a.score.slice(), &a.table);
    let (sequence, sign, kind) = (table.term_sequence.slice(), table.term_sign.slice(), table.kind.slice());
    let (scale, weight, clip) = (table.scale.slice(), table.weight.slice(), table.detached_clip.slice());
    let (margin, kind_scale) = (table.margin.slice(), table.kind_scale.slice());
    let (loss, logit, dscore) = (a.loss.into_slice(), a.logit.into_slice(), a.dscore.into_slice());
    let reference = a.reference.map(|r| r.slice());
    let inverse_rows = a.inverse_rows.map(|r| r.slice());
    match a.direct {
        Some(direct) => dscore.copy_from_slice(direct.slice()),
        None => dscore.fill(0.0),
    }
    let ratio = |s: usize| score[s] - reference.map_or(0.0, |r| r[s]);
    let detached = (0..a.comparisons * TERMS).filter(|&slot| sequence[slot] >= 0 && sign[slot].abs() == 2);
    let divergence = curve::divergence(detached.map(|slot| f64::from(ratio(sequence[slot] as usize)))) as f32;
    let mut sums = [[0.0f64; SUM_FIELDS]; KINDS];
    for c in 0..a.comparisons {
        let terms = || {
            let slots = c * TERMS..(c + 1) * TERMS;
            slots.filter(|&i| sequence[i] >= 0).map(|i| (sequence[i] as usize, sign[i]))
        };
        let kind = kind[c] as usize;
        loss[c] = 0.0;
        let factor_of_terms = a.pair_weights.map_or(1.0, |of| {
            let log = |(s, _): (usize, i32)| of.doubled.slice()[s] - of.plain.slice()[s];
            terms().map(log).sum::<f32>().exp()
        });
        for (number, part) in a.curves.iter().enumerate() {
            // Factor that turns the value of the link for a sequence into its rho.
            let scale_of = |s: usize| match inverse_rows.filter(|_| part.per_token) {
                Some(rows) => scale[c] * rows[s],
                None => scale[c],
            };
            let mut of = Sums::default();
            for (s, sign) in terms() {
                let rho = scale_of(s) * linked(a.link, ratio(s)).0;
                of.signed[usize::from(sign.abs() == 2)] += sign.signum() as f32 * rho;
                if sign.abs() == 1 {
                    of.by_sign[usize::from(sign < 0)] += rho;
                    of.signs += sign as f32;
                }
                of.scores += score[s];
            }
            let total = of.signed[0] + clamp(of.signed[1], clip[2 * c], clip[2 * c + 1]);
            if number == 0 {
                logit[c] = total;
            }
            if weight[c] == 0.0 {
                continue;
            }
            // Centring applies once per comparison, so only the first curve adds it.
            let center = if number == 0 { a.center as f32 } else { 0.0 };
            let centred = center != 0.0 && kind == 0 && terms().count() == 2;
            let pair_sum = if centred { of.scores } else { 0.0 };
            let at = |z: f32| value_and_slopes(part.curve, z, of.by_sign, scale[c]);
            let (f, slopes) = match &matched[number] {
                None if part.curve == Curve::Kto => at(total - margin[c] - of.signs * scale[c] * divergence),
                None => at(total - margin[c]),
                Some(matched) => {
                    let [positive, negative] = matched[c];
                    let negative = if matches!(part.curve, Curve::Aot { .. }) { positive } else { negative };
                    (at(positive).0, [at(positive).1[0], at(negative).1[1]])
                }
            };
            let weight = weight[c] * part.weight as f32 * factor_of_terms;
            let value = weight * (f + center * pair_sum * pair_sum);
            loss[c] += value;
            // The slope may be finite although logit or loss is not; it is -1 at a logit of -inf, for
            // example. A NaN gradient makes the optimiser skip the step.
            let finite = total.is_finite() && value.is_finite();
            let slopes = if finite { slopes } else { [f32::NAN; 2] };
            let factor = kind_scale[kind] * weight;
            for (s, sign) in terms() {
                let trained = match sign.abs() {
                    2 => 0.0,
                    _ => scale_of(s) * linked(a.link, ratio(s)).1 * slopes[usize::from(sign < 0)],
                };
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
    use crate::backend::contract::curve::tests::{CURVES, LINKS};

    #[test]
    fn curves_and_links_agree_with_their_definition() {
        let values = [-80.0f32, -20.0, -1.5, -0.0, 0.0, 1e-4, 0.5, 1.0, 3.0, 20.0, 80.0];
        for curve in CURVES {
            for (a, b) in values.into_iter().flat_map(|a| [(a, 0.0), (a, 2.5), (-0.25, a)]) {
                let (f, slopes) = value_and_slopes(curve, a - b, [a, b], 0.125);
                let (z, terms) = (f64::from(a - b), [a, b].map(f64::from));
                let exact = curve::value_and_slopes(curve, curve::Arguments { z, terms, beta: 0.125 });
                let size = f64::from(a.abs().max(b.abs()));
                // The error of DiscoPOP's exponential includes the rounding of its argument z / temperature.
                let steep = if matches!(curve, Curve::DiscoPop { .. }) { 32.0 } else { 1.0 };
                let allowed = steep * (4e-7 * exact.value.abs() + 2e-7 * size);
                assert!((f64::from(f) - exact.value).abs() <= allowed, "{curve:?} {a} {b}: {f} {}", exact.value);
                for (slope, exact) in slopes.iter().zip(exact.slopes) {
                    let error = (f64::from(*slope) - exact).abs();
                    // Some slopes are differences of two sigmoids, so the tolerance has an absolute part.
                    assert!(
                        error <= steep * (4e-7 * exact.abs() + 2e-7),
                        "slope of {curve:?} at {a} {b}: {slope} {exact}"
                    );
                }
            }
        }
        for link in LINKS {
            for u in [-80.0f32, -5.0, -0.7, -0.69, -0.1, -1e-4] {
                let ((value, slope), exact) = (linked(link, u), curve::linked(link, f64::from(u)));
                for (got, exact) in [(f64::from(value), exact.0), (f64::from(slope), exact.1)] {
                    let allowed = 2e-5 * exact.abs() + 2e-7;
                    assert!((got - exact).abs() <= allowed, "{link:?} at {u}: {got} {exact}");
                }
            }
        }
        let at = |z: f32| value_and_slopes(CURVES[0], z, [z, 0.0], 1.0);
        assert_eq!(at(0.0), (std::f32::consts::LN_2, [-0.5, 0.5]));
        assert_eq!(at(f32::NEG_INFINITY), (f32::INFINITY, [-1.0, 1.0]));
        for curve in CURVES {
            let (f, slopes) = value_and_slopes(curve, f32::NAN, [f32::NAN, 0.0], 1.0);
            assert!(f.is_nan() && slopes[0].is_nan(), "{curve:?}");
        }
    }
}
