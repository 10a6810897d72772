//! Log-probabilities over stored logits, and the scalar reward head.

use rayon::prelude::*;

use super::Cpu;
use super::math::{exp, softmax_row};
use super::rowwise::rows_of_task;
use super::simd::{dot, vectorised};
use crate::backend::Write;
use crate::backend::contract::*;

/// Logsumexp from a row's largest element and its sum of exponentials; `-inf` for a row of `-inf` alone.
pub(super) fn logsumexp(largest: f32, sum: f32) -> f32 {
    if largest == f32::NEG_INFINITY && sum == 0.0 { largest } else { largest + sum.ln() }
}

pub(super) fn logprob_fwd(cpu: &Cpu, a: LogprobFwd<'_, Cpu>) {
    let (logits, target, vocab) = (a.logits.slice(), a.target.slice(), a.vocab);
    let rows = rows_of_task(vocab);
    a.logp.into_slice().par_chunks_mut(rows).zip(a.lse.into_slice().par_chunks_mut(rows)).enumerate().for_each(
        |(task, (logp, lse))| {
            let mut scratch = cpu.scratch.take(vocab);
            for (i, (logp, lse)) in logp.iter_mut().zip(lse).enumerate() {
                let r = task * rows + i;
                let row = &logits[r * vocab..(r + 1) * vocab];
                scratch.copy_from_slice(row);
                let (largest, sum) = softmax_row(&mut scratch);
                *lse = logsumexp(largest, sum);
                *logp = row[target[r] as usize] - *lse;
            }
        },
    );
}

pub(super) fn logprob_bwd(a: LogprobBwd<'_, Cpu>) {
    let (target, lse, dlogp, vocab) = (a.target.slice(), a.lse.slice(), a.dlogp.slice(), a.vocab);
    if vocab == 0 {
        return;
    }
    a.logits_to_dlogits
        .into_slice()
        .par_chunks_mut(vocab)
        .enumerate()
        .for_each(|(r, row)| dlogits(row, target[r] as usize, lse[r], dlogp[r]));
}

vectorised! {
    /// `row <- dlogp (onehot(target) - e^(row - lse))`; a target beyond the row hits nothing. A row whose `dlogp` is 0
    /// becomes 0 whatever its logits are.
    pub(super) fn dlogits(row: &mut [f32], target: usize, lse: f32, dlogp: f32) {
        if dlogp == 0.0 {
            row.fill(0.0);
            return;
        }
        let hit = row.get(target).map(|x| dlogp * (1.0 - exp::<FMA>(*x - lse)));
        for x in row.iter_mut() {
            *x = -dlogp * exp::<FMA>(*x - lse);
        }
        if let (Some(hit), Some(x)) = (hit, row.get_mut(target)) {
            *x = hit;
        }
    }
}

pub(super) fn reward_head_fwd(a: RewardHeadFwd<'_, Cpu>) {
    let (h, hidden, weight) = (a.dims.hidden, a.hidden.slice(), a.weight.slice());
    for (score, &row) in a.score.into_slice().iter_mut().zip(a.rows.slice()) {
        *score = inner(&hidden[row as usize * h..][..h], weight);
    }
}

vectorised! {
    fn inner(a: &[f32], b: &[f32]) -> f32 {
        dot::<FMA>(a, b)
    }
}

pub(super) fn reward_head_bwd(a: RewardHeadBwd<'_, Cpu>) {
    let (h, hidden, weight) = (a.dims.hidden, a.hidden.slice(), a.weight.slice());
    let (dhidden, dweight) = (a.dhidden.into_slice(), a.dweight.into_slice());
    dhidden.par_chunks_mut(1 << 16).for_each(|x| x.fill(0.0));
    if a.dweight_write == Write::Overwrite {
        dweight.fill(0.0);
    }
    for (&row, &dscore) in a.rows.slice().iter().zip(a.dscore.slice()) {
        let row = row as usize * h..(row as usize + 1) * h;
        let out = &mut dhidden[row.clone()];
        scale_into(out, weight, dscore);
        add_scaled(dweight, &hidden[row], dscore);
    }
}

vectorised! {
    /// `to = factor * from`.
    fn scale_into(to: &mut [f32], from: &[f32], factor: f32) {
        for (to, x) in to.iter_mut().zip(from) {
            *to = factor * x;
        }
    }
}

vectorised! {
    /// `to += factor * from`; nothing for a factor of 0.
    fn add_scaled(to: &mut [f32], from: &[f32], factor: f32) {
        if factor == 0.0 {
            return;
        }
        for (to, x) in to.iter_mut().zip(from) {
            *to += factor * x;
        }
    }
}
