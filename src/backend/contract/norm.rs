//! Contracts of RMSNorm (arXiv 1910.07467) of whole rows, and of the query and key heads.

use super::{Precision, Result, Tolerance, expect, expect_len};
use crate::backend::{Backend, View, ViewMut, Write};

/// Sizes of [`NormFwd`] and [`NormBwd`].
#[derive(Clone, Copy, Debug)]
pub struct NormDims {
    /// Tokens of the batch.
    pub tokens: usize,
    /// Elements of a row.
    pub hidden: usize,
    /// Epsilon, added to the mean square before the square root.
    pub eps: f64,
    /// Added to the weight; 1 for models that store the weight minus 1.
    pub offset: f64,
}

impl NormDims {
    /// FLOPs of the forward.
    pub(super) fn flops(&self) -> u64 {
        5 * (self.tokens * self.hidden) as u64
    }

    /// Tolerance for inputs of order one.
    pub fn tolerance(&self, precision: Precision) -> Tolerance {
        Tolerance::dot(precision, self.hidden)
    }
}

/// RMSNorm with an optional residual: `sum = x + residual`, or `sum = x` without one; `rstd = 1 /
/// sqrt(mean(sum²) + eps)`; `y = base + sum * rstd * (offset + weight)`, where a missing base is 0. `base`
/// serves a post-norm, which normalises the output of a block before it is added to the residual stream. The
/// gradient of the base is the gradient of `y`.
pub struct NormFwd<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: NormDims,
    /// (tokens, hidden)
    pub x: View<'a, B::Act>,
    /// (tokens, hidden); present if and only if `sum` is
    pub residual: Option<View<'a, B::Act>>,
    /// (hidden)
    pub weight: View<'a, B::Act>,
    /// (tokens, hidden)
    pub base: Option<View<'a, B::Act>>,
    /// (tokens, hidden)
    pub sum: Option<ViewMut<'a, B::Act>>,
    /// (tokens, hidden)
    pub y: ViewMut<'a, B::Act>,
    /// (tokens)
    pub rstd: ViewMut<'a, B::Acc>,
}

impl<B: Backend> NormFwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("norm_fwd", self.dims);
        let size = d.tokens * d.hidden;
        expect_len(op, "x", self.x.len, size)?;
        expect_len(op, "residual", self.residual.map_or(size, |r| r.len), size)?;
        expect(
            op,
            "sum",
            self.residual.is_some() == self.sum.is_some(),
            "present if and only if residual is",
            self.sum.is_some(),
        )?;
        expect_len(op, "sum", self.sum.as_ref().map_or(size, |s| s.len), size)?;
        expect_len(op, "weight", self.weight.len, d.hidden)?;
        expect_len(op, "base", self.base.map_or(size, |base| base.len), size)?;
        expect_len(op, "y", self.y.len, size)?;
        expect_len(op, "rstd", self.rstd.len, d.tokens)
    }
}

/// Gradient of [`NormFwd`]. With `Write::Add`, `dsum` holds on entry the gradient that reaches the
/// sum by other paths. On exit it holds the total gradient, which is the gradient of both `x` and
/// `residual`.
pub struct NormBwd<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: NormDims,
    /// (tokens, hidden)
    pub dy: View<'a, B::Act>,
    /// (tokens, hidden) input of the normalisation in the forward
    pub sum: View<'a, B::Act>,
    /// (tokens)
    pub rstd: View<'a, B::Acc>,
    /// (hidden)
    pub weight: View<'a, B::Act>,
    /// (tokens, hidden)
    pub dsum: ViewMut<'a, B::Act>,
    /// Whether `dsum` is replaced or added to.
    pub dsum_write: Write,
    /// (hidden)
    pub dweight: ViewMut<'a, B::Acc>,
    /// Whether `dweight` is replaced or added to.
    pub dweight_write: Write,
}

impl<B: Backend> NormBwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("norm_bwd", self.dims);
        let size = d.tokens * d.hidden;
        expect_len(op, "dy", self.dy.len, size)?;
        expect_len(op, "sum", self.sum.len, size)?;
        expect_len(op, "rstd", self.rstd.len, d.tokens)?;
        expect_len(op, "weight", self.weight.len, d.hidden)?;
        expect_len(op, "dsum", self.dsum.len, size)?;
        expect_len(op, "dweight", self.dweight.len, d.hidden)
    }
}

