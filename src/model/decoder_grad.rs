//! The decoder's backward: the forward's op calls in reverse order, handwritten and checked
//! against finite differences of the whole model.
//!
//! With adapters the base is frozen: only the adapters get gradients (`lora`), and the lowest layer's
//! input gets none.

use std::ops::Range;

use super::activations::Activations;
use super::decoder::Model;
use super::decoder_norm::NormGradient;
use super::inputs::Inputs;
use super::layout::LayerRanges;
use super::lora::{Group, LoraWorkspace, Place};
use super::units::Unit;
use crate::backend::contract::*;
use crate::backend::{Backend, View, ViewMut, Write};
use crate::{Error, Result};

/// Destination of the gradients.
pub struct GradientsOut<'a, B: Backend> {
    /// Gradients of the trained parameters, see [`Model::trained`].
    pub grads: &'a mut B::Acc,
    /// Overwrite or accumulate.
    pub write: Write,
    /// (layout.norms) patch norms of the final gradients of `layout.matrices`. Present in the last backward of a
    /// step, and not used with adapters.
    pub norms: Option<&'a mut B::Acc>,
    /// Receiver of the gradients unit by unit; `None` if `grads` holds all gradients in the layout of the
    /// trained parameters.
    pub(crate) units: Option<&'a mut dyn UnitGradients<B>>,
}

/// Receives the gradients of a backward unit by unit.
pub(crate) trait UnitGradients<B: Backend> {
    /// Index in the gradient buffer of the first element of a range of the layout.
    fn place(&self, range: &Range<usize>) -> usize;

    /// Called before the first gradient of a unit is written.
    fn prepare(&mut self, backend: &B, grads: &mut B::Acc, unit: Unit) -> Result<()>;

    /// Called after the last gradient of a unit is written.
    fn complete(&mut self, backend: &B, grads: &mut B::Acc, unit: Unit) -> Result<()>;
}

impl<B: Backend> GradientsOut<'_, B> {
    /// View of the gradients of a range of the trained parameters.
    pub(crate) fn slot(&mut self, range: &Range<usize>) -> ViewMut<'_, B::Acc> {
        let start = self.units.as_ref().map_or(range.start, |units| units.place(range));
        ViewMut::new(self.grads, start, range.len())
    }

    /// Tells `units` that the gradients of a unit follow.
    pub(super) fn prepare(&mut self, backend: &B, unit: Unit) -> Result<()> {
        self.units.as_mut().map_or(Ok(()), |units| units.prepare(backend, self.grads, unit))
    }

    /// Tells `units` that the gradients of a unit are final.
    pub(super) fn complete(&mut self, backend: &B, unit: Unit) -> Result<()> {
        self.units.as_mut().map_or(Ok(()), |units| units.complete(backend, self.grads, unit))
    }
}

/// Arguments of the backward of a GEMM.
struct Projection<'a, B: Backend> {
    place: Place,
    /// (tokens, outputs)
    dy: View<'a, B::Act>,
    /// (tokens, inputs)
    x: View<'a, B::Act>,
    /// (tokens, inputs); `None` if the caller computes it, or nothing needs it
    dx: Option<ViewMut<'a, B::Act>>,
    /// `Add` if `dx` already holds the gradient from other paths.
    dx_write: Write,
}

impl<B: Backend> Model<B> {
    /// Computes the gradients of all trained weights below the head. On entry, `acts.gradients.dnormed` holds
    /// the gradient of `acts.hidden`. The gradient of a tied embedding is always accumulated, because the head's
    /// backward has already written to it.
    pub fn backward(
        &mut self,
        backend: &B,
        inputs: &Inputs<'_, B>,
        acts: &mut Activations<B>,
        mut out: GradientsOut<'_, B>,
    ) -> Result<()> {
        self.final_norm_bwd(backend, inputs.tokens, acts, &mut out)?;
        out.complete(backend, Unit::Last)?;
        for i in (0..self.config.layers).rev() {
            self.enter_layer_back(backend, i)?;
            out.prepare(backend, Unit::Layer(i))?;
            self.layer_bwd(backend, inputs, acts, i, &mut out)?;
            out.complete(backend, Unit::Layer(i))?;
        }
        if self.lora.is_some() {
            return Ok(());
        }
        if !self.layout.tied() {
            out.prepare(backend, Unit::First)?;
        }
        self.embedding_bwd(backend, inputs, acts, &mut out)?;
        out.complete(backend, Unit::First)
    }

