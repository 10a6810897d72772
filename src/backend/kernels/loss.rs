//! Per-sequence sums, the comparison loss and the reward head.

use super::device::{Device, Element};
use super::launchers as launch;
use super::rowwise::{WARPS, pieces};
use super::{Kernels, Piece, Scratch, adds, int, read, read_option, write};
use crate::Result;
use crate::backend::ViewMut;
use crate::backend::contract::*;

pub(super) fn segment_sum_fwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: SegmentSumFwd<'_, Kernels<D, A>>,
) -> Result<()> {
    launch::SegmentSumFwd {
        values: read(a.values),
        offsets: read(a.offsets),
        sums: write(&mut a.sums),
        seqs: int(a.seqs)?,
        mean: i32::from(a.reduce == Reduce::Mean),
    }
    .launch(&k.device, k.row_blocks(a.seqs, WARPS), 0)
}

pub(super) fn segment_sum_bwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: SegmentSumBwd<'_, Kernels<D, A>>,
) -> Result<()> {
    launch::SegmentSumBwd {
        dsums: read(a.dsums),
        offsets: read(a.offsets),
        dvalues: write(&mut a.dvalues),
        seqs: int(a.seqs)?,
        mean: i32::from(a.reduce == Reduce::Mean),
    }
    .launch(&k.device, k.row_blocks(a.seqs, WARPS), 0)
}

pub(super) fn reward_head_fwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: RewardHeadFwd<'_, Kernels<D, A>>,
) -> Result<()> {
    launch::RewardHeadFwd::<A> {
        hidden: read(a.hidden),
        weight: read(a.weight),
        rows: read(a.rows),
        score: write(&mut a.score),
        seqs: int(a.dims.seqs)?,
        width: int(a.dims.hidden)?,
    }
    .launch(&k.device, k.row_blocks(a.dims.seqs, WARPS), 0)
}

pub(super) fn reward_head_bwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: RewardHeadBwd<'_, Kernels<D, A>>,
) -> Result<()> {
    let (seqs, width) = (int(a.dims.seqs)?, int(a.dims.hidden)?);
    k.clear(ViewMut { buffer: &mut *a.dhidden.buffer, ..a.dhidden })?;
    launch::RewardHeadBwd::<A> {
        weight: read(a.weight),
        rows: read(a.rows),
        dscore: read(a.dscore),
        dhidden: write(&mut a.dhidden),
        seqs,
        width,
    }
    .launch(&k.device, k.row_blocks(a.dims.seqs, WARPS), 0)?;
    launch::RewardHeadWeight::<A> {
        hidden: read(a.hidden),
        rows: read(a.rows),
        dscore: read(a.dscore),
        dweight: write(&mut a.dweight),
        seqs,
        width,
        add: adds(a.dweight_write),
    }
    .launch(&k.device, k.row_blocks(pieces::<A>(a.dims.hidden), WARPS), 0)
}

/// Slopes and pulls of comparisons.
fn preference_pieces<D: Device>(scratch: &mut Scratch<'_, D>, comparisons: usize) -> [Piece; 2] {
    [scratch.want::<f32>(comparisons), scratch.want::<f32>(comparisons)]
}

/// Bytes of scratch memory that [`preference_fwd`] takes.
pub(super) fn preference_scratch<D: Device, A: Element>(k: &Kernels<D, A>, comparisons: usize) -> Result<usize> {
    let mut scratch = k.scratch()?;
    preference_pieces(&mut scratch, comparisons);
    Ok(scratch.wanted())
}

pub(super) fn preference_fwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: PreferenceFwd<'_, Kernels<D, A>>,
) -> Result<()> {
    // Numbers as in `enum Curve` of kernels/preference.cu.
    let (curve, smoothing) = match a.curve {
        Curve::Sigmoid { smoothing } => (0, smoothing),
        Curve::Robust { smoothing } => (1, smoothing),
        Curve::Hinge => (2, 0.0),
        Curve::Ipo => (3, 0.0),
    };
    let mut scratch = k.scratch()?;
    let [slopes, pulls] = preference_pieces(&mut scratch, a.comparisons);
    scratch.take()?;
    let t = &a.table;
    launch::PreferenceFwd {
        score: read(a.score),
        reference: read_option(a.reference),
        term_sequence: read(t.term_sequence),
        term_sign: read(t.term_sign),
        kind: read(t.kind),
        scale: read(t.scale),
        margin: read(t.margin),
        weight: read(t.weight),
        detached_clip: read(t.detached_clip),
        kind_scale: read(t.kind_scale),
        use_offsets: read(t.use_offsets),
        uses: read(t.uses),
        direct: read_option(a.direct),
        loss: write(&mut a.loss),
        logit: write(&mut a.logit),
        dscore: write(&mut a.dscore),
        sums: write(&mut a.sums),
        slopes: scratch.write(slopes),
        pulls: scratch.write(pulls),
        seqs: int(a.seqs)?,
        comparisons: int(a.comparisons)?,
        curve,
        smoothing: smoothing as f32,
        rest: (1.0 - smoothing) as f32,
        norm: (1.0 - 2.0 * smoothing) as f32,
        center: a.center as f32,
    }
    .launch(&k.device, 1, 0)
}
