//! Contract of rotary position embeddings (RoPE, arXiv 2104.09864).

use super::{Precision, Result, expect, expect_len};
use crate::backend::{Backend, View, ViewMut};

/// Sizes of [`Rope`]: a fused row holds `heads` rotated heads (queries, then keys), then
/// `unrotated_heads` heads that the op leaves unchanged (values).
#[derive(Clone, Copy, Debug)]
pub struct RopeDims {
    /// Tokens of the batch.
    pub tokens: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads after the rotated ones, which stay as they are.
    pub unrotated_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Elements at the start of a head that rotate; an even number. The others stay unchanged.
    pub rotated: usize,
    /// Rows of the tables; every position is less than this.
    pub positions: usize,
}

impl RopeDims {
    /// Bytes: the rotated elements are read and written.
    pub(super) fn bytes(&self, precision: Precision) -> u64 {
        2 * (self.tokens * self.heads * self.rotated) as u64 * precision.act_bytes()
    }

    /// FLOPs: two multiplications and an addition per element.
    pub(super) fn flops(&self) -> u64 {
        3 * (self.tokens * self.heads * self.rotated) as u64
    }
}

/// `(a, b) <- (a cos - b sin, b cos + a sin)` for `a` in the first half of a head's rotated
/// elements and `b` at the same index in the second half. The backward uses the opposite angle.
pub struct Rope<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: RopeDims,
    /// (tokens)
    pub positions: View<'a, B::Idx>,
    /// (positions, rotated / 2)
    pub cos: View<'a, B::Acc>,
    /// (positions, rotated / 2)
    pub sin: View<'a, B::Acc>,
    /// (tokens, heads + unrotated_heads, head_dim)
    pub qkv_in_place: ViewMut<'a, B::Act>,
}

impl<B: Backend> Rope<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("rope", self.dims);
        let fits = d.rotated.is_multiple_of(2) && d.rotated <= d.head_dim;
        expect(op, "rotated", fits, "an even number of at most head_dim", d.rotated)?;
        expect_len(op, "positions", self.positions.len, d.tokens)?;
        expect_len(op, "cos", self.cos.len, d.positions * d.rotated / 2)?;
        expect_len(op, "sin", self.sin.len, d.positions * d.rotated / 2)?;
        expect_len(op, "qkv", self.qkv_in_place.len, d.tokens * (d.heads + d.unrotated_heads) * d.head_dim)
    }
}