    /// Gradients of the final norm, and of the last stream.
    fn final_norm_bwd(
        &self,
        backend: &B,
        tokens: usize,
        acts: &mut Activations<B>,
        out: &mut GradientsOut<'_, B>,
    ) -> Result<()> {
        let (config, wide) = (&self.config, tokens * self.config.hidden);
        let last = acts.stream_index(2 * config.layers);
        let Activations { streams, final_rstd, gradients, lora, .. } = acts;
        let Some(g) = gradients else { return Err(not_for_training()) };
        self.scale(backend, config.hidden_factor(), None, ViewMut::first(&mut g.dnormed, wide))?;
        let (dweight, dweight_write) = self.norm_gradient(out, lora, &self.layout.final_norm)?;
        self.norm_bwd(
            backend,
            NormGradient {
                dy: View::first(&g.dnormed, wide),
                x: View::first(&streams[last], wide),
                stats: final_rstd,
                weight: &self.layout.final_norm,
                dx: ViewMut::first(&mut g.dstream, wide),
                dx_write: Write::Overwrite,
                dweight,
                dweight_write,
            },
        )
    }

    /// Gradients of layer i, and of its input stream.
    fn layer_bwd(
        &self,
        backend: &B,
        inputs: &Inputs<'_, B>,
        acts: &mut Activations<B>,
        i: usize,
        out: &mut GradientsOut<'_, B>,
    ) -> Result<()> {
        let (config, tokens, at) = (&self.config, inputs.tokens, &self.layout.layers[i]);
        let (hidden, inner, width) = (config.hidden, config.intermediate, config.mlp_width());
        let query = config.query_width();
        let fused = query + 2 * config.kv_width();
        let wide = tokens * hidden;
        if acts.needs_recompute(i) {
            self.run_layer(backend, inputs, acts, i)?;
            if config.family.norms_behind {
                // Recomputes the statistics of the post-norm of the MLP. The stream is rewritten with the
                // same bits.
                self.close_layer(backend, tokens, acts, i)?;
            }
        }
        let (layer, entry, middle) = (acts.layer_index(i), acts.stream_index(2 * i), acts.stream_index(2 * i + 1));
        let Activations { streams, layers, gradients, lora, .. } = &mut *acts;
        let Some(g) = gradients else { return Err(not_for_training()) };
        let saved = &layers[layer];
        let place = |group| Place { layer: i, set: layer, group, tokens };
        let Some(saved_gate_up) = &saved.gate_up else { return Err(not_for_training()) };
        if let (Some(branches), Some(norm)) = (&saved.branches, &at.mlp_norm) {
            let dweight = self.norm_gradient(out, lora, norm)?;
            self.branch_bwd(backend, (tokens, i), (branches, Group::Down), g, dweight)?;
        }
        let dy = View::first(g.dbranch.as_ref().unwrap_or(&g.dstream), wide);
        let down = Projection {
            place: place(Group::Down),
            dy,
            x: View::first(&saved.act, tokens * inner),
            dx: match config.family.gated {
                true => g.dact.as_mut().map(|dact| ViewMut::first(dact, tokens * inner)),
                false => Some(ViewMut::first(&mut g.dgate_up, tokens * inner)),
            },
            dx_write: Write::Overwrite,
        };
        self.projection_bwd(backend, down, lora, out)?;
        let gate_up = View::first(saved_gate_up, tokens * width);
        let dgate_up = ViewMut::first(&mut g.dgate_up, tokens * width);
        match (&g.dact, config.traits.gelu) {
            (None, Some(form)) => {
                let dims = GeluDims { tokens, intermediate: inner, form };
                backend.gelu_bwd(GeluBwd { dims, x: gate_up, dact_in_place: dgate_up })?;
            }
            (Some(dact), gelu) => {
                let dims = GluDims { tokens, intermediate: inner, gelu };
                backend.glu_bwd(GluBwd { dims, dact: View::first(dact, tokens * inner), gate_up, dgate_up })?;
            }
            (None, None) => {
                let dims = LinearGluDims { tokens, hidden, intermediate: inner };
                let weight = self.weight(&at.down);
                backend.linear_glu_bwd(LinearGluBwd { dims, dy, weight, gate_up, dgate_up })?;
            }
        }
        let front = config.family.norms_in_front;
        // Without a pre-norm, the gradient is added to that of the residual stream.
        let dx_write = if front { Write::Overwrite } else { Write::Add };
        let gate_up = Projection {
            place: place(Group::GateUp),
            dy: View::first(&g.dgate_up, tokens * width),
            x: View::first(if front { &saved.mlp_input } else { &streams[middle] }, wide),
            dx: Some(ViewMut::first(if front { &mut g.dnormed } else { &mut g.dstream }, wide)),
            dx_write,
        };
        self.projection_bwd(backend, gate_up, lora, out)?;
        // With attention and MLP in parallel, the MLP's input does not depend on attention's output.
        let norm_first = !config.traits.parallel;
        for is_norm in [norm_first, !norm_first] {
            if !is_norm {
                let output = Projection {
                    place: place(Group::Output),
                    dy: View::first(g.dbranch.as_ref().unwrap_or(&g.dstream), wide),
                    x: View::first(&saved.attention, tokens * query),
                    dx: Some(ViewMut::first(&mut g.dattention, tokens * query)),
                    dx_write: Write::Overwrite,
                };
                self.projection_bwd(backend, output, lora, out)?;
                continue;
            }
            if front {
                let (dweight, dweight_write) = self.norm_gradient(out, lora, &at.post_norm)?;
                self.norm_bwd(
                    backend,
                    NormGradient {
                        dy: View::first(&g.dnormed, wide),
                        x: View::first(&streams[if norm_first { middle } else { entry }], wide),
                        stats: &saved.post_rstd,
                        weight: &at.post_norm,
                        dx: ViewMut::first(&mut g.dstream, wide),
                        dx_write: Write::Add,
                        dweight,
                        dweight_write,
                    },
                )?;
            }
            if let (Some(branches), Some(norm)) = (&saved.branches, &at.attention_norm) {
                let dweight = self.norm_gradient(out, lora, norm)?;
                self.branch_bwd(backend, (tokens, i), (branches, Group::Output), g, dweight)?;
            }
        }
        let attention = AttentionBwd {
            dims: inputs.attention_dims(config, i),
            do_: View::first(&g.dattention, tokens * query),
            qkv: View::first(&saved.qkv, tokens * fused),
            o: View::first(&saved.attention, tokens * query),
            lse: View::first(&saved.lse, config.heads * tokens),
            tree: inputs.tree,
            dqkv: ViewMut::first(&mut g.dqkv, tokens * fused),
        };
        match config.rotates(i) {
            true => {
                let rotation = self.rotation(i, inputs.positions);
                backend.attention_rope_bwd(AttentionRopeBwd { attention, rotation })?;
            }
            false => backend.attention_bwd(attention)?,
        }
        if let Some(weight) = &at.qk_norm {
            let Some(x) = &saved.qk_input else { return Err(not_for_training()) };
            let dims = self.qk_norm_dims(tokens);
            let (dweight, write) = self.norm_gradient(out, lora, weight)?;
            backend.qk_norm_bwd(QkNormBwd {
                dims,
                x: View::first(x, tokens * dims.normalised() * dims.head_dim),
                weight: self.weight(weight),
                dqkv_in_place: ViewMut::first(&mut g.dqkv, tokens * fused),
                dweight,
                write,
            })?;
        }
        // Nothing below the adapters of the lowest layer is trained, so its input needs no gradient.
        let ends = i == 0 && self.lora.is_some();
        let qkv = Projection {
            place: place(Group::Qkv),
            dy: View::first(&g.dqkv, tokens * fused),
            x: View::first(if front { &saved.attention_input } else { &streams[entry] }, wide),
            dx: (!ends).then(|| ViewMut::first(if front { &mut g.dnormed } else { &mut g.dstream }, wide)),
            dx_write,
        };
        self.projection_bwd(backend, qkv, lora, out)?;
        if ends || !front {
            return Ok(());
        }
        let (dweight, mut dweight_write) = self.norm_gradient(out, lora, &at.input_norm)?;
        if config.shares_norm() && self.lora.is_none() {
            // The MLP shares the norm, and its backward has already written its part of the gradient.
            dweight_write = Write::Add;
        }
        self.norm_bwd(
            backend,
            NormGradient {
                dy: View::first(&g.dnormed, wide),
                x: View::first(&streams[entry], wide),
                stats: &saved.input_rstd,
                weight: &at.input_norm,
                dx: ViewMut::first(&mut g.dstream, wide),
                dx_write: Write::Add,
                dweight,
                dweight_write,
            },
        )
    }

