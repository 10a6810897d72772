//! Contracts of embedding, normalisation, linear maps, rotary positions and the gated activation.

use super::{Precision, Result, Tolerance, expect, expect_len};
use crate::backend::{Backend, View, ViewMut, Write};

/// Sizes of [`EmbeddingFwd`] and [`EmbeddingBwd`].
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingDims {
    pub tokens: usize,
    pub vocab: usize,
    pub hidden: usize,
}

impl EmbeddingDims {
    /// Bytes of the forward: each row read and written once.
    pub fn bytes(&self, precision: Precision) -> u64 {
        2 * (self.tokens * self.hidden) as u64 * precision.act_bytes()
    }
}

/// `x[t] = table[ids[t]]`.
pub struct EmbeddingFwd<'a, B: Backend> {
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

/// Items grouped by key: the items of key `keys[k]` are `order[offsets[k]..offsets[k + 1]]`, ascending. It turns a
/// scatter with colliding targets into a gather, so that every sum has one owner and one order. Runs with a key below 0 hold
/// padding and are left out.
pub struct Runs<'a, I> {
    /// (items) a permutation of the items, sorted by key, then by item; padding comes last
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

/// `dtable[v] (+)= sum of dx[t] over tokens with id v`. `Write::Overwrite` also zeroes the rows of absent ids.
pub struct EmbeddingBwd<'a, B: Backend> {
    pub dims: EmbeddingDims,
    /// (tokens, hidden)
    pub dx: View<'a, B::Act>,
    /// token rows grouped by token id
    pub runs: Runs<'a, B::Idx>,
    /// (vocab, hidden)
    pub dtable: ViewMut<'a, B::Acc>,
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

/// Sizes of [`NormFwd`] and [`NormBwd`].
#[derive(Clone, Copy, Debug)]
pub struct NormDims {
    pub tokens: usize,
    pub hidden: usize,
    /// Added to the mean square before the root.
    pub eps: f64,
}

impl NormDims {
    /// Bytes of the forward with a residual: x and residual read, sum and y written.
    pub fn bytes(&self, precision: Precision) -> u64 {
        4 * (self.tokens * self.hidden) as u64 * precision.act_bytes()
    }

    /// FLOPs of the forward.
    pub fn flops(&self) -> u64 {
        5 * (self.tokens * self.hidden) as u64
    }

    /// Error allowed for inputs of order one.
    pub fn tolerance(&self, precision: Precision) -> Tolerance {
        Tolerance::dot(precision, self.hidden)
    }
}

/// RMSNorm, optionally of a sum: `sum = x + residual` (or `x`), `rstd = 1 / sqrt(mean(sum²) + eps)`,
/// `y = sum * rstd * weight`.
pub struct NormFwd<'a, B: Backend> {
    pub dims: NormDims,
    /// (tokens, hidden)
    pub x: View<'a, B::Act>,
    /// (tokens, hidden); present exactly when `sum` is
    pub residual: Option<View<'a, B::Act>>,
    /// (hidden)
    pub weight: View<'a, B::Act>,
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
            "present exactly when residual is",
            self.sum.is_some(),
        )?;
        expect_len(op, "sum", self.sum.as_ref().map_or(size, |s| s.len), size)?;
        expect_len(op, "weight", self.weight.len, d.hidden)?;
        expect_len(op, "y", self.y.len, size)?;
        expect_len(op, "rstd", self.rstd.len, d.tokens)
    }
}

/// Gradient of [`NormFwd`]. `dsum` holds, on entry with `Write::Add`, the gradient that reaches the sum on other
/// paths; on exit the whole gradient, which is that of `x` and of `residual` alike.
pub struct NormBwd<'a, B: Backend> {
    pub dims: NormDims,
    /// (tokens, hidden)
    pub dy: View<'a, B::Act>,
    /// (tokens, hidden) as normalised in the forward
    pub sum: View<'a, B::Act>,
    /// (tokens)
    pub rstd: View<'a, B::Acc>,
    /// (hidden)
    pub weight: View<'a, B::Act>,
    /// (tokens, hidden)
    pub dsum: ViewMut<'a, B::Act>,
    pub dsum_write: Write,
    /// (hidden)
    pub dweight: ViewMut<'a, B::Acc>,
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

/// Sizes of a linear map from `inputs` to `outputs` features.
#[derive(Clone, Copy, Debug)]
pub struct LinearDims {
    pub tokens: usize,
    pub inputs: usize,
    pub outputs: usize,
}

