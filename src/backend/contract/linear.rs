//! Contracts of linear layers.

use super::{Precision, Result, Tolerance, expect_len};
use crate::backend::{Backend, View, ViewMut, Write};

/// Sizes of a linear layer from `inputs` to `outputs` features.
#[derive(Clone, Copy, Debug)]
pub struct LinearDims {
    /// Tokens of the batch.
    pub tokens: usize,
    /// Elements of an input row.
    pub inputs: usize,
    /// Elements of an output row.
    pub outputs: usize,
}

impl LinearDims {
    /// Bytes of one GEMM: both operands read, the result written. `dweight` is counted with the width of
    /// `Act`; a backend with wider weight gradients moves more bytes.
    pub(super) fn bytes(&self, precision: Precision) -> u64 {
        let (t, i, o) = (self.tokens as u64, self.inputs as u64, self.outputs as u64);
        (t * i + i * o + t * o) * precision.act_bytes()
    }

    /// FLOPs of one GEMM, equal for NT, NN and TN.
    pub fn flops(&self) -> u64 {
        2 * self.tokens as u64 * self.inputs as u64 * self.outputs as u64
    }

    /// Tolerance of the forward for inputs of order one and weights of order 1/sqrt(inputs).
    pub fn tolerance(&self, precision: Precision) -> Tolerance {
        Tolerance::dot(precision, self.inputs)
    }
}

/// `y = x weightᵀ + bias + residual`, accumulated in `Acc` and rounded once.
pub struct LinearFwd<'a, B: Backend> {
    /// Sizes of the call.
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
        self.check_as("linear_fwd")
    }

    /// Checks the arguments. Errors name `op`, which may be a composite op with these arguments.
    pub(super) fn check_as(&self, op: &'static str) -> Result<()> {
        let d = self.dims;
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
    /// Sizes of the call.
    pub dims: LinearDims,
    /// (tokens, outputs)
    pub dy: View<'a, B::Act>,
    /// (outputs, inputs)
    pub weight: View<'a, B::Act>,
    /// (tokens, inputs)
    pub dx: ViewMut<'a, B::Act>,
    /// Whether the result replaces the output or is added to it.
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

/// Rows and columns of a patch of a weight gradient. [`LinearBwdWeight`] writes one norm for each patch.
pub const PATCH: (usize, usize) = (16, 32);

impl LinearDims {
    /// Number of patches of the (outputs, inputs) weight, which is the number of norms that
    /// [`LinearBwdWeight`] writes.
    pub const fn patches(&self) -> usize {
        self.outputs.div_ceil(PATCH.0) * self.inputs.div_ceil(PATCH.1)
    }
}

/// `dweight (+)= dyᵀ x`, and optionally the norms of its patches. With these norms,
/// [`GradNorm`](super::GradNorm) does not need to read `dweight`.
pub struct LinearBwdWeight<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: LinearDims,
    /// (tokens, outputs)
    pub dy: View<'a, B::Act>,
    /// (tokens, inputs)
    pub x: View<'a, B::Act>,
    /// (outputs, inputs)
    pub dweight: ViewMut<'a, B::Acc>,
    /// Whether the result replaces the output or is added to it.
    pub write: Write,
    /// (dims.patches()) Euclidean norms of the patches of the final `dweight`. A backend may merge patches:
    /// it writes the merged norm to one slot and 0 to the others. A norm has the accuracy of `Acc`, and is
    /// infinite if it overflows `Acc`.
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

/// `dbias (+)= sum of dy over the tokens`, in ascending order.
pub struct BiasBwd<'a, B: Backend> {
    /// `inputs` is ignored.
    pub dims: LinearDims,
    /// (tokens, outputs)
    pub dy: View<'a, B::Act>,
    /// (outputs)
    pub dbias: ViewMut<'a, B::Acc>,
    /// Whether the result replaces the output or is added to it.
    pub write: Write,
}

impl<B: Backend> BiasBwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("bias_bwd", self.dims);
        expect_len(op, "dy", self.dy.len, d.tokens * d.outputs)?;
        expect_len(op, "dbias", self.dbias.len, d.outputs)
    }
}
