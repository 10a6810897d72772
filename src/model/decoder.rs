//! The decoder's forward as a list of op calls. `decoder_grad.rs` has the backward, with the calls in reverse
//! order.
//!
//! ```text
//! stream[0] = embedding[ids] (times a factor, plus a position's row)
//! for each layer i:
//!     qkv = rope(qk_norm(norm(stream[2i]) W_qkv + b_qkv))
//!     stream[2i + 1] = stream[2i] + attention(qkv) W_output + b_output
//!     stream[2i + 2] = stream[2i + 1] + swiglu(norm(stream[2i + 1]) W_gate_up) W_down
//! hidden = norm(stream[2 layers])
//! ```
//!
//! With attention and MLP in parallel, the MLP's norm reads `stream[2i]`. Norms are RMSNorm or LayerNorm; without
//! a gate the MLP is gelu(norm(stream) W_up + b_up) W_down + b_down. A family may have post-norms
//! (`decoder_behind`) in addition to the pre-norms or instead of them. Without pre-norms, the input of a block is
//! the stream.
//!
//! The op of a block's last GEMM also adds the residual stream and writes the next stream. The op
//! of the gate and up GEMM also applies SwiGLU, but not GeGLU. RoPE rotates only queries and keys.
//!
//! With adapters (`lora`), the low-rank part of a GEMM's output is computed first and is the residual of the
//! GEMM. SwiGLU needs the sum, so it is then a separate op after the gate and up GEMM.
//!
//! A family's row (`family.rs`) says which biases there are, whether queries and keys have a norm, and
//! which layers rotate.

use super::activations::{Activations, Advance};
use super::config::ModelConfig;
use super::decoder_grad::not_for_training;
use super::inputs::Inputs;
use super::layout::Layout;
use super::lora::{Group, Lora, LoraWorkspace, Place};
use super::rope::RopeConfig;
use super::shards::Shards;
use super::units::Unit;
use crate::backend::contract::*;
use crate::backend::{Backend, View, ViewMut};
use crate::{Error, Result};

/// A model on a backend: sizes, one arena of weights, RoPE tables.
pub struct Model<B: Backend> {
    /// Sizes and family.
    pub config: ModelConfig,
    /// Ranges of the tensors in the arena of weights.
    pub layout: Layout,
    /// (layout.len), or this rank's slices if the weights are sharded over ranks
    pub weights: B::Act,
    /// Adapters. With them, `weights` are frozen.
    pub lora: Option<Lora<B>>,
    /// Ranges and gathered copies of sharded weights.
    pub(super) shards: Option<Shards<B>>,
    rope_tables: RopeTables<B>,
    /// Tables of the layers of [`ModelConfig::local_rope`].
    local_tables: Option<RopeTables<B>>,
}

/// Cosines and sines by position.
pub(super) struct RopeTables<B: Backend> {
    positions: usize,
    /// (positions, rotated / 2)
    pub cos: B::Acc,
    /// (positions, rotated / 2)
    pub sin: B::Acc,
}

impl<B: Backend> RopeTables<B> {
    /// Angles are f32 products of position and inverse frequency, as in transformers. Cosine and
    /// sine are computed in f64, then multiplied by the factor of the RoPE scaling.
    fn new(backend: &B, (config, rope): (&ModelConfig, &RopeConfig), positions: usize) -> Result<Self> {
        let inv_freq = config.inv_freq_of(rope);
        let factor = f64::from(rope.attention_factor() as f32);
        let angles = (0..positions).flat_map(|p| inv_freq.iter().map(move |f| f64::from(p as f32 * f)));
        let angles: Vec<f64> = angles.collect();
        let table = |f: fn(f64) -> f64| -> Result<B::Acc> {
            let mut buffer = backend.zeros_acc(angles.len())?;
            let values: Vec<f64> = angles.iter().map(|&a| factor * f(a)).collect();
            backend.write_acc(ViewMut::first(&mut buffer, values.len()), &values)?;
            Ok(buffer)
        };
        Ok(Self { positions, cos: table(f64::cos)?, sin: table(f64::sin)? })
    }