impl LinearDims {
    /// Bytes of one product: both operands read, the result written. `dweight` is counted at `Act` width here; a
    /// backend that stores it wider moves more.
    pub fn bytes(&self, precision: Precision) -> u64 {
        let (t, i, o) = (self.tokens as u64, self.inputs as u64, self.outputs as u64);
        (t * i + i * o + t * o) * precision.act_bytes()
    }

    /// FLOPs of one product, the same for NT, NN and TN.
    pub fn flops(&self) -> u64 {
        2 * self.tokens as u64 * self.inputs as u64 * self.outputs as u64
    }

    /// Error of the forward for inputs of order one and weights of order 1/sqrt(inputs).
    pub fn tolerance(&self, precision: Precision) -> Tolerance {
        Tolerance::dot(precision, self.inputs)
    }
}

/// `y = x weightᵀ + bias + residual`, summed in the precision of sums and rounded once.
pub struct LinearFwd<'a, B: Backend> {
    pub dims: LinearDims,
    /// (tokens, inputs)
    pub x: View<'a, B::Act>,
    /// (outputs, inputs)
    pub weight: View<'a, B::Act>,
    /// (outputs)
    pub bias: Option<View<'a, B::Act>>,
    /// (tokens, outputs)
    pub residual: Option<View<'a, B::Act>>,
    /// (tokens, outputs)
    pub y: ViewMut<'a, B::Act>,
}

impl<B: Backend> LinearFwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("linear_fwd", self.dims);
        expect_len(op, "x", self.x.len, d.tokens * d.inputs)?;
        expect_len(op, "weight", self.weight.len, d.outputs * d.inputs)?;
        expect_len(op, "bias", self.bias.map_or(d.outputs, |b| b.len), d.outputs)?;
        let size = d.tokens * d.outputs;
        expect_len(op, "residual", self.residual.map_or(size, |r| r.len), size)?;
        expect_len(op, "y", self.y.len, d.tokens * d.outputs)
    }
}

/// `dx (+)= dy weight`.
pub struct LinearBwdInput<'a, B: Backend> {
    pub dims: LinearDims,
    /// (tokens, outputs)
    pub dy: View<'a, B::Act>,
    /// (outputs, inputs)
    pub weight: View<'a, B::Act>,
    /// (tokens, inputs)
    pub dx: ViewMut<'a, B::Act>,
    pub write: Write,
}

impl<B: Backend> LinearBwdInput<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("linear_bwd_input", self.dims);
        expect_len(op, "dy", self.dy.len, d.tokens * d.outputs)?;
        expect_len(op, "weight", self.weight.len, d.outputs * d.inputs)?;
        expect_len(op, "dx", self.dx.len, d.tokens * d.inputs)
    }
}

/// Rows and columns of a patch of a weight's gradient: the unit of the norms that [`LinearBwdWeight`] writes.
pub const PATCH: (usize, usize) = (16, 32);

impl LinearDims {
    /// Patches of the weight, (outputs, inputs): norms that [`LinearBwdWeight`] writes.
    pub const fn patches(&self) -> usize {
        self.outputs.div_ceil(PATCH.0) * self.inputs.div_ceil(PATCH.1)
    }
}

/// `dweight (+)= dyᵀ x`, and norms of parts of it for [`GradNorm`](super::GradNorm), which then need not read it again.
pub struct LinearBwdWeight<'a, B: Backend> {
    pub dims: LinearDims,
    /// (tokens, outputs)
    pub dy: View<'a, B::Act>,
    /// (tokens, inputs)
    pub x: View<'a, B::Act>,
    /// (outputs, inputs)
    pub dweight: ViewMut<'a, B::Acc>,
    pub write: Write,
    /// (dims.patches()) Euclidean norms of whole patches of `dweight` as it is afterwards. Every patch is in one of them; which
    /// are together in one is the backend's affair, and the rest are 0. A norm is as exact as its storage; one that `Acc` cannot
    /// hold is infinite.
    pub norms: Option<ViewMut<'a, B::Acc>>,
}

impl<B: Backend> LinearBwdWeight<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("linear_bwd_weight", self.dims);
        expect_len(op, "dy", self.dy.len, d.tokens * d.outputs)?;
        expect_len(op, "x", self.x.len, d.tokens * d.inputs)?;
        expect_len(op, "dweight", self.dweight.len, d.outputs * d.inputs)?;
        expect_len(op, "norms", self.norms.as_ref().map_or(d.patches(), |n| n.len), d.patches())
    }
}

/// `dbias (+)= sum of dy over tokens`, in ascending order.
pub struct BiasBwd<'a, B: Backend> {
    /// `inputs` is not used.
    pub dims: LinearDims,
    /// (tokens, outputs)
    pub dy: View<'a, B::Act>,
    /// (outputs)
    pub dbias: ViewMut<'a, B::Acc>,
    pub write: Write,
}

