//! Embedding, normalisation, rotary positions, gated activation, log-probs of stored logits, and sums over tokens.

use super::device::{Device, Element};
use super::launchers as launch;
use super::{Kernels, Piece, Scratch, adds, int, read, read_option, write, write_option};
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{ViewMut, Write};

/// Lanes of a warp.
const WARP: usize = 32;
/// Warps of a block, in kernels whose warps take units of their own.
pub(super) const WARPS: usize = 4;
/// Columns of a block of `sum_slices`.
const SUM_COLUMNS: usize = 32;
/// Tokens of a slice; as in `kernels/norm.cu` and `kernels/bias.cu`.
const NORM_SLICE: usize = 16;
const BIAS_SLICE: usize = 64;
/// Longest row of f32 that `norm_bwd` sums in shared memory: several blocks still fit a multiprocessor.
const NORM_SHARED: usize = 32 << 10;

/// Pieces of a row of `width` elements, each of which a warp takes with 16 bytes of activations a lane.
pub(super) fn pieces<A>(width: usize) -> usize {
    width.div_ceil(WARP * 16 / size_of::<A>())
}

pub(super) fn embedding_fwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: EmbeddingFwd<'_, Kernels<D, A>>,
) -> Result<()> {
    launch::EmbeddingFwd::<A> {
        ids: read(a.ids),
        table: read(a.table),
        x: write(&mut a.x),
        tokens: int(a.dims.tokens)?,
        hidden: int(a.dims.hidden)?,
    }
    .launch(&k.device, k.row_blocks(a.dims.tokens, WARPS), 0)
}

pub(super) fn embedding_bwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: EmbeddingBwd<'_, Kernels<D, A>>,
) -> Result<()> {
    let distinct = a.runs.keys.len;
    if a.write == Write::Overwrite {
        k.clear(ViewMut { buffer: &mut *a.dtable.buffer, ..a.dtable })?;
    }
    launch::EmbeddingBwd::<A> {
        dx: read(a.dx),
        order: read(a.runs.order),
        offsets: read(a.runs.offsets),
        keys: read(a.runs.keys),
        dtable: write(&mut a.dtable),
        distinct: int(distinct)?,
        hidden: int(a.dims.hidden)?,
        add: adds(a.write),
    }
    .launch(&k.device, k.row_blocks(distinct * pieces::<A>(a.dims.hidden), WARPS), 0)
}

pub(super) fn norm_fwd<D: Device, A: Element>(k: &Kernels<D, A>, mut a: NormFwd<'_, Kernels<D, A>>) -> Result<()> {
    let d = a.dims;
    launch::NormFwd::<A> {
        x: read(a.x),
        residual: read_option(a.residual),
        weight: read(a.weight),
        sum: write_option(&mut a.sum),
        y: write(&mut a.y),
        rstd: write(&mut a.rstd),
        tokens: int(d.tokens)?,
        hidden: int(d.hidden)?,
        eps: d.eps as f32,
    }
    .launch(&k.device, k.row_blocks(d.tokens, 1), 0)
}

pub(super) fn norm_bwd<D: Device, A: Element>(k: &Kernels<D, A>, mut a: NormBwd<'_, Kernels<D, A>>) -> Result<()> {
    let d = a.dims;
    let count = d.tokens.div_ceil(NORM_SLICE);
    let mut scratch = k.scratch()?;
    let slices = scratch.want::<f32>(count * d.hidden);
    scratch.take()?;
    let row_bytes = d.hidden * size_of::<f32>();
    let in_shared = row_bytes <= NORM_SHARED;
    launch::NormBwd::<A> {
        dy: read(a.dy),
        sum: read(a.sum),
        rstd: read(a.rstd),
        weight: read(a.weight),
        dsum: write(&mut a.dsum),
        slices: scratch.write(slices),
        tokens: int(d.tokens)?,
        hidden: int(d.hidden)?,
        add: adds(a.dsum_write),
        in_shared: i32::from(in_shared),
    }
    .launch(&k.device, k.row_blocks(count, 1), if in_shared { row_bytes } else { 0 })?;
    sum_slices(k, &scratch, slices, count, &mut a.dweight, a.dweight_write)
}