    /// Gradients of the embedding and of positions.
    fn embedding_bwd(
        &self,
        backend: &B,
        inputs: &Inputs<'_, B>,
        acts: &mut Activations<B>,
        out: &mut GradientsOut<'_, B>,
    ) -> Result<()> {
        let (config, tokens) = (&self.config, inputs.tokens);
        let (hidden, wide) = (config.hidden, tokens * config.hidden);
        let Some(g) = &mut acts.gradients else { return Err(not_for_training()) };
        if let Some(table) = &self.layout.positions {
            backend.embedding_bwd(EmbeddingBwd {
                dims: EmbeddingDims { tokens, vocab: config.declared_positions, hidden },
                dx: View::first(&g.dstream, wide),
                runs: inputs.position_runs,
                write: out.write,
                dtable: out.slot(table),
            })?;
        }
        self.scale(backend, config.embedding_factor(B::PRECISION), None, ViewMut::first(&mut g.dstream, wide))?;
        backend.embedding_bwd(EmbeddingBwd {
            dims: EmbeddingDims { tokens, vocab: config.vocab, hidden },
            dx: View::first(&g.dstream, wide),
            runs: inputs.id_runs,
            write: if self.layout.tied() { Write::Add } else { out.write },
            dtable: out.slot(&self.layout.embedding),
        })
    }

