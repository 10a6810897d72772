//! Host layout of a packed batch: one index array, one number array, and the range of each table.
//! Needs no device.

use std::ops::Range;

use super::padding::{segment_ends, tree_ends};
use crate::backend::contract::*;
use crate::data::pack::{Batch, BatchLimits};

/// Index tables of a batch, in buffer order.
#[derive(Clone, Copy)]
pub(in crate::train) enum Index {
    Ids,
    Positions,
    IdOrder,
    IdOffsets,
    IdKeys,
    Starts,
    AncestorOffsets,
    Ancestors,
    Trees,
    Source,
    Target,
    HeadOrder,
    HeadOffsets,
    HeadKeys,
    SeqOffsets,
    LastRows,
    TermSequence,
    TermSign,
    Kind,
    UseOffsets,
    Uses,
}
pub(in crate::train) const INDICES: usize = Index::Uses as usize + 1;

/// Number tables of a batch, in buffer order.
#[derive(Clone, Copy)]
pub(in crate::train) enum Number {
    Scale,
    Margin,
    Weight,
    DetachedClip,
    KindScale,
    /// (seqs) direct gradient of each score; empty without one.
    Direct,
    /// (seqs) cached scores of the frozen reference; empty without a cache.
    Frozen,
}
pub(in crate::train) const NUMBERS: usize = Number::Frozen as usize + 1;

/// Sizes of a batch, which the host needs to launch ops.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchSizes {
    pub tokens: usize,
    /// Head rows; 0 for rewards.
    pub rows: usize,
    pub seqs: usize,
    pub comparisons: usize,
    pub segments: usize,
    pub ancestors: usize,
    pub trees: usize,
    pub pairs: u64,
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
}

/// Batch laid out for transfer.
#[derive(Debug, Default)]
pub struct HostBatch {
    pub(in crate::train) indices: Vec<i32>,
    pub(in crate::train) numbers: Vec<f64>,
    pub(in crate::train) index_ranges: [Range<usize>; INDICES],
    pub(in crate::train) number_ranges: [Range<usize>; NUMBERS],
    /// Ends of the groups; padding is one more group.
    pub(in crate::train) groups: Vec<GroupEnd>,
    pub sizes: BatchSizes,
}

/// Per-sequence numbers of a batch; each is empty or (seqs).
#[derive(Clone, Copy, Default)]
pub struct SequenceNumbers<'a> {
    /// Direct gradient of each score.
    pub direct: &'a [f64],
    /// Cached scores of the frozen reference.
    pub frozen: &'a [f64],
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

/// Inserts `padding` behind each array and updates the ranges.
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
    /// Lays out a batch. `kind_scale` is the weight of each comparison kind over its count in the
    /// global batch.
    pub fn lay_out(&mut self, batch: &Batch, kind_scale: [f64; KINDS], of_seqs: SequenceNumbers<'_>) {
        self.index_ranges = concatenate(
            &mut self.indices,
            [
                &batch.ids,
                &batch.positions,
                &batch.id_runs.order,
                &batch.id_runs.offsets,
                &batch.id_runs.keys,
                &batch.tree.starts,
                &batch.tree.ancestor_offsets,
                &batch.tree.ancestors,
                &batch.tree.trees,
                &batch.source,
                &batch.target,
                &batch.head_runs.order,
                &batch.head_runs.offsets,
                &batch.head_runs.keys,
                &batch.seq_offsets,
                &batch.last_rows,
                &batch.comparisons.term_sequence,
                &batch.comparisons.term_sign,
                &batch.comparisons.kind,
                &batch.comparisons.use_offsets,
                &batch.comparisons.uses,
            ],
        );
        let table = &batch.comparisons;
        self.number_ranges = concatenate(
            &mut self.numbers,
            [
                &table.scale,
                &table.margin,
                &table.weight,
                &table.detached_clip,
                &kind_scale,
                of_seqs.direct,
                of_seqs.frozen,
            ],
        );
        self.groups.clone_from(&batch.group_ends);
        self.sizes = BatchSizes::of(batch);
    }

    /// Pads the batch to the larger `shape`; see [`crate::train::batch::padding`].
    pub fn pad(&mut self, shape: &BatchLimits) {
        let s = self.sizes;
        let last_token = shape.tokens as i32 - 1;
        let fill = |value: i32, count: usize| vec![value; count];
        let int = |places: &mut dyn Iterator<Item = usize>| places.map(|i| i as i32).collect::<Vec<i32>>();
        let (tokens, rows, seqs) = (shape.tokens - s.tokens, shape.rows - s.rows, shape.seqs - s.seqs);
        let (segments, trees) = (shape.segments - s.segments, shape.trees - s.trees);
        let terms = TERMS * (shape.comparisons - s.comparisons);
        let length = |index: Index| self.index_ranges[index as usize].len();
        let last = |index: Index| self.index_ranges[index as usize].end.checked_sub(1).map_or(0, |i| self.indices[i]);
        let last_rows = if shape.rows == 0 { seqs } else { 0 };
        let padding: [Vec<i32>; INDICES] = [
            fill(0, tokens),
            fill(0, tokens),
            int(&mut (s.tokens..shape.tokens)),
            fill(shape.tokens as i32, shape.tokens - length(Index::IdKeys)),
            fill(-1, shape.tokens - length(Index::IdKeys)),
            int(&mut segment_ends(s.tokens, tokens, segments)),
            fill(last(Index::AncestorOffsets), segments),
            fill(0, shape.ancestors - s.ancestors),
            int(&mut tree_ends(s.segments, segments, trees)),
            fill(last_token, rows),
            fill(0, rows),
            int(&mut (s.rows..shape.rows)),
            fill(shape.rows as i32, shape.rows - length(Index::HeadKeys)),
            fill(-1, shape.rows - length(Index::HeadKeys)),
            fill(shape.rows as i32, seqs),
            fill(last_token, last_rows),
            fill(-1, terms),
            fill(0, terms),
            fill(0, terms / TERMS),
            fill(last(Index::UseOffsets), seqs),
            fill(0, TERMS * shape.comparisons - length(Index::Uses)),
        ];
        insert_padding(&mut self.indices, &mut self.index_ranges, &padding);
        let filled = |present: usize, count: usize| if present == 0 { 0 } else { count };
        let length = |number: Number| self.number_ranges[number as usize].len();
        let padding: [Vec<f64>; NUMBERS] = [
            vec![1.0; terms / TERMS],
            vec![0.0; terms / TERMS],
            vec![0.0; terms / TERMS],
            vec![0.0; 2 * (terms / TERMS)],
            Vec::new(),
            vec![0.0; filled(length(Number::Direct), seqs)],
            vec![0.0; filled(length(Number::Frozen), seqs)],
        ];
        insert_padding(&mut self.numbers, &mut self.number_ranges, &padding);
        self.groups.push(GroupEnd { row: shape.rows, seq: shape.seqs });
        self.sizes = BatchSizes {
            tokens: shape.tokens,
            rows: shape.rows,
            seqs: shape.seqs,
            comparisons: shape.comparisons,
            segments: shape.segments,
            ancestors: shape.ancestors,
            trees: shape.trees,
            pairs: s.pairs,
            longest_path: shape.longest_path,
        };
    }

    /// (seqs) direct gradient of each score; empty without one.
    pub fn direct(&self) -> &[f64] {
        &self.numbers[self.number_ranges[Number::Direct as usize].clone()]
    }

    /// Number of indices and numbers to transfer.
    pub fn len(&self) -> (usize, usize) {
        (self.indices.len(), self.numbers.len())
    }
}
