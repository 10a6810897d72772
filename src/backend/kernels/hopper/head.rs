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
//!     dhead += Eᵀ scaled                                    linear_bwd_weight, head_dhead
//!     dhidden = sums of the drows with the same source                       head_gather
//! ```
//!
//! The number of rows of a chunk changes no bit of a result:
//! - A row's E and drows depend on that row only. The splits over the vocabulary are chosen for the
//!   rows of the call, up to `SPLIT_ROWS`, not for those of a chunk.
//! - dhead sums rows in ascending steps of 16, the depth of a wgmma. A later chunk starts its
//!   accumulators from dhead (`head_dhead_sm90`), as does a call that adds to dhead. Rows beyond a
//!   multiple of 16 move to the start of the next chunk (`Carry`).
//!
//! The three ops run parts of this loop. `head_logprob_fwd` runs the first three lines, with head_sums, so E
//! is not stored. `head_logprob_bwd` recomputes E, since it gets dlogp from the caller. [`preference`] runs
//! the whole loop over chunks of whole groups, with three GEMMs in all. Its preference kernel runs in every
//! chunk, between forward and backward, and covers all comparisons of the batch. Comparisons of later chunks
//! get results from stale scores at first; their own chunk computes them again.
//!
//! A row with S outside 2^-100 .. 2^90 is recomputed in head_join by one block, with the largest
//! logit as base.

use std::sync::atomic::Ordering;

use super::head_chunk::{
    Arrays, Dhead, Operands, add_to_dhead, backward_rows, chunk_backward, chunk_forward, chunks, forward_rows, handles,
    is_fit, request, row_choices,
};
use crate::Result;
use crate::backend::contract::*;
use crate::backend::kernels::device::{ConstPtr, Device, Element};
use crate::backend::kernels::head::gather;
use crate::backend::kernels::preference::{preference_fwd, preference_scratch};
use crate::backend::kernels::segment::{segment_sum_bwd, segment_sum_fwd};
use crate::backend::kernels::{Kernels, read, write};

/// Enqueues the forward. Returns false and does nothing if these kernels do not support the call.
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
        stats: a.stats.as_mut().map(write),
    };
    if !is_fit(k, d, &[o.hidden, o.head]) {
        return Ok(false);
    }
    let most = forward_rows(d, o.stats.is_some());
    let mut scratch = k.scratch()?;
    let pieces = request(&mut scratch, d, most.min(d.rows), (false, o.stats.is_some()), 0);
    scratch.take()?;
    let at = Arrays::of(&scratch, pieces);
    for rows in chunks(d.rows, most) {
        chunk_forward(k, &o, &at, rows, false)?;
    }
    Ok(true)
}

/// Enqueues the backward, which recomputes the exponentials. Returns false and does nothing if these kernels
/// do not support the call.
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
    let most = rows_at_once(k, d);
    let mut scratch = k.scratch()?;
    let pieces = request(&mut scratch, d, most.min(d.rows), (true, false), 0);
    // The results of the forward belong to the caller, so the recomputed ones go to scratch memory.
    let (logp, lse) = (scratch.request::<f32>(d.rows), scratch.request::<f32>(d.rows));
    // Rows with the same source may be in different chunks, so the drows of all chunks are kept.
    let drows = scratch.request::<f32>(d.rows * d.hidden);
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
        stats: None,
    };
    let mut dhead = Dhead::of(dhead, a.dhead_write);
    for rows in chunks(d.rows, most) {
        let behind = at.behind(dhead.map_or(0, |dhead| dhead.carry.rows), d);
        chunk_forward(k, &o, &behind, rows.clone(), true)?;
        let drows = scratch.address(drows) + 4 * (rows.start * d.hidden) as u64;
        chunk_backward(k, &o, &behind, rows.clone(), read(a.dlogp), drows)?;
        if let Some(dhead) = &mut dhead {
            add_to_dhead(k, &o, &at, rows.len(), dhead, rows.end == d.rows)?;
        }
    }
    let dhidden = write(&mut a.dhidden);
    k.clear(a.dhidden.reborrow())?;
    gather(k, d, scratch.read(drows), 0..d.rows, a.runs, dhidden)?;
    Ok(true)
}

/// Whether these kernels run the head and its preference loss as one op.
pub(in super::super) fn fuses_preference<D: Device, A: Element>(
    k: &Kernels<D, A>,
    a: &HeadPreference<'_, Kernels<D, A>>,
) -> bool {
    let dhead = a.dhead.as_ref().map_or(0, |dhead| read(dhead.as_view()).address());
    // A loss curve over the whole batch needs the scores of all chunks at once.
    let curves = a.comparison.as_ref().map_or(&[][..], |c| c.curves);
    let of_batch = curves.iter().any(|part| part.curve.is_of_batch());
    !of_batch && is_fit(k, a.dims, &[read(a.hidden).address(), read(a.head).address(), dhead])
}

/// Maximum number of head rows per chunk of `head_preference`; unbounded if these kernels do not
/// support it.
pub(in super::super) fn rows_at_once<D: Device, A: Element>(k: &Kernels<D, A>, d: HeadDims) -> usize {
    if !handles(k, d) {
        return usize::MAX;
    }
    match k.head_rows.load(Ordering::Relaxed) {
        0 => backward_rows(d),
        rows => rows,
    }
}

/// Chunk sizes in rows among which a memory plan chooses, largest first; empty if these kernels do not
/// support the head.
pub(in super::super) fn row_choices_of<D: Device, A: Element>(k: &Kernels<D, A>, d: HeadDims) -> Vec<usize> {
    if handles(k, d) { row_choices(d) } else { Vec::new() }
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
    // The start of the scratch memory belongs to the preference loss.
    let mut scratch = k.scratch_after(preference_scratch(k, comparisons)?)?;
    // The drows of a chunk overwrite the chunk's sums after their last use.
    let pieces = request(&mut scratch, d, most, (true, a.stats.is_some()), most * d.hidden);
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
        stats: a.stats.as_mut().map(write),
    };
    let mut dhead = Dhead::of(a.dhead.as_mut().map(|dhead| write(dhead).address()), a.dhead_write);
    let dhidden = write(&mut a.dhidden);
    k.clear(a.dhidden)?;
    for chunk in &chunks {
        let seqs = chunk.seqs.clone();
        let behind = at.behind(dhead.map_or(0, |dhead| dhead.carry.rows), d);
        if !chunk.rows.is_empty() {
            chunk_forward(k, &o, &behind, chunk.rows.clone(), true)?;
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
            chunk_backward(k, &o, &behind, chunk.rows.clone(), read(a.dlogp.as_view()), at.sums)?;
            gather(k, d, ConstPtr::new(at.sums, 0), chunk.rows.clone(), a.runs, dhidden)?;
            if let Some(dhead) = &mut dhead {
                add_to_dhead(k, &o, &at, chunk.rows.len(), dhead, chunk.rows.end == d.rows)?;
            }
        }
    }
    Ok(())
}