pub(super) fn bias_bwd<D: Device, A: Element>(k: &Kernels<D, A>, mut a: BiasBwd<'_, Kernels<D, A>>) -> Result<()> {
    let (tokens, outputs) = (a.dims.tokens, a.dims.outputs);
    let count = tokens.div_ceil(BIAS_SLICE);
    let mut scratch = k.scratch()?;
    let slices = scratch.want::<f32>(count * outputs);
    scratch.take()?;
    launch::BiasBwd::<A> {
        dy: read(a.dy),
        slices: scratch.write(slices),
        tokens: int(tokens)?,
        outputs: int(outputs)?,
    }
    .launch(&k.device, k.row_blocks(count * pieces::<A>(outputs), WARPS), 0)?;
    sum_slices(k, &scratch, slices, count, &mut a.dbias, a.write)
}

/// `out (+)= sum of count slices`, each as long as `out`.
fn sum_slices<D: Device, A: Element>(
    k: &Kernels<D, A>,
    scratch: &Scratch<'_, D>,
    slices: Piece,
    count: usize,
    out: &mut ViewMut<'_, super::Array<D, f32>>,
    to: Write,
) -> Result<()> {
    let width = out.len;
    launch::SumSlices {
        slices: scratch.read(slices),
        out: write(out),
        count: int(count)?,
        width: int(width)?,
        add: adds(to),
    }
    .launch(&k.device, k.row_blocks(width, SUM_COLUMNS), 0)
}

/// `direction` is 1 for the forward rotation, -1 for the backward.
pub(super) fn rope<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: Rope<'_, Kernels<D, A>>,
    direction: f32,
) -> Result<()> {
    let d = a.dims;
    launch::Rope::<A> {
        positions: read(a.positions),
        cos: read(a.cos),
        sin: read(a.sin),
        qkv: write(&mut a.qkv_in_place),
        tokens: int(d.tokens)?,
        heads: int(d.heads)?,
        head_dim: int(d.head_dim)?,
        width: int((d.heads + d.unrotated_heads) * d.head_dim)?,
        direction,
    }
    .launch(&k.device, k.row_blocks(d.tokens, WARPS), 0)
}

pub(super) fn glu_fwd<D: Device, A: Element>(k: &Kernels<D, A>, mut a: GluFwd<'_, Kernels<D, A>>) -> Result<()> {
    launch::GluFwd::<A> {
        gate_up: read(a.gate_up),
        act: write(&mut a.act),
        tokens: int(a.dims.tokens)?,
        intermediate: int(a.dims.intermediate)?,
    }
    .launch(&k.device, k.row_blocks(a.dims.tokens, 1), 0)
}

pub(super) fn glu_bwd<D: Device, A: Element>(k: &Kernels<D, A>, mut a: GluBwd<'_, Kernels<D, A>>) -> Result<()> {
    launch::GluBwd::<A> {
        dact: read(a.dact),
        gate_up: read(a.gate_up),
        dgate_up: write(&mut a.dgate_up),
        tokens: int(a.dims.tokens)?,
        intermediate: int(a.dims.intermediate)?,
    }
    .launch(&k.device, k.row_blocks(a.dims.tokens, 1), 0)
}

pub(super) fn logprob_fwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: LogprobFwd<'_, Kernels<D, A>>,
) -> Result<()> {
    launch::LogprobFwd::<A> {
        logits: read(a.logits),
        target: read(a.target),
        logp: write(&mut a.logp),
        lse: write(&mut a.lse),
        rows: int(a.rows)?,
        vocab: int(a.vocab)?,
    }
    .launch(&k.device, k.row_blocks(a.rows, 1), 0)
}

pub(super) fn logprob_bwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: LogprobBwd<'_, Kernels<D, A>>,
) -> Result<()> {
    launch::LogprobBwd::<A> {
        target: read(a.target),
        lse: read(a.lse),
        dlogp: read(a.dlogp),
        logits: write(&mut a.logits_to_dlogits),
        rows: int(a.rows)?,
        vocab: int(a.vocab)?,
    }
    .launch(&k.device, k.row_blocks(a.rows, 1), 0)
}
