//! Naming table: every tensor of a model with its Hugging Face name, shape and role, in the order
//! of the flat parameter arena.
//!
//! Tensors with weight decay come first: embedding, per layer q, k, v, o, gate, up, down, then the head.
//! Query, key and value are adjacent, as are gate and up, so each group is one matrix of stacked rows for a
//! GEMM; families that store such a group as one tensor, or its elements in a different order, have the same
//! arena. Tensors without decay follow: per layer input norm, q, k, v biases, q and k norms, output bias,
//! norms of the outputs of attention and MLP, norm of the MLP's input, biases of the MLP, then the final
//! norm. The bias of a LayerNorm follows its weight.

use super::config::{Head, ModelConfig};

/// Role of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// `(vocab, hidden)`
    Embedding,
    /// `(positions, hidden)`
    Positions,
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
    /// `(2 intermediate, hidden)`: gate and up as one tensor; `(intermediate, hidden)` without a gate
    GateUp,
    /// `(hidden, intermediate)`
    Down,
    /// `(vocab, hidden)`, absent if the embedding table is the head
    LmHead,
    /// `(1, hidden)`, reward models
    Score,
    /// `(hidden)`
    InputNorm,
    /// `(hidden)`
    InputNormBias,
    /// `(heads * head_dim)`, or of query, key and value together
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
    /// `(intermediate)`; without a gate, the bias of the first projection
    GateBias,
    /// `(intermediate)`
    UpBias,
    /// `(hidden)`
    DownBias,
    /// `(hidden)`, of the MLP's input
    PostAttentionNorm,
    /// `(hidden)`, of attention's output
    AttentionOutputNorm,
    /// `(hidden)`, of the MLP's output
    MlpOutputNorm,
    /// `(hidden)`
    PostAttentionNormBias,
    /// `(hidden)`
    FinalNorm,
    /// `(hidden)`
    FinalNormBias,
}

impl Role {
    /// Returns whether AdamW decays the tensor: all except norm weights and biases, as in
    /// transformers' Trainer.
    pub fn decays(self) -> bool {
        match self {
            Role::Embedding
            | Role::Positions
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
            | Role::InputNormBias
            | Role::QueryBias
            | Role::KeyBias
            | Role::ValueBias
            | Role::OutputBias
            | Role::QueryNorm
            | Role::KeyNorm
            | Role::GateBias
            | Role::UpBias
            | Role::DownBias
            | Role::PostAttentionNorm
            | Role::PostAttentionNormBias
            | Role::AttentionOutputNorm
            | Role::MlpOutputNorm
            | Role::FinalNorm
            | Role::FinalNormBias => false,
        }
    }
}

/// Order of a tensor's elements in files, which have the shape [`TensorSpec::shape`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The order of the arena.
    Rows,
    /// Rows of query, key and value by head: each head has its query, key and value rows in sequence. The
    /// arena has all queries, then all keys, then all values.
    RowsByHead,
    /// The matrix is transposed: (inputs, outputs).
    Columns,
}

/// One tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in Hugging Face weight files.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Role in the model.
    pub role: Role,
    /// Index of the layer, if the tensor belongs to one.
    pub layer: Option<usize>,
    /// Order of the elements in files.
    pub order: Order,
    /// Number of heads of a tensor in the order [`Order::RowsByHead`].
    pub heads: usize,
}

impl TensorSpec {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Rows of the matrix in the arena: the outputs of a linear layer.
    pub fn rows(&self) -> usize {
        if self.order == Order::Columns { self.shape[1] } else { self.shape[0] }
    }

    /// Index, within the tensor's range of the arena, of the element at `index` of the file.
    pub fn place(&self, index: usize) -> usize {
        match self.order {
            Order::Rows => index,
            Order::RowsByHead => {
                let width = self.elements() / self.shape[0];
                let (row, column) = (index / width, index % width);
                let of_head = self.shape[0] / (3 * self.heads);
                let (head, part, at) = (row / (3 * of_head), row / of_head % 3, row % of_head);
                ((part * self.heads + head) * of_head + at) * width + column
            }
            Order::Columns => {
                let (inputs, outputs) = (self.shape[0], self.shape[1]);
                index % outputs * inputs + index / outputs
            }
        }
    }
}

