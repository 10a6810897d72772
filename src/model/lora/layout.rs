//! Places of the adapter tensors in a separate arena. Gradients and optimiser state have the same layout, so
//! their size is that of the adapter.
//!
//! Layers that share a GEMM of the base share the GEMMs of their adapters: the A of query, key and value are
//! stacked to one matrix, as are those of gate and up. Their B stay separate, because each writes different
//! columns of the fused output; `workspace` holds them as one block-diagonal matrix.

use std::ops::Range;

use super::super::config::{Head, ModelConfig};
use super::super::layout::{ALIGN, Slot};
use super::super::tensors::{Order, Role, TensorSpec};
use super::{LoraSpec, linear_layers};
use crate::backend::contract::LinearDims;

/// The GEMMs of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Query, key and value.
    Qkv,
    /// Output of attention.
    Output,
    /// Gate and up.
    GateUp,
    /// Down.
    Down,
}

impl Group {
    /// All groups, in the order of the forward.
    pub const ALL: [Group; 4] = [Group::Qkv, Group::Output, Group::GateUp, Group::Down];

    /// The GEMM that a matrix belongs to.
    fn of(role: Role) -> Option<Self> {
        match role {
            Role::Query | Role::Key | Role::Value | Role::Qkv => Some(Group::Qkv),
            Role::Output => Some(Group::Output),
            Role::Gate | Role::Up | Role::GateUp => Some(Group::GateUp),
            Role::Down => Some(Group::Down),
            _ => None,
        }
    }

    /// Sizes of the GEMM.
    pub fn dims(self, config: &ModelConfig, tokens: usize) -> LinearDims {
        let (hidden, inner, query) = (config.hidden, config.intermediate, config.query_width());
        let (inputs, outputs) = match self {
            Group::Qkv => (hidden, query + 2 * config.kv_width()),
            Group::Output => (query, hidden),
            Group::GateUp => (hidden, config.mlp_width()),
            Group::Down => (inner, hidden),
        };
        LinearDims { tokens, inputs, outputs }
    }
}

/// Adapter of one linear layer.
#[derive(Clone, Debug)]
pub struct Target {
    /// (outputs of the layer, rank)
    pub b: Range<usize>,
    /// Columns of the GEMM's output that the layer writes.
    pub columns: Range<usize>,
}

/// Adapters of the linear layers that one GEMM computes.
#[derive(Clone, Debug)]
pub struct GroupAdapter {
    /// Elements of an input row.
    pub inputs: usize,
    /// Elements of an output row.
    pub outputs: usize,
    /// Number of targets times the rank.
    pub width: usize,
    /// (width, inputs)
    pub a: Range<usize>,
    /// Targets, in the order of their rows of `a`.
    pub targets: Vec<Target>,
    /// (outputs, width) block-diagonal matrix of the scaled B, as a range of the buffer of all such matrices
    pub scaled: Range<usize>,
}

/// Ranges of all adapter tensors in their arena.
#[derive(Clone, Debug)]
pub struct LoraLayout {
    /// Rank, scale and layers.
    pub spec: LoraSpec,
    /// Tensors of the adapters.
    pub slots: Vec<Slot>,
    /// Number of elements of the arena, including gaps.
    pub len: usize,
    /// Adapters of each layer by [`Group`].
    pub layers: Vec<[Option<GroupAdapter>; 4]>,
    /// (hidden); present in reward models
    pub score: Option<Range<usize>>,
    /// Number of elements of all block-diagonal matrices.
    pub scaled: usize,
}

/// Prefix of PEFT's tensor names.
const PREFIX: &str = "base_model.model.";

impl LoraLayout {
    /// Places the adapters of `spec` for a model of this configuration.
    pub fn new(config: &ModelConfig, spec: LoraSpec) -> Self {
        let mut layout = Self { spec, slots: Vec::new(), len: 0, layers: Vec::new(), score: None, scaled: 0 };
        let tensors = config.tensors();
        let targets: Vec<Role> = linear_layers(config)
            .into_iter()
            .filter(|(name, _)| layout.spec.targets.contains(name))
            .map(|(_, role)| role)
            .collect();
        for layer in 0..config.layers {
            let of_layer: Vec<&TensorSpec> = tensors.iter().filter(|spec| spec.layer == Some(layer)).collect();
            let groups = Group::ALL.map(|group| layout.place(config, group, &of_layer, &targets));
            layout.layers.push(groups);
        }
        if config.head == Head::Reward
            && let Some(score) = tensors.iter().find(|spec| spec.role == Role::Score)
        {
            layout.align();
            let name = format!("{PREFIX}{}", score.name);
            layout.score = Some(layout.add(TensorSpec { name, ..score.clone() }));
        }
        layout.align();
        layout
    }

