//! A packed batch laid out for transfer: one index array, one number array, and the range of each
//! table (`layout.rs` lists the tables). Needs no device.

use std::ops::Range;

use super::layout::{Index, Number, SequenceNumbers, Source};
use crate::backend::contract::*;
use crate::data::pack::{Batch, BatchLimits};

/// Sizes of a batch, which the host needs to launch ops.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchSizes {
    /// Tokens of the batch.
    pub tokens: usize,
    /// Number of head rows; 0 for reward models.
    pub rows: usize,
    /// Number of sequences.
    pub seqs: usize,
    /// Number of comparisons.
    pub comparisons: usize,
    /// Segments of the trees.
    pub segments: usize,
    /// Entries of all ancestor lists.
    pub ancestors: usize,
    /// Number of trees.
    pub trees: usize,
    /// Pairs of query and key that attention computes.
    pub pairs: u64,
    /// Tokens of the longest path.
    pub longest_path: usize,
}

impl BatchSizes {
    /// Sizes of a packed batch.
    pub fn of(batch: &Batch) -> Self {
        Self {
            tokens: batch.tokens(),
            rows: batch.head_rows(),
            seqs: batch.seqs(),
            comparisons: batch.comparison_count(),
            segments: batch.segments(),
            ancestors: batch.tree.ancestors.len(),
            trees: batch.trees(),
            pairs: batch.pairs,
            longest_path: batch.longest_path,
        }
    }

    /// Sizes of a batch that reaches the limits, with `pairs` visible (query, key) pairs.
    pub(in crate::train) fn of_limits(limits: &BatchLimits, pairs: u64) -> Self {
        Self {
            tokens: limits.tokens,
            rows: limits.rows,
            seqs: limits.seqs,
            comparisons: limits.comparisons,
            segments: limits.segments,
            ancestors: limits.ancestors,
            trees: limits.trees,
            pairs,
            longest_path: limits.longest_path,
        }
    }
}

/// Batch laid out for transfer.
#[derive(Debug, Default)]
pub struct HostBatch {
    pub(in crate::train) indices: Vec<i32>,
    pub(in crate::train) numbers: Vec<f64>,
    pub(in crate::train) index_ranges: [Range<usize>; Index::COUNT],
    pub(in crate::train) number_ranges: [Range<usize>; Number::COUNT],
    /// Ends of the groups; padding counts as one more group.
    pub(in crate::train) groups: Vec<GroupEnd>,
    /// Number of visible (query, key) pairs by distance ([`distances`]).
    pub(in crate::train) distances: Vec<u32>,
    /// Weight of the tails (response tokens beyond the shared length), if the loss has one.
    pub(in crate::train) tail_alpha: Option<f64>,
    pub sizes: BatchSizes,
}

/// Number of visible (query, key) pairs at each distance from 0 to `longest_path` - 1. A query at position
/// p sees one key at each distance up to p.
fn distances(positions: &[i32], longest_path: usize, counts: &mut Vec<u32>) {
    counts.clear();
    counts.resize(longest_path, 0);
    for &position in positions {
        counts[position as usize] += 1;
    }
    let mut queries = 0;
    for count in counts.iter_mut().rev() {
        queries += *count;
        *count = queries;
    }
}

/// Concatenates arrays into `staging` and returns the range of each.
fn concatenate<T: Copy, const N: usize>(staging: &mut Vec<T>, arrays: [&[T]; N]) -> [Range<usize>; N] {
    staging.clear();
    arrays.map(|array| {
        let start = staging.len();
        staging.extend_from_slice(array);
        start..staging.len()
    })
}

/// Inserts `padding` after each array and updates the ranges.
fn insert_padding<T: Copy, const N: usize>(values: &mut Vec<T>, ranges: &mut [Range<usize>; N], padding: &[Vec<T>; N]) {
    let mut all = Vec::with_capacity(values.len() + padding.iter().map(Vec::len).sum::<usize>());
    for (range, padding) in ranges.iter_mut().zip(padding) {
        let start = all.len();
        all.extend_from_slice(&values[range.clone()]);
        all.extend_from_slice(padding);
        *range = start..all.len();
    }
    *values = all;
}

impl HostBatch {
    /// Lays out a batch. `kind_scale` is the weight of each comparison kind divided by its count in the
    /// global batch.
    pub fn lay_out(&mut self, batch: &Batch, kind_scale: [f64; KINDS], of_seqs: SequenceNumbers<'_>) {
        let source = Source { batch, kind_scale: &kind_scale, of_seqs };
        self.index_ranges = concatenate(&mut self.indices, Index::sources(&source));
        self.number_ranges = concatenate(&mut self.numbers, Number::sources(&source));
        self.groups.clone_from(&batch.group_ends);
        self.tail_alpha = of_seqs.tail_alpha;
        distances(&batch.positions, batch.longest_path, &mut self.distances);
        self.sizes = BatchSizes::of(batch);
    }

    /// Pads the batch to the larger `shape`; see [`crate::train::batch::padding`].
    pub fn pad(&mut self, shape: &BatchLimits) {
        let s = self.sizes;
        let (lengths, paddings) = (Index::lengths(shape), Index::paddings(shape));
        let padding: [Vec<i32>; Index::COUNT] = std::array::from_fn(|i| {
            let table = &self.indices[self.index_ranges[i].clone()];
            paddings[i].values(table, lengths[i], (s.tokens, s.segments), shape)
        });
        insert_padding(&mut self.indices, &mut self.index_ranges, &padding);
        let (lengths, paddings) = (Number::lengths(shape), Number::paddings(shape));
        let padding: [Vec<f64>; Number::COUNT] =
            std::array::from_fn(|i| paddings[i].values(self.number_ranges[i].len(), lengths[i]));
        insert_padding(&mut self.numbers, &mut self.number_ranges, &padding);
        self.groups.push(GroupEnd { row: shape.rows, seq: shape.seqs });
        self.sizes = BatchSizes::of_limits(shape, s.pairs);
    }

    /// (seqs) gradient of each score that does not come from comparisons; empty if the loss has none.
    pub fn direct(&self) -> &[f64] {
        &self.numbers[self.number_ranges[Number::Direct as usize].clone()]
    }

    /// Lengths of the index array and of the number array.
    pub fn len(&self) -> (usize, usize) {
        (self.indices.len(), self.numbers.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_within_every_window_are_the_sum_over_distances() {
        // Positions of a prompt of 3 tokens with responses of 2 and 4 tokens, and of a separate sequence of 1
        // token.
        let positions = [0, 1, 2, 3, 4, 3, 4, 5, 6, 0];
        let mut counts = vec![9; 20];
        distances(&positions, 7, &mut counts);
        for window in 1..9 {
            let expected: i32 = positions.iter().map(|p| (p + 1).min(window)).sum();
            assert_eq!(counts.iter().take(window as usize).sum::<u32>() as i32, expected, "window {window}");
        }
    }
}
