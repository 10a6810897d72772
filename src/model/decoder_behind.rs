//! Post-norms of attention and MLP: the residual stream adds the normalised output of a block. The input of the
//! block is the stream itself, or a pre-norm of it.
//!
//! ```text
//! branch = block(stream[k] or norm(stream[k]));  stream[k + 1] = stream[k] + norm(branch)
//! ```
//!
//! The last projection of a block then has no residual, and its output is kept for the backward.

use super::activations::{Activations, Branch, Gradients};
use super::config::ModelConfig;
use super::decoder::Model;
use super::decoder_grad::not_for_training;
use super::decoder_norm::NormGradient;
use super::layout::LayerRanges;
use super::lora::{Group, Place};
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{Backend, View, ViewMut, Write};

impl ModelConfig {
    /// Number of elements of the longest norm weight, where the weights for queries and keys count as one.
    pub(super) fn longest_norm(&self) -> usize {
        let heads = if self.family.whole_norm { self.query_width() + self.kv_width() } else { 2 * self.head_dim };
        self.norm_width().max(heads)
    }
}

/// Index of a block in the branches of a layer.
fn index(group: Group) -> usize {
    usize::from(group == Group::Down)
}

/// Weight of the post-norm of a block.
fn norm_of(at: &LayerRanges, group: Group) -> Result<&std::ops::Range<usize>> {
    let norm = if group == Group::Down { &at.mlp_norm } else { &at.attention_norm };
    norm.as_ref().ok_or_else(not_for_training)
}

impl<B: Backend> Model<B> {
    /// Runs the last projection of a block of layer i.
    pub(super) fn run_branch(
        &self,
        backend: &B,
        tokens: usize,
        acts: &mut Activations<B>,
        i: usize,
        group: Group,
    ) -> Result<()> {
        let (at, dims) = (&self.layout.layers[i], group.dims(&self.config, tokens));
        let place = Place { layer: i, set: acts.layer_index(i), group, tokens };
        let Activations { layers, lora, .. } = acts;
        let saved = &mut layers[place.set];
        let Some(branches) = &mut saved.branches else { return Err(not_for_training()) };
        let (x, weight, bias) = match group {
            Group::Down => (&saved.act, &at.down, at.down_bias.as_ref()),
            _ => (&saved.attention, &at.output, at.output_bias.as_ref()),
        };
        let x = View::first(x, tokens * dims.inputs);
        let residual = match group {
            Group::Down => self.expand(backend, lora.as_mut(), place, None)?,
            _ => self.low_rank(backend, lora.as_mut(), place, x, None)?,
        };
        backend.linear_fwd(LinearFwd {
            dims,
            x,
            weight: self.weight(weight),
            bias: bias.map(|range| self.weight(range)),
            residual,
            y: ViewMut::first(&mut branches[index(group)].x, tokens * dims.outputs),
        })
    }

    /// Adds the normalised output of a block of layer i to its input stream k and writes stream k + 1.
    pub(super) fn add_branch(
        &self,
        backend: &B,
        (tokens, k): (usize, usize),
        acts: &mut Activations<B>,
        i: usize,
        group: Group,
    ) -> Result<()> {
        let (layer, wide) = (acts.layer_index(i), tokens * self.config.hidden);
        let advance = acts.advance(k);
        let Some(branches) = &mut advance.layers[layer].branches else { return Err(not_for_training()) };
        let Branch { x, rstd } = &mut branches[index(group)];
        let weight = norm_of(&self.layout.layers[i], group)?;
        let (from, to) = (View::first(advance.from, wide), ViewMut::first(advance.to, wide));
        self.norm(backend, View::first(x, wide), Some(from), weight, to, rstd)
    }

    /// Computes the gradient of a block's output before its post-norm into `dbranch`. `dweight` receives the
    /// gradient of the norm's weight.
    pub(super) fn branch_bwd(
        &self,
        backend: &B,
        (tokens, i): (usize, usize),
        (branches, group): (&[Branch<B>; 2], Group),
        g: &mut Gradients<B>,
        (dweight, dweight_write): (ViewMut<'_, B::Acc>, Write),
    ) -> Result<()> {
        let (branch, wide) = (&branches[index(group)], tokens * self.config.hidden);
        let Some(dbranch) = &mut g.dbranch else { return Err(not_for_training()) };
        self.norm_bwd(
            backend,
            NormGradient {
                dy: View::first(&g.dstream, wide),
                x: View::first(&branch.x, wide),
                stats: &branch.rstd,
                weight: norm_of(&self.layout.layers[i], group)?,
                dx: ViewMut::first(dbranch, wide),
                dx_write: Write::Overwrite,
                dweight,
                dweight_write,
            },
        )
    }
}
