//! LayerNorm (`kernels/layer_norm.cu`).

use super::device::{Device, Element};
use super::launchers::{self as launch, LAYER_NORM_SLICE};
use super::linear::sum_slices;
use super::norm::team;
use super::{Kernels, adds, int, read, write};
use crate::Result;
use crate::backend::contract::*;

pub(super) fn layer_norm_fwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: LayerNormFwd<'_, Kernels<D, A>>,
) -> Result<()> {
    let d = a.dims;
    let team = team::<A>(d.hidden);
    launch::LayerNormFwd::<A> {
        x: read(a.x),
        weight: read(a.weight),
        y: write(&mut a.y),
        stats: write(&mut a.stats),
        tokens: int(d.tokens)?,
        hidden: int(d.hidden)?,
        eps: d.eps as f32,
    }
    .launch(&k.device, team, k.row_blocks(d.tokens, launch::LayerNormFwd::<A>::THREADS / team), 0)
}

pub(super) fn layer_norm_bwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: LayerNormBwd<'_, Kernels<D, A>>,
) -> Result<()> {
    let d = a.dims;
    let count = d.tokens.div_ceil(LAYER_NORM_SLICE);
    let mut scratch = k.scratch()?;
    let slices = scratch.request::<f32>(count * 2 * d.hidden);
    scratch.take()?;
    let team = team::<A>(d.hidden);
    let teams = launch::LayerNormBwd::<A>::THREADS / team;
    // Shared memory for the weight and bias gradients that each team (the threads of one row) sums.
    let shared = if teams > 1 { teams * 2 * d.hidden * size_of::<f32>() } else { 0 };
    launch::LayerNormBwd::<A> {
        dy: read(a.dy),
        x: read(a.x),
        stats: read(a.stats),
        weight: read(a.weight),
        dx: write(&mut a.dx),
        slices: scratch.write(slices),
        tokens: int(d.tokens)?,
        hidden: int(d.hidden)?,
        add: adds(a.dx_write),
    }
    .launch(&k.device, team, k.row_blocks(count, 1), shared)?;
    sum_slices(k, &scratch, slices, count, &mut a.dweight, a.dweight_write)
}
