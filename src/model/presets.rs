//! Model shapes by name, for `mapl init --preset`. A new model gets its vocabulary and special ids from its
//! tokenizer (`ModelConfig::with_vocabulary`). The vocabulary here is the vocabulary of the published model,
//! or a small one.

use serde_json::Map;

use super::config::{Head, ModelConfig};
use super::family::{self, Family};
use super::rope::{RopeConfig, RopeScaling};
use super::softcaps::Softcaps;
use super::traits::Traits;
use crate::{Error, Result};

/// Named model shape.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Name on the command line.
    pub name: &'static str,
    /// One-line description.
    pub summary: &'static str,
    family: &'static Family,
    vocab: usize,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    tied: bool,
    theta: f64,
    /// Factor of llama3 RoPE scaling over 8,192 positions (low 1, high 4); 0 for no scaling.
    llama3_factor: f64,
    max_positions: usize,
    rms_norm_eps: f64,
}

/// Common values of the presets.
const QWEN2: Preset = Preset {
    name: "",
    summary: "",
    family: &family::QWEN2,
    vocab: 151_936,
    hidden: 0,
    intermediate: 0,
    layers: 0,
    heads: 0,
    kv_heads: 2,
    tied: true,
    theta: 1e6,
    llama3_factor: 0.0,
    max_positions: 32_768,
    rms_norm_eps: 1e-6,
};

const LLAMA: Preset =
    Preset { family: &family::LLAMA, vocab: 128_256, theta: 5e5, max_positions: 131_072, rms_norm_eps: 1e-5, ..QWEN2 };

const PRESETS: [Preset; 12] = [
    Preset {
        name: "quickstart",
        summary: "0.45 M parameters with a vocabulary of 512; trained by `mapl quickstart`",
        vocab: 512,
        hidden: 96,
        intermediate: 256,
        layers: 4,
        heads: 4,
        theta: 1e4,
        ..QWEN2
    },
    Preset {
        name: "qwen2-tiny",
        summary: "hidden 64, 2 layers, for tests and first steps",
        vocab: 1024,
        hidden: 64,
        intermediate: 160,
        layers: 2,
        heads: 4,
        theta: 1e4,
        ..QWEN2
    },
    Preset {
        name: "llama-tiny",
        summary: "hidden 64, 2 layers, untied, for tests and first steps",
        vocab: 1024,
        hidden: 64,
        intermediate: 160,
        layers: 2,
        heads: 4,
        tied: false,
        theta: 1e4,
        max_positions: 32_768,
        ..LLAMA
    },
    Preset {
        name: "qwen2-small",
        summary: "hidden 384, 8 layers: about 13 M parameters without the embedding",
        vocab: 8192,
        hidden: 384,
        intermediate: 1024,
        layers: 8,
        heads: 6,
        theta: 1e5,
        max_positions: 4096,
        ..QWEN2
    },
    Preset {
        name: "qwen2.5-0.5b",
        summary: "shape of Qwen2.5-0.5B",
        hidden: 896,
        intermediate: 4864,
        layers: 24,
        heads: 14,
        ..QWEN2
    },
    Preset {
        name: "qwen2.5-1.5b",
        summary: "shape of Qwen2.5-1.5B",
        hidden: 1536,
        intermediate: 8960,
        layers: 28,
        heads: 12,
        max_positions: 131_072,
        ..QWEN2
    },
    Preset {
        name: "qwen2.5-3b",
        summary: "shape of Qwen2.5-3B",
        hidden: 2048,
        intermediate: 11_008,
        layers: 36,
        heads: 16,
        ..QWEN2
    },
    Preset {
        name: "qwen2.5-7b",
        summary: "shape of Qwen2.5-7B",
        vocab: 152_064,
        hidden: 3584,
        intermediate: 18_944,
        layers: 28,
        heads: 28,
        kv_heads: 4,
        tied: false,
        max_positions: 131_072,
        ..QWEN2
    },
    Preset {
        name: "smollm2-135m",
        summary: "shape of SmolLM2-135M (Llama family)",
        vocab: 49_152,
        hidden: 576,
        intermediate: 1536,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        theta: 1e5,
        max_positions: 8192,
        ..LLAMA
    },
    Preset {
        name: "llama-3.2-1b",
        summary: "shape of Llama-3.2-1B",
        hidden: 2048,
        intermediate: 8192,
        layers: 16,
        heads: 32,
        kv_heads: 8,
        llama3_factor: 32.0,
        ..LLAMA
    },
    Preset {
        name: "llama-3.2-3b",
        summary: "shape of Llama-3.2-3B",
        hidden: 3072,
        intermediate: 8192,
        layers: 28,
        heads: 24,
        kv_heads: 8,
        llama3_factor: 32.0,
        ..LLAMA
    },
    Preset {
        name: "llama-3.1-8b",
        summary: "shape of Llama-3.1-8B",
        hidden: 4096,
        intermediate: 14_336,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        tied: false,
        llama3_factor: 8.0,
        ..LLAMA
    },
];

/// Returns all presets, smallest first within a model family.
pub fn list() -> &'static [Preset] {
    &PRESETS
}

/// Returns the language model of preset `name`. An unknown name is [`Error::Usage`], with the known
/// names in the message.
pub fn config(name: &str) -> Result<ModelConfig> {
    let Some(preset) = PRESETS.iter().find(|p| p.name == name) else {
        let names: Vec<&str> = PRESETS.iter().map(|p| p.name).collect();
        return Err(Error::Usage(format!("unknown preset {name:?}; known presets are {}", names.join(", "))));
    };
    Ok(preset.config())
}

impl Preset {
    /// Returns the language model of this shape, without special ids.
    pub fn config(&self) -> ModelConfig {
        let scaling = if self.llama3_factor == 0.0 {
            RopeScaling::Default
        } else {
            RopeScaling::Llama3 {
                factor: self.llama3_factor,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position: 8192,
            }
        };
        ModelConfig {
            family: self.family,
            head: Head::LanguageModel,
            vocab: self.vocab,
            hidden: self.hidden,
            intermediate: self.intermediate,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.hidden / self.heads,
            rms_norm_eps: self.rms_norm_eps,
            qkv_bias: Family::default_bias(self.family.qkv_bias),
            output_bias: Family::default_bias(self.family.output_bias),
            mlp_bias: Family::default_bias(self.family.mlp_bias),
            traits: Traits::of_family(self.family),
            softcaps: Softcaps::of_family(self.family),
            tied: self.tied,
            rope: RopeConfig { theta: self.theta, scaling },
            partial_rotary_factor: 1.0,
            rotated: self.hidden / self.heads,
            layers_without_rope: Vec::new(),
            window: None,
            local_rope: None,
            max_positions: self.max_positions,
            declared_positions: self.max_positions,
            initializer_range: 0.02,
            eos: Vec::new(),
            bos: None,
            pad: None,
            dtype: None,
            notes: Vec::new(),
            reward_norm: None,
            adapter: None,
            original: Map::new(),
            generation: None,
        }
    }
}
