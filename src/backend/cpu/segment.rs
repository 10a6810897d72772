//! Per-sequence sums and means, and their gradient. The ops are serial, because a batch has at most a few
//! thousand sequences.

use super::Cpu;
use super::element::Element;
use crate::backend::contract::*;

/// Returns the number of rows of sequence s before its tail.
fn head_of<A: Element>(tail: Tail<'_, Cpu<A>>, s: usize, rows: usize) -> usize {
    (tail.starts.slice()[s] as usize).min(rows)
}

pub(super) fn segment_sum_fwd<A: Element>(a: SegmentSumFwd<'_, Cpu<A>>) {
    let (values, offsets) = (a.values.slice(), a.offsets.slice());
    for (s, (sum, bounds)) in a.sums.into_slice().iter_mut().zip(offsets.windows(2)).enumerate() {
        let rows = &values[bounds[0] as usize..bounds[1] as usize];
        *sum = match a.tail {
            None => rows.iter().sum(),
            Some(tail) => {
                let (whole, rest) = rows.split_at(head_of(tail, s, rows.len()));
                whole.iter().sum::<f32>() + tail.alpha as f32 * rest.iter().sum::<f32>()
            }
        };
        if a.reduce == Reduce::Mean && !rows.is_empty() {
            *sum /= rows.len() as f32;
        }
    }
}

pub(super) fn segment_sum_bwd<A: Element>(a: SegmentSumBwd<'_, Cpu<A>>) {
    let (dsums, offsets, dvalues) = (a.dsums.slice(), a.offsets.slice(), a.dvalues.into_slice());
    for (s, (dsum, bounds)) in dsums.iter().zip(offsets.windows(2)).enumerate() {
        let rows = &mut dvalues[bounds[0] as usize..bounds[1] as usize];
        let share = if a.reduce == Reduce::Mean { rows.len().max(1) as f32 } else { 1.0 };
        let head = a.tail.map_or(rows.len(), |tail| head_of(tail, s, rows.len()));
        rows[..head].fill(dsum / share);
        if let Some(tail) = a.tail {
            rows[head..].fill(tail.alpha as f32 * (dsum / share));
        }
    }
}
