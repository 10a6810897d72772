//! The vocabulary head on Hopper (`kernels/head_sm90.cu`), with or without the preference loss.
//! Logits are never stored. For the gradients their exponentials are stored, one chunk of rows at a
//! time.
//!
//! ```text
//! for each chunk of rows:
//!     x = hidden[source];  base = round(log2(e) x·head[target])              head_rows
//!     E = 2^(log2(e) x headᵀ - base);  sums of E per tile;  target's logit   head_powers, head_sums
//!     S = sums over the tiles;  lse = base ln 2 + ln S;  logp = logit - lse  head_join
//!     score = sums of logp by sequence;  loss, dscore = preference(score);  dlogp = dscore by row
//!     v = -dlogp / S;  scaled = v x;  E[target] -= S                         head_factors
//!     drows = v (E head), split-K over the vocabulary                        head_drows
//!     dhead += Eᵀ scaled                                                     linear_bwd_weight
//! dhidden = sums of the drows with the same source                           head_gather
//! ```
//!
//! The three ops run parts of this loop. `head_logprob_fwd` runs the first three lines, with
//! head_sums, so E is not stored. `head_logprob_bwd` recomputes E, since it gets dlogp from the
//! caller. [`preference`] runs the whole loop over chunks of whole groups, with three GEMMs in all.
//! Its preference kernel always covers all comparisons of the batch. Comparisons of later chunks
//! get stale scores at first, and their own chunk computes them again.
//!
//! A row with S outside 2^-100 .. 2^90 is recomputed in head_join by one block, with the largest
//! logit as base.

use std::ops::Range;

use super::{ROWS, all_multiples, are_aligned, f32_result, is_supported, matrix, operand};
use crate::Result;
use crate::backend::Write as Mode;
use crate::backend::contract::*;
use crate::backend::kernels::device::{ConstPtr, Device, Element, MutPtr};
use crate::backend::kernels::geometry::{Choice, PLANNED_PROCESSORS, Sizes, Tile, blocks_of, cut};
use crate::backend::kernels::head::gather;
use crate::backend::kernels::launchers::{self as launch, HEAD_COLUMNS, HEAD_JOIN_ROWS};
use crate::backend::kernels::preference::{preference_fwd, preference_scratch};
use crate::backend::kernels::segment::{segment_sum_bwd, segment_sum_fwd};
use crate::backend::kernels::{Kernels, Piece, Scratch, int, read, write};

/// Scratch memory of a forward at any vocabulary size (performance goal G-HEAD-1), and of the
/// exponentials of a backward.
const FORWARD_BYTES: usize = 64 << 20;
const EXPS_BYTES: usize = 2400 << 20;
/// Chunks are multiples of this many rows, so that GEMMs fill the clusters of a GPU.
const CHUNK_UNIT: usize = 256;
const LARGE_CHUNK_UNIT: usize = 2048;
/// Maximum number of splits over the vocabulary in the GEMM of the row gradient.
const MAX_DROWS_SPLITS: usize = 4;
/// Tile of the GEMM that gives the exponentials: `Head` in `kernels/head_sm90.cu`.
const TILE: Tile = Tile::N192PingPong;

/// Device addresses of the arrays of a call.
#[derive(Clone, Copy)]
struct Arrays {
    packed: u64,
    base: u64,
    sums: u64,
    hit: u64,
    total: u64,
    /// The rest is for gradients only.
    exps: u64,
    factor: u64,
    scaled: u64,
    /// Rows of the whole call; the other arrays hold one chunk.
    drows: u64,
}

/// Row stride of the exponentials in elements: a multiple of 16 bytes.
fn stride(d: HeadDims) -> usize {
    d.vocab.next_multiple_of(8)
}

/// Tiles across the vocabulary.
fn slices(d: HeadDims) -> usize {
    d.vocab.div_ceil(HEAD_COLUMNS)
}

/// Rows of a chunk within a budget of bytes.
fn rows_within(budget: usize, bytes_of_row: usize) -> usize {
    let rows = (budget / bytes_of_row.max(1)).max(1);
    let unit = if rows >= LARGE_CHUNK_UNIT { LARGE_CHUNK_UNIT } else { CHUNK_UNIT };
    (rows / unit * unit).max(CHUNK_UNIT)
}

/// Rows of a chunk of the forward.
fn forward_rows(d: HeadDims) -> usize {
    rows_within(FORWARD_BYTES, 2 * d.hidden + 4 * slices(d) + 12)
}

/// Rows of a chunk with stored exponentials.
fn backward_rows(d: HeadDims) -> usize {
    rows_within(EXPS_BYTES, 2 * stride(d))
}

