//! The vocabulary head (`kernels/head.cu`). The forward splits the vocabulary into slices, the backward into
//! chunks. Also the log-probabilities of stored logits (`kernels/head_logits.cu`).

use super::device::{ConstPtr, Device, Element, MutPtr};
use super::launchers::{self as launch, HEAD_SLICE_TILES};
use super::linear::{blocks, shared_bytes, tile};
use super::{Array, Kernels, adds, hopper, int, read, write};
use crate::Result;
use crate::backend::Write;
use crate::backend::contract::*;

/// Number of vocabulary columns per chunk of the backward. Only the dlogits of one chunk are stored at a
/// time. The value fixes the order of the sum over the vocabulary.
const CHUNK: usize = 8192;
/// The row stride of dlogits is a multiple of this many elements, so that every row starts at a multiple of
/// 16 bytes.
const STRIDE_UNIT: usize = 8;

pub(super) fn head_logprob_fwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: HeadLogprobFwd<'_, Kernels<D, A>>,
) -> Result<()> {
    let d = a.dims;
    if hopper::head::forward(k, &mut a)? {
        return Ok(());
    }
    let slices = d.vocab.div_ceil(HEAD_SLICE_TILES * tile::<A>());
    let mut scratch = k.scratch()?;
    let (max, sum) = (scratch.request::<f32>(slices * d.rows), scratch.request::<f32>(slices * d.rows));
    let hit = scratch.request::<f32>(d.rows);
    let for_stats = if a.stats.is_some() { slices * d.rows } else { 0 };
    let [weighted, total, rival] = std::array::from_fn(|_| scratch.request::<f32>(for_stats));
    scratch.take()?;
    let grid = blocks(k, d.rows, slices * tile::<A>());
    let softcap = d.softcap.map_or(0.0, |cap| cap as f32);
    if let Some(stats) = &mut a.stats {
        launch::HeadStatsSlices::<A> {
            hidden: read(a.hidden),
            head: read(a.head),
            source: read(a.source),
            target: read(a.target),
            max: scratch.write(max),
            sum: scratch.write(sum),
            hit: scratch.write(hit),
            weighted: scratch.write(weighted),
            total: scratch.write(total),
            rival: scratch.write(rival),
            hidden_size: int(d.hidden)?,
            vocab: int(d.vocab)?,
            rows: int(d.rows)?,
            softcap,
        }
        .launch(&k.device, grid, shared_bytes::<A>())?;
        return launch::HeadStatsJoin {
            max: scratch.read(max),
            sum: scratch.read(sum),
            hit: scratch.read(hit),
            weighted: scratch.read(weighted),
            total: scratch.read(total),
            rival: scratch.read(rival),
            logp: write(&mut a.logp),
            lse: write(&mut a.lse),
            stats: write(stats),
            slices: int(slices)?,
            rows: int(d.rows)?,
            vocab: int(d.vocab)?,
        }
        .launch(&k.device, k.row_blocks(d.rows, launch::HeadStatsJoin::THREADS), 0);
    }
    launch::HeadLogprobSlices::<A> {
        hidden: read(a.hidden),
        head: read(a.head),
        source: read(a.source),
        target: read(a.target),
        max: scratch.write(max),
        sum: scratch.write(sum),
        hit: scratch.write(hit),
        hidden_size: int(d.hidden)?,
        vocab: int(d.vocab)?,
        rows: int(d.rows)?,
        softcap,
    }
    .launch(&k.device, grid, shared_bytes::<A>())?;
    launch::HeadLogprobJoin {
        max: scratch.read(max),
        sum: scratch.read(sum),
        hit: scratch.read(hit),
        logp: write(&mut a.logp),
        lse: write(&mut a.lse),
        slices: int(slices)?,
        rows: int(d.rows)?,
    }
    .launch(&k.device, k.row_blocks(d.rows, launch::HeadLogprobJoin::THREADS), 0)
}

pub(super) fn head_logprob_bwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: HeadLogprobBwd<'_, Kernels<D, A>>,
) -> Result<()> {
    let d = a.dims;
    if hopper::head::backward(k, &mut a)? {
        return Ok(());
    }
    let dhidden = write(&mut a.dhidden);
    k.clear(a.dhidden)?;
    if d.rows == 0 {
        return match a.dhead {
            Some(dhead) if a.dhead_write == Write::Overwrite => k.clear(dhead),
            _ => Ok(()),
        };
    }
    let stride = CHUNK.min(d.vocab).next_multiple_of(STRIDE_UNIT);
    let mut scratch = k.scratch()?;
    let (dlogits, drows) = (scratch.request::<A>(d.rows * stride), scratch.request::<f32>(d.rows * d.hidden));
    scratch.take()?;
    let dhead = a.dhead.as_mut().map(write);
    for first in (0..d.vocab).step_by(CHUNK) {
        let width = CHUNK.min(d.vocab - first);
        let (hidden_size, rows) = (int(d.hidden)?, int(d.rows)?);
        let (first_column, row_stride) = (int(first)?, int(stride)?);
        launch::HeadDlogits::<A> {
            hidden: read(a.hidden),
            head: read(a.head),
            source: read(a.source),
            target: read(a.target),
            lse: read(a.lse),
            dlogp: read(a.dlogp),
            dlogits: scratch.write(dlogits),
            hidden_size,
            rows,
            first: first_column,
            width: int(width)?,
            stride: row_stride,
            softcap: d.softcap.map_or(0.0, |cap| cap as f32),
        }
        .launch(&k.device, blocks(k, d.rows, width), shared_bytes::<A>())?;
        launch::HeadDrows::<A> {
            dlogits: scratch.read(dlogits),
            head: read(a.head),
            drows: scratch.write(drows),
            hidden_size,
            rows,
            first: first_column,
            width: int(width)?,
            stride: row_stride,
            add: i32::from(first > 0),
        }
        .launch(&k.device, blocks(k, d.rows, d.hidden), shared_bytes::<A>())?;
        let Some(dhead) = dhead else { continue };
        launch::HeadDhead::<A> {
            dlogits: scratch.read(dlogits),
            hidden: read(a.hidden),
            source: read(a.source),
            dhead,
            hidden_size,
            rows,
            first: first_column,
            width: int(width)?,
            stride: row_stride,
            add: adds(a.dhead_write),
        }
        .launch(&k.device, blocks(k, width, d.hidden), shared_bytes::<A>())?;
    }
    gather(k, d, scratch.read(drows), 0..d.rows, a.runs, dhidden)
}

/// Sums drows into dhidden for the runs (head rows with the same source) that begin in `rows`. `drows` starts
/// at the first of `rows` and contains all rows of these runs. Hidden rows without a head row are not
/// written.
pub(super) fn gather<D: Device, A: Element>(
    k: &Kernels<D, A>,
    d: HeadDims,
    drows: ConstPtr<f32>,
    rows: std::ops::Range<usize>,
    runs: Runs<'_, Array<D, i32>>,
    dhidden: MutPtr<A>,
) -> Result<()> {
    launch::HeadGather::<A> {
        drows,
        order: read(runs.order),
        offsets: read(runs.offsets),
        keys: read(runs.keys),
        dhidden,
        distinct: int(runs.keys.len)?,
        hidden_size: int(d.hidden)?,
        first: int(rows.start)?,
        count: int(rows.len())?,
    }
    .launch(&k.device, k.row_blocks(runs.keys.len, 1), 0)
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
