//! Workspace of a model: every activation by name and shape, allocated once and reused. Buffers
//! grow to the largest batch seen and never shrink; ops get views of the part in use.
//!
//! Training keeps every activation that the backward reads, for all layers. Recomputation keeps the
//! input of every layer and one set of the other activations. The backward recomputes that set
//! layer by layer (arXiv 1604.06174, with a checkpoint at every layer). Inference keeps one layer
//! and two residual streams.

use std::sync::Arc;

use super::config::ModelConfig;
use super::lora::LoraWorkspace;
use super::lora::layout::{Group, LoraLayout};
use crate::Result;
use crate::backend::Backend;

/// Use of a workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A backward follows.
    Train,
    /// A backward follows and runs each layer's forward again. This mode needs less memory and more time than
    /// `Train`, and gives the same bits.
    Recompute,
    /// No backward follows.
    Infer,
}

impl Mode {
    /// Returns whether a backward follows.
    pub fn trains(self) -> bool {
        self != Self::Infer
    }
}

/// Output of a block before its post-norm.
pub struct Branch<B: Backend> {
    /// (tokens, hidden)
    pub x: B::Act,
    /// Statistics of the post-norm, with the layout of `LayerActivations::input_rstd`
    pub rstd: B::Acc,
}

/// Activations that the backward of one layer reads.
pub struct LayerActivations<B: Backend> {
    /// (tokens, hidden) input of the attention block, normalised; empty without pre-norms
    pub attention_input: B::Act,
    /// (tokens), or (tokens, 2) for a LayerNorm: mean, then the reciprocal standard deviation
    pub input_rstd: B::Acc,
    /// (tokens, heads + kv_heads, head_dim) queries and keys before their norm; present in training if
    /// the family has one
    pub qk_input: Option<B::Act>,
    /// (tokens, heads + 2 kv_heads, head_dim), normalised and rotated
    pub qkv: B::Act,
    /// (tokens, heads, head_dim)
    pub attention: B::Act,
    /// (heads, tokens)
    pub lse: B::Acc,
    /// (tokens, hidden) input of the MLP, normalised; empty without pre-norms
    pub mlp_input: B::Act,
    /// Statistics of the norm before the MLP, with the layout of `input_rstd`
    pub post_rstd: B::Acc,
    /// (tokens, 2 intermediate), or (tokens, intermediate) without a gate; present in training, and if
    /// gate or up have an adapter or a bias, or the activation is GELU
    pub gate_up: Option<B::Act>,
    /// (tokens, intermediate)
    pub act: B::Act,
    /// Outputs of attention and of the MLP; present with post-norms
    pub branches: Option<[Branch<B>; 2]>,
}

/// Gradient buffers, reused by the backward of every layer.
pub struct Gradients<B: Backend> {
    /// (tokens, hidden) gradient of the residual stream
    pub dstream: B::Act,
    /// (tokens, hidden) gradient of a normalised input; also the head's `dhidden`
    pub dnormed: B::Act,
    /// (tokens, hidden) gradient of a block's output before its post-norm; present with post-norms
    pub dbranch: Option<B::Act>,
    /// (tokens, heads, head_dim)
    pub dattention: B::Act,
    /// (tokens, heads + 2 kv_heads, head_dim)
    pub dqkv: B::Act,
    /// (tokens, 2 intermediate), or (tokens, intermediate) without a gate
    pub dgate_up: B::Act,
    /// (tokens, intermediate); present with a gate, if the down projection has an adapter or the activation is
    /// GELU
    pub dact: Option<B::Act>,
}

/// Buffers of a step from one residual stream to the next.
pub(super) struct Advance<'a, B: Backend> {
    pub layers: &'a mut [LayerActivations<B>],
    pub from: &'a B::Act,
    pub to: &'a mut B::Act,
    pub lora: Option<&'a mut LoraWorkspace<B>>,
}

/// All activations of a model for up to `capacity` tokens.
pub struct Activations<B: Backend> {
    mode: Mode,
    capacity: usize,
    /// Residual streams (tokens, hidden). Training has two per layer and one at the end. Recomputation has one
    /// per layer, one at the end and one shared by all layers. Inference has two.
    pub(super) streams: Vec<B::Act>,
    pub(super) layers: Vec<LayerActivations<B>>,
    /// (tokens, hidden) after the final norm
    pub hidden: B::Act,
    /// Statistics of the final norm, with the layout of `LayerActivations::input_rstd`
    pub(super) final_rstd: B::Acc,
    /// Present in training.
    pub gradients: Option<Gradients<B>>,
    /// Present if the workspace includes the adapters of the model.
    pub(super) lora: Option<LoraWorkspace<B>>,
}

impl<B: Backend> Activations<B> {
    /// Allocates a workspace for `tokens` tokens of a model without adapters, or of the base of a model with
    /// adapters.
    pub fn new(backend: &B, config: &ModelConfig, mode: Mode, tokens: usize) -> Result<Self> {
        Self::with_adapters(backend, config, None, mode, tokens)
    }

