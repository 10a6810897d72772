//! Vocabulary head: projection, log-softmax and gather without stored logits. Also log-softmax and gather of
//! stored logits. A head row is a (hidden row, target token) pair. The head rows are split into strips, the
//! vocabulary into panels.
//!
//! ```text
//! forward:
//!     gather the hidden rows of the head rows
//!     for each strip and panel, in parallel:
//!         logits = rows[strip] head[panel]ᵀ, soft-capped  // at most 512 KiB of workspace
//!         store per row: max, sum of exp(logit - max), logit of the target
//!     for each row: lse = logsumexp over the panels;  logp = target logit - lse
//! backward:
//!     gather the hidden rows of the head rows
//!     for each block of 4 strips by 4 panels:
//!         dlogits = dlogp (onehot - exp(logits - lse))    // logits recomputed, 8 MiB of workspace
//!         dlogits *= slopes of the soft cap
//!         drows[strips] += dlogits head[panels]
//!         dhead[panels] += dlogitsᵀ rows[strips]          // unless the head is frozen
//!     sum drows over the head rows of each hidden row
//! ```
//!
//! The panels depend only on the size of the vocabulary, so the result of a row does not depend on
//! the other rows.

use std::ops::Range;

use rayon::prelude::*;

use super::Cpu;
use super::element::Element;
use super::embedding::{add_runs, gather};
use super::head_stats;
use super::math::{cap_row, cap_row_bwd, exp, softmax_row};
use super::rows::rows_of_task;
use super::simd::vectorised;
use super::tile::{Grid, Mat, Tile, bounds};
use crate::backend::Write;
use crate::backend::contract::*;

/// Maximum number of head rows in a strip. The bounds of strips are multiples of [`STRIP_UNIT`].
const STRIP: usize = 256;
const STRIP_UNIT: usize = 16;
/// Maximum number of vocabulary entries of a panel, and the accumulation depth of a GEMM with
/// dlogits. The bounds of panels are multiples of [`PANEL_UNIT`].
const PANEL: usize = 512;
const PANEL_UNIT: usize = 64;
/// Number of values stored per row and panel: largest logit, sum of exponentials, and the logit of the target
/// if the panel contains it. The values of `head_stats.rs` follow if statistics are requested.
pub(super) const PANEL_STATS: usize = 3;

/// Returns the range from bound `i` to the next one.
fn between(bounds: &[usize], i: usize) -> Range<usize> {
    bounds[i]..bounds[i + 1]
}

/// Index of the panel that contains a token.
fn panel_of(panels: &[usize], token: usize) -> usize {
    panels.partition_point(|&start| start <= token) - 1
}

pub(super) fn head_logprob_fwd<A: Element>(cpu: &Cpu<A>, a: HeadLogprobFwd<'_, Cpu<A>>) {
    let (d, target) = (a.dims, a.target.slice());
    let mut rows = cpu.room::<A>(d.rows * d.hidden);
    gather(&mut rows, a.hidden.slice(), a.source.slice(), d.hidden);
    let rows = Mat::new(&rows, d.rows, d.hidden, d.hidden);
    let head = Mat::new(a.head.slice(), d.vocab, d.hidden, d.hidden);
    let (strips, panels) = (bounds(d.rows, STRIP, STRIP_UNIT), bounds(d.vocab, PANEL, PANEL_UNIT));
    let (down, across) = (strips.len() - 1, panels.len() - 1);

    let per_panel = PANEL_STATS + if a.stats.is_some() { head_stats::PANEL_VALUES } else { 0 };
    let mut stats = cpu.scratch.take(across * per_panel * d.rows);
    let grid = Grid::new(&mut stats, d.rows, (0..=across).map(|p| p * per_panel).collect(), strips.clone());
    (0..down * across).into_par_iter().with_max_len(1).for_each(|task| {
        let (strip, panel) = (between(&strips, task % down), between(&panels, task / down));
        let mut stats = grid.claim(task / down, task % down);
        let width = panel.len();
        let mut logits = cpu.scratch.take(strip.len() * width);
        let mut tile = Tile::new(&mut logits, strip.len(), width, width);
        cpu.product(&mut tile, rows.rows(strip.clone()), head.rows(panel.clone()).t(), Write::Overwrite);
        let mut copy = cpu.scratch.take(if a.stats.is_some() { width } else { 0 });
        for (i, r) in strip.enumerate() {
            let row = tile.row(i);
            if let Some(cap) = d.softcap {
                cap_row(row, cap as f32);
            }
            if a.stats.is_some() {
                copy.copy_from_slice(row);
            }
            if panel.contains(&(target[r] as usize)) {
                stats.row(2)[i] = row[target[r] as usize - panel.start];
            }
            (stats.row(0)[i], stats.row(1)[i]) = softmax_row(row);
            if a.stats.is_some() {
                let largest = stats.row(0)[i];
                let values = head_stats::of_panel(&copy, row, largest, (target[r] as usize, panel.start));
                values.into_iter().enumerate().for_each(|(value, x)| stats.row(PANEL_STATS + value)[i] = x);
            }
        }
    });
    drop(grid);
    if let Some(out) = a.stats {
        head_stats::join(out.into_slice(), (d.rows, d.vocab), &stats, |r| panel_of(&panels, target[r] as usize));
    }

    a.logp.into_slice().par_chunks_mut(STRIP).zip(a.lse.into_slice().par_chunks_mut(STRIP)).enumerate().for_each(
        |(chunk, (logp, lse))| {
            for (i, (logp, lse)) in logp.iter_mut().zip(lse).enumerate() {
                let r = chunk * STRIP + i;
                let at = |panel: usize, value: usize| stats[(panel * per_panel + value) * d.rows + r];
                let largest = (0..across).map(|p| at(p, 0)).fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
                // A panel with only -inf adds 0. The comparisons ignore NaN, but the sum of a panel with NaN
                // is NaN.
                let share = |p| if at(p, 0) == largest { at(p, 1) } else { at(p, 1) * (at(p, 0) - largest).exp() };
                *lse = logsumexp(largest, (0..across).map(share).sum());
                *logp = at(panel_of(&panels, target[r] as usize), 2) - *lse;
            }
        },
    );
}

