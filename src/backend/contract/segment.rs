//! Contracts of sums over the rows of each sequence.

use super::{Result, expect, expect_len};
use crate::backend::{Backend, View, ViewMut};

/// Reduction from the values of a sequence's rows to its score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// The sum.
    Sum,
    /// The mean.
    Mean,
}

/// Down-weights the last rows of a sequence (LD-DPO, arXiv 2409.06411). A mean still divides by the number of
/// all rows.
pub struct Tail<'a, B: Backend> {
    /// (seqs) number of rows before the tail of each sequence, stored as `Acc`
    pub starts: View<'a, B::Acc>,
    /// Factor on the values of the tail, from 0 to 1.
    pub alpha: f64,
}

impl<B: Backend> Clone for Tail<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Tail<'_, B> {}

impl<'a, B: Backend> Tail<'a, B> {
    /// Checks the arguments for `seqs` sequences.
    pub(super) fn check(&self, op: &'static str, seqs: usize) -> Result<()> {
        expect_len(op, "tail_starts", self.starts.len, seqs)?;
        expect(op, "tail_alpha", (0.0..=1.0).contains(&self.alpha), "0 to 1", self.alpha)
    }

    /// Returns the tails of `count` sequences, starting with sequence `first`.
    pub fn part(self, first: usize, count: usize) -> Self {
        Self { starts: self.starts.part(first, count), ..self }
    }
}

/// Sum or mean of the values of each sequence's rows, 0 for a sequence without rows. `offsets` is
/// in CSR form: the rows of sequence s are `offsets[s]..offsets[s + 1]`.
pub struct SegmentSumFwd<'a, B: Backend> {
    /// Number of rows.
    pub rows: usize,
    /// Number of sequences.
    pub seqs: usize,
    /// Sum or mean.
    pub reduce: Reduce,
    /// (rows)
    pub values: View<'a, B::Acc>,
    /// (seqs + 1)
    pub offsets: View<'a, B::Idx>,
    /// Down-weighting of the last rows of each sequence.
    pub tail: Option<Tail<'a, B>>,
    /// (seqs)
    pub sums: ViewMut<'a, B::Acc>,
}

impl<B: Backend> SegmentSumFwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let op = "segment_sum_fwd";
        expect_len(op, "values", self.values.len, self.rows)?;
        expect_len(op, "offsets", self.offsets.len, self.seqs + 1)?;
        self.tail.map_or(Ok(()), |tail| tail.check(op, self.seqs))?;
        expect_len(op, "sums", self.sums.len, self.seqs)
    }
}

/// Gradient of [`SegmentSumFwd`].
pub struct SegmentSumBwd<'a, B: Backend> {
    /// Number of rows.
    pub rows: usize,
    /// Number of sequences.
    pub seqs: usize,
    /// Sum or mean.
    pub reduce: Reduce,
    /// (seqs)
    pub dsums: View<'a, B::Acc>,
    /// (seqs + 1)
    pub offsets: View<'a, B::Idx>,
    /// Down-weighting of the last rows of each sequence.
    pub tail: Option<Tail<'a, B>>,
    /// (rows)
    pub dvalues: ViewMut<'a, B::Acc>,
}

impl<B: Backend> SegmentSumBwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let op = "segment_sum_bwd";
        expect_len(op, "dsums", self.dsums.len, self.seqs)?;
        expect_len(op, "offsets", self.offsets.len, self.seqs + 1)?;
        self.tail.map_or(Ok(()), |tail| tail.check(op, self.seqs))?;
        expect_len(op, "dvalues", self.dvalues.len, self.rows)
    }
}
