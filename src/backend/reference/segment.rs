//! Per-sequence sums and means, and their gradient.

use super::{Reference, at};
use crate::backend::contract::*;

type R = Reference;

pub fn segment_sum_fwd(a: SegmentSumFwd<'_, R>) {
    let (values, offsets) = (a.values.slice(), a.offsets.slice());
    for (s, sum) in a.sums.into_slice().iter_mut().enumerate() {
        let rows = &values[at(offsets, s)..at(offsets, s + 1)];
        *sum = rows.iter().sum();
        if a.reduce == Reduce::Mean && !rows.is_empty() {
            *sum /= rows.len() as f64;
        }
    }
}

pub fn segment_sum_bwd(a: SegmentSumBwd<'_, R>) {
    let (dsums, offsets, dvalues) = (a.dsums.slice(), a.offsets.slice(), a.dvalues.into_slice());
    for s in 0..a.seqs {
        let rows = at(offsets, s)..at(offsets, s + 1);
        let share = if a.reduce == Reduce::Mean { rows.len().max(1) as f64 } else { 1.0 };
        dvalues[rows].fill(dsums[s] / share);
    }
}
