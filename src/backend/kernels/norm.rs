//! RMSNorm of rows, and of query and key heads (`kernels/norm.cu`, `kernels/qk_norm_whole.cu`).

use super::device::{Device, Element};
use super::launchers::{self as launch, HELD, NORM_SLICE, QK_NORM_SLICE, QK_NORM_WHOLE_SLICE, WARP};
use super::linear::sum_slices;
use super::{Kernels, adds, int, read, read_option, write, write_option};
use crate::Result;
use crate::backend::contract::*;

/// Threads that share a row of `hidden` elements: a warp if its registers hold the row, else a block.
pub(super) fn team<A>(hidden: usize) -> usize {
    let [warp, block] = launch::NormFwd::<f32>::TEAM;
    if hidden * size_of::<A>() <= WARP * HELD * 16 { warp } else { block }
}

pub(super) fn norm_fwd<D: Device, A: Element>(k: &Kernels<D, A>, mut a: NormFwd<'_, Kernels<D, A>>) -> Result<()> {
    let d = a.dims;
    let team = team::<A>(d.hidden);
    launch::NormFwd::<A> {
        x: read(a.x),
        residual: read_option(a.residual),
        weight: read(a.weight),
        base: read_option(a.base),
        sum: write_option(&mut a.sum),
        y: write(&mut a.y),
        rstd: write(&mut a.rstd),
        tokens: int(d.tokens)?,
        hidden: int(d.hidden)?,
        eps: d.eps as f32,
        offset: d.offset as f32,
    }
    .launch(&k.device, team, k.row_blocks(d.tokens, launch::NormFwd::<A>::THREADS / team), 0)
}

pub(super) fn norm_bwd<D: Device, A: Element>(k: &Kernels<D, A>, mut a: NormBwd<'_, Kernels<D, A>>) -> Result<()> {
    let d = a.dims;
    let count = d.tokens.div_ceil(NORM_SLICE);
    let mut scratch = k.scratch()?;
    let slices = scratch.request::<f32>(count * d.hidden);
    scratch.take()?;
    let team = team::<A>(d.hidden);
    let teams = launch::NormBwd::<A>::THREADS / team;
    // Shared memory for the weight gradient that each team (the threads of one row) sums.
    let shared = if teams > 1 { teams * d.hidden * size_of::<f32>() } else { 0 };
    launch::NormBwd::<A> {
        dy: read(a.dy),
        sum: read(a.sum),
        rstd: read(a.rstd),
        weight: read(a.weight),
        dsum: write(&mut a.dsum),
        slices: scratch.write(slices),
        tokens: int(d.tokens)?,
        hidden: int(d.hidden)?,
        offset: d.offset as f32,
        add: adds(a.dsum_write),
    }
    .launch(&k.device, team, k.row_blocks(count, 1), shared)?;
    sum_slices(k, &scratch, slices, count, &mut a.dweight, a.dweight_write)
}

pub(super) fn qk_norm_fwd<D: Device, A: Element>(k: &Kernels<D, A>, mut a: QkNormFwd<'_, Kernels<D, A>>) -> Result<()> {
    let d = a.dims;
    if d.whole {
        return launch::QkNormWholeFwd::<A> {
            weight: read(a.weight),
            x: write_option(&mut a.x),
            qkv: write(&mut a.qkv_in_place),
            tokens: int(d.tokens)?,
            query_width: int(d.widths()[0])?,
            key_width: int(d.widths()[1])?,
            eps: d.eps as f32,
            offset: d.offset as f32,
        }
        .launch(&k.device, k.row_blocks(2 * d.tokens, 1), 0);
    }
    launch::QkNormFwd::<A> {
        weight: read(a.weight),
        x: write_option(&mut a.x),
        qkv: write(&mut a.qkv_in_place),
        tokens: int(d.tokens)?,
        heads: int(d.heads)?,
        kv_heads: int(d.kv_heads)?,
        head_dim: int(d.head_dim)?,
        eps: d.eps as f32,
        offset: d.offset as f32,
    }
    .launch(&k.device, k.row_blocks(d.tokens * d.normalised(), launch::QkNormFwd::<A>::WARPS), 0)
}

pub(super) fn qk_norm_bwd<D: Device, A: Element>(k: &Kernels<D, A>, mut a: QkNormBwd<'_, Kernels<D, A>>) -> Result<()> {
    let d = a.dims;
    let count = d.tokens.div_ceil(if d.whole { QK_NORM_WHOLE_SLICE } else { QK_NORM_SLICE });
    let mut scratch = k.scratch()?;
    let slices = scratch.request::<f32>(count * d.weights());
    scratch.take()?;
    if d.whole {
        launch::QkNormWholeBwd::<A> {
            x: read(a.x),
            weight: read(a.weight),
            dqkv: write(&mut a.dqkv_in_place),
            slices: scratch.write(slices),
            tokens: int(d.tokens)?,
            query_width: int(d.widths()[0])?,
            key_width: int(d.widths()[1])?,
            eps: d.eps as f32,
            offset: d.offset as f32,
        }
        .launch(&k.device, k.row_blocks(count, 1), 0)?;
        return sum_slices(k, &scratch, slices, count, &mut a.dweight, a.write);
    }
    // Shared memory for each warp's sums of the query and key weight gradients.
    let shared = launch::QkNormBwd::<A>::WARPS * 2 * d.head_dim * size_of::<f32>();
    launch::QkNormBwd::<A> {
        x: read(a.x),
        weight: read(a.weight),
        dqkv: write(&mut a.dqkv_in_place),
        slices: scratch.write(slices),
        tokens: int(d.tokens)?,
        heads: int(d.heads)?,
        kv_heads: int(d.kv_heads)?,
        head_dim: int(d.head_dim)?,
        eps: d.eps as f32,
        offset: d.offset as f32,
    }
    .launch(&k.device, k.row_blocks(count, 1), shared)?;
    sum_slices(k, &scratch, slices, count, &mut a.dweight, a.write)
}
