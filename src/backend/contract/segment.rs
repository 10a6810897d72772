//! Contracts of sums over the rows of each sequence.

use super::{Result, expect_len};
use crate::backend::{Backend, View, ViewMut};

/// Reduction from the values of a sequence's rows to its score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    Sum,
    Mean,
}

/// Sum or mean of the values of each sequence's rows, 0 for a sequence without rows. `offsets` is
/// in CSR form: the rows of sequence s are `offsets[s]..offsets[s + 1]`.
pub struct SegmentSumFwd<'a, B: Backend> {
    pub rows: usize,
    pub seqs: usize,
    pub reduce: Reduce,
    /// (rows)
    pub values: View<'a, B::Acc>,
    /// (seqs + 1)
    pub offsets: View<'a, B::Idx>,
    /// (seqs)
    pub sums: ViewMut<'a, B::Acc>,
}

impl<B: Backend> SegmentSumFwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let op = "segment_sum_fwd";
        expect_len(op, "values", self.values.len, self.rows)?;
        expect_len(op, "offsets", self.offsets.len, self.seqs + 1)?;
        expect_len(op, "sums", self.sums.len, self.seqs)
    }
}

/// Gradient of [`SegmentSumFwd`].
pub struct SegmentSumBwd<'a, B: Backend> {
    pub rows: usize,
    pub seqs: usize,
    pub reduce: Reduce,
    /// (seqs)
    pub dsums: View<'a, B::Acc>,
    /// (seqs + 1)
    pub offsets: View<'a, B::Idx>,
    /// (rows)
    pub dvalues: ViewMut<'a, B::Acc>,
}

impl<B: Backend> SegmentSumBwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let op = "segment_sum_bwd";
        expect_len(op, "dsums", self.dsums.len, self.seqs)?;
        expect_len(op, "offsets", self.offsets.len, self.seqs + 1)?;
        expect_len(op, "dvalues", self.dvalues.len, self.rows)
    }
}
