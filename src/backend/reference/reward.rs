//! Scalar reward head and its gradient.

use super::{Reference, at, dot};
use crate::backend::Write;
use crate::backend::contract::*;

type R = Reference;

pub fn reward_head_fwd(a: RewardHeadFwd<'_, R>) {
    let (d, hidden, weight, rows) = (a.dims, a.hidden.slice(), a.weight.slice(), a.rows.slice());
    for (s, score) in a.score.into_slice().iter_mut().enumerate() {
        *score = dot(&hidden[at(rows, s) * d.hidden..][..d.hidden], weight);
    }
}

pub fn reward_head_bwd(a: RewardHeadBwd<'_, R>) {
    let (d, hidden, weight, rows) = (a.dims, a.hidden.slice(), a.weight.slice(), a.rows.slice());
    let (dscore, dhidden, dweight) = (a.dscore.slice(), a.dhidden.into_slice(), a.dweight.into_slice());
    dhidden.fill(0.0);
    if a.dweight_write == Write::Overwrite {
        dweight.fill(0.0);
    }
    for s in 0..d.seqs {
        let row = at(rows, s) * d.hidden;
        for h in 0..d.hidden {
            dhidden[row + h] += dscore[s] * weight[h];
            dweight[h] += dscore[s] * hidden[row + h];
        }
    }
}