    /// Allocates a workspace for `tokens` tokens of a model with these adapters.
    pub(crate) fn with_adapters(
        backend: &B,
        config: &ModelConfig,
        adapters: Option<Arc<LoraLayout>>,
        mode: Mode,
        tokens: usize,
    ) -> Result<Self> {
        let (hidden, inner) = (config.hidden, config.intermediate);
        let query = config.query_width();
        let fused = query + 2 * config.kv_width();
        let act = |width: usize| backend.zeros_act(tokens * width);
        let (layers, streams) = match mode {
            Mode::Train => (config.layers, 2 * config.layers + 1),
            Mode::Recompute => (1, config.layers + 2),
            Mode::Infer => (1, 2),
        };
        let has = |group: Group| adapters.as_ref().is_some_and(|adapters| adapters.has(group));
        let (gated, fuses_glu) = (config.family.gated, config.fuses_glu());
        let keeps_gate_up = mode.trains() || has(Group::GateUp) || config.mlp_bias || !fuses_glu;
        let behind = config.family.norms_behind;
        let (normalised, rows) = if config.family.norms_in_front { (hidden, tokens) } else { (0, 0) };
        let stats = |rows: usize| backend.zeros_acc(rows * config.norm_stats());
        let branch = || -> Result<Branch<B>> { Ok(Branch { x: act(hidden)?, rstd: stats(tokens)? }) };
        let branches = || -> Result<[Branch<B>; 2]> { Ok([branch()?, branch()?]) };
        let layer = |_| -> Result<LayerActivations<B>> {
            Ok(LayerActivations {
                attention_input: act(normalised)?,
                input_rstd: stats(rows)?,
                qk_input: (mode.trains() && config.family.qk_norm)
                    .then(|| act(query + config.kv_width()))
                    .transpose()?,
                qkv: act(fused)?,
                attention: act(query)?,
                lse: backend.zeros_acc(tokens * config.heads)?,
                mlp_input: act(normalised)?,
                post_rstd: stats(rows)?,
                gate_up: keeps_gate_up.then(|| act(config.mlp_width())).transpose()?,
                act: act(inner)?,
                branches: behind.then(branches).transpose()?,
            })
        };
        let gradients = match mode {
            Mode::Infer => None,
            Mode::Train | Mode::Recompute => Some(Gradients {
                dstream: act(hidden)?,
                dnormed: act(hidden)?,
                dbranch: behind.then(|| act(hidden)).transpose()?,
                dattention: act(query)?,
                dqkv: act(fused)?,
                dgate_up: act(config.mlp_width())?,
                dact: (gated && (has(Group::Down) || !fuses_glu)).then(|| act(inner)).transpose()?,
            }),
        };
        Ok(Self {
            mode,
            capacity: tokens,
            streams: (0..streams).map(|_| act(hidden)).collect::<Result<_>>()?,
            layers: (0..layers).map(layer).collect::<Result<_>>()?,
            hidden: act(hidden)?,
            final_rstd: stats(tokens)?,
            gradients,
            lora: adapters
                .map(|layout| LoraWorkspace::new(backend, config, layout, (mode, layers, tokens)))
                .transpose()?,
        })
    }

    /// Returns every activation buffer, without gradients.
    pub fn buffers(&self) -> Vec<&B::Act> {
        let of_layers = self.layers.iter().flat_map(|layer| {
            let always = [&layer.attention_input, &layer.qkv, &layer.attention, &layer.mlp_input, &layer.act];
            let branches = layer.branches.iter().flatten().map(|branch| &branch.x);
            always.into_iter().chain(&layer.gate_up).chain(&layer.qk_input).chain(branches)
        });
        let of_adapters = self.lora.iter().flat_map(LoraWorkspace::buffers);
        self.streams.iter().chain(of_layers).chain([&self.hidden]).chain(of_adapters).collect()
    }

    /// Ensures a capacity of `tokens`, allocating exactly that number.
    pub fn reserve(&mut self, backend: &B, config: &ModelConfig, tokens: usize) -> Result<()> {
        if tokens > self.capacity {
            // The old buffers are freed first, so that a step never needs memory for both sets.
            let adapters = self.lora.as_ref().map(|lora| lora.layout.clone());
            *self = Self::new(backend, config, self.mode, 0)?;
            *self = Self::with_adapters(backend, config, adapters, self.mode, tokens)?;
        }
        Ok(())
    }

    /// Ensures a capacity of `tokens`, allocating a quarter more if the workspace must grow.
    pub fn grow(&mut self, backend: &B, config: &ModelConfig, tokens: usize) -> Result<()> {
        if tokens > self.capacity {
            self.reserve(backend, config, tokens + tokens / 4)?;
        }
        Ok(())
    }

    /// Returns the layers, stream k, stream k + 1 for writing, and the buffers of the adapters.
    pub(super) fn advance(&mut self, k: usize) -> Advance<'_, B> {
        let (old, new) = (self.stream_index(k), self.stream_index(k + 1));
        let (low, high) = self.streams.split_at_mut(new.max(old));
        let (old, new) = if new > old { (&low[old], &mut high[0]) } else { (&high[0], &mut low[new]) };
        Advance { layers: &mut self.layers, from: old, to: new, lora: self.lora.as_mut() }
    }

    /// Returns whether layer i must run again before its backward. The activations of the last
    /// layer are still valid.
    pub(super) fn needs_recompute(&self, i: usize) -> bool {
        self.mode == Mode::Recompute && i + 3 < self.streams.len()
    }

    /// Index of the buffer that holds stream k of the forward.
    pub(super) fn stream_index(&self, k: usize) -> usize {
        match self.mode {
            Mode::Train => k,
            Mode::Recompute if k.is_multiple_of(2) => k / 2,
            Mode::Recompute => self.streams.len() - 1,
            Mode::Infer => k % 2,
        }
    }

    /// Index of the set of layer buffers that layer i uses.
    pub(super) fn layer_index(&self, i: usize) -> usize {
        match self.mode {
            Mode::Train => i,
            Mode::Recompute | Mode::Infer => 0,
        }
    }
}
