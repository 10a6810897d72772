//! The vocabulary head (`kernels/head_logprob_sm90.cu`): rows in chunks, three products in all.

use std::ops::Range;

use super::{ROWS, all_multiples, f32_result, is_copied, is_here, matrix, operand};
use crate::Result;
use crate::backend::Write as Mode;
use crate::backend::contract::*;
use crate::backend::kernels::device::{Device, Element, Read, Write};
use crate::backend::kernels::geometry::{Choice, PLANNED_PROCESSORS, Sizes, Tile, blocks_of, cut};
use crate::backend::kernels::launchers as launch;
use crate::backend::kernels::loss::{preference_fwd, preference_scratch, segment_sum_bwd, segment_sum_fwd};
use crate::backend::kernels::{Array, Kernels, Piece, Scratch, int, read, write};

/// Columns of a tile, whose powers are added up before the sums of tiles are.
const WIDTH: usize = 192;
/// Scratch memory of a forward at any vocabulary (performance goal G-HEAD-1), and of the powers of a backward.
const FORWARD_BYTES: usize = 64 << 20;
const POWERS_BYTES: usize = 2400 << 20;
/// Rows of chunks are multiples of this, so that products fill the clusters of a card.
const CHUNK_UNIT: usize = 256;
const LARGE_CHUNK_UNIT: usize = 2048;
/// Warps of a block of the kernels that give rows to warps, and rows of a warp that joins sums.
const WARPS: usize = 4;
const JOINED_ROWS: usize = 8;

/// Where the arrays of a call lie.
#[derive(Clone, Copy)]
struct Places {
    packed: u64,
    base: u64,
    sums: u64,
    hit: u64,
    total: u64,
    /// The rest is for the backward alone.
    powers: u64,
    factor: u64,
    scaled: u64,
    /// Of all rows of a call; the others are of a chunk.
    drows: u64,
}

/// Elements from one row of powers to the next: a multiple of 16 bytes.
fn stride(d: HeadDims) -> usize {
    d.vocab.next_multiple_of(8)
}

fn slices(d: HeadDims) -> usize {
    d.vocab.div_ceil(WIDTH)
}

/// Largest count of rows of so many bytes within a budget, as chunks are cut.
fn rows_within(budget: usize, bytes_of_row: usize) -> usize {
    let rows = (budget / bytes_of_row.max(1)).max(1);
    let unit = if rows >= LARGE_CHUNK_UNIT { LARGE_CHUNK_UNIT } else { CHUNK_UNIT };
    (rows / unit * unit).max(CHUNK_UNIT)
}

/// Rows of a chunk of the forward.
fn forward_rows(d: HeadDims) -> usize {
    rows_within(FORWARD_BYTES, 2 * d.hidden + 4 * slices(d) + 12)
}

/// Rows of a chunk of the backward, whose powers are stored.
fn backward_rows(d: HeadDims) -> usize {
    rows_within(POWERS_BYTES, 2 * stride(d))
}

/// Whether these kernels do the head.
pub(in super::super) fn fits<D: Device, A: Element>(k: &Kernels<D, A>, d: HeadDims, addresses: &[u64]) -> bool {
    is_here(k) && d.rows * d.vocab * d.hidden > 0 && all_multiples(8, &[d.hidden]) && is_copied(addresses)
}

/// Pieces of scratch memory for chunks of so many rows.
fn want<D: Device>(scratch: &mut Scratch<'_, D>, d: HeadDims, rows: usize, backward: bool) -> [Piece; 9] {
    let of = |backward: bool, len: usize| if backward { len } else { 0 };
    [
        scratch.want::<u16>(rows * d.hidden),
        scratch.want::<f32>(rows),
        scratch.want::<f32>(rows * slices(d)),
        scratch.want::<f32>(rows),
        scratch.want::<f32>(rows),
        scratch.want::<u16>(of(backward, rows * stride(d))),
        scratch.want::<f32>(of(backward, rows)),
        scratch.want::<u16>(of(backward, rows * d.hidden)),
        scratch.want::<f32>(of(backward, d.rows * d.hidden)),
    ]
}

impl Places {
    fn of<D: Device>(scratch: &Scratch<'_, D>, pieces: [Piece; 9]) -> Self {
        let [packed, base, sums, hit, total, powers, factor, scaled, drows] =
            pieces.map(|piece| scratch.address(piece));
        Self { packed, base, sums, hit, total, powers, factor, scaled, drows }
    }
}

/// Addresses of a call's operands.
#[derive(Clone, Copy)]
struct Operands {
    /// The op that is called.
    name: &'static str,
    d: HeadDims,
    hidden: u64,
    head: u64,
    source: Read<i32>,
    target: Read<i32>,
    logp: Write<f32>,
    lse: Write<f32>,
}

