//! Norms of the residual stream, RMSNorm or LayerNorm, as op calls; and the activation of the MLP.

use std::ops::Range;

use super::decoder::Model;
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{Backend, View, ViewMut, Write};

/// Arguments of a norm's gradient.
pub(super) struct NormGradient<'a, B: Backend> {
    /// (tokens, hidden)
    pub dy: View<'a, B::Act>,
    /// (tokens, hidden)
    pub x: View<'a, B::Act>,
    /// At least (tokens, norm_stats)
    pub stats: &'a B::Acc,
    /// Range of the norm's weights in the arena.
    pub weight: &'a Range<usize>,
    /// (tokens, hidden)
    pub dx: ViewMut<'a, B::Act>,
    pub dx_write: Write,
    pub dweight: ViewMut<'a, B::Acc>,
    pub dweight_write: Write,
}

impl<B: Backend> Model<B> {
    /// Normalises the rows of `x`, and adds those of `base` if given.
    pub(super) fn norm(
        &self,
        backend: &B,
        x: View<'_, B::Act>,
        base: Option<View<'_, B::Act>>,
        weight: &Range<usize>,
        mut y: ViewMut<'_, B::Act>,
        stats: &mut B::Acc,
    ) -> Result<()> {
        let (hidden, eps) = (self.config.hidden, self.config.stream_eps());
        let tokens = x.len / hidden;
        let stats = ViewMut::first(stats, tokens * self.config.norm_stats());
        let weight = self.weight(weight);
        match self.config.family.layer_norm {
            true => {
                let dims = LayerNormDims { tokens, hidden, eps };
                backend.layer_norm_fwd(LayerNormFwd { dims, x, weight, y: y.reborrow(), stats })?;
                self.scale(backend, 1.0, base, y)
            }
            false => backend.norm_fwd(NormFwd {
                dims: NormDims { tokens, hidden, eps, offset: self.config.norm_offset() },
                x,
                residual: None,
                weight,
                base,
                sum: None,
                y,
                rstd: stats,
            }),
        }
    }

    /// Gradient of [`Self::norm`].
    pub(super) fn norm_bwd(&self, backend: &B, a: NormGradient<'_, B>) -> Result<()> {
        let NormGradient { dy, x, stats, weight, dx, dx_write, dweight, dweight_write } = a;
        let (hidden, eps) = (self.config.hidden, self.config.stream_eps());
        let tokens = x.len / hidden;
        let stats = View::first(stats, tokens * self.config.norm_stats());
        let weight = self.weight(weight);
        match self.config.family.layer_norm {
            true => {
                let dims = LayerNormDims { tokens, hidden, eps };
                backend.layer_norm_bwd(LayerNormBwd {
                    dims,
                    dy,
                    x,
                    stats,
                    weight,
                    dx,
                    dx_write,
                    dweight,
                    dweight_write,
                })
            }
            false => backend.norm_bwd(NormBwd {
                dims: NormDims { tokens, hidden, eps, offset: self.config.norm_offset() },
                dy,
                sum: x,
                rstd: stats,
                weight,
                dsum: dx,
                dsum_write: dx_write,
                dweight,
                dweight_write,
            }),
        }
    }

    /// Computes the activation of the MLP from the stored output of its first projection.
    pub(super) fn activate(
        &self,
        backend: &B,
        tokens: usize,
        gate_up: View<'_, B::Act>,
        act: ViewMut<'_, B::Act>,
    ) -> Result<()> {
        let intermediate = self.config.intermediate;
        match (self.config.family.gated, self.config.traits.gelu) {
            (false, Some(form)) => {
                backend.gelu_fwd(GeluFwd { dims: GeluDims { tokens, intermediate, form }, x: gate_up, act })
            }
            (_, gelu) => backend.glu_fwd(GluFwd { dims: GluDims { tokens, intermediate, gelu }, gate_up, act }),
        }
    }

    /// Multiplies the rows of `x_in_place` by a factor and adds those of `addend`. Does nothing if the factor is
    /// 1 and there is no addend.
    pub(super) fn scale(
        &self,
        backend: &B,
        factor: f64,
        addend: Option<View<'_, B::Act>>,
        x_in_place: ViewMut<'_, B::Act>,
    ) -> Result<()> {
        if factor == 1.0 && addend.is_none() {
            return Ok(());
        }
        let hidden = self.config.hidden;
        let dims = ScaleDims { tokens: x_in_place.len / hidden, hidden, factor };
        backend.scale(Scale { dims, addend, x_in_place })
    }
}