/// Whether these kernels support heads of this kind. Their exponentials are of logits without a soft cap.
fn handles<D: Device, A: Element>(k: &Kernels<D, A>, d: HeadDims) -> bool {
    is_supported(k) && d.hidden > 0 && all_multiples(8, &[d.hidden]) && d.softcap.is_none()
}

/// Whether these kernels support the head.
pub(in super::super) fn is_fit<D: Device, A: Element>(k: &Kernels<D, A>, d: HeadDims, addresses: &[u64]) -> bool {
    handles(k, d) && d.rows * d.vocab > 0 && are_aligned(addresses)
}

/// Requests scratch memory for chunks of `rows` rows.
fn request<D: Device>(scratch: &mut Scratch<'_, D>, d: HeadDims, rows: usize, backward: bool) -> [Piece; 9] {
    let of = |backward: bool, len: usize| if backward { len } else { 0 };
    [
        scratch.request::<u16>(rows * d.hidden),
        scratch.request::<f32>(rows),
        scratch.request::<f32>(rows * slices(d)),
        scratch.request::<f32>(rows),
        scratch.request::<f32>(rows),
        scratch.request::<u16>(of(backward, rows * stride(d))),
        scratch.request::<f32>(of(backward, rows)),
        scratch.request::<u16>(of(backward, rows * d.hidden)),
        scratch.request::<f32>(of(backward, d.rows * d.hidden)),
    ]
}

impl Arrays {
    fn of<D: Device>(scratch: &Scratch<'_, D>, pieces: [Piece; 9]) -> Self {
        let [packed, base, sums, hit, total, exps, factor, scaled, drows] = pieces.map(|piece| scratch.address(piece));
        Self { packed, base, sums, hit, total, exps, factor, scaled, drows }
    }
}

/// Operands of a call.
#[derive(Clone, Copy)]
struct Operands {
    /// The op that is called.
    name: &'static str,
    d: HeadDims,
    hidden: u64,
    head: u64,
    source: ConstPtr<i32>,
    target: ConstPtr<i32>,
    logp: MutPtr<f32>,
    lse: MutPtr<f32>,
}

fn offset<T>(pointer: ConstPtr<T>, rows: usize) -> ConstPtr<T> {
    ConstPtr::new(pointer.address(), rows)
}