    /// Places the adapters of a GEMM, if it has any.
    fn place(
        &mut self,
        config: &ModelConfig,
        group: Group,
        tensors: &[&TensorSpec],
        targets: &[Role],
    ) -> Option<GroupAdapter> {
        let rank = self.spec.rank;
        let dims = group.dims(config, 0);
        let mut column = 0;
        let mut adapted = Vec::new();
        for spec in tensors.iter().filter(|spec| Group::of(spec.role) == Some(group)) {
            let columns = column..column + spec.rows();
            column = columns.end;
            if targets.contains(&spec.role) {
                adapted.push((*spec, columns));
            }
        }
        if adapted.is_empty() {
            return None;
        }
        // The rows of B have the order of the layer's outputs.
        let named = |spec: &TensorSpec, part: &str, shape: Vec<usize>| {
            let module = spec.name.strip_suffix("weight").unwrap_or(&spec.name);
            let order = if part == "lora_B" && spec.order == Order::RowsByHead { spec.order } else { Order::Rows };
            TensorSpec { name: format!("{PREFIX}{module}{part}.weight"), shape, order, ..spec.clone() }
        };
        self.align();
        let start = self.len;
        for (spec, _) in &adapted {
            self.add(named(spec, "lora_A", vec![rank, dims.inputs]));
        }
        let a = start..self.len;
        let targets = adapted.iter().map(|(spec, columns)| {
            self.align();
            let b = self.add(named(spec, "lora_B", vec![columns.len(), rank]));
            Target { b, columns: columns.clone() }
        });
        let targets: Vec<Target> = targets.collect();
        let width = rank * targets.len();
        let first = self.scaled.next_multiple_of(ALIGN);
        self.scaled = first + dims.outputs * width;
        Some(GroupAdapter { inputs: dims.inputs, outputs: dims.outputs, width, a, targets, scaled: first..self.scaled })
    }

    fn align(&mut self) {
        self.len = self.len.next_multiple_of(ALIGN);
    }

    fn add(&mut self, spec: TensorSpec) -> Range<usize> {
        let slot = Slot { start: self.len, spec };
        let range = slot.range();
        self.len = range.end;
        self.slots.push(slot);
        range
    }

    /// Number of trained parameters.
    pub fn parameters(&self) -> usize {
        self.slots.iter().map(|slot| slot.spec.elements()).sum()
    }

    /// Adapters of a GEMM.
    pub fn group(&self, layer: usize, group: Group) -> Option<&GroupAdapter> {
        self.layers.get(layer)?[group as usize].as_ref()
    }

    /// Whether a GEMM of every layer has adapters. All layers have adapters on the same GEMMs.
    pub fn has(&self, group: Group) -> bool {
        self.group(0, group).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::presets;
    use super::*;

    #[test]
    fn every_target_has_a_place_with_the_shapes_and_names_of_peft() {
        for head in [Head::LanguageModel, Head::Reward] {
            let config = ModelConfig { head, ..presets::config("llama-tiny").unwrap() };
            let spec = LoraSpec::new(&config, 8, 16, false, &[]).unwrap();
            assert_eq!(spec.targets.len(), 7);
            let layout = LoraLayout::new(&config, spec);
            let mut end = 0;
            for slot in &layout.slots {
                assert!(slot.start >= end, "{} overlaps", slot.spec.name);
                end = slot.range().end;
            }
            let names: Vec<&str> = layout.slots.iter().map(|slot| slot.spec.name.as_str()).collect();
            let score = usize::from(head == Head::Reward);
            assert_eq!(names.len(), config.layers * 14 + score);
            assert!(names.contains(&"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"));
            assert!(names.contains(&"base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"));
            assert_eq!(names.contains(&"base_model.model.score.weight"), score == 1);
            let qkv = layout.group(0, Group::Qkv).unwrap();
            assert_eq!((qkv.a.len(), qkv.width), (24 * config.hidden, 24));
            assert_eq!(qkv.targets[2].columns.end, qkv.outputs);
        }
    }

    #[test]
    fn unknown_targets_are_an_error_that_lists_the_known_ones() {
        let config = presets::config("llama-tiny").unwrap();
        let error = LoraSpec::new(&config, 8, 16, false, &["qkv_proj".into()]).unwrap_err().to_string();
        assert!(error.contains("qkv_proj") && error.contains("q_proj, k_proj, v_proj, o_proj, gate_proj"), "{error}");
    }
}
