//! Comparison losses, and the gradient of the scores.

use super::{Reference, at};
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
    if let Some(direct) = a.direct {
        dscore.copy_from_slice(direct.slice());
    }
    for c in 0..a.comparisons {
        let terms: Vec<(usize, i32)> = (c * TERMS..(c + 1) * TERMS)
            .filter(|&i| sequence[i] >= 0)
            .map(|i| (sequence[i] as usize, sign[i]))
            .collect();
        let rho = |s: usize| scale[c] * (score[s] - a.reference.map_or(0.0, |r| r.slice()[s]));
        let signed = |detached: bool| -> f64 {
            terms
                .iter()
                .filter(|(_, sign)| (sign.abs() == 2) == detached)
                .map(|&(s, sign)| f64::from(sign.signum()) * rho(s))
                .sum()
        };
        logit[c] = signed(false) + signed(true).clamp(clip[2 * c], clip[2 * c + 1]);
        let kind = at(table.kind.slice(), c);
        let centred = kind == 0 && terms.len() == 2 && a.center != 0.0;
        let both: f64 = if centred { terms.iter().map(|&(s, _)| score[s]).sum() } else { 0.0 };
        let (f, df) = curve::value_and_slope(a.curve, logit[c] - table.margin.slice()[c], scale[c]);
        let weighted = weight[c] != 0.0;
        loss[c] = if weighted { weight[c] * (f + a.center * both * both) } else { 0.0 };
        let factor = table.kind_scale.slice()[kind] * weight[c];
        for &(s, sign) in terms.iter().filter(|_| weighted) {
            let df = if logit[c].is_finite() && loss[c].is_finite() { df } else { f64::NAN };
            let slope = if sign.abs() == 2 { 0.0 } else { f64::from(sign) * scale[c] * df };
            dscore[s] += factor * (slope + 2.0 * a.center * both);
        }
        let row = &mut sums[kind * SUM_FIELDS..][..SUM_FIELDS];
        row[SUM_LOSS] += loss[c];
        row[SUM_COUNT] += 1.0;
        row[SUM_CORRECT] += f64::from(u8::from(logit[c] > 0.0));
        row[SUM_TIES] += f64::from(u8::from(logit[c] == 0.0));
        row[SUM_LOGIT] += logit[c];
    }
}
