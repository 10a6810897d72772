//! Contract of the op that multiplies rows by a factor, with an optional addend.

use super::{Precision, Result, Tolerance, expect_len};
use crate::backend::{Backend, View, ViewMut};

/// Sizes of [`Scale`].
#[derive(Clone, Copy, Debug)]
pub struct ScaleDims {
    /// Tokens of the batch.
    pub tokens: usize,
    /// Elements of a row.
    pub hidden: usize,
    /// Factor on the input.
    pub factor: f64,
}

impl ScaleDims {
    /// Number of elements.
    pub(super) fn elements(&self) -> usize {
        self.tokens * self.hidden
    }

    /// Tolerance: a product and a sum.
    pub fn tolerance(&self, precision: Precision) -> Tolerance {
        Tolerance::dot(precision, 2)
    }
}

/// `x <- factor * x + addend`, rounded once. The gradient with respect to x is the same op without
/// an addend, on the gradient of the result.
pub struct Scale<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: ScaleDims,
    /// (tokens, hidden)
    pub addend: Option<View<'a, B::Act>>,
    /// (tokens, hidden)
    pub x_in_place: ViewMut<'a, B::Act>,
}

impl<B: Backend> Scale<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, size) = ("scale", self.dims.elements());
        expect_len(op, "addend", self.addend.map_or(size, |a| a.len), size)?;
        expect_len(op, "x", self.x_in_place.len, size)
    }
}
