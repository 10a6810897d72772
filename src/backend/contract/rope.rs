//! Contract of rotary position embeddings (RoPE, arXiv 2104.09864).

use super::{AttentionBwd, LinearFwd, Precision, Result, expect, expect_len};
use crate::backend::{Backend, View, ViewMut};

/// Sizes of [`Rope`]: a fused row holds `heads` rotated heads (queries, then keys), then
/// `unrotated_heads` heads that the op leaves unchanged (values).
#[derive(Clone, Copy, Debug)]
pub struct RopeDims {
    /// Tokens of the batch.
    pub tokens: usize,
    /// Rotated heads of a fused row: queries, then keys.
    pub heads: usize,
    /// Heads after the rotated ones, which the op leaves unchanged.
    pub unrotated_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Number of elements at the start of a head that rotate; even. The other elements stay unchanged.
    pub rotated: usize,
    /// Rows of the cos and sin tables; every position is less than this.
    pub positions: usize,
}

impl RopeDims {
    /// Bytes: the rotated elements are read and written.
    pub(crate) fn bytes(&self, precision: Precision) -> u64 {
        2 * (self.tokens * self.heads * self.rotated) as u64 * precision.act_bytes()
    }

    /// Elements of a fused row.
    pub(crate) fn width(&self) -> usize {
        (self.heads + self.unrotated_heads) * self.head_dim
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
        check_tables(op, &d, [self.positions.len, self.cos.len, self.sin.len])?;
        expect_len(op, "qkv", self.qkv_in_place.len, d.tokens * d.width())
    }
}

fn check_tables(op: &'static str, d: &RopeDims, [positions, cos, sin]: [usize; 3]) -> Result<()> {
    let fits = d.rotated.is_multiple_of(2) && d.rotated <= d.head_dim;
    expect(op, "rotated", fits, "an even number of at most head_dim", d.rotated)?;
    expect_len(op, "positions", positions, d.tokens)?;
    expect_len(op, "cos", cos, d.positions * d.rotated / 2)?;
    expect_len(op, "sin", sin, d.positions * d.rotated / 2)
}

/// A rotation that is a part of another op; the other op's arguments hold the fused rows.
pub struct Rotation<'a, B: Backend> {
    /// Sizes, as for [`Rope`].
    pub dims: RopeDims,
    /// (tokens)
    pub positions: View<'a, B::Idx>,
    /// (positions, rotated / 2)
    pub cos: View<'a, B::Acc>,
    /// (positions, rotated / 2)
    pub sin: View<'a, B::Acc>,
}

impl<'a, B: Backend> Rotation<'a, B> {
    /// Returns the rotation as a separate op on the fused rows `qkv_in_place`.
    pub fn of(&self, qkv_in_place: ViewMut<'a, B::Act>) -> Rope<'a, B> {
        Rope { dims: self.dims, positions: self.positions, cos: self.cos, sin: self.sin, qkv_in_place }
    }

    fn check(&self, op: &'static str, width: usize) -> Result<()> {
        let d = self.dims;
        check_tables(op, &d, [self.positions.len, self.cos.len, self.sin.len])?;
        expect_len(op, "rotation.width", d.width(), width)
    }
}

/// [`LinearFwd`] to fused rows, then the rotation of its result. A backend that fuses both in one kernel
/// rounds y only once.
pub struct LinearRopeFwd<'a, B: Backend> {
    /// The linear layer. Its `outputs` are the elements of a fused row.
    pub linear: LinearFwd<'a, B>,
    /// Rotation of `linear.y`.
    pub rotation: Rotation<'a, B>,
}

impl<B: Backend> LinearRopeFwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, linear) = ("linear_rope_fwd", self.linear.dims);
        self.linear.check_as(op)?;
        expect_len(op, "rotation.tokens", self.rotation.dims.tokens, linear.tokens)?;
        self.rotation.check(op, linear.outputs)
    }
}

/// [`AttentionBwd`], then the inverse rotation of the gradients of queries and keys.
pub struct AttentionRopeBwd<'a, B: Backend> {
    /// The gradient of attention.
    pub attention: AttentionBwd<'a, B>,
    /// Rotation of the queries and keys; the op applies its inverse to `attention.dqkv`.
    pub rotation: Rotation<'a, B>,
}

impl<B: Backend> AttentionRopeBwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("attention_rope_bwd", self.attention.dims);
        self.attention.check_as(op)?;
        expect_len(op, "rotation.tokens", self.rotation.dims.tokens, d.tokens)?;
        self.rotation.check(op, d.fused_heads() * d.head_dim)
    }
}