    /// Tables for the RoPE settings of the model, and for those of [`ModelConfig::local_rope`] if it has them.
    fn of_layers(backend: &B, config: &ModelConfig, positions: usize) -> Result<(Self, Option<Self>)> {
        let tables = |rope: &RopeConfig| Self::new(backend, (config, rope), positions);
        let local = config.local_rope.as_ref().map(|local| tables(&local.rope)).transpose()?;
        Ok((tables(&config.rope)?, local))
    }
}

impl<B: Backend> Model<B> {
    /// Creates a model with zero weights, for `positions` token positions.
    pub fn zeros(backend: &B, config: ModelConfig, positions: usize) -> Result<Self> {
        Self::zeros_on(backend, config, positions, None)
    }

    /// Creates a model with zero weights. With `shards`, it holds only this rank's slices of the weights.
    pub(super) fn with_weights(
        backend: &B,
        config: ModelConfig,
        positions: usize,
        layout: Layout,
        shards: Option<Shards<B>>,
    ) -> Result<Self> {
        let weights = backend.zeros_act(shards.as_ref().map_or(layout.len, |shards| shards.part().len()))?;
        let (rope_tables, local_tables) = RopeTables::of_layers(backend, &config, positions)?;
        Ok(Self { config, layout, weights, lora: None, shards, rope_tables, local_tables })
    }

    /// Extends the RoPE tables to `positions`. More positions than the model supports are an error.
    pub fn reserve_positions(&mut self, backend: &B, positions: usize) -> Result<()> {
        if positions > self.config.max_positions {
            return Err(Error::Usage(format!(
                "a sequence of {positions} tokens is longer than the model's {}; lower --max-length",
                self.config.longest_text()
            )));
        }
        if positions > self.rope_tables.positions {
            let grown = (positions + positions / 4).min(self.config.max_positions);
            (self.rope_tables, self.local_tables) = RopeTables::of_layers(backend, &self.config, grown)?;
        }
        Ok(())
    }

    /// Number of head rows of this model that [`Backend::head_preference`] processes at a time.
    pub fn max_head_rows(&self, backend: &B) -> usize {
        let ModelConfig { hidden, vocab, .. } = self.config;
        let softcap = self.config.softcaps.logits;
        backend.max_head_rows(HeadDims { tokens: 0, hidden, vocab, rows: 0, softcap })
    }

    /// Like [`Model::max_head_rows`], but ignores a limit set by [`Backend::set_max_head_rows`].
    pub(crate) fn default_head_rows(&self, backend: &B) -> usize {
        let ModelConfig { hidden, vocab, .. } = self.config;
        let softcap = self.config.softcaps.logits;
        let choices = backend.head_row_choices(HeadDims { tokens: 0, hidden, vocab, rows: 0, softcap });
        choices.first().copied().unwrap_or_else(|| self.max_head_rows(backend))
    }

