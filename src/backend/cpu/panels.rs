//! Keys or values of a path, transposed for `scores = queries keysᵀ`.
//!
//! In a plain transposed matrix of a long path, rows would be pages apart and would evict each other from the
//! cache. Here the tokens are stored in consecutive panels of [`WIDTH`] tokens, (head_dim, WIDTH) each.

use std::ops::Range;

use super::Cpu;
use super::attention::Heads;
use super::element::Element;
use super::matmul::matmul;
use super::scratch::Scratch;
use super::simd::{LANES, SQUARE, transpose};
use super::tile::{Mat, Tile};
use crate::backend::Write;

/// Tokens of a panel. A panel of heads of 64 elements occupies 16 KiB, a third of an L1 cache of 48 KiB.
const WIDTH: usize = 64;

/// Transposed rows of a path.
pub(super) struct Panels<'a> {
    head_dim: usize,
    data: Scratch<'a>,
}

impl<'a> Panels<'a> {
    /// Panels with space for `capacity` tokens.
    pub fn new<A: Element>(cpu: &'a Cpu<A>, head_dim: usize, capacity: usize) -> Self {
        Self { head_dim, data: cpu.scratch.take(head_dim * capacity.next_multiple_of(WIDTH)) }
    }

    /// Copies the head at offset `first` of the fused rows to the tokens from `position` on.
    pub fn join(&mut self, qkv: &[f32], rows: Range<usize>, position: usize, first: usize, h: &Heads) {
        let head = |row: usize| &qkv[row * h.width + first..][..h.head_dim];
        let (mut row, mut at) = (rows.start, position);
        while row < rows.end {
            let count = SQUARE.min(rows.end - row).min(WIDTH - at % WIDTH);
            let panel = &mut self.data[at / WIDTH * WIDTH * self.head_dim..][..WIDTH * self.head_dim];
            let column = at % WIDTH;
            // Transposes whole squares, then copies the remaining elements one by one.
            let whole = if count == SQUARE { self.head_dim / SQUARE * SQUARE } else { 0 };
            for c in (0..whole).step_by(SQUARE) {
                transpose(&mut panel[c * WIDTH + column..], WIDTH, &qkv[row * h.width + first + c..], h.width);
            }
            for t in 0..count {
                for (c, x) in head(row + t).iter().enumerate().skip(whole) {
                    panel[c * WIDTH + column + t] = *x;
                }
            }
            row += count;
            at += count;
        }
    }

    /// `scores = left selfᵀ` for the tokens `keys`, which start at a multiple of [`WIDTH`]. `scores` has a
    /// row stride of [`score_stride`].
    pub fn product(&self, scores: &mut [f32], left: Mat<'_>, keys: Range<usize>) {
        debug_assert!(keys.start.is_multiple_of(WIDTH));
        let (stride, data) = (score_stride(keys.len()), &self.data[keys.start * self.head_dim..]);
        for (i, panel) in data.chunks_exact(WIDTH * self.head_dim).enumerate().take(keys.len().div_ceil(WIDTH)) {
            let cols = WIDTH.min(keys.len() - i * WIDTH);
            let mut tile = Tile::new(&mut scores[i * WIDTH..], left.rows, cols, stride);
            matmul(&mut tile, left, Mat::new(panel, self.head_dim, cols, WIDTH), Write::Overwrite);
        }
    }
}

/// Elements from one row of scores to the next: an odd number of cache lines, so that neighbouring
/// rows do not evict each other.
pub(super) fn score_stride(keys: usize) -> usize {
    (keys.div_ceil(LANES) | 1) * LANES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_rows_that_join_at_any_position() {
        let (head_dim, width, tokens) = (20, 50, 150);
        let h = Heads { head_dim, group: 1, width, query: 0, key: 0, value: 0 };
        let qkv: Vec<f32> = (0..tokens * width).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
        let left: Vec<f32> = (0..3 * head_dim).map(|i| (i % 7) as f32 - 3.0).collect();
        let cpu = Cpu::new();
        let mut panels = Panels::new(&cpu, head_dim, tokens);
        for rows in [0..5, 5..61, 61..62, 62..150] {
            panels.join(&qkv, rows.clone(), rows.start, 7, &h);
        }
        for keys in [0..16, 0..64, 0..80, 0..150, 64..80, 128..150] {
            let stride = score_stride(keys.len());
            let mut scores = vec![0.0; 3 * stride];
            panels.product(&mut scores, Mat::new(&left, 3, head_dim, head_dim), keys.clone());
            for (r, key) in (0..3).flat_map(|r| keys.clone().map(move |key| (r, key))) {
                let products = (0..head_dim).map(|c| left[r * head_dim + c] * qkv[key * width + 7 + c]);
                assert_eq!(scores[r * stride + key - keys.start], products.sum::<f32>(), "row {r}, key {key}");
            }
        }
    }
}