/// Maximum number of strips, and of panels, in a block of the backward.
const BLOCK: usize = 4;

pub(super) fn head_logprob_bwd<A: Element>(cpu: &Cpu<A>, a: HeadLogprobBwd<'_, Cpu<A>>) {
    let (d, target, lse, dlogp) = (a.dims, a.target.slice(), a.lse.slice(), a.dlogp.slice());
    let (dhidden, mut dhead) = (a.dhidden.into_slice(), a.dhead.map(|g| g.into_slice()));
    if d.rows == 0 || d.hidden == 0 {
        dhidden.fill(A::zeroed());
        if let (Some(dhead), Write::Overwrite) = (dhead, a.dhead_write) {
            dhead.par_chunks_mut(1 << 16).for_each(|x| x.fill(0.0));
        }
        return;
    }
    let mut rows = cpu.room::<A>(d.rows * d.hidden);
    gather(&mut rows, a.hidden.slice(), a.source.slice(), d.hidden);
    let rows = Mat::new(&rows, d.rows, d.hidden, d.hidden);
    let head = Mat::new(a.head.slice(), d.vocab, d.hidden, d.hidden);
    let (strips, panels) = (bounds(d.rows, STRIP, STRIP_UNIT), bounds(d.vocab, PANEL, PANEL_UNIT));
    let columns = bounds(d.hidden, 192, 64);
    let mut drows = cpu.scratch.take(d.rows * d.hidden);
    let mut block = cpu.room::<A>(BLOCK * BLOCK * STRIP * PANEL);

    for first_strip in (0..strips.len() - 1).step_by(BLOCK) {
        let down = BLOCK.min(strips.len() - 1 - first_strip);
        for first_panel in (0..panels.len() - 1).step_by(BLOCK) {
            let across = BLOCK.min(panels.len() - 1 - first_panel);
            let strip = |i: usize| between(&strips, first_strip + i);
            let panel = |j: usize| between(&panels, first_panel + j);
            block[..down * across * STRIP * PANEL].par_chunks_mut(STRIP * PANEL).enumerate().with_max_len(1).for_each(
                |(task, logits)| {
                    let (strip, panel) = (strip(task % down), panel(task / down));
                    let stored = Tile::new(logits, strip.len(), panel.len(), PANEL);
                    let mut stored = cpu.store_tile(stored, Write::Overwrite);
                    let mut tile = stored.tile();
                    cpu.product(&mut tile, rows.rows(strip.clone()), head.rows(panel.clone()).t(), Write::Overwrite);
                    let mut capped = cpu.scratch.take(d.softcap.map_or(0, |_| panel.len()));
                    for (i, r) in strip.enumerate() {
                        let target = (target[r] as usize).wrapping_sub(panel.start);
                        if let Some(cap) = d.softcap {
                            cap_row(tile.row(i), cap as f32);
                            capped.copy_from_slice(tile.row(i));
                        }
                        dlogits(tile.row(i), target, lse[r], dlogp[r]);
                        // `dlogits` has already zeroed a row with a `dlogp` of 0, whatever its logits are.
                        if let Some(cap) = d.softcap.filter(|_| dlogp[r] != 0.0) {
                            cap_row_bwd(tile.row(i), &capped, cap as f32);
                        }
                    }
                },
            );
            let dlogits = |i: usize, j: usize| {
                let tile = &block[(j * down + i) * STRIP * PANEL..][..STRIP * PANEL];
                Mat::new(tile, strip(i).len(), panel(j).len(), PANEL)
            };
            let row_bounds = strips[first_strip..=first_strip + down].to_vec();
            let panel_bounds = panels[first_panel..=first_panel + across].to_vec();
            let drows = Grid::new(&mut drows, d.hidden, row_bounds, columns.clone());
            let dhead = dhead.as_mut().map(|g| Grid::new(&mut g[..], d.hidden, panel_bounds, columns.clone()));
            let slabs = columns.len() - 1;
            let parts = down + if dhead.is_some() { across } else { 0 };
            (0..parts * slabs).into_par_iter().with_max_len(1).for_each(|task| {
                let (part, slab) = (task / slabs, task % slabs);
                let columns = between(&columns, slab);
                if part < down {
                    let mut out = drows.claim(part, slab);
                    for j in 0..across {
                        let write = if first_panel + j == 0 { Write::Overwrite } else { Write::Add };
                        cpu.product(&mut out, dlogits(part, j), head.rows(panel(j)).cols(columns.clone()), write);
                    }
                } else if let Some(dhead) = &dhead {
                    let j = part - down;
                    let mut out = dhead.claim(j, slab);
                    for i in 0..down {
                        let write = if first_strip + i == 0 { a.dhead_write } else { Write::Add };
                        cpu.product(&mut out, dlogits(i, j).t(), rows.rows(strip(i)).cols(columns.clone()), write);
                    }
                }
            });
        }
    }
    add_runs(cpu, dhidden, &drows[..], a.runs, d.hidden, Write::Overwrite);
}