fn behind<T>(pointer: Read<T>, rows: usize) -> Read<T> {
    Read::new(pointer.address(), rows)
}

/// Log-probabilities of a chunk of rows; with `stored` their powers stay.
fn chunk_forward<D: Device, A: Element>(
    k: &Kernels<D, A>,
    o: &Operands,
    at: &Places,
    rows: Range<usize>,
    stored: bool,
) -> Result<()> {
    let (d, count, device) = (o.d, rows.len(), &k.device);
    let (hidden_size, vocab, number) = (int(d.hidden)?, int(d.vocab)?, int(count)?);
    let target = behind(o.target, rows.start);
    launch::HeadRowsSm90 {
        hidden: Read::new(o.hidden, 0),
        head: Read::new(o.head, 0),
        source: behind(o.source, rows.start),
        target,
        packed: Write::new(at.packed, 0),
        base: Write::new(at.base, 0),
        hidden_size,
        rows: number,
    }
    .launch(device, k.row_blocks(count, WARPS), 0)?;
    let packed = matrix(device, at.packed, (count, d.hidden), d.hidden, ROWS)?;
    let head = matrix(device, o.head, (d.vocab, d.hidden), d.hidden, WIDTH)?;
    let (base, sums, hit) = (Read::new(at.base, 0), Write::new(at.sums, 0), Write::new(at.hit, 0));
    let grid = blocks_of(count, d.vocab, WIDTH, device.properties().processors);
    let shared = Tile::N192PingPong.shared_bytes(false, 2);
    let sizes = Sizes { m: count, n: d.vocab, k: d.hidden, out_bytes: 2, may_split: false, a_across: false };
    k.chose(o.name, sizes, cut(sizes, Tile::N192PingPong, 1, device.properties().processors));
    if stored {
        let powers = matrix(device, at.powers, (count, d.vocab), stride(d), 64)?;
        launch::HeadPowersSm90 {
            packed,
            head,
            powers,
            target,
            base,
            sums,
            hit,
            rows: number,
            vocab,
            hidden: hidden_size,
        }
        .launch(device, grid, shared)?;
    } else {
        launch::HeadSumsSm90 { packed, head, target, base, sums, hit, rows: number, vocab, hidden: hidden_size }
            .launch(device, grid, shared)?;
    }
    launch::HeadJoinSm90 {
        packed: Read::new(at.packed, 0),
        head: Read::new(o.head, 0),
        sums: Read::new(at.sums, 0),
        hit: Read::new(at.hit, 0),
        base: Write::new(at.base, 0),
        total: Write::new(at.total, 0),
        logp: Write::new(o.logp.address(), rows.start),
        lse: Write::new(o.lse.address(), rows.start),
        powers: if stored { Write::new(at.powers, 0) } else { Write::NONE },
        hidden_size,
        vocab,
        rows: number,
        slices: int(slices(d))?,
        stride: int(stride(d))?,
    }
    .launch(device, k.row_blocks(count, WARPS * JOINED_ROWS), 0)
}

/// How drows of a chunk are cut: 256 or 224 columns, and parts of the sum over the vocabulary.
fn cut_of_drows(d: HeadDims, rows: usize, processors: usize) -> (Sizes, Choice) {
    let sizes = Sizes { m: rows, n: d.hidden, k: d.vocab, out_bytes: 4, may_split: true, a_across: false };
    let ways = launch::HeadDrowsSm90::TILE.into_iter().flat_map(|tile| (1..=4).map(move |splits| (tile, splits)));
    let ways = ways.filter(|&(tile, splits)| splits == 1 || super::linear::may_split(rows, d.hidden, tile));
    let mut choices: Vec<Choice> = ways.map(|(tile, splits)| cut(sizes, tile, splits, PLANNED_PROCESSORS)).collect();
    choices.sort_by(|a, b| a.seconds.total_cmp(&b.seconds).then(a.splits.cmp(&b.splits)));
    (sizes, cut(sizes, choices[0].tile, choices[0].splits, processors))
}

