//! Row loops that several ops share, and the final sum of an op that splits the tokens into slices.

use std::ops::Range;

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

/// Copies `length` elements, from `first` on, of each of the `rows` of a matrix to consecutive rows of `to`.
/// The rows of the matrix are `stride` elements apart.
pub(super) fn copy_rows<T: Copy>(
    to: &mut [T],
    from: &[T],
    rows: Range<usize>,
    (first, length, stride): (usize, usize, usize),
) {
    /// Rows of a length known at compile time. A call of memcpy costs more than a short row.
    fn short<T: Copy, const N: usize>(to: &mut [T], from: &[T], stride: usize) {
        for (row, to) in to.as_chunks_mut::<N>().0.iter_mut().enumerate() {
            to.copy_from_slice(&from[row * stride..][..N]);
        }
    }
    if rows.is_empty() || length == 0 {
        return;
    }
    let (to, from) = (&mut to[..rows.len() * length], &from[rows.start * stride + first..]);
    match length {
        16 => short::<T, 16>(to, from, stride),
        24 => short::<T, 24>(to, from, stride),
        32 => short::<T, 32>(to, from, stride),
        48 => short::<T, 48>(to, from, stride),
        64 => short::<T, 64>(to, from, stride),
        _ => {
            for (row, to) in to.chunks_exact_mut(length).enumerate() {
                to.copy_from_slice(&from[row * stride..][..length]);
            }
        }
    }
}

vectorised! {
    /// Adds consecutive rows to those of the tile, from row `first` on.
    pub(super) fn add_to_tile(to: &mut Tile<'_>, first: usize, rows: &[f32]) {
        let cols = to.cols();
        for r in 0..rows.len() / cols {
            let (to, row) = (&mut to.row(first + r)[..cols], &rows[r * cols..][..cols]);
            for i in 0..cols {
                to[i] += row[i];
            }
        }
    }
}