    /// Backward of a GEMM: gradients of its weight and bias, or of its adapters if the base is frozen,
    /// and the gradient of its input.
    fn projection_bwd(
        &self,
        backend: &B,
        projection: Projection<'_, B>,
        work: &mut Option<LoraWorkspace<B>>,
        out: &mut GradientsOut<'_, B>,
    ) -> Result<()> {
        let Projection { place, dy, x, mut dx, dx_write } = projection;
        let (at, group) = (&self.layout.layers[place.layer], place.group);
        let dims = group.dims(&self.config, place.tokens);
        let (weight, bias, norms) = parts(at, group);
        let write = match (&self.lora, work) {
            (Some(lora), Some(work)) => {
                let to = (dx.as_mut().map(ViewMut::reborrow), dx_write);
                lora.backward(backend, work, place, (dy, x), to, (out.grads, out.write))?
            }
            (Some(_), None) => return Err(not_for_training()),
            (None, _) => {
                if let Some(bias) = bias {
                    let write = out.write;
                    backend.bias_bwd(BiasBwd { dims, dy, dbias: out.slot(bias), write })?;
                }
                let start = out.units.as_ref().map_or(weight.start, |units| units.place(weight));
                backend.linear_bwd_weight(LinearBwdWeight {
                    dims,
                    dy,
                    x,
                    dweight: ViewMut::new(out.grads, start, weight.len()),
                    write: out.write,
                    norms: out.norms.as_deref_mut().map(|all| slot(all, norms)),
                })?;
                dx_write
            }
        };
        let Some(dx) = dx else { return Ok(()) };
        backend.linear_bwd_input(LinearBwdInput { dims, dy, weight: self.weight(weight), dx, write })
    }

    /// Destination of a norm's gradient: its range in the gradient arena, or a scratch buffer that nothing reads
    /// if the norm is frozen.
    fn norm_gradient<'a>(
        &self,
        out: &'a mut GradientsOut<'_, B>,
        work: &'a mut Option<LoraWorkspace<B>>,
        norm: &Range<usize>,
    ) -> Result<(ViewMut<'a, B::Acc>, Write)> {
        match (&self.lora, work) {
            (None, _) => {
                let write = out.write;
                Ok((out.slot(norm), write))
            }
            (Some(_), Some(work)) => Ok((work.frozen_norm(norm.len())?, Write::Overwrite)),
            (Some(_), None) => Err(not_for_training()),
        }
    }
}

/// Weight, bias and patch norms of a GEMM.
fn parts(at: &LayerRanges, group: Group) -> (&Range<usize>, Option<&Range<usize>>, &Range<usize>) {
    match group {
        Group::Qkv => (&at.qkv, at.qkv_bias.as_ref(), &at.norms.qkv),
        Group::Output => (&at.output, at.output_bias.as_ref(), &at.norms.output),
        Group::GateUp => (&at.gate_up, at.gate_up_bias.as_ref(), &at.norms.gate_up),
        Group::Down => (&at.down, at.down_bias.as_ref(), &at.norms.down),
    }
}

pub(super) fn not_for_training() -> Error {
    Error::Runtime("backward needs a workspace allocated for training".into())
}

/// Returns the view of the gradient arena for a range of weights.
pub(crate) fn slot<'a, T: crate::backend::Buffer>(grads: &'a mut T, range: &Range<usize>) -> ViewMut<'a, T> {
    ViewMut::new(grads, range.start, range.len())
}
