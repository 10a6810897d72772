//! Place of each tensor in the flat arena that holds all parameters of a model. Gradients and
//! optimiser state use the same layout, so one AdamW call updates everything.
//!
//! Tensors that one op reads are adjacent without a gap: query, key and value; gate and up; the three biases;
//! the norms of queries and keys; weight and bias of a LayerNorm. Every such group starts at a multiple of
//! `ALIGN` elements, so vector loads stay aligned at any element width. Gaps hold zeros and receive no
//! gradient.
//!
//! The weight-gradient GEMMs of the layers also write norms of gradient patches into a separate
//! buffer. The gradient norm reads these patch norms instead of the gradients.

use std::ops::Range;

use super::config::ModelConfig;
use super::tensors::{Role, TensorSpec};
use crate::backend::contract::{KnownNorms, LinearDims};
use crate::backend::{Backend, View};

/// Alignment of tensor groups, in elements.
pub(super) const ALIGN: usize = 64;

/// A tensor and its range in the arena.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Name, shape and role.
    pub spec: TensorSpec,
    /// Index of the first element in the arena.
    pub start: usize,
}

impl Slot {
    /// Range of elements in the arena.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.spec.elements()
    }
}

/// Ranges of a layer's tensor groups.
#[derive(Clone, Debug, Default)]
pub struct LayerRanges {
    /// (hidden), or (2, hidden): weight and bias; empty without pre-norms
    pub input_norm: Range<usize>,
    /// ((heads + 2 kv_heads) head_dim, hidden)
    pub qkv: Range<usize>,
    /// ((heads + 2 kv_heads) head_dim)
    pub qkv_bias: Option<Range<usize>>,
    /// Norm weights of the queries, then of the keys
    pub qk_norm: Option<Range<usize>>,
    /// (hidden, heads head_dim)
    pub output: Range<usize>,
    /// (hidden)
    pub output_bias: Option<Range<usize>>,
    /// (hidden), or (2, hidden): pre-norm of the MLP; empty without pre-norms. The same range as `input_norm` if
    /// attention and MLP share one norm
    pub post_norm: Range<usize>,
    /// (hidden), post-norm of attention
    pub attention_norm: Option<Range<usize>>,
    /// (hidden), post-norm of the MLP
    pub mlp_norm: Option<Range<usize>>,
    /// (2 intermediate, hidden), or (intermediate, hidden) without a gate
    pub gate_up: Range<usize>,
    /// (2 intermediate), or (intermediate)
    pub gate_up_bias: Option<Range<usize>>,
    /// (hidden, intermediate)
    pub down: Range<usize>,
    /// (hidden)
    pub down_bias: Option<Range<usize>>,
    /// Ranges of the patch norms of the gradients of the four matrices.
    pub norms: PatchNorms,
}

/// Ranges of a layer's patch norms ([`LinearDims::patches`]) in the buffer of all patch norms.
#[derive(Clone, Debug, Default)]
pub struct PatchNorms {
    /// Query, key and value projection.
    pub qkv: Range<usize>,
    /// Output projection.
    pub output: Range<usize>,
    /// Gate and up projection.
    pub gate_up: Range<usize>,
    /// Down projection.
    pub down: Range<usize>,
}

/// Ranges of all tensors in the arena.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Tensors in arena order.
    pub slots: Vec<Slot>,
    /// Number of elements of the arena, including gaps.
    pub len: usize,
    /// The first `decayed` elements are subject to weight decay.
    pub decayed: usize,
    /// (vocab, hidden)
    pub embedding: Range<usize>,
    /// (positions, hidden)
    pub positions: Option<Range<usize>>,
    /// Ranges of the parameters of each layer.
    pub layers: Vec<LayerRanges>,
    /// Contiguous range of the weight matrices of all layers. Their gradients are GEMMs.
    pub matrices: Range<usize>,
    /// Number of patch norms of the gradients of `matrices`.
    pub norms: usize,
    /// (hidden), or (2, hidden)
    pub final_norm: Range<usize>,
    /// (vocab, hidden): the embedding table if tied; absent in reward models
    pub lm_head: Option<Range<usize>>,
    /// (hidden); present in reward models
    pub score: Option<Range<usize>>,
}

/// True if a tensor continues the group of the tensor before it.
fn continues(role: Role) -> bool {
    let of_norm = matches!(role, Role::InputNormBias | Role::PostAttentionNormBias | Role::FinalNormBias);
    of_norm
        || matches!(
            role,
            Role::Key | Role::Value | Role::Up | Role::KeyBias | Role::ValueBias | Role::KeyNorm | Role::UpBias
        )
}

impl Layout {
    /// Places every tensor of `config`.
    pub fn new(config: &ModelConfig) -> Self {
        let mut layout = Self {
            slots: Vec::new(),
            len: 0,
            decayed: 0,
            embedding: 0..0,
            positions: None,
            layers: vec![LayerRanges::default(); config.layers],
            matrices: 0..0,
            norms: 0,
            final_norm: 0..0,
            lm_head: None,
            score: None,
        };
        for spec in config.tensors() {
            if !continues(spec.role) {
                layout.len = layout.len.next_multiple_of(ALIGN);
            }
            let slot = Slot { start: layout.len, spec };
            layout.len = slot.range().end;
            if slot.spec.role.decays() {
                layout.decayed = layout.len;
            }
            layout.record(&slot);
            layout.slots.push(slot);
        }
        layout.len = layout.len.next_multiple_of(ALIGN);
        if layout.score.is_none() && layout.lm_head.is_none() {
            layout.lm_head = Some(layout.embedding.clone());
        }
        if config.shares_norm() {
            layout.layers.iter_mut().for_each(|layer| layer.post_norm = layer.input_norm.clone());
        }
        layout.place_norms(config);
        layout
    }

