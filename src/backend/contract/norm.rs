//! Contract of RMSNorm (arXiv 1910.07467).

use super::{Precision, Result, Tolerance, expect, expect_len};
use crate::backend::{Backend, View, ViewMut, Write};

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
