//! Vocabulary head and log-probs of stored logits, one row of logits at a time.

use super::{Reference, at, dot};
use crate::backend::Write;
use crate::backend::contract::*;

type R = Reference;

/// Logsumexp, computed relative to the maximum; -inf for a row in which all elements are -inf.
fn logsumexp(row: &[f64]) -> f64 {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY { max } else { max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln() }
}

/// Logits of one hidden row.
fn logits(hidden: &[f64], head: &[f64]) -> Vec<f64> {
    head.chunks_exact(hidden.len()).map(|w| dot(hidden, w)).collect()
}

pub fn head_logprob_fwd(a: HeadLogprobFwd<'_, R>) {
    let (d, hidden, head) = (a.dims, a.hidden.slice(), a.head.slice());
    let (logp, lse, mut stats) = (a.logp.into_slice(), a.lse.into_slice(), a.stats.map(|s| s.into_slice()));
    for r in 0..d.rows {
        let row: Vec<f64> = logits(&hidden[at(a.source.slice(), r) * d.hidden..][..d.hidden], head)
            .into_iter()
            .map(|z| capped(d.softcap, z).0)
            .collect();
        let target = at(a.target.slice(), r);
        lse[r] = logsumexp(&row);
        logp[r] = row[target] - lse[r];
        if let Some(stats) = &mut stats {
            for (of, value) in stats.chunks_exact_mut(d.rows).zip(row_stats(&row, lse[r], target)) {
                of[r] = value;
            }
        }
    }
}

/// Entropy, mean logit, and whether the target is the most likely token.
fn row_stats(row: &[f64], lse: f64, target: usize) -> [f64; ROW_STATS] {
    let surprise = |z: f64| if z == f64::NEG_INFINITY { 0.0 } else { -(z - lse).exp() * (z - lse) };
    let is_below = |(v, &z): (usize, &f64)| v == target || z < row[target] || (v > target && z == row[target]);
    let top1 = row.iter().enumerate().all(is_below) && !lse.is_nan();
    [row.iter().map(|&z| surprise(z)).sum(), row.iter().sum::<f64>() / row.len() as f64, f64::from(u8::from(top1))]
}

pub fn head_logprob_bwd(a: HeadLogprobBwd<'_, R>) {
    let (d, hidden, head, lse, dlogp) = (a.dims, a.hidden.slice(), a.head.slice(), a.lse.slice(), a.dlogp.slice());
    let (dhidden, mut dhead) = (a.dhidden.into_slice(), a.dhead.map(|g| g.into_slice()));
    dhidden.fill(0.0);
    if let (Some(dhead), Write::Overwrite) = (&mut dhead, a.dhead_write) {
        dhead.fill(0.0);
    }
    for r in 0..d.rows {
        let source = at(a.source.slice(), r) * d.hidden;
        let row = logits(&hidden[source..][..d.hidden], head);
        for (v, logit) in row.iter().enumerate() {
            let hit = if v == at(a.target.slice(), r) { 1.0 } else { 0.0 };
            let (logit, slope) = capped(d.softcap, *logit);
            let dlogit = slope * dlogp[r] * (hit - (logit - lse[r]).exp());
            for h in 0..d.hidden {
                dhidden[source + h] += dlogit * head[v * d.hidden + h];
            }
            if let Some(dhead) = &mut dhead {
                for h in 0..d.hidden {
                    dhead[v * d.hidden + h] += dlogit * hidden[source + h];
                }
            }
        }
    }
}

pub fn logprob_fwd(a: LogprobFwd<'_, R>) {
    let (logits, target) = (a.logits.slice(), a.target.slice());
    let (logp, lse) = (a.logp.into_slice(), a.lse.into_slice());
    for r in 0..a.rows {
        let row = &logits[r * a.vocab..][..a.vocab];
        lse[r] = logsumexp(row);
        logp[r] = row[at(target, r)] - lse[r];
    }
}

pub fn logprob_bwd(a: LogprobBwd<'_, R>) {
    let (target, lse, dlogp) = (a.target.slice(), a.lse.slice(), a.dlogp.slice());
    for (r, row) in a.logits_to_dlogits.into_slice().chunks_exact_mut(a.vocab).enumerate() {
        for (v, logit) in row.iter_mut().enumerate() {
            let hit = if v == at(target, r) { 1.0 } else { 0.0 };
            *logit = dlogp[r] * (hit - (*logit - lse[r]).exp());
        }
    }
}