/// Log-probabilities of a chunk of rows; `stored` keeps the exponentials.
fn chunk_forward<D: Device, A: Element>(
    k: &Kernels<D, A>,
    o: &Operands,
    at: &Arrays,
    rows: Range<usize>,
    stored: bool,
) -> Result<()> {
    let (d, count, device) = (o.d, rows.len(), &k.device);
    let (hidden_size, vocab, number) = (int(d.hidden)?, int(d.vocab)?, int(count)?);
    let target = offset(o.target, rows.start);
    launch::HeadRowsSm90 {
        hidden: ConstPtr::new(o.hidden, 0),
        head: ConstPtr::new(o.head, 0),
        source: offset(o.source, rows.start),
        target,
        packed: MutPtr::new(at.packed, 0),
        base: MutPtr::new(at.base, 0),
        hidden_size,
        rows: number,
    }
    .launch(device, k.row_blocks(count, launch::HeadRowsSm90::WARPS), 0)?;
    let packed = matrix(device, at.packed, (count, d.hidden), d.hidden, ROWS)?;
    let head = matrix(device, o.head, (d.vocab, d.hidden), d.hidden, HEAD_COLUMNS)?;
    let (base, sums, hit) = (ConstPtr::new(at.base, 0), MutPtr::new(at.sums, 0), MutPtr::new(at.hit, 0));
    let grid = blocks_of(count, d.vocab, HEAD_COLUMNS, device.properties().processors);
    let shared = TILE.shared_bytes(false, 2);
    let sizes = Sizes { m: count, n: d.vocab, k: d.hidden, out_bytes: 2, may_split: false };
    k.note_choice(o.name, sizes, cut(sizes, TILE, 1, device.properties().processors));
    if stored {
        let exps = matrix(device, at.exps, (count, d.vocab), stride(d), 64)?;
        launch::HeadPowersSm90 {
            packed,
            head,
            exps,
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
        packed: ConstPtr::new(at.packed, 0),
        head: ConstPtr::new(o.head, 0),
        sums: ConstPtr::new(at.sums, 0),
        hit: ConstPtr::new(at.hit, 0),
        base: MutPtr::new(at.base, 0),
        total: MutPtr::new(at.total, 0),
        logp: MutPtr::new(o.logp.address(), rows.start),
        lse: MutPtr::new(o.lse.address(), rows.start),
        exps: if stored { MutPtr::new(at.exps, 0) } else { MutPtr::NONE },
        hidden_size,
        vocab,
        rows: number,
        slices: int(slices(d))?,
        stride: int(stride(d))?,
    }
    .launch(device, k.row_blocks(count, launch::HeadJoinSm90::WARPS * HEAD_JOIN_ROWS), 0)
}

/// Tile and splits over the vocabulary for the drows of a chunk.
fn drows_choice(d: HeadDims, rows: usize, processors: usize) -> (Sizes, Choice) {
    let sizes = Sizes { m: rows, n: d.hidden, k: d.vocab, out_bytes: 4, may_split: true };
    let ways = launch::HeadDrowsSm90::TILE
        .into_iter()
        .flat_map(|tile| (1..=MAX_DROWS_SPLITS).map(move |splits| (tile, splits)))
        .filter(|&(tile, splits)| splits == 1 || super::linear::may_split(rows, d.hidden, tile));
    let mut choices: Vec<Choice> = ways.map(|(tile, splits)| cut(sizes, tile, splits, PLANNED_PROCESSORS)).collect();
    choices.sort_by(|a, b| a.seconds.total_cmp(&b.seconds).then(a.splits.cmp(&b.splits)));
    (sizes, cut(sizes, choices[0].tile, choices[0].splits, processors))
}

/// Gradients of a chunk from its exponentials; `dhead` is the weight gradient, if wanted.
fn chunk_backward<D: Device, A: Element>(
    k: &Kernels<D, A>,
    o: &Operands,
    at: &Arrays,
    rows: Range<usize>,
    dlogp: ConstPtr<f32>,
    dhead: Option<(u64, Mode)>,
) -> Result<()> {
    let (d, count, device) = (o.d, rows.len(), &k.device);
    let (hidden_size, vocab, number) = (int(d.hidden)?, int(d.vocab)?, int(count)?);
    launch::HeadFactorsSm90 {
        packed: ConstPtr::new(at.packed, 0),
        target: offset(o.target, rows.start),
        hit: ConstPtr::new(at.hit, 0),
        base: ConstPtr::new(at.base, 0),
        total: ConstPtr::new(at.total, 0),
        dlogp: offset(dlogp, rows.start),
        factor: MutPtr::new(at.factor, 0),
        scaled: MutPtr::new(at.scaled, 0),
        exps: MutPtr::new(at.exps, 0),
        hidden_size,
        rows: number,
        stride: int(stride(d))?,
    }
    .launch(device, k.row_blocks(count, launch::HeadFactorsSm90::WARPS), 0)?;

    let (sizes, choice) = drows_choice(d, count, device.properties().processors);
    k.note_choice(o.name, sizes, choice);
    let exps = matrix(device, at.exps, (count, d.vocab), stride(d), ROWS)?;
    let head = operand(device, o.head, true, (d.hidden, d.vocab), d.hidden, 64)?;
    let drows = f32_result(device, at.drows + 4 * (rows.start * d.hidden) as u64, (count, d.hidden))?;
    let factor = ConstPtr::new(at.factor, 0);
    let semaphores = MutPtr::new(super::linear::semaphores(k, &choice)?, 0);
    let (splits, shared) = (int(choice.splits)?, choice.tile.shared_bytes(true, 4));
    launch::HeadDrowsSm90 { exps, head, drows, factor, semaphores, rows: number, hidden: hidden_size, vocab, splits }
        .launch(device, choice.tile, choice.grid, shared)?;
    let Some((dhead, mode)) = dhead else { return Ok(()) };
    let gemm = super::Gemm::<A> {
        name: o.name,
        op: super::Op::Weight,
        a: ConstPtr::new(at.exps, 0),
        a_stride: stride(d),
        b: ConstPtr::new(at.scaled, 0),
        c: dhead,
        bias: ConstPtr::NONE,
        residual: ConstPtr::NONE,
        norms: 0,
        m: d.vocab,
        n: d.hidden,
        k: count,
        mode,
    };
    let choice = super::best(&gemm, device.properties().processors);
    super::enqueue(k, &gemm, choice)
}

/// Rows `0..rows` in chunks of at most `most` rows.
fn chunks(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(most.max(1)).map(move |first| first..rows.min(first + most))
}

/// Enqueues the forward. Returns false, without effect, if these kernels do not support the call.
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
    if !is_fit(k, d, &[o.hidden, o.head]) {
        return Ok(false);
    }
    let most = forward_rows(d);
    let mut scratch = k.scratch()?;
    let pieces = request(&mut scratch, d, most.min(d.rows), false);
    scratch.take()?;
    let at = Arrays::of(&scratch, pieces);
    for rows in chunks(d.rows, most) {
        chunk_forward(k, &o, &at, rows, false)?;
    }
    Ok(true)
}