/// Gradients of a chunk whose powers are there; `dhead` is the weight gradient, if one is asked for.
fn chunk_backward<D: Device, A: Element>(
    k: &Kernels<D, A>,
    o: &Operands,
    at: &Places,
    rows: Range<usize>,
    dlogp: Read<f32>,
    dhead: Option<(u64, Mode)>,
) -> Result<()> {
    let (d, count, device) = (o.d, rows.len(), &k.device);
    let (hidden_size, vocab, number) = (int(d.hidden)?, int(d.vocab)?, int(count)?);
    launch::HeadFactorsSm90 {
        packed: Read::new(at.packed, 0),
        target: behind(o.target, rows.start),
        hit: Read::new(at.hit, 0),
        base: Read::new(at.base, 0),
        total: Read::new(at.total, 0),
        dlogp: behind(dlogp, rows.start),
        factor: Write::new(at.factor, 0),
        scaled: Write::new(at.scaled, 0),
        powers: Write::new(at.powers, 0),
        hidden_size,
        rows: number,
        stride: int(stride(d))?,
    }
    .launch(device, k.row_blocks(count, WARPS), 0)?;

    let (sizes, choice) = cut_of_drows(d, count, device.properties().processors);
    k.chose(o.name, sizes, choice);
    let powers = matrix(device, at.powers, (count, d.vocab), stride(d), ROWS)?;
    let head = operand(device, o.head, true, (d.hidden, d.vocab), d.hidden, 64)?;
    let drows = f32_result(device, at.drows + 4 * (rows.start * d.hidden) as u64, (count, d.hidden))?;
    let factor = Read::new(at.factor, 0);
    let turns = Write::new(super::linear::turns(k, &choice)?, 0);
    let (splits, shared) = (int(choice.splits)?, choice.tile.shared_bytes(true, 4));
    launch::HeadDrowsSm90 { powers, head, drows, factor, turns, rows: number, hidden: hidden_size, vocab, splits }
        .launch(device, choice.tile, choice.grid, shared)?;
    let Some((dhead, mode)) = dhead else { return Ok(()) };
    let product = super::Product::<A> {
        name: o.name,
        op: super::Op::Weight,
        a: Read::new(at.powers, 0),
        a_stride: stride(d),
        b: Read::new(at.scaled, 0),
        c: dhead,
        bias: Read::NONE,
        residual: Read::NONE,
        norms: 0,
        m: d.vocab,
        n: d.hidden,
        k: count,
        mode,
    };
    let choice = super::best(&product, device.properties().processors);
    super::enqueue(k, &product, choice)
}

/// Rows `0..rows` in chunks.
fn chunks(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(most.max(1)).map(move |first| first..rows.min(first + most))
}

/// Enqueues the forward; false, and nothing is done, where these kernels do not do it.
pub(in super::super) fn forward<D: Device, A: Element>(
    k: &Kernels<D, A>,
    a: &mut HeadLogprobFwd<'_, Kernels<D, A>>,
) -> Result<bool> {
    let d = a.dims;
    let o = Operands {
        name: "head_logprob_fwd",
        d,
        hidden: read(a.hidden).address(),
        head: read(a.head).address(),
        source: read(a.source),
        target: read(a.target),
        logp: write(&mut a.logp),
        lse: write(&mut a.lse),
    };
    if !fits(k, d, &[o.hidden, o.head]) {
        return Ok(false);
    }
    let most = forward_rows(d);
    let mut scratch = k.scratch()?;
    let pieces = want(&mut scratch, d, most.min(d.rows), false);
    scratch.take()?;
    let at = Places::of(&scratch, pieces);
    for rows in chunks(d.rows, most) {
        chunk_forward(k, &o, &at, rows, false)?;
    }
    Ok(true)
}

/// Enqueues the backward, which makes the powers anew; false, and nothing is done, where these kernels do not do it.
pub(in super::super) fn backward<D: Device, A: Element>(
    k: &Kernels<D, A>,
    a: &mut HeadLogprobBwd<'_, Kernels<D, A>>,
) -> Result<bool> {
    let d = a.dims;
    let (hidden, head) = (read(a.hidden).address(), read(a.head).address());
    let dhead = a.dhead.as_mut().map(|dhead| write(dhead).address());
    if !fits(k, d, &[hidden, head, dhead.unwrap_or(0)]) {
        return Ok(false);
    }
    let most = backward_rows(d);
    let mut scratch = k.scratch()?;
    let pieces = want(&mut scratch, d, most.min(d.rows), true);
    // What the forward gave is the caller's; here it is made again.
    let (logp, lse) = (scratch.want::<f32>(d.rows), scratch.want::<f32>(d.rows));
    scratch.take()?;
    let at = Places::of(&scratch, pieces);
    let o = Operands {
        name: "head_logprob_bwd",
        d,
        hidden,
        head,
        source: read(a.source),
        target: read(a.target),
        logp: scratch.write(logp),
        lse: scratch.write(lse),
    };
    for rows in chunks(d.rows, most) {
        let mode = if rows.start > 0 { Mode::Add } else { a.dhead_write };
        chunk_forward(k, &o, &at, rows.clone(), true)?;
        chunk_backward(k, &o, &at, rows, read(a.dlogp), dhead.map(|dhead| (dhead, mode)))?;
    }
    let dhidden = write(&mut a.dhidden).address();
    k.clear(a.dhidden.reborrow())?;
    gather(k, d, &at, a.runs, dhidden)?;
    Ok(true)
}

