//! Contracts of linear layers.

use super::{Precision, Result, Tolerance, expect_len};
use crate::backend::{Backend, View, ViewMut, Write};

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
