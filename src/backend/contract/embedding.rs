//! Contracts of the token embedding.

use super::{Precision, Result, expect_len};
use crate::backend::{Backend, View, ViewMut, Write};

/// Sizes of [`EmbeddingFwd`] and [`EmbeddingBwd`].
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingDims {
    /// Tokens of the batch.
    pub tokens: usize,
    /// Vocabulary size.
    pub vocab: usize,
    /// Elements of a row.
    pub hidden: usize,
}

impl EmbeddingDims {
    /// Bytes of the forward: each row is read and written once.
    pub(super) fn bytes(&self, precision: Precision) -> u64 {
        2 * (self.tokens * self.hidden) as u64 * precision.act_bytes()
    }
}

/// `x[t] = table[ids[t]]`.
pub struct EmbeddingFwd<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: EmbeddingDims,
    /// (tokens)
    pub ids: View<'a, B::Idx>,
    /// (vocab, hidden)
    pub table: View<'a, B::Act>,
    /// (tokens, hidden)
    pub x: ViewMut<'a, B::Act>,
}

impl<B: Backend> EmbeddingFwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("embedding_fwd", self.dims);
        expect_len(op, "ids", self.ids.len, d.tokens)?;
        expect_len(op, "table", self.table.len, d.vocab * d.hidden)?;
        expect_len(op, "x", self.x.len, d.tokens * d.hidden)
    }
}

/// Items grouped by key: the items of key `keys[k]` are `order[offsets[k]..offsets[k + 1]]`, ascending.
/// Grouping turns a scatter with colliding targets into a gather, so that every sum has one writer and a
/// fixed order. Runs with a negative key hold padding and are skipped.
pub struct Runs<'a, I> {
    /// (items) permutation of the items, sorted by key, then by item; padding last
    pub order: View<'a, I>,
    /// (distinct + 1)
    pub offsets: View<'a, I>,
    /// (distinct) ascending, padding last
    pub keys: View<'a, I>,
}

impl<I> Clone for Runs<'_, I> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<I> Copy for Runs<'_, I> {}

impl<I> Runs<'_, I> {
    pub(crate) fn check(&self, op: &'static str, items: usize) -> Result<()> {
        expect_len(op, "runs.order", self.order.len, items)?;
        expect_len(op, "runs.offsets", self.offsets.len, self.keys.len + 1)
    }
}

/// `dtable[v] (+)= sum of dx[t] over the tokens t with id v`. `Write::Overwrite` also zeroes the
/// rows of absent ids.
pub struct EmbeddingBwd<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: EmbeddingDims,
    /// (tokens, hidden)
    pub dx: View<'a, B::Act>,
    /// token rows, grouped by token id
    pub runs: Runs<'a, B::Idx>,
    /// (vocab, hidden)
    pub dtable: ViewMut<'a, B::Acc>,
    /// Whether the result replaces the output or is added to it.
    pub write: Write,
}

impl<B: Backend> EmbeddingBwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("embedding_bwd", self.dims);
        expect_len(op, "dx", self.dx.len, d.tokens * d.hidden)?;
        self.runs.check(op, d.tokens)?;
        expect_len(op, "dtable", self.dtable.len, d.vocab * d.hidden)
    }
}