/// Logsumexp from the largest element of a row and its sum of exponentials; `-inf` for a row in
/// which all elements are `-inf`.
pub(super) fn logsumexp(largest: f32, sum: f32) -> f32 {
    if largest == f32::NEG_INFINITY && sum == 0.0 { largest } else { largest + sum.ln() }
}

pub(super) fn logprob_fwd<A: Element>(cpu: &Cpu<A>, a: LogprobFwd<'_, Cpu<A>>) {
    let (logits, target, vocab) = (a.logits.slice(), a.target.slice(), a.vocab);
    let rows = rows_of_task(vocab);
    a.logp.into_slice().par_chunks_mut(rows).zip(a.lse.into_slice().par_chunks_mut(rows)).enumerate().for_each(
        |(task, (logp, lse))| {
            let mut scratch = cpu.scratch.take(vocab);
            for (i, (logp, lse)) in logp.iter_mut().zip(lse).enumerate() {
                let r = task * rows + i;
                let row = &cpu.load(&logits[r * vocab..(r + 1) * vocab])[..];
                scratch.copy_from_slice(row);
                let (largest, sum) = softmax_row(&mut scratch);
                *lse = logsumexp(largest, sum);
                *logp = row[target[r] as usize] - *lse;
            }
        },
    );
}

pub(super) fn logprob_bwd<A: Element>(cpu: &Cpu<A>, a: LogprobBwd<'_, Cpu<A>>) {
    let (target, lse, dlogp, vocab) = (a.target.slice(), a.lse.slice(), a.dlogp.slice(), a.vocab);
    if vocab == 0 {
        return;
    }
    a.logits_to_dlogits
        .into_slice()
        .par_chunks_mut(vocab)
        .enumerate()
        .for_each(|(r, row)| dlogits(&mut cpu.update(row), target[r] as usize, lse[r], dlogp[r]));
}

vectorised! {
    /// `row <- dlogp (onehot(target) - e^(row - lse))`. A target outside the row is ignored. If
    /// `dlogp` is 0, the row becomes 0, whatever its logits are.
    pub(super) fn dlogits(row: &mut [f32], target: usize, lse: f32, dlogp: f32) {
        if dlogp == 0.0 {
            row.fill(0.0);
            return;
        }
        let target_value = row.get(target).map(|x| dlogp * (1.0 - exp::<FMA>(*x - lse)));
        for x in row.iter_mut() {
            *x = -dlogp * exp::<FMA>(*x - lse);
        }
        if let (Some(target_value), Some(x)) = (target_value, row.get_mut(target)) {
            *x = target_value;
        }
    }
}