/// Sizes of [`QkNormFwd`] and [`QkNormBwd`]. A fused row holds `heads` queries, `kv_heads` keys and
/// `kv_heads` values.
#[derive(Clone, Copy, Debug)]
pub struct QkNormDims {
    /// Tokens of the batch.
    pub tokens: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Whether a token has one norm over all its query heads and one over all its key heads, instead of one
    /// norm per head.
    pub whole: bool,
    /// Epsilon, added to the mean square before the square root.
    pub eps: f64,
    /// Like [`NormDims::offset`].
    pub offset: f64,
}

impl QkNormDims {
    /// Elements of a row that is normalised as a unit, for queries and for keys.
    pub fn widths(&self) -> [usize; 2] {
        match self.whole {
            true => [self.heads * self.head_dim, self.kv_heads * self.head_dim],
            false => [self.head_dim; 2],
        }
    }

    /// Total number of elements of the query and key weights.
    pub fn weights(&self) -> usize {
        self.widths().iter().sum()
    }

    /// Returns, for each row of a token that is normalised as a unit, the index of its first element and the
    /// range of its weights.
    pub(in crate::backend) fn rows(&self) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> + use<> {
        let ([queries, keys], [all_queries, all_keys]) =
            (self.widths(), [self.heads, self.kv_heads].map(|heads| heads * self.head_dim));
        let rows = |of: usize, width: usize| (0..of).step_by(width.max(1));
        let of_queries = rows(all_queries, queries).map(move |at| (at, 0..queries));
        of_queries.chain(rows(all_keys, keys).map(move |at| (all_queries + at, queries..queries + keys)))
    }

    /// Number of normalised heads of a token: queries and keys.
    pub fn normalised(&self) -> usize {
        self.heads + self.kv_heads
    }

    /// Elements of a fused row.
    pub fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Number of normalised elements.
    pub(super) fn elements(&self) -> usize {
        self.tokens * self.normalised() * self.head_dim
    }

    /// Tolerance for inputs of order one.
    pub fn tolerance(&self, precision: Precision) -> Tolerance {
        Tolerance::dot(precision, self.widths()[0].max(self.widths()[1]))
    }
}

/// RMSNorm of each query head and each key head: `head <- head * rstd * (offset + weight)` with
/// `rstd = 1 / sqrt(mean(head²) + eps)`. All query heads share one weight, and all key heads share another.
/// With [`QkNormDims::whole`], all query heads of a token form one row, and so do all key heads; the weight
/// then has an element for each element of the row.
pub struct QkNormFwd<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: QkNormDims,
    /// (weights): weight of the queries, weight of the keys
    pub weight: View<'a, B::Act>,
    /// (tokens, heads + kv_heads, head_dim) copy of the input, for the backward
    pub x: Option<ViewMut<'a, B::Act>>,
    /// (tokens, heads + 2 kv_heads, head_dim)
    pub qkv_in_place: ViewMut<'a, B::Act>,
}

impl<B: Backend> QkNormFwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("qk_norm_fwd", self.dims);
        expect_len(op, "weight", self.weight.len, d.weights())?;
        expect_len(op, "x", self.x.as_ref().map_or(d.elements(), |x| x.len), d.elements())?;
        expect_len(op, "qkv", self.qkv_in_place.len, d.tokens * d.width())
    }
}

/// Gradient of [`QkNormFwd`]. In `dqkv_in_place`, the gradients of queries and keys are replaced by the
/// gradients of the norm's input. The gradients of the values do not change.
pub struct QkNormBwd<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: QkNormDims,
    /// (tokens, heads + kv_heads, head_dim) input of the forward
    pub x: View<'a, B::Act>,
    /// (weights)
    pub weight: View<'a, B::Act>,
    /// (tokens, heads + 2 kv_heads, head_dim)
    pub dqkv_in_place: ViewMut<'a, B::Act>,
    /// (weights)
    pub dweight: ViewMut<'a, B::Acc>,
    /// Whether the result replaces the output or is added to it.
    pub write: Write,
}

impl<B: Backend> QkNormBwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("qk_norm_bwd", self.dims);
        expect_len(op, "x", self.x.len, d.elements())?;
        expect_len(op, "weight", self.weight.len, d.weights())?;
        expect_len(op, "dqkv", self.dqkv_in_place.len, d.tokens * d.width())?;
        expect_len(op, "dweight", self.dweight.len, d.weights())
    }
}
