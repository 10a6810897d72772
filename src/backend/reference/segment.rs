//! Per-sequence sums and means, and their gradient.

use super::{Reference, at};
use crate::backend::contract::*;

type R = Reference;

/// Weight of the row with index `row` in sequence `s`: 1 before the start of the tail, `alpha` from there on.
fn weight_of(tail: Option<Tail<'_, R>>, s: usize, row: usize) -> f64 {
    tail.map_or(1.0, |tail| if (row as f64) < tail.starts.slice()[s] { 1.0 } else { tail.alpha })
}

pub fn segment_sum_fwd(a: SegmentSumFwd<'_, R>) {
    let (values, offsets) = (a.values.slice(), a.offsets.slice());
    for (s, sum) in a.sums.into_slice().iter_mut().enumerate() {
        let rows = &values[at(offsets, s)..at(offsets, s + 1)];
        *sum = rows.iter().enumerate().map(|(row, value)| weight_of(a.tail, s, row) * value).sum();
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
        for (row, dvalue) in dvalues[rows].iter_mut().enumerate() {
            *dvalue = weight_of(a.tail, s, row) * (dsums[s] / share);
        }
    }
}
