//! The decoder's backward: the forward's op calls in reverse order, handwritten and checked
//! against finite differences of the whole model.

use super::activations::Activations;
use super::decoder::Model;
use super::inputs::Inputs;
use crate::backend::contract::*;
use crate::backend::{Backend, View, ViewMut, Write};
use crate::{Error, Result};

/// Destination of the gradients.
pub struct GradientsOut<'a, B: Backend> {
    /// (layout.len)
    pub grads: &'a mut B::Acc,
    /// Overwrite or accumulate.
    pub write: Write,
    /// (layout.norms) patch norms of the final `grads` in `layout.matrices`; for the last backward
    /// of a step
    pub norms: Option<&'a mut B::Acc>,
}

impl<B: Backend> Model<B> {
    /// Computes the gradients of all weights below the head. On entry `acts.gradients.dnormed`
    /// holds the gradient of `acts.hidden`. A tied embedding's gradient is always accumulated,
    /// because the head has already written its part.
    pub fn backward(
        &self,
        backend: &B,
        inputs: &Inputs<'_, B>,
        acts: &mut Activations<B>,
        out: GradientsOut<'_, B>,
    ) -> Result<()> {
        let GradientsOut { grads, write, mut norms } = out;
        let (config, tokens) = (&self.config, inputs.tokens);
        let (hidden, inner) = (config.hidden, config.intermediate);
        let query = config.query_width();
        let fused = query + 2 * config.kv_width();
        let linear = |inputs, outputs| LinearDims { tokens, inputs, outputs };
        let wide = tokens * hidden;
        let last = acts.stream_index(2 * config.layers);
        let Activations { streams, final_rstd, gradients, .. } = &mut *acts;
        let Some(g) = gradients else { return Err(not_for_training()) };
        backend.norm_bwd(NormBwd {
            dims: self.norm_dims(tokens),
            dy: View::first(&g.dnormed, wide),
            sum: View::first(&streams[last], wide),
            rstd: View::first(final_rstd, tokens),
            weight: self.weight(&self.layout.final_norm),
            dsum: ViewMut::first(&mut g.dstream, wide),
            dsum_write: Write::Overwrite,
            dweight: slot(grads, &self.layout.final_norm),
            dweight_write: write,
        })?;
        for (i, at) in self.layout.layers.iter().enumerate().rev() {
            if acts.needs_recompute(i) {
                self.run_layer(backend, inputs, acts, i)?;
            }
            let (layer, entry, middle) = (acts.layer_index(i), acts.stream_index(2 * i), acts.stream_index(2 * i + 1));
            let Activations { streams, layers, gradients, .. } = &mut *acts;
            let Some(g) = gradients else { return Err(not_for_training()) };
            let saved = &layers[layer];
            let down = linear(inner, hidden);
            backend.linear_bwd_weight(LinearBwdWeight {
                dims: down,
                dy: View::first(&g.dstream, wide),
                x: View::first(&saved.act, tokens * inner),
                dweight: slot(grads, &at.down),
                write,
                norms: norms.as_deref_mut().map(|norms| slot(norms, &at.norms.down)),
            })?;
            let Some(saved_gate_up) = &saved.gate_up else { return Err(not_for_training()) };
            backend.linear_glu_bwd(LinearGluBwd {
                dims: LinearGluDims { tokens, hidden, intermediate: inner },
                dy: View::first(&g.dstream, wide),
                weight: self.weight(&at.down),
                gate_up: View::first(saved_gate_up, tokens * 2 * inner),
                dgate_up: ViewMut::first(&mut g.dgate_up, tokens * 2 * inner),
            })?;
            let gate_up = linear(hidden, 2 * inner);
            backend.linear_bwd_weight(LinearBwdWeight {
                dims: gate_up,
                dy: View::first(&g.dgate_up, tokens * 2 * inner),
                x: View::first(&saved.mlp_input, wide),
                dweight: slot(grads, &at.gate_up),
                write,
                norms: norms.as_deref_mut().map(|norms| slot(norms, &at.norms.gate_up)),
            })?;
            backend.linear_bwd_input(LinearBwdInput {
                dims: gate_up,
                dy: View::first(&g.dgate_up, tokens * 2 * inner),
                weight: self.weight(&at.gate_up),
                dx: ViewMut::first(&mut g.dnormed, wide),
                write: Write::Overwrite,
            })?;
            backend.norm_bwd(NormBwd {
                dims: self.norm_dims(tokens),
                dy: View::first(&g.dnormed, wide),
                sum: View::first(&streams[middle], wide),
                rstd: View::first(&saved.post_rstd, tokens),
                weight: self.weight(&at.post_norm),
                dsum: ViewMut::first(&mut g.dstream, wide),
                dsum_write: Write::Add,
                dweight: slot(grads, &at.post_norm),
                dweight_write: write,
            })?;
            let output = linear(query, hidden);
            if let Some(bias) = &at.output_bias {
                let dy = View::first(&g.dstream, wide);
                backend.bias_bwd(BiasBwd { dims: output, dy, dbias: slot(grads, bias), write })?;
            }
            backend.linear_bwd_weight(LinearBwdWeight {
                dims: output,
                dy: View::first(&g.dstream, wide),
                x: View::first(&saved.attention, tokens * query),
                dweight: slot(grads, &at.output),
                write,
                norms: norms.as_deref_mut().map(|norms| slot(norms, &at.norms.output)),
            })?;
            backend.linear_bwd_input(LinearBwdInput {
                dims: output,
                dy: View::first(&g.dstream, wide),
                weight: self.weight(&at.output),
                dx: ViewMut::first(&mut g.dattention, tokens * query),
                write: Write::Overwrite,
            })?;
            backend.attention_bwd(AttentionBwd {
                dims: inputs.attention_dims(config),
                do_: View::first(&g.dattention, tokens * query),
                qkv: View::first(&saved.qkv, tokens * fused),
                o: View::first(&saved.attention, tokens * query),
                lse: View::first(&saved.lse, config.heads * tokens),
                tree: inputs.tree,
                dqkv: ViewMut::first(&mut g.dqkv, tokens * fused),
            })?;
            if config.rotates(i) {
                backend.rope_bwd(self.rope(inputs, ViewMut::first(&mut g.dqkv, tokens * fused)))?;
            }
            if let Some(weight) = &at.qk_norm {
                let Some(x) = &saved.qk_input else { return Err(not_for_training()) };
                let dims = self.qk_norm_dims(tokens);
                backend.qk_norm_bwd(QkNormBwd {
                    dims,
                    x: View::first(x, tokens * dims.normalised() * dims.head_dim),
                    weight: self.weight(weight),
                    dqkv_in_place: ViewMut::first(&mut g.dqkv, tokens * fused),
                    dweight: slot(grads, weight),
                    write,
                })?;
            }
            let qkv = linear(hidden, fused);
            if let Some(bias) = &at.qkv_bias {
                let dy = View::first(&g.dqkv, tokens * fused);
                backend.bias_bwd(BiasBwd { dims: qkv, dy, dbias: slot(grads, bias), write })?;
            }
            backend.linear_bwd_weight(LinearBwdWeight {
                dims: qkv,
                dy: View::first(&g.dqkv, tokens * fused),
                x: View::first(&saved.attention_input, wide),
                dweight: slot(grads, &at.qkv),
                write,
                norms: norms.as_deref_mut().map(|norms| slot(norms, &at.norms.qkv)),
            })?;
            backend.linear_bwd_input(LinearBwdInput {
                dims: qkv,
                dy: View::first(&g.dqkv, tokens * fused),
                weight: self.weight(&at.qkv),
                dx: ViewMut::first(&mut g.dnormed, wide),
                write: Write::Overwrite,
            })?;
            backend.norm_bwd(NormBwd {
                dims: self.norm_dims(tokens),
                dy: View::first(&g.dnormed, wide),
                sum: View::first(&streams[entry], wide),
                rstd: View::first(&saved.input_rstd, tokens),
                weight: self.weight(&at.input_norm),
                dsum: ViewMut::first(&mut g.dstream, wide),
                dsum_write: Write::Add,
                dweight: slot(grads, &at.input_norm),
                dweight_write: write,
            })?;
        }
        let Some(g) = &acts.gradients else { return Err(not_for_training()) };
        backend.embedding_bwd(EmbeddingBwd {
            dims: EmbeddingDims { tokens, vocab: config.vocab, hidden },
            dx: View::first(&g.dstream, wide),
            runs: inputs.id_runs,
            dtable: slot(grads, &self.layout.embedding),
            write: if self.layout.tied() { Write::Add } else { write },
        })
    }
}

fn not_for_training() -> Error {
    Error::Runtime("backward needs a workspace allocated for training".into())
}

/// Returns the view of the gradient arena for a range of weights.
pub(crate) fn slot<'a, T: crate::backend::Buffer>(grads: &'a mut T, range: &std::ops::Range<usize>) -> ViewMut<'a, T> {
    ViewMut::new(grads, range.start, range.len())
}
