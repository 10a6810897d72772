//! Contract of LayerNorm (arXiv 1607.06450) with weight and bias.

use super::{Precision, Result, Tolerance, expect_len};
use crate::backend::{Backend, View, ViewMut, Write};

/// Sizes of [`LayerNormFwd`] and [`LayerNormBwd`].
#[derive(Clone, Copy, Debug)]
pub struct LayerNormDims {
    /// Tokens of the batch.
    pub tokens: usize,
    /// Elements of a row.
    pub hidden: usize,
    /// Epsilon, added to the variance before the square root.
    pub eps: f64,
}

impl LayerNormDims {
    /// Number of elements.
    pub(super) fn elements(&self) -> usize {
        self.tokens * self.hidden
    }

    /// Tolerance for inputs of order one.
    pub fn tolerance(&self, precision: Precision) -> Tolerance {
        Tolerance::dot(precision, self.hidden).scaled(2.0)
    }
}

/// `y = (x - mean) * rstd * weight + bias` with the mean of a row and
/// `rstd = 1 / sqrt(mean((x - mean)²) + eps)`.
pub struct LayerNormFwd<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: LayerNormDims,
    /// (tokens, hidden)
    pub x: View<'a, B::Act>,
    /// (2, hidden): weight, then bias
    pub weight: View<'a, B::Act>,
    /// (tokens, hidden)
    pub y: ViewMut<'a, B::Act>,
    /// (tokens, 2): mean, then rstd
    pub stats: ViewMut<'a, B::Acc>,
}

impl<B: Backend> LayerNormFwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("layer_norm_fwd", self.dims);
        expect_len(op, "x", self.x.len, d.elements())?;
        expect_len(op, "weight", self.weight.len, 2 * d.hidden)?;
        expect_len(op, "y", self.y.len, d.elements())?;
        expect_len(op, "stats", self.stats.len, 2 * d.tokens)
    }
}

/// Gradient of [`LayerNormFwd`]. With `Write::Add`, `dx` holds on entry the gradient that reaches x
/// by other paths.
pub struct LayerNormBwd<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: LayerNormDims,
    /// (tokens, hidden)
    pub dy: View<'a, B::Act>,
    /// (tokens, hidden)
    pub x: View<'a, B::Act>,
    /// (tokens, 2): mean, then rstd
    pub stats: View<'a, B::Acc>,
    /// (2, hidden): weight, then bias
    pub weight: View<'a, B::Act>,
    /// (tokens, hidden)
    pub dx: ViewMut<'a, B::Act>,
    /// Whether `dx` is replaced or added to.
    pub dx_write: Write,
    /// (2, hidden): gradient of the weight, then of the bias
    pub dweight: ViewMut<'a, B::Acc>,
    /// Whether `dweight` is replaced or added to.
    pub dweight_write: Write,
}

impl<B: Backend> LayerNormBwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("layer_norm_bwd", self.dims);
        expect_len(op, "dy", self.dy.len, d.elements())?;
        expect_len(op, "x", self.x.len, d.elements())?;
        expect_len(op, "stats", self.stats.len, 2 * d.tokens)?;
        expect_len(op, "weight", self.weight.len, 2 * d.hidden)?;
        expect_len(op, "dx", self.dx.len, d.elements())?;
        expect_len(op, "dweight", self.dweight.len, 2 * d.hidden)
    }
}
