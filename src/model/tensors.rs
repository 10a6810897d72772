//! Naming table: every tensor of a model with its Hugging Face name, shape and role, in the order
//! of the flat parameter arena.
//!
//! Tensors with weight decay come first: embedding, per layer q, k, v, o, gate, up, down, then the
//! head. Query, key and value are adjacent, as are gate and up, so each group is one matrix of
//! stacked rows for a GEMM; families that store such a group as one tensor have the same arena.
//! Tensors without decay follow: per layer input norm, q, k, v biases, q and k norms, output bias,
//! post-attention norm or the norms of both outputs, then the final norm.

use super::config::{Head, ModelConfig};

/// Role of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// `(vocab, hidden)`
    Embedding,
    /// `(heads * head_dim, hidden)`
    Query,
    /// `(kv_heads * head_dim, hidden)`
    Key,
    /// `(kv_heads * head_dim, hidden)`
    Value,
    /// `((heads + 2 kv_heads) * head_dim, hidden)`: query, key and value as one tensor
    Qkv,
    /// `(hidden, heads * head_dim)`
    Output,
    /// `(intermediate, hidden)`
    Gate,
    /// `(intermediate, hidden)`
    Up,
    /// `(2 intermediate, hidden)`: gate and up as one tensor
    GateUp,
    /// `(hidden, intermediate)`
    Down,
    /// `(vocab, hidden)`, absent if the embedding table is the head
    LmHead,
    /// `(1, hidden)`, reward models
    Score,
    /// `(hidden)`
    InputNorm,
    /// `(heads * head_dim)`
    QueryBias,
    /// `(kv_heads * head_dim)`
    KeyBias,
    /// `(kv_heads * head_dim)`
    ValueBias,
    /// `(hidden)`
    OutputBias,
    /// `(head_dim)`, for all query heads, or `(heads * head_dim)`
    QueryNorm,
    /// `(head_dim)`, for all key heads, or `(kv_heads * head_dim)`
    KeyNorm,
    /// `(hidden)`, of the MLP's input
    PostAttentionNorm,
    /// `(hidden)`, of attention's output
    AttentionOutputNorm,
    /// `(hidden)`, of the MLP's output
    MlpOutputNorm,
    /// `(hidden)`
    FinalNorm,
}

impl Role {
    /// Returns whether AdamW decays the tensor: all except norm weights and biases, as in
    /// transformers' Trainer.
    pub fn decays(self) -> bool {
        match self {
            Role::Embedding
            | Role::Query
            | Role::Key
            | Role::Value
            | Role::Qkv
            | Role::Output
            | Role::Gate
            | Role::Up
            | Role::GateUp
            | Role::Down
            | Role::LmHead
            | Role::Score => true,
            Role::InputNorm
            | Role::QueryBias
            | Role::KeyBias
            | Role::ValueBias
            | Role::OutputBias
            | Role::QueryNorm
            | Role::KeyNorm
            | Role::PostAttentionNorm
            | Role::AttentionOutputNorm
            | Role::MlpOutputNorm
            | Role::FinalNorm => false,
        }
    }
}

/// One tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in Hugging Face weight files.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    pub role: Role,
    /// Index of the layer, if the tensor belongs to one.
    pub layer: Option<usize>,
}

impl TensorSpec {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl ModelConfig {
    /// Returns all tensors in arena order (see the module documentation). The decayed tensors form
    /// a prefix.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let (hidden, inner) = (self.hidden, self.intermediate);
        let (query, kv) = (self.query_width(), self.kv_width());
        let global = |name: &str, shape: Vec<usize>, role| TensorSpec { name: name.into(), shape, role, layer: None };
        let mut tensors = vec![global("model.embed_tokens.weight", vec![self.vocab, hidden], Role::Embedding)];
        let mut add = |layer: usize, name: &str, shape: Vec<usize>, role| {
            tensors.push(TensorSpec { name: format!("model.layers.{layer}.{name}"), shape, role, layer: Some(layer) });
        };
        for layer in 0..self.layers {
            if self.family.fused {
                add(layer, "self_attn.qkv_proj.weight", vec![query + 2 * kv, hidden], Role::Qkv);
            } else {
                add(layer, "self_attn.q_proj.weight", vec![query, hidden], Role::Query);
                add(layer, "self_attn.k_proj.weight", vec![kv, hidden], Role::Key);
                add(layer, "self_attn.v_proj.weight", vec![kv, hidden], Role::Value);
            }
            add(layer, "self_attn.o_proj.weight", vec![hidden, query], Role::Output);
            if self.family.fused {
                add(layer, "mlp.gate_up_proj.weight", vec![2 * inner, hidden], Role::GateUp);
            } else {
                add(layer, "mlp.gate_proj.weight", vec![inner, hidden], Role::Gate);
                add(layer, "mlp.up_proj.weight", vec![inner, hidden], Role::Up);
            }
            add(layer, "mlp.down_proj.weight", vec![hidden, inner], Role::Down);
        }
        match (self.head, self.tied) {
            (Head::Reward, _) => tensors.push(global("score.weight", vec![1, hidden], Role::Score)),
            (Head::LanguageModel, false) => {
                tensors.push(global("lm_head.weight", vec![self.vocab, hidden], Role::LmHead));
            }
            (Head::LanguageModel, true) => {}
        }
        let mut add = |layer: usize, name: &str, width: usize, role| {
            let name = format!("model.layers.{layer}.{name}");
            tensors.push(TensorSpec { name, shape: vec![width], role, layer: Some(layer) });
        };
        for layer in 0..self.layers {
            if !self.family.norms_behind {
                add(layer, "input_layernorm.weight", hidden, Role::InputNorm);
            }
            if self.qkv_bias {
                add(layer, "self_attn.q_proj.bias", query, Role::QueryBias);
                add(layer, "self_attn.k_proj.bias", kv, Role::KeyBias);
                add(layer, "self_attn.v_proj.bias", kv, Role::ValueBias);
            }
            if self.family.qk_norm {
                let [queries, keys] = if self.family.whole_norm { [query, kv] } else { [self.head_dim; 2] };
                add(layer, "self_attn.q_norm.weight", queries, Role::QueryNorm);
                add(layer, "self_attn.k_norm.weight", keys, Role::KeyNorm);
            }
            if self.output_bias {
                add(layer, "self_attn.o_proj.bias", hidden, Role::OutputBias);
            }
            if self.family.norms_behind {
                add(layer, "post_attention_layernorm.weight", hidden, Role::AttentionOutputNorm);
                add(layer, "post_feedforward_layernorm.weight", hidden, Role::MlpOutputNorm);
            } else {
                add(layer, "post_attention_layernorm.weight", hidden, Role::PostAttentionNorm);
            }
        }
        tensors.push(global("model.norm.weight", vec![hidden], Role::FinalNorm));
        tensors
    }
}