/// dhidden from drows; rows that no head row points to stay.
fn gather<D: Device, A: Element>(
    k: &Kernels<D, A>,
    d: HeadDims,
    at: &Places,
    runs: Runs<'_, Array<D, i32>>,
    dhidden: u64,
) -> Result<()> {
    launch::HeadGather::<A> {
        drows: Read::new(at.drows, 0),
        order: read(runs.order),
        offsets: read(runs.offsets),
        keys: read(runs.keys),
        dhidden: Write::new(dhidden, 0),
        distinct: int(runs.keys.len)?,
        hidden_size: int(d.hidden)?,
    }
    .launch(&k.device, k.row_blocks(runs.keys.len, 1), 0)
}

/// Whether these kernels run the head with its loss as one op.
pub(in super::super) fn does_preference<D: Device, A: Element>(
    k: &Kernels<D, A>,
    a: &HeadPreference<'_, Kernels<D, A>>,
) -> bool {
    let dhead = a.dhead.as_ref().map_or(0, |dhead| read(dhead.as_view()).address());
    fits(k, a.dims, &[read(a.hidden).address(), read(a.head).address(), dhead])
}

/// Most rows of a chunk of the head with its loss; no bound where these kernels cannot do it.
pub(in super::super) fn rows_at_once<D: Device, A: Element>(k: &Kernels<D, A>, d: HeadDims) -> usize {
    if is_here(k) && all_multiples(8, &[d.hidden]) { k.head_rows.unwrap_or(backward_rows(d)) } else { usize::MAX }
}

/// Enqueues head, loss and gradient, one chunk of whole groups after the other: the powers of a chunk stay until its losses are
/// known, so that there are three products in all. Comparisons of chunks to come are computed from whatever their scores hold and
/// again when these are there.
pub(in super::super) fn preference<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: HeadPreference<'_, Kernels<D, A>>,
) -> Result<()> {
    let d = a.dims;
    let chunks = chunks_of(a.groups, rows_at_once(k, d));
    let most = chunks.iter().map(|chunk| chunk.rows.len()).max().unwrap_or(0);
    let comparisons = a.comparison.as_ref().map_or(0, |c| c.comparisons);
    // The comparison loss takes scratch memory too, before this.
    let mut scratch = k.scratch_behind(preference_scratch(k, comparisons)?)?;
    let pieces = want(&mut scratch, d, most, true);
    scratch.take()?;
    let at = Places::of(&scratch, pieces);
    drop(scratch);
    let o = Operands {
        name: "head_preference",
        d,
        hidden: read(a.hidden).address(),
        head: read(a.head).address(),
        source: read(a.source),
        target: read(a.target),
        logp: write(&mut a.logp),
        lse: write(&mut a.lse),
    };
    let dhead = a.dhead.as_mut().map(|dhead| write(dhead).address());
    for (number, chunk) in chunks.iter().enumerate() {
        let seqs = chunk.seqs.clone();
        if !chunk.rows.is_empty() {
            chunk_forward(k, &o, &at, chunk.rows.clone(), true)?;
        }
        segment_sum_fwd(
            k,
            SegmentSumFwd {
                rows: d.rows,
                seqs: seqs.len(),
                reduce: a.reduce,
                values: a.logp.as_view(),
                offsets: a.seq_offsets.part(seqs.start, seqs.len() + 1),
                sums: a.score.reborrow().part(seqs.start, seqs.len()),
            },
        )?;
        if let Some(c) = &mut a.comparison {
            let again = ComparisonLoss {
                comparisons: c.comparisons,
                curve: c.curve,
                center: c.center,
                reference: c.reference,
                table: c.table,
                loss: c.loss.reborrow(),
                logit: c.logit.reborrow(),
                sums: c.sums.reborrow(),
            };
            preference_fwd(k, again.over(a.score.as_view(), a.direct, a.dscore.reborrow()))?;
        }
        let dsums = match (&a.comparison, a.direct) {
            (None, Some(direct)) => direct,
            _ => a.dscore.as_view(),
        };
        segment_sum_bwd(
            k,
            SegmentSumBwd {
                rows: d.rows,
                seqs: seqs.len(),
                reduce: a.reduce,
                dsums: dsums.part(seqs.start, seqs.len()),
                offsets: a.seq_offsets.part(seqs.start, seqs.len() + 1),
                dvalues: a.dlogp.reborrow(),
            },
        )?;
        if !chunk.rows.is_empty() {
            let mode = if number > 0 { Mode::Add } else { a.dhead_write };
            let dhead = dhead.map(|dhead| (dhead, mode));
            chunk_backward(k, &o, &at, chunk.rows.clone(), read(a.dlogp.as_view()), dhead)?;
        }
    }
    let dhidden = write(&mut a.dhidden).address();
    k.clear(a.dhidden)?;
    gather(k, d, &at, a.runs, dhidden)
}
