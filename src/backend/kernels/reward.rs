//! The scalar reward head (`kernels/reward.cu`).

use super::device::{Device, Element};
use super::launchers as launch;
use super::{Kernels, adds, int, read, warp_vectors, write};
use crate::Result;
use crate::backend::ViewMut;
use crate::backend::contract::*;

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
    .launch(&k.device, k.row_blocks(a.dims.seqs, launch::RewardHeadFwd::<A>::WARPS), 0)
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
    .launch(&k.device, k.row_blocks(a.dims.seqs, launch::RewardHeadBwd::<A>::WARPS), 0)?;
    launch::RewardHeadWeight::<A> {
        hidden: read(a.hidden),
        rows: read(a.rows),
        dscore: read(a.dscore),
        dweight: write(&mut a.dweight),
        seqs,
        width,
        add: adds(a.dweight_write),
    }
    .launch(&k.device, k.row_blocks(warp_vectors::<A>(a.dims.hidden), launch::RewardHeadWeight::<A>::WARPS), 0)
}
