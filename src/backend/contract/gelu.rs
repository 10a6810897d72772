//! Contract of GELU (arXiv 1606.08415), the activation of MLPs without a gate.

use super::{Precision, Result, Tolerance, expect_len};
use crate::backend::{Backend, View, ViewMut};

/// Exact GELU or its tanh approximation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// `x Φ(x)`, where Φ is the CDF of the standard normal distribution.
    Erf,
    /// `x (1 + tanh(u)) / 2` with `u = sqrt(2 / pi) (x + 0.044715 x³)`.
    Tanh,
}

/// Sizes of [`GeluFwd`] and [`GeluBwd`].
#[derive(Clone, Copy, Debug)]
pub struct GeluDims {
    /// Tokens of the batch.
    pub tokens: usize,
    /// Columns of the activation.
    pub intermediate: usize,
    /// Exact GELU or its tanh approximation.
    pub form: Gelu,
}

impl GeluDims {
    /// Number of elements.
    pub(super) fn elements(&self) -> usize {
        self.tokens * self.intermediate
    }

    /// Tolerance: a few roundings per element.
    pub fn tolerance(&self, precision: Precision) -> Tolerance {
        Tolerance::dot(precision, 4)
    }
}

/// `act = gelu(x)`.
pub struct GeluFwd<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: GeluDims,
    /// (tokens, intermediate)
    pub x: View<'a, B::Act>,
    /// (tokens, intermediate)
    pub act: ViewMut<'a, B::Act>,
}

impl<B: Backend> GeluFwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, size) = ("gelu_fwd", self.dims.elements());
        expect_len(op, "x", self.x.len, size)?;
        expect_len(op, "act", self.act.len, size)
    }
}

/// Gradient of [`GeluFwd`]: the gradient of x replaces the gradient of act in place.
pub struct GeluBwd<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: GeluDims,
    /// (tokens, intermediate)
    pub x: View<'a, B::Act>,
    /// (tokens, intermediate)
    pub dact_in_place: ViewMut<'a, B::Act>,
}

impl<B: Backend> GeluBwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, size) = ("gelu_bwd", self.dims.elements());
        expect_len(op, "x", self.x.len, size)?;
        expect_len(op, "dact", self.dact_in_place.len, size)
    }
}
