//! Contracts of the gated activations SwiGLU and GeGLU (arXiv 2002.05202), and of the linear layers that
//! have SwiGLU as epilogue. With the epilogue, the values between GEMM and activation are stored only if
//! requested.

use super::{Gelu, LinearDims, Precision, Result, Tolerance, expect_len};
use crate::backend::{Backend, View, ViewMut};

/// Sizes of [`GluFwd`] and [`GluBwd`].
#[derive(Clone, Copy, Debug)]
pub struct GluDims {
    /// Tokens of the batch.
    pub tokens: usize,
    /// Columns of the activation.
    pub intermediate: usize,
    /// GELU of the gate (GeGLU); `None` for SiLU (SwiGLU).
    pub gelu: Option<Gelu>,
}

impl GluDims {
    /// Bytes of the forward: gate and up read, act written.
    pub(super) fn bytes(&self, precision: Precision) -> u64 {
        3 * (self.tokens * self.intermediate) as u64 * precision.act_bytes()
    }

    /// FLOPs of the forward; the exponential counts as one.
    pub(super) fn flops(&self) -> u64 {
        6 * (self.tokens * self.intermediate) as u64
    }

    /// Tolerance: a few roundings per element.
    pub fn tolerance(&self, precision: Precision) -> Tolerance {
        Tolerance::dot(precision, 4)
    }
}

/// `act = gate * sigmoid(gate) * up`, or `act = gelu(gate) * up`.
pub struct GluFwd<'a, B: Backend> {
    /// Sizes of the call.
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
    /// Sizes of the call.
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

/// Sizes of [`LinearGluFwd`] and [`LinearGluBwd`].
#[derive(Clone, Copy, Debug)]
pub struct LinearGluDims {
    /// Tokens of the batch.
    pub tokens: usize,
    /// Width of the residual stream: inputs of the gate and up projection, outputs of the down
    /// projection.
    pub hidden: usize,
    /// Columns of the activation.
    pub intermediate: usize,
}

impl LinearGluDims {
    /// Sizes of the GEMM of the forward: hidden to gate and up.
    pub fn gate_up(&self) -> LinearDims {
        LinearDims { tokens: self.tokens, inputs: self.hidden, outputs: 2 * self.intermediate }
    }

    /// Sizes of the down projection, for the GEMM of the backward.
    pub fn down(&self) -> LinearDims {
        LinearDims { tokens: self.tokens, inputs: self.intermediate, outputs: self.hidden }
    }

    /// Sizes of the activation.
    pub fn glu(&self) -> GluDims {
        GluDims { tokens: self.tokens, intermediate: self.intermediate, gelu: None }
    }

    /// Tolerance of the forward and of the backward, for inputs of order one and weights of order 1/sqrt(K),
    /// where K is the length of the dot products. The tolerance is the error of the GEMM times the slope of
    /// the activation, plus the rounding of gate and up (or dact) before the activation. That rounding is
    /// relative to gate and up, and the result may be far smaller.
    pub fn tolerance(&self, precision: Precision) -> Tolerance {
        let product = Tolerance::dot(precision, self.hidden).scaled(4.0);
        let stored = precision.act_roundoff();
        Tolerance { atol: product.atol + 4.0 * stored, rtol: product.rtol + 4.0 * stored }
    }
}

/// `gate_up = x weightᵀ`, `act = silu(gate) * up`. The activation uses gate and up rounded to `Act`. The
/// result is bit-identical to that of [`super::LinearFwd`] followed by [`super::GluFwd`].
pub struct LinearGluFwd<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: LinearGluDims,
    /// (tokens, hidden)
    pub x: View<'a, B::Act>,
    /// (2 intermediate, hidden): gate, then up
    pub weight: View<'a, B::Act>,
    /// (tokens, 2 intermediate): gate, then up; `None` if the backward does not need them
    pub gate_up: Option<ViewMut<'a, B::Act>>,
    /// (tokens, intermediate)
    pub act: ViewMut<'a, B::Act>,
}

impl<B: Backend> LinearGluFwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("linear_glu_fwd", self.dims);
        let size = d.tokens * 2 * d.intermediate;
        expect_len(op, "x", self.x.len, d.tokens * d.hidden)?;
        expect_len(op, "weight", self.weight.len, 2 * d.intermediate * d.hidden)?;
        expect_len(op, "gate_up", self.gate_up.as_ref().map_or(size, |g| g.len), size)?;
        expect_len(op, "act", self.act.len, d.tokens * d.intermediate)
    }
}

/// Gradient of gate and up from the gradient `dy` of the down projection's output:
/// `dact = dy weight`, rounded to `Act`, then [`super::GluBwd`].
pub struct LinearGluBwd<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: LinearGluDims,
    /// (tokens, hidden)
    pub dy: View<'a, B::Act>,
    /// (hidden, intermediate)
    pub weight: View<'a, B::Act>,
    /// (tokens, 2 intermediate)
    pub gate_up: View<'a, B::Act>,
    /// (tokens, 2 intermediate)
    pub dgate_up: ViewMut<'a, B::Act>,
}

impl<B: Backend> LinearGluBwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("linear_glu_bwd", self.dims);
        expect_len(op, "dy", self.dy.len, d.tokens * d.hidden)?;
        expect_len(op, "weight", self.weight.len, d.hidden * d.intermediate)?;
        expect_len(op, "gate_up", self.gate_up.len, d.tokens * 2 * d.intermediate)?;
        expect_len(op, "dgate_up", self.dgate_up.len, d.tokens * 2 * d.intermediate)
    }
}