impl ModelConfig {
    /// Returns all tensors in arena order (see the module documentation). The decayed tensors form
    /// a prefix.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let (hidden, inner, family, names) = (self.hidden, self.intermediate, self.family, self.family.names);
        let (query, kv) = (self.query_width(), self.kv_width());
        let spec = |name: String, shape: Vec<usize>, role, layer: Option<usize>| {
            let of_linear = layer.is_some() && shape.len() == 2;
            let by_head = matches!(role, Role::Qkv | Role::QueryBias) && family.fused;
            let order = match family.order {
                Order::Columns if of_linear => Order::Columns,
                Order::RowsByHead if by_head => Order::RowsByHead,
                _ => Order::Rows,
            };
            TensorSpec { name, shape, role, layer, order, heads: self.heads }
        };
        let base = names.base;
        let global = |name: String, shape: Vec<usize>, role| spec(name, shape, role, None);
        let weight = |layer: usize, module: &str, outputs: usize, inputs: usize, role| {
            let transposed = family.order == Order::Columns;
            let shape = if transposed { vec![inputs, outputs] } else { vec![outputs, inputs] };
            spec(format!("{base}{}.{layer}.{module}.weight", names.layers), shape, role, Some(layer))
        };
        let mut tensors = vec![global(self.embedding_name(), vec![self.vocab, hidden], Role::Embedding)];
        if family.learned_positions {
            let shape = vec![self.declared_positions, hidden];
            tensors.push(global(format!("{base}{}.weight", names.positions), shape, Role::Positions));
        }
        for layer in 0..self.layers {
            let mut add =
                |module: &str, outputs, inputs, role| tensors.push(weight(layer, module, outputs, inputs, role));
            if family.fused {
                add(names.qkv, query + 2 * kv, hidden, Role::Qkv);
            } else {
                add(names.query, query, hidden, Role::Query);
                add(names.key, kv, hidden, Role::Key);
                add(names.value, kv, hidden, Role::Value);
            }
            add(names.output, hidden, query, Role::Output);
            match (family.gated, family.fused) {
                (true, true) => add(names.gate_up, 2 * inner, hidden, Role::GateUp),
                (true, false) => {
                    add(names.gate, inner, hidden, Role::Gate);
                    add(names.up, inner, hidden, Role::Up);
                }
                (false, _) => add(names.up, inner, hidden, Role::GateUp),
            }
            add(names.down, hidden, inner, Role::Down);
        }
        match (self.head, self.tied) {
            (Head::Reward, _) => tensors.push(global("score.weight".into(), vec![1, hidden], Role::Score)),
            (Head::LanguageModel, false) => {
                tensors.push(global("lm_head.weight".into(), vec![self.vocab, hidden], Role::LmHead));
            }
            (Head::LanguageModel, true) => {}
        }
        for layer in 0..self.layers {
            let mut add = |name: String, width: usize, role| {
                let name = format!("{base}{}.{layer}.{name}", names.layers);
                tensors.push(spec(name, vec![width], role, Some(layer)));
            };
            let bias = |module: &str| format!("{module}.bias");
            if family.norms_in_front {
                add(format!("{}.weight", names.input_norm), hidden, Role::InputNorm);
                if family.layer_norm {
                    add(bias(names.input_norm), hidden, Role::InputNormBias);
                }
            }
            if self.qkv_bias && family.fused {
                add(bias(names.qkv), query + 2 * kv, Role::QueryBias);
            } else if self.qkv_bias {
                add(bias(names.query), query, Role::QueryBias);
                add(bias(names.key), kv, Role::KeyBias);
                add(bias(names.value), kv, Role::ValueBias);
            }
            if family.qk_norm {
                let [queries, keys] = if family.whole_norm { [query, kv] } else { [self.head_dim; 2] };
                add("self_attn.q_norm.weight".into(), queries, Role::QueryNorm);
                add("self_attn.k_norm.weight".into(), keys, Role::KeyNorm);
            }
            if self.output_bias {
                add(bias(names.output), hidden, Role::OutputBias);
            }
            if family.norms_behind {
                add("post_attention_layernorm.weight".into(), hidden, Role::AttentionOutputNorm);
                add("post_feedforward_layernorm.weight".into(), hidden, Role::MlpOutputNorm);
            }
            if family.norms_in_front && !self.shares_norm() {
                add(format!("{}.weight", names.post_norm), hidden, Role::PostAttentionNorm);
                if family.layer_norm {
                    add(bias(names.post_norm), hidden, Role::PostAttentionNormBias);
                }
            }
            if self.mlp_bias {
                match family.gated {
                    true => {
                        add(bias(names.gate), inner, Role::GateBias);
                        add(bias(names.up), inner, Role::UpBias);
                    }
                    false => add(bias(names.up), inner, Role::GateBias),
                }
                add(bias(names.down), hidden, Role::DownBias);
            }
        }
        tensors.push(global(format!("{base}{}.weight", names.final_norm), vec![hidden], Role::FinalNorm));
        if family.layer_norm {
            tensors.push(global(format!("{base}{}.bias", names.final_norm), vec![hidden], Role::FinalNormBias));
        }
        tensors
    }

    /// Name of the embedding table.
    pub(super) fn embedding_name(&self) -> String {
        format!("{}{}.weight", self.family.names.base, self.family.names.embedding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_files_have_their_places_in_the_arena() {
        let spec = |shape: &[usize], order| TensorSpec {
            name: "t".into(),
            shape: shape.to_vec(),
            role: Role::Qkv,
            layer: Some(0),
            order,
            heads: 2,
        };
        let places = |spec: &TensorSpec| (0..spec.elements()).map(|i| spec.place(i)).collect::<Vec<_>>();
        // Each of two heads has two rows of query, key and value: the file has q0 k0 v0 q1 k1 v1.
        assert_eq!(places(&spec(&[12], Order::RowsByHead)), [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]);
        assert_eq!(places(&spec(&[12, 2], Order::RowsByHead))[4..8], [8, 9, 10, 11]);
        let columns = spec(&[2, 3], Order::Columns);
        assert_eq!((columns.rows(), places(&columns)), (3, vec![0, 2, 4, 1, 3, 5]));
    }
}