    /// Places the patch norms contiguously, and finds the range of the layer matrices.
    fn place_norms(&mut self, config: &ModelConfig) {
        let (hidden, inner, query) = (config.hidden, config.intermediate, config.query_width());
        let next = &mut self.norms;
        let mut place = |inputs, outputs| {
            let start = *next;
            *next += LinearDims { tokens: 0, inputs, outputs }.patches();
            start..*next
        };
        for layer in &mut self.layers {
            layer.norms = PatchNorms {
                qkv: place(hidden, query + 2 * config.kv_width()),
                output: place(query, hidden),
                gate_up: place(hidden, config.mlp_width()),
                down: place(inner, hidden),
            };
        }
        if let (Some(first), Some(last)) = (self.layers.first(), self.layers.last()) {
            self.matrices = first.qkv.start..last.down.end;
        }
    }

    /// Returns the patch norms in `norms`, of which there are `self.norms`, with the gradient range that they
    /// cover.
    pub fn known_norms<'a, B: Backend>(&self, norms: &'a B::Acc) -> KnownNorms<'a, B> {
        KnownNorms { range: self.matrices.clone(), norms: View::first(norms, self.norms) }
    }

    /// True if the vocabulary projection is the embedding table.
    pub fn tied(&self) -> bool {
        self.lm_head.as_ref() == Some(&self.embedding)
    }

    fn record(&mut self, slot: &Slot) {
        let range = slot.range();
        let (role, layer) = (slot.spec.role, slot.spec.layer);
        match (role, layer.and_then(|l| self.layers.get_mut(l))) {
            (Role::Embedding, _) => self.embedding = range,
            (Role::LmHead, _) => self.lm_head = Some(range),
            (Role::Score, _) => self.score = Some(range),
            (Role::Positions, _) => self.positions = Some(range),
            (Role::FinalNorm, _) => self.final_norm = range,
            (Role::FinalNormBias, _) => self.final_norm.end = range.end,
            (_, None) => {}
            (Role::Query | Role::Qkv, Some(layer)) => layer.qkv = range,
            (Role::Key | Role::Value, Some(layer)) => layer.qkv.end = range.end,
            (Role::Output, Some(layer)) => layer.output = range,
            (Role::Gate | Role::GateUp, Some(layer)) => layer.gate_up = range,
            (Role::Up, Some(layer)) => layer.gate_up.end = range.end,
            (Role::Down, Some(layer)) => layer.down = range,
            (Role::InputNorm, Some(layer)) => layer.input_norm = range,
            (Role::InputNormBias, Some(layer)) => layer.input_norm.end = range.end,
            (Role::PostAttentionNorm, Some(layer)) => layer.post_norm = range,
            (Role::PostAttentionNormBias, Some(layer)) => layer.post_norm.end = range.end,
            (Role::GateBias, Some(layer)) => layer.gate_up_bias = Some(range),
            (Role::UpBias, Some(layer)) => {
                if let Some(bias) = &mut layer.gate_up_bias {
                    bias.end = range.end;
                }
            }
            (Role::DownBias, Some(layer)) => layer.down_bias = Some(range),
            (Role::AttentionOutputNorm, Some(layer)) => layer.attention_norm = Some(range),
            (Role::MlpOutputNorm, Some(layer)) => layer.mlp_norm = Some(range),
            (Role::OutputBias, Some(layer)) => layer.output_bias = Some(range),
            (Role::QueryBias, Some(layer)) => layer.qkv_bias = Some(range),
            (Role::QueryNorm, Some(layer)) => layer.qk_norm = Some(range),
            (Role::KeyNorm, Some(layer)) => {
                if let Some(norm) = &mut layer.qk_norm {
                    norm.end = range.end;
                }
            }
            (Role::KeyBias | Role::ValueBias, Some(layer)) => {
                if let Some(bias) = &mut layer.qkv_bias {
                    bias.end = range.end;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::Head;
    use super::super::presets;
    use super::*;

    #[test]
    fn matrices_are_the_weights_of_all_layers_and_nothing_else() {
        for head in [Head::LanguageModel, Head::Reward] {
            let config = ModelConfig { head, ..presets::config("llama-tiny").unwrap() };
            let layout = Layout::new(&config);
            for slot in &layout.slots {
                let (range, matrix) = (slot.range(), slot.spec.layer.is_some() && slot.spec.shape.len() == 2);
                let inside = layout.matrices.start <= range.start && range.end <= layout.matrices.end;
                let outside = range.end <= layout.matrices.start || layout.matrices.end <= range.start;
                assert!(if matrix { inside } else { outside }, "{}", slot.spec.name);
            }
            // Patch norms are contiguous. Each covers a patch of 16 rows and 32 columns.
            let mut next = 0;
            for layer in &layout.layers {
                let n = &layer.norms;
                for (norms, weight) in [
                    (&n.qkv, &layer.qkv),
                    (&n.output, &layer.output),
                    (&n.gate_up, &layer.gate_up),
                    (&n.down, &layer.down),
                ] {
                    assert_eq!(norms.start, next);
                    assert!(norms.len() * 512 >= weight.len(), "{norms:?} for {weight:?}");
                    next = norms.end;
                }
            }
            assert_eq!(next, layout.norms);
        }
    }
}
