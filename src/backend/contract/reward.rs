//! Contracts of the scalar reward head.

use super::{Precision, Result, Tolerance, expect_len};
use crate::backend::{Backend, View, ViewMut, Write};

/// Sizes of the reward head.
#[derive(Clone, Copy, Debug)]
pub struct RewardDims {
    /// Tokens of the batch.
    pub tokens: usize,
    /// Elements of a row.
    pub hidden: usize,
    /// Number of sequences.
    pub seqs: usize,
}

impl RewardDims {
    /// Bytes of the forward.
    pub(super) fn bytes(&self, precision: Precision) -> u64 {
        (self.seqs * self.hidden) as u64 * precision.act_bytes()
    }

    /// FLOPs of the forward.
    pub(super) fn flops(&self) -> u64 {
        2 * (self.seqs * self.hidden) as u64
    }

    /// Tolerance for inputs and weights of order one.
    pub fn tolerance(&self, precision: Precision) -> Tolerance {
        Tolerance::dot(precision, self.hidden).scaled((self.hidden as f64).sqrt())
    }
}

/// `score[s] = hidden[rows[s]] · weight`.
pub struct RewardHeadFwd<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: RewardDims,
    /// (tokens, hidden)
    pub hidden: View<'a, B::Act>,
    /// (hidden)
    pub weight: View<'a, B::Act>,
    /// (seqs) row of `hidden` from which each sequence is scored; without duplicates if a backward follows
    pub rows: View<'a, B::Idx>,
    /// (seqs)
    pub score: ViewMut<'a, B::Acc>,
}

impl<B: Backend> RewardHeadFwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("reward_head_fwd", self.dims);
        expect_len(op, "hidden", self.hidden.len, d.tokens * d.hidden)?;
        expect_len(op, "weight", self.weight.len, d.hidden)?;
        expect_len(op, "rows", self.rows.len, d.seqs)?;
        expect_len(op, "score", self.score.len, d.seqs)
    }
}

/// Gradient of [`RewardHeadFwd`]. Overwrites `dhidden`, with zeros in rows that are not in `rows`.
pub struct RewardHeadBwd<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: RewardDims,
    /// (tokens, hidden)
    pub hidden: View<'a, B::Act>,
    /// (hidden)
    pub weight: View<'a, B::Act>,
    /// (seqs)
    pub rows: View<'a, B::Idx>,
    /// (seqs)
    pub dscore: View<'a, B::Acc>,
    /// (tokens, hidden)
    pub dhidden: ViewMut<'a, B::Act>,
    /// (hidden)
    pub dweight: ViewMut<'a, B::Acc>,
    /// Whether `dweight` is replaced or added to.
    pub dweight_write: Write,
}

impl<B: Backend> RewardHeadBwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("reward_head_bwd", self.dims);
        expect_len(op, "hidden", self.hidden.len, d.tokens * d.hidden)?;
        expect_len(op, "weight", self.weight.len, d.hidden)?;
        expect_len(op, "rows", self.rows.len, d.seqs)?;
        expect_len(op, "dscore", self.dscore.len, d.seqs)?;
        expect_len(op, "dhidden", self.dhidden.len, d.tokens * d.hidden)?;
        expect_len(op, "dweight", self.dweight.len, d.hidden)
    }
}