/// Enqueues the backward, which recomputes the exponentials. Returns false, without effect, if
/// these kernels do not support the call.
pub(in super::super) fn backward<D: Device, A: Element>(
    k: &Kernels<D, A>,
    a: &mut HeadLogprobBwd<'_, Kernels<D, A>>,
) -> Result<bool> {
    let d = a.dims;
    let (hidden, head) = (read(a.hidden).address(), read(a.head).address());
    let dhead = a.dhead.as_mut().map(|dhead| write(dhead).address());
    if !is_fit(k, d, &[hidden, head, dhead.unwrap_or(0)]) {
        return Ok(false);
    }
    let most = backward_rows(d);
    let mut scratch = k.scratch()?;
    let pieces = request(&mut scratch, d, most.min(d.rows), true);
    // The results of the forward belong to the caller, so the recomputed ones go to scratch memory.
    let (logp, lse) = (scratch.request::<f32>(d.rows), scratch.request::<f32>(d.rows));
    scratch.take()?;
    let at = Arrays::of(&scratch, pieces);
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
    let dhidden = write(&mut a.dhidden);
    k.clear(a.dhidden.reborrow())?;
    gather(k, d, ConstPtr::new(at.drows, 0), a.runs, dhidden)?;
    Ok(true)
}

/// Whether these kernels run the head and its preference loss as one op.
pub(in super::super) fn fuses_preference<D: Device, A: Element>(
    k: &Kernels<D, A>,
    a: &HeadPreference<'_, Kernels<D, A>>,
) -> bool {
    let dhead = a.dhead.as_ref().map_or(0, |dhead| read(dhead.as_view()).address());
    // A curve of the batch needs the scores of all chunks at once.
    let curves = a.comparison.as_ref().map_or(&[][..], |c| c.curves);
    let of_batch = curves.iter().any(|part| part.curve.is_of_batch());
    !of_batch && is_fit(k, a.dims, &[read(a.hidden).address(), read(a.head).address(), dhead])
}

/// Maximum number of head rows per chunk of `head_preference`; unbounded if these kernels do not
/// support it.
pub(in super::super) fn rows_at_once<D: Device, A: Element>(k: &Kernels<D, A>, d: HeadDims) -> usize {
    if handles(k, d) { k.head_rows.unwrap_or(backward_rows(d)) } else { usize::MAX }
}

/// Enqueues the head and its preference loss.
pub(in super::super) fn preference<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: HeadPreference<'_, Kernels<D, A>>,
) -> Result<()> {
    let d = a.dims;
    let chunks = chunks_of(a.groups, rows_at_once(k, d));
    let most = chunks.iter().map(|chunk| chunk.rows.len()).max().unwrap_or(0);
    let comparisons = a.comparison.as_ref().map_or(0, |c| c.comparisons);
    // The preference loss uses the scratch memory before this.
    let mut scratch = k.scratch_after(preference_scratch(k, comparisons)?)?;
    let pieces = request(&mut scratch, d, most, true);
    scratch.take()?;
    let at = Arrays::of(&scratch, pieces);
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
                tail: a.tail.map(|tail| tail.part(seqs.start, seqs.len())),
                sums: a.score.reborrow().part(seqs.start, seqs.len()),
            },
        )?;
        if let Some(c) = &mut a.comparison {
            let loss = ComparisonLoss {
                comparisons: c.comparisons,
                curves: c.curves,
                link: c.link,
                center: c.center,
                reference: c.reference,
                inverse_rows: c.inverse_rows,
                pair_weights: c.pair_weights,
                table: c.table,
                loss: c.loss.reborrow(),
                logit: c.logit.reborrow(),
                sums: c.sums.reborrow(),
            };
            preference_fwd(k, loss.into_preference_fwd(a.score.as_view(), a.direct, a.dscore.reborrow()))?;
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
                tail: a.tail.map(|tail| tail.part(seqs.start, seqs.len())),
                dvalues: a.dlogp.reborrow(),
            },
        )?;
        if !chunk.rows.is_empty() {
            let mode = if number > 0 { Mode::Add } else { a.dhead_write };
            let dhead = dhead.map(|dhead| (dhead, mode));
            chunk_backward(k, &o, &at, chunk.rows.clone(), read(a.dlogp.as_view()), dhead)?;
        }
    }
    let dhidden = write(&mut a.dhidden);
    k.clear(a.dhidden)?;
    gather(k, d, ConstPtr::new(at.drows, 0), a.runs, dhidden)
}
