//! Comparison losses, and the gradient of the scores.

use super::{Reference, at};
use crate::backend::View;
use crate::backend::contract::*;

type R = Reference;

pub fn preference_fwd(a: PreferenceFwd<'_, R>) {
    let (score, table) = (a.score.slice(), &a.table);
    let (sequence, sign) = (table.term_sequence.slice(), table.term_sign.slice());
    let (scale, weight, clip) = (table.scale.slice(), table.weight.slice(), table.detached_clip.slice());
    let (loss, logit, dscore) = (a.loss.into_slice(), a.logit.into_slice(), a.dscore.into_slice());
    let sums = a.sums.into_slice();
    sums.fill(0.0);
    dscore.fill(0.0);
    loss.fill(0.0);
    if let Some(direct) = a.direct {
        dscore.copy_from_slice(direct.slice());
    }
    let terms_of = |c: usize| -> Vec<(usize, i32)> {
        let used = (c * TERMS..(c + 1) * TERMS).filter(|&i| sequence[i] >= 0);
        used.map(|i| (sequence[i] as usize, sign[i])).collect()
    };
    // Arguments of a curve over the whole batch for each comparison, sorted and matched over the batch.
    let sorted = |curve: Curve| -> Vec<[f64; 2]> {
        let members: Vec<usize> = (0..a.comparisons).filter(|&c| weight[c] != 0.0).collect();
        let reference = |s: usize| a.reference.map_or(0.0, |r| r.slice()[s]);
        let sum = |c: usize, of: &dyn Fn(usize, i32) -> f64| -> f64 {
            terms_of(c).iter().filter(|(_, sign)| sign.abs() == 1).map(|&(s, sign)| scale[c] * of(s, sign)).sum()
        };
        let keys: Vec<curve::SortKeys> = members
            .iter()
            .map(|&c| {
                let kind = at(table.kind.slice(), c);
                let [x, y] = match curve {
                    Curve::AotUnpaired { .. } => {
                        [1, -1].map(|side| sum(c, &|s, sign| if sign == side { score[s] - reference(s) } else { 0.0 }))
                    }
                    _ => [
                        sum(c, &|s, sign| f64::from(sign) * score[s]),
                        sum(c, &|s, sign| f64::from(sign) * reference(s)),
                    ],
                };
                curve::SortKeys { kind, x, y }
            })
            .collect();
        let mut all = vec![[f64::NAN; 2]; a.comparisons];
        members.into_iter().zip(curve::matched(&keys)).for_each(|(c, arguments)| all[c] = arguments);
        all
    };
    let matched: Vec<Option<Vec<[f64; 2]>>> =
        a.curves.iter().map(|part| part.curve.sorts().then(|| sorted(part.curve))).collect();
    let ratio = |s: usize| score[s] - a.reference.map_or(0.0, |r| r.slice()[s]);
    let detached = (0..a.comparisons).flat_map(terms_of).filter(|(_, sign)| sign.abs() == 2);
    let divergence = curve::divergence(detached.map(|(s, _)| ratio(s)));
    for c in 0..a.comparisons {
        let terms = terms_of(c);
        let kind = at(table.kind.slice(), c);
        let weighted = weight[c] != 0.0;
        let factor_of_terms = a.pair_weights.map_or(1.0, |of| {
            let log = |&(s, _): &(usize, i32)| of.doubled.slice()[s] - of.plain.slice()[s];
            terms.iter().map(log).sum::<f64>().exp()
        });
        let weight_of_c = weight[c] * factor_of_terms;
        let link = |s: usize| curve::linked(a.link, ratio(s));
        for (number, part) in a.curves.iter().enumerate() {
            // Factor by which the link of a sequence is multiplied.
            let scale_of = |s: usize| if part.per_token { scale[c] * inverse(a.inverse_rows, s) } else { scale[c] };
            let signed = |of: &dyn Fn(i32) -> bool| -> f64 {
                let terms = terms.iter().filter(|(_, sign)| of(*sign));
                terms.map(|&(s, sign)| f64::from(sign.signum()) * (scale_of(s) * link(s).0)).sum()
            };
            let detached = signed(&|sign| sign.abs() == 2).clamp(clip[2 * c], clip[2 * c + 1]);
            let total = signed(&|sign| sign.abs() == 1) + detached;
            let shift = match part.curve {
                Curve::Kto => signed_count(&terms) * scale[c] * divergence,
                _ => 0.0,
            };
            let arguments = curve::Arguments {
                z: total - table.margin.slice()[c] - shift,
                terms: [signed(&|sign| sign == 1), -signed(&|sign| sign == -1)],
                beta: scale[c],
            };
            // The centring term occurs once per comparison, so only the first curve adds it.
            let centred = number == 0 && kind == 0 && terms.len() == 2 && a.center != 0.0;
            let both: f64 = if centred { terms.iter().map(|&(s, _)| score[s]).sum() } else { 0.0 };
            if number == 0 {
                logit[c] = total;
            }
            if !weighted {
                continue;
            }
            let point = match &matched[number] {
                None => curve::value_and_slopes(part.curve, arguments),
                Some(matched) => {
                    let at = |z: f64| curve::value_and_slopes(part.curve, curve::Arguments { z, ..arguments });
                    let [positive, negative] = matched[c];
                    let negative = if matches!(part.curve, Curve::Aot { .. }) { positive } else { negative };
                    let point = at(positive);
                    curve::Point { value: point.value, slopes: [point.slopes[0], at(negative).slopes[1]] }
                }
            };
            let value = weight_of_c * part.weight * (point.value + a.center * both * both);
            loss[c] += value;
            let factor = table.kind_scale.slice()[kind] * (weight_of_c * part.weight);
            for &(s, sign) in &terms {
                let slope = match (sign.abs() == 1, total.is_finite() && value.is_finite()) {
                    (false, _) => 0.0,
                    (true, true) => scale_of(s) * link(s).1 * point.slopes[usize::from(sign < 0)],
                    (true, false) => f64::NAN,
                };
                dscore[s] += factor * (slope + 2.0 * a.center * both);
            }
        }
        let row = &mut sums[kind * SUM_FIELDS..][..SUM_FIELDS];
        row[SUM_LOSS] += loss[c];
        row[SUM_COUNT] += 1.0;
        row[SUM_CORRECT] += f64::from(u8::from(logit[c] > 0.0));
        row[SUM_TIES] += f64::from(u8::from(logit[c] == 0.0));
        row[SUM_LOGIT] += logit[c];
    }
}

/// Sum of the signs of the terms that are not detached.
fn signed_count(terms: &[(usize, i32)]) -> f64 {
    terms.iter().filter(|(_, sign)| sign.abs() == 1).map(|&(_, sign)| f64::from(sign)).sum()
}

/// 1 / number of head rows of a sequence. The contract rejects a per-token curve without `inverse_rows`.
fn inverse(inverse_rows: Option<View<'_, Vec<f64>>>, s: usize) -> f64 {
    inverse_rows.map_or(f64::NAN, |rows| rows.slice()[s])
}