    /// Returns a view of a range of the weights, which must be gathered if they are sharded over ranks.
    pub fn weight(&self, range: &std::ops::Range<usize>) -> View<'_, B::Act> {
        match &self.shards {
            None => View::new(&self.weights, range.start, range.len()),
            Some(shards) => shards.view(range),
        }
    }

    pub(super) fn qk_norm_dims(&self, tokens: usize) -> QkNormDims {
        let ModelConfig { heads, kv_heads, head_dim, rms_norm_eps: eps, .. } = self.config;
        QkNormDims {
            tokens,
            heads,
            kv_heads,
            head_dim,
            whole: self.config.family.whole_norm,
            eps,
            offset: self.config.norm_offset(),
        }
    }

    /// RoPE of the queries and keys of layer i, for tokens at `positions`.
    pub(super) fn rotation<'a>(&'a self, i: usize, positions: View<'a, B::Idx>) -> Rotation<'a, B> {
        let config = &self.config;
        let local = config.local_rope.as_ref().is_some_and(|local| local.layers.contains(&i));
        let tables = self.local_tables.as_ref().filter(|_| local).unwrap_or(&self.rope_tables);
        let table = tables.positions * config.rotated / 2;
        Rotation {
            dims: RopeDims {
                tokens: positions.len,
                heads: config.heads + config.kv_heads,
                unrotated_heads: config.kv_heads,
                head_dim: config.head_dim,
                rotated: config.rotated,
                positions: tables.positions,
            },
            positions,
            cos: View::first(&tables.cos, table),
            sin: View::first(&tables.sin, table),
        }
    }

    /// Runs the model. The result is `acts.hidden` (tokens, hidden), after the final norm.
    pub fn forward(&mut self, backend: &B, inputs: &Inputs<'_, B>, acts: &mut Activations<B>) -> Result<()> {
        let tokens = inputs.tokens;
        self.enter(backend, Unit::First, Some(Unit::Layer(0)))?;
        self.embed(backend, inputs.ids, inputs.positions, acts)?;
        for i in 0..self.config.layers {
            self.enter_layer(backend, i)?;
            self.run_layer(backend, inputs, acts, i)?;
            self.close_layer(backend, tokens, acts, i)?;
        }
        self.enter(backend, Unit::Last, None)?;
        self.normalise_last(backend, tokens, acts)
    }

    /// Grows the workspace for a batch and writes the first residual stream.
    pub(super) fn embed(
        &self,
        backend: &B,
        ids: View<'_, B::Idx>,
        positions: View<'_, B::Idx>,
        acts: &mut Activations<B>,
    ) -> Result<()> {
        let (config, tokens) = (&self.config, ids.len);
        acts.grow(backend, config, tokens)?;
        if let (Some(lora), Some(work)) = (&self.lora, &mut acts.lora) {
            lora.scale_b(backend, work)?;
        }
        backend.embedding_fwd(EmbeddingFwd {
            dims: EmbeddingDims { tokens, vocab: config.vocab, hidden: config.hidden },
            ids,
            table: self.weight(&self.layout.embedding),
            x: ViewMut::first(&mut acts.streams[0], tokens * config.hidden),
        })?;
        let wide = tokens * config.hidden;
        let Activations { streams, hidden, .. } = acts;
        let addend = match &self.layout.positions {
            None => None,
            Some(table) => {
                // The buffer of the final hidden states is free here, because they are written much later.
                backend.embedding_fwd(EmbeddingFwd {
                    dims: EmbeddingDims { tokens, vocab: config.declared_positions, hidden: config.hidden },
                    ids: positions,
                    table: self.weight(table),
                    x: ViewMut::first(hidden, wide),
                })?;
                Some(View::first(hidden, wide))
            }
        };
        self.scale(backend, config.embedding_factor(B::PRECISION), addend, ViewMut::first(&mut streams[0], wide))
    }

    /// Writes `acts.hidden` from the last stream.
    pub(super) fn normalise_last(&self, backend: &B, tokens: usize, acts: &mut Activations<B>) -> Result<()> {
        self.normalise(backend, acts, tokens, 2 * self.config.layers, &self.layout.final_norm, Norm::Final)?;
        let hidden = ViewMut::first(&mut acts.hidden, tokens * self.config.hidden);
        self.scale(backend, self.config.hidden_factor(), None, hidden)
    }

    /// Runs layer i from its input stream to the activations of its MLP, which is everything that its backward
    /// needs.
    pub(super) fn run_layer(
        &self,
        backend: &B,
        inputs: &Inputs<'_, B>,
        acts: &mut Activations<B>,
        i: usize,
    ) -> Result<()> {
        let (config, tokens) = (&self.config, inputs.tokens);
        let query = config.query_width();
        let fused = query + 2 * config.kv_width();
        self.project(backend, inputs.positions, acts, i)?;
        let layer = acts.layer_index(i);
        let saved = &mut acts.layers[layer];
        backend.attention_fwd(AttentionFwd {
            dims: inputs.attention_dims(config, i),
            qkv: View::first(&saved.qkv, tokens * fused),
            tree: inputs.tree,
            o: ViewMut::first(&mut saved.attention, tokens * query),
            lse: ViewMut::first(&mut saved.lse, config.heads * tokens),
        })?;
        self.run_mlp(backend, tokens, acts, i)
    }

    /// Runs layer i from its input stream to its queries, keys and values.
    pub(super) fn project(
        &self,
        backend: &B,
        positions: View<'_, B::Idx>,
        acts: &mut Activations<B>,
        i: usize,
    ) -> Result<()> {
        let (config, tokens, at) = (&self.config, positions.len, &self.layout.layers[i]);
        let hidden = config.hidden;
        let fused = config.query_width() + 2 * config.kv_width();
        let (layer, entry) = (acts.layer_index(i), acts.stream_index(2 * i));
        if config.family.norms_in_front {
            self.normalise(backend, acts, tokens, 2 * i, &at.input_norm, Norm::Input(layer))?;
        }
        let place = |group| Place { layer: i, set: layer, group, tokens };
        let Activations { streams, layers, lora, .. } = &mut *acts;
        let saved = &mut layers[layer];
        let x = if config.family.norms_in_front { &saved.attention_input } else { &streams[entry] };
        let x = View::first(x, tokens * hidden);
        let linear = LinearFwd {
            dims: LinearDims { tokens, inputs: hidden, outputs: fused },
            x,
            weight: self.weight(&at.qkv),
            bias: at.qkv_bias.as_ref().map(|range| self.weight(range)),
            residual: self.low_rank(backend, lora.as_mut(), place(Group::Qkv), x, None)?,
            y: ViewMut::first(&mut saved.qkv, tokens * fused),
        };
        if at.qk_norm.is_none() && config.rotates(i) {
            return backend.linear_rope_fwd(LinearRopeFwd { linear, rotation: self.rotation(i, positions) });
        }
        backend.linear_fwd(linear)?;
        if let Some(weight) = &at.qk_norm {
            let dims = self.qk_norm_dims(tokens);
            backend.qk_norm_fwd(QkNormFwd {
                dims,
                weight: self.weight(weight),
                x: saved.qk_input.as_mut().map(|x| ViewMut::first(x, tokens * dims.normalised() * dims.head_dim)),
                qkv_in_place: ViewMut::first(&mut saved.qkv, tokens * fused),
            })?;
        }
        if config.rotates(i) {
            backend.rope_fwd(self.rotation(i, positions).of(ViewMut::first(&mut saved.qkv, tokens * fused)))?;
        }
        Ok(())
    }

    /// Runs layer i from the output of its attention to the activations of its MLP.
    pub(super) fn run_mlp(&self, backend: &B, tokens: usize, acts: &mut Activations<B>, i: usize) -> Result<()> {
        let (config, at) = (&self.config, &self.layout.layers[i]);
        let (hidden, inner, query, width) =
            (config.hidden, config.intermediate, config.query_width(), config.mlp_width());
        let linear = |inputs, outputs| LinearDims { tokens, inputs, outputs };
        let wide = tokens * hidden;
        let layer = acts.layer_index(i);
        let (front, behind) = (config.family.norms_in_front, config.family.norms_behind);
        let middle = acts.stream_index(2 * i + 1);
        let place = |group| Place { layer: i, set: layer, group, tokens };
        if behind {
            self.run_branch(backend, tokens, acts, i, Group::Output)?;
            self.add_branch(backend, (tokens, 2 * i), acts, i, Group::Output)?;
        } else {
            let Advance { layers, from, to, lora } = acts.advance(2 * i);
            let x = View::first(&layers[layer].attention, tokens * query);
            let stream = Some(View::first(from, wide));
            backend.linear_fwd(LinearFwd {
                dims: linear(query, hidden),
                x,
                weight: self.weight(&at.output),
                bias: at.output_bias.as_ref().map(|range| self.weight(range)),
                residual: self.low_rank(backend, lora, place(Group::Output), x, stream)?,
                y: ViewMut::first(to, wide),
            })?;
        }
        if front {
            let stream = if config.traits.parallel { 2 * i } else { 2 * i + 1 };
            self.normalise(backend, acts, tokens, stream, &at.post_norm, Norm::Post(layer))?;
        }
        let Activations { streams, layers, lora, .. } = &mut *acts;
        let saved = &mut layers[layer];
        let x = View::first(if front { &saved.mlp_input } else { &streams[middle] }, wide);
        let low = self.low_rank(backend, lora.as_mut(), place(Group::GateUp), x, None)?;
        let act = ViewMut::first(&mut saved.act, tokens * inner);
        let bias = at.gate_up_bias.as_ref().map(|range| self.weight(range));
        let fuses = low.is_none() && bias.is_none() && config.fuses_glu();
        match (fuses, &mut saved.gate_up) {
            (false, Some(gate_up)) => {
                let mut gate_up = ViewMut::first(gate_up, tokens * width);
                backend.linear_fwd(LinearFwd {
                    dims: linear(hidden, width),
                    x,
                    weight: self.weight(&at.gate_up),
                    bias,
                    residual: low,
                    y: gate_up.reborrow(),
                })?;
                self.activate(backend, tokens, gate_up.as_view(), act)?;
            }
            (false, None) => return Err(not_for_training()),
            (true, gate_up) => backend.linear_glu_fwd(LinearGluFwd {
                dims: LinearGluDims { tokens, hidden, intermediate: inner },
                x,
                weight: self.weight(&at.gate_up),
                gate_up: gate_up.as_mut().map(|gate_up| ViewMut::first(gate_up, tokens * 2 * inner)),
                act,
            })?,
        }
        // The backward of the down projection needs the adapter's h (`lora`). It is computed here so that a
        // recomputed layer has it too.
        if let (Some(adapters), Some(work)) = (&self.lora, lora) {
            adapters.reduce(backend, work, place(Group::Down), View::first(&saved.act, tokens * inner))?;
        }
        match behind {
            true => self.run_branch(backend, tokens, acts, i, Group::Down),
            false => Ok(()),
        }
    }

    /// Writes the output stream of layer i with the down projection, or with the post-norm of its output if the
    /// family has post-norms.
    pub(super) fn close_layer(&self, backend: &B, tokens: usize, acts: &mut Activations<B>, i: usize) -> Result<()> {
        if self.config.family.norms_behind {
            return self.add_branch(backend, (tokens, 2 * i + 1), acts, i, Group::Down);
        }
        let (hidden, inner) = (self.config.hidden, self.config.intermediate);
        let layer = acts.layer_index(i);
        let Advance { layers, from, to, lora } = acts.advance(2 * i + 1);
        let x = View::first(&layers[layer].act, tokens * inner);
        let stream = Some(View::first(from, tokens * hidden));
        let place = Place { layer: i, set: layer, group: Group::Down, tokens };
        backend.linear_fwd(LinearFwd {
            dims: LinearDims { tokens, inputs: inner, outputs: hidden },
            x,
            weight: self.weight(&self.layout.layers[i].down),
            bias: self.layout.layers[i].down_bias.as_ref().map(|range| self.weight(range)),
            residual: self.expand(backend, lora, place, stream)?,
            y: ViewMut::first(to, tokens * hidden),
        })
    }

    /// Residual of a GEMM: the low-rank part of its output plus `residual`, or only `residual` if the GEMM or the
    /// workspace has no adapter.
    pub(super) fn low_rank<'a>(
        &self,
        backend: &B,
        mut work: Option<&'a mut LoraWorkspace<B>>,
        place: Place,
        x: View<'_, B::Act>,
        residual: Option<View<'a, B::Act>>,
    ) -> Result<Option<View<'a, B::Act>>> {
        if let (Some(lora), Some(work)) = (&self.lora, &mut work) {
            lora.reduce(backend, work, place, x)?;
        }
        self.expand(backend, work, place, residual)
    }

    /// Like [`Self::low_rank`], for an h that is already computed.
    pub(super) fn expand<'a>(
        &self,
        backend: &B,
        work: Option<&'a mut LoraWorkspace<B>>,
        place: Place,
        residual: Option<View<'a, B::Act>>,
    ) -> Result<Option<View<'a, B::Act>>> {
        let (Some(lora), Some(work)) = (&self.lora, work) else { return Ok(residual) };
        Ok(lora.expand(backend, work, place, residual)?.or(residual))
    }

    /// Normalises stream k.
    fn normalise(
        &self,
        backend: &B,
        acts: &mut Activations<B>,
        tokens: usize,
        k: usize,
        weight: &std::ops::Range<usize>,
        place: Norm,
    ) -> Result<()> {
        let wide = tokens * self.config.hidden;
        let stream = acts.stream_index(k);
        let Activations { streams, layers, hidden, final_rstd, .. } = acts;
        let (y, rstd) = match place {
            Norm::Input(i) => {
                let layer = &mut layers[i];
                (&mut layer.attention_input, &mut layer.input_rstd)
            }
            Norm::Post(i) => {
                let layer = &mut layers[i];
                (&mut layer.mlp_input, &mut layer.post_rstd)
            }
            Norm::Final => (hidden, final_rstd),
        };
        self.norm(backend, View::first(&streams[stream], wide), None, weight, ViewMut::first(y, wide), rstd)
    }
}

/// Pre-norm of a block, with the index of its layer buffers, or the final norm.
enum Norm {
    Input(usize),
    Post(usize),
    Final,
}
