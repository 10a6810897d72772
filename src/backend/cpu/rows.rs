//! Loops over rows that several ops share, and the sums that end a split over tokens.

use rayon::prelude::*;

use super::simd::vectorised;
use crate::backend::Write;

/// Elements that one task handles at least: about 5 microseconds of work, well above the cost of a task.
const TASK: usize = 1 << 14;

/// Rows of a task for rows of `width` elements.
pub(super) fn rows_of_task(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}

vectorised! {
    /// `to += row`.
    pub(super) fn add_rows(to: &mut [f32], row: &[f32]) {
        for (to, x) in to.iter_mut().zip(row) {
            *to += x;
        }
    }
}

/// `out (+)= sum of slices`, in ascending order; `slices` holds a whole number of them.
pub(super) fn sum_slices(out: &mut [f32], slices: &[f32], write: Write) {
    let width = out.len();
    out.par_chunks_mut(TASK).enumerate().for_each(|(i, out)| {
        if write == Write::Overwrite {
            out.fill(0.0);
        }
        slices.chunks_exact(width).for_each(|slice| add_rows(out, &slice[i * TASK..][..out.len()]));
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
