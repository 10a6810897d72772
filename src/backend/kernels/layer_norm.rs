//! LayerNorm (`kernels/layer_norm.cu`).

use super::device::{Device, Element};
use super::launchers::{self as launch, LAYER_NORM_SLICE};
use super::linear::sum_slices;
use super::{Kernels, adds, int, read, write};
use crate::Result;
use crate::backend::contract::*;

/// Most bytes of the sums of weight and bias that `layer_norm_bwd` keeps in shared memory. Several
/// blocks still fit a multiprocessor.
const SHARED_BYTES: usize = 32 << 10;

pub(super) fn layer_norm_fwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: LayerNormFwd<'_, Kernels<D, A>>,
) -> Result<()> {
    let d = a.dims;
    launch::LayerNormFwd::<A> {
        x: read(a.x),
        weight: read(a.weight),
        y: write(&mut a.y),
        stats: write(&mut a.stats),
        tokens: int(d.tokens)?,
        hidden: int(d.hidden)?,
        eps: d.eps as f32,
    }
    .launch(&k.device, k.row_blocks(d.tokens, 1), 0)
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
    let bytes = 2 * d.hidden * size_of::<f32>();
    let in_shared = bytes <= SHARED_BYTES;
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
        in_shared: i32::from(in_shared),
    }
    .launch(&k.device, k.row_blocks(count, 1), if in_shared { bytes } else { 0 })?;
    sum_slices(k, &scratch, slices, count, &mut a.dweight, a.dweight_write)
}
