//! Per-sequence sums and means, and their gradient. Serial: a batch has at most a few thousand
//! sequences.

use super::Cpu;
use crate::backend::contract::*;

pub(super) fn segment_sum_fwd(a: SegmentSumFwd<'_, Cpu>) {
    let (values, offsets) = (a.values.slice(), a.offsets.slice());
    for (sum, bounds) in a.sums.into_slice().iter_mut().zip(offsets.windows(2)) {
        let rows = &values[bounds[0] as usize..bounds[1] as usize];
        *sum = rows.iter().sum();
        if a.reduce == Reduce::Mean && !rows.is_empty() {
            *sum /= rows.len() as f32;
        }
    }
}

pub(super) fn segment_sum_bwd(a: SegmentSumBwd<'_, Cpu>) {
    let (dsums, offsets, dvalues) = (a.dsums.slice(), a.offsets.slice(), a.dvalues.into_slice());
    for (dsum, bounds) in dsums.iter().zip(offsets.windows(2)) {
        let rows = &mut dvalues[bounds[0] as usize..bounds[1] as usize];
        let share = if a.reduce == Reduce::Mean { rows.len().max(1) as f32 } else { 1.0 };
        rows.fill(dsum / share);
    }
}