impl<B: Backend> BiasBwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("bias_bwd", self.dims);
        expect_len(op, "dy", self.dy.len, d.tokens * d.outputs)?;
        expect_len(op, "dbias", self.dbias.len, d.outputs)
    }
}

/// Sizes of [`Rope`]: a fused row holds `heads` rotated heads (queries, then keys) and `still` heads that stay as
/// they are (values).
#[derive(Clone, Copy, Debug)]
pub struct RopeDims {
    pub tokens: usize,
    pub heads: usize,
    pub still: usize,
    /// Even.
    pub head_dim: usize,
    /// Rows of the tables; every position is below it.
    pub positions: usize,
}

impl RopeDims {
    /// Bytes: the rotated part read and written.
    pub fn bytes(&self, precision: Precision) -> u64 {
        2 * (self.tokens * self.heads * self.head_dim) as u64 * precision.act_bytes()
    }

    /// FLOPs: two multiplications and an addition per element.
    pub fn flops(&self) -> u64 {
        3 * (self.tokens * self.heads * self.head_dim) as u64
    }
}

/// `(a, b) <- (a cos - b sin, b cos + a sin)` for `a` in the first half of a head and `b` at the same place of the
/// second; the backward uses the opposite angle.
pub struct Rope<'a, B: Backend> {
    pub dims: RopeDims,
    /// (tokens)
    pub positions: View<'a, B::Idx>,
    /// (positions, head_dim / 2)
    pub cos: View<'a, B::Acc>,
    /// (positions, head_dim / 2)
    pub sin: View<'a, B::Acc>,
    /// (tokens, heads + still, head_dim)
    pub qkv_in_place: ViewMut<'a, B::Act>,
}

impl<B: Backend> Rope<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("rope", self.dims);
        expect(op, "head_dim", d.head_dim % 2 == 0, "an even number", d.head_dim)?;
        expect_len(op, "positions", self.positions.len, d.tokens)?;
        expect_len(op, "cos", self.cos.len, d.positions * d.head_dim / 2)?;
        expect_len(op, "sin", self.sin.len, d.positions * d.head_dim / 2)?;
        expect_len(op, "qkv", self.qkv_in_place.len, d.tokens * (d.heads + d.still) * d.head_dim)
    }
}

/// Sizes of [`GluFwd`] and [`GluBwd`].
#[derive(Clone, Copy, Debug)]
pub struct GluDims {
    pub tokens: usize,
    pub intermediate: usize,
}

impl GluDims {
    /// Bytes of the forward: gate and up read, act written.
    pub fn bytes(&self, precision: Precision) -> u64 {
        3 * (self.tokens * self.intermediate) as u64 * precision.act_bytes()
    }

    /// FLOPs of the forward, the exponential counted as one.
    pub fn flops(&self) -> u64 {
        6 * (self.tokens * self.intermediate) as u64
    }

    /// Error allowed: a handful of roundings per element.
    pub fn tolerance(&self, precision: Precision) -> Tolerance {
        Tolerance::dot(precision, 4)
    }
}

/// `act = gate * sigmoid(gate) * up`.
pub struct GluFwd<'a, B: Backend> {
    pub dims: GluDims,
    /// (tokens, 2 intermediate): gate, then up
    pub gate_up: View<'a, B::Act>,
    /// (tokens, intermediate)
    pub act: ViewMut<'a, B::Act>,
}

impl<B: Backend> GluFwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("glu_fwd", self.dims);
        expect_len(op, "gate_up", self.gate_up.len, d.tokens * 2 * d.intermediate)?;
        expect_len(op, "act", self.act.len, d.tokens * d.intermediate)
    }
}

/// Gradient of [`GluFwd`].
pub struct GluBwd<'a, B: Backend> {
    pub dims: GluDims,
    /// (tokens, intermediate)
    pub dact: View<'a, B::Act>,
    /// (tokens, 2 intermediate)
    pub gate_up: View<'a, B::Act>,
    /// (tokens, 2 intermediate)
    pub dgate_up: ViewMut<'a, B::Act>,
}

impl<B: Backend> GluBwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("glu_bwd", self.dims);
        expect_len(op, "dact", self.dact.len, d.tokens * d.intermediate)?;
        expect_len(op, "gate_up", self.gate_up.len, d.tokens * 2 * d.intermediate)?;
        expect_len(op, "dgate_up", self.dgate_up.len, d.tokens * 2 * d.intermediate)
    }
}
