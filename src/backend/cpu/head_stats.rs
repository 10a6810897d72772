//! Entropy, mean logit and top-1 of the head rows (rows of logits, each with its target token), from values per
//! row and panel of the vocabulary:
//!
//! ```text
//! panel, with m its largest logit:  s = sum e^(z - m);  w = sum (z - m) e^(z - m);  t = sum z;
//!                                   rival = max over the tokens after the target of z,
//!                                           and over those before it of the next float above z
//! row, with m the largest logit:    f = e^(m of the panel - m);  S = sum f s
//!                                   W = sum f (w + (m of the panel - m) s)
//!     entropy = ln S - W / S;  mean = sum t / vocab;  is_top1 = logit of the target >= rival
//! ```
//!
//! No term of the entropy is negative, so nothing cancels.

use rayon::prelude::*;

use super::head::PANEL_STATS;
use super::simd::{LANES, fma, max, sum_lanes, vectorised};
use crate::backend::contract::ROW_STATS;

/// Number of values stored per row and panel: w, t and rival.
pub(super) const PANEL_VALUES: usize = 3;
/// Rows of a parallel task.
const ROWS: usize = 256;

/// Returns w, t and rival of a row's panel, which starts at token `start`. `exps` are the exponentials of
/// `logits` minus `largest`, the largest of them.
pub(super) fn of_panel(
    logits: &[f32],
    exps: &[f32],
    largest: f32,
    (target, start): (usize, usize),
) -> [f32; PANEL_VALUES] {
    let (weighted, total) = sums(logits, exps, largest);
    let before = target.saturating_sub(start).min(logits.len());
    let after = if target < start { 0 } else { (before + 1).min(logits.len()) };
    let (earlier, later) = (largest_of(&logits[..before]), largest_of(&logits[after..]));
    [weighted, total, earlier.next_up().max(later)]
}

vectorised! {
    /// w and t of a panel. A logit of -inf adds 0 to w.
    fn sums(logits: &[f32], exps: &[f32], largest: f32) -> (f32, f32) {
        let (mut weighted, mut total) = ([0.0; LANES], [0.0; LANES]);
        let mut add = |i: usize, z: f32, e: f32| {
            let distance = if e == 0.0 { 0.0 } else { z - largest };
            weighted[i] = fma::<FMA>(distance, e, weighted[i]);
            total[i] += z;
        };
        let (z, e) = (logits.chunks_exact(LANES), exps.chunks_exact(LANES));
        let (z_tail, e_tail) = (z.remainder(), e.remainder());
        for (z, e) in z.zip(e) {
            for i in 0..LANES {
                add(i, z[i], e[i]);
            }
        }
        for (i, (z, e)) in z_tail.iter().zip(e_tail).enumerate() {
            add(i, *z, *e);
        }
        (sum_lanes(weighted), sum_lanes(total))
    }
}

vectorised! {
    fn largest_of(logits: &[f32]) -> f32 {
        max(logits)
    }
}

/// Writes the statistics of all rows to `out` (ROW_STATS, rows). `values` is (panels, PANEL_STATS +
/// PANEL_VALUES, rows). `panel_of` returns the panel of a row's target.
pub(super) fn join(
    out: &mut [f32],
    (rows, vocab): (usize, usize),
    values: &[f32],
    panel_of: impl Fn(usize) -> usize + Sync,
) {
    const FIELDS: usize = PANEL_STATS + PANEL_VALUES;
    if rows == 0 {
        return;
    }
    let panels = values.len() / (FIELDS * rows);
    let of_row = |r: usize| -> [f32; ROW_STATS] {
        let at = |panel: usize, value: usize| values[(panel * FIELDS + value) * rows + r];
        let over =
            |value: usize| (0..panels).map(|p| at(p, value)).fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
        let (largest, rival) = (over(0), over(PANEL_STATS + 2));
        let (mut sum, mut weighted, mut total) = (0.0, 0.0, 0.0);
        for p in 0..panels {
            // A panel with only -inf adds 0, or NaN if it has NaN.
            let (below, factor) = match at(p, 0) - largest {
                _ if at(p, 0) == largest => (0.0, 1.0),
                _ if at(p, 0) == f32::NEG_INFINITY => (0.0, 0.0),
                below => (below, below.exp()),
            };
            sum += factor * at(p, 1);
            weighted += factor * (at(p, PANEL_STATS) + below * at(p, 1));
            total += at(p, PANEL_STATS + 1);
        }
        let entropy = sum.ln() - weighted / sum;
        let top1 = at(panel_of(r), 2) >= rival && !sum.is_nan();
        [entropy, total / vocab as f32, f32::from(u8::from(top1))]
    };
    let (entropy, rest) = out.split_at_mut(rows);
    let (mean, top1) = rest.split_at_mut(rows);
    let parts = entropy.par_chunks_mut(ROWS).zip(mean.par_chunks_mut(ROWS)).zip(top1.par_chunks_mut(ROWS));
    parts.enumerate().for_each(|(task, ((entropy, mean), top1))| {
        for i in 0..entropy.len() {
            [entropy[i], mean[i], top1[i]] = of_row(task * ROWS + i);
        }
    });
}
