//! Row loops that several ops share, and the final sum of an op that splits the tokens into slices.

use rayon::prelude::*;

use super::simd::vectorised;
use super::tile::Tile;
use crate::backend::Write;

/// Minimum number of elements of a task: about 5 microseconds of work, far more than the overhead of a task.
const TASK_ELEMENTS: usize = 1 << 14;

/// Number of rows of a task, for rows of `width` elements.
pub(super) fn rows_of_task(width: usize) -> usize {
    (TASK_ELEMENTS / width.max(1)).max(1)
}

vectorised! {
    /// `to += row`.
    pub(super) fn add_rows(to: &mut [f32], row: &[f32]) {
        for (to, x) in to.iter_mut().zip(row) {
            *to += x;
        }
    }
}

/// `out (+)= sum of slices`, in ascending order. `slices` holds consecutive slices of the length of
/// `out`.
pub(super) fn sum_slices(out: &mut [f32], slices: &[f32], write: Write) {
    let width = out.len();
    out.par_chunks_mut(TASK_ELEMENTS).enumerate().for_each(|(i, out)| {
        if write == Write::Overwrite {
            out.fill(0.0);
        }
        slices.chunks_exact(width).for_each(|slice| add_rows(out, &slice[i * TASK_ELEMENTS..][..out.len()]));
    });
}

vectorised! {
    /// `to = factor * from`.
    pub(super) fn scale_into(to: &mut [f32], from: &[f32], factor: f32) {
        for (to, x) in to.iter_mut().zip(from) {
            *to = factor * x;
        }
    }
}

vectorised! {
    /// `to = factor * from` for the heads of a block of tokens, from row `first` of the tile on. A row of the
    /// tile holds `factors.len() / tokens` heads, and every head has one factor.
    pub(super) fn scale_heads(to: &mut Tile<'_>, first: usize, from: &[f32], factors: &[f32], tokens: usize) {
        let (group, cols) = (factors.len() / tokens, to.cols());
        let head_dim = cols / group;
        for t in 0..tokens {
            let row = to.row(first + t);
            for head in 0..group {
                let (start, factor) = (head * head_dim, factors[t * group + head]);
                let (to, from) = (&mut row[start..start + head_dim], &from[t * cols + start..][..head_dim]);
                for i in 0..head_dim {
                    to[i] = factor * from[i];
                }
            }
        }
    }
}

vectorised! {
    /// Adds consecutive rows to those of the tile, from row `first` on.
    pub(super) fn add_to_tile(to: &mut Tile<'_>, first: usize, rows: &[f32]) {
        for (r, row) in rows.chunks_exact(to.cols()).enumerate() {
            for (to, x) in to.row(first + r).iter_mut().zip(row) {
                *to += x;
            }
        }
    }
}
