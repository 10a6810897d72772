//! Per-sequence sums of row values (`kernels/segment.cu`).

use super::device::{Device, Element};
use super::launchers as launch;
use super::{Kernels, int, read, read_option, write};
use crate::Result;
use crate::backend::contract::*;

pub(super) fn segment_sum_fwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: SegmentSumFwd<'_, Kernels<D, A>>,
) -> Result<()> {
    launch::SegmentSumFwd {
        values: read(a.values),
        offsets: read(a.offsets),
        tail_starts: read_option(a.tail.map(|tail| tail.starts)),
        sums: write(&mut a.sums),
        seqs: int(a.seqs)?,
        mean: i32::from(a.reduce == Reduce::Mean),
        alpha: a.tail.map_or(1.0, |tail| tail.alpha as f32),
    }
    .launch(&k.device, k.row_blocks(a.seqs, launch::SegmentSumFwd::WARPS), 0)
}

pub(super) fn segment_sum_bwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: SegmentSumBwd<'_, Kernels<D, A>>,
) -> Result<()> {
    launch::SegmentSumBwd {
        dsums: read(a.dsums),
        offsets: read(a.offsets),
        tail_starts: read_option(a.tail.map(|tail| tail.starts)),
        dvalues: write(&mut a.dvalues),
        seqs: int(a.seqs)?,
        mean: i32::from(a.reduce == Reduce::Mean),
        alpha: a.tail.map_or(1.0, |tail| tail.alpha as f32),
    }
    .launch(&k.device, k.row_blocks(a.seqs, launch::SegmentSumBwd::WARPS), 0)
}
