//! Keys of config.json in which few families differ from Llama: factors on activations, the form of
//! the MLP, attention and MLP in parallel, the scale of attention scores.

use super::config::{Head, ModelConfig};
use super::config_json::Keys;
use super::family::{Family, Parallel};
use crate::backend::contract::{Gelu, Precision};
use crate::{Error, Result};

/// Settings of a configuration other than sizes, biases and positions.
#[derive(Clone, Debug, PartialEq)]
pub struct Traits {
    /// Factor on the embeddings.
    pub embedding_multiplier: f64,
    /// Factor on the output of attention and of the MLP.
    pub residual_multiplier: f64,
    /// Divisor of the logits.
    pub logits_scaling: f64,
    /// Scale of attention scores; `None` for 1 / sqrt(head_dim).
    pub attention_scale: Option<f64>,
    /// Whether layer i, from 0, divides its attention scores by i + 1.
    pub scale_by_layer: bool,
    /// GELU of the MLP, or of its gate (GeGLU); `None` for SwiGLU.
    pub gelu: Option<Gelu>,
    /// Attention and MLP of a layer have the same input.
    pub parallel: bool,
}

/// Factors beyond these limits would leave the range of bf16 and f32.
const FACTORS: std::ops::RangeInclusive<f64> = 1e-6..=1e6;

impl Traits {
    /// Values of a family for a file without the keys.
    pub(super) fn of_family(family: &Family) -> Self {
        Self {
            embedding_multiplier: 1.0,
            residual_multiplier: 1.0,
            logits_scaling: 1.0,
            attention_scale: family.query_scalar.map(|x| x.powf(-0.5)),
            scale_by_layer: false,
            gelu: gelu(family.activation),
            parallel: matches!(family.parallel, Parallel::Key { default: true, .. }),
        }
    }

    pub(super) fn read(keys: Keys, family: &Family) -> Result<Self> {
        let mut traits = Self::of_family(family);
        let factor = |key: &str| keys.number_or(key, 1.0, |x| FACTORS.contains(&x), "from 1e-6 to 1e6");
        if family.multipliers {
            traits.embedding_multiplier = factor("embedding_multiplier")?;
            traits.residual_multiplier = factor("residual_multiplier")?;
            traits.logits_scaling = factor("logits_scaling")?;
            traits.attention_scale = Some(factor("attention_multiplier")?);
        }
        if let Some(default) = family.query_scalar {
            let scalar =
                keys.number_or("query_pre_attn_scalar", default, |x| FACTORS.contains(&x), "from 1e-6 to 1e6")?;
            traits.attention_scale = Some(scalar.powf(-0.5));
        }
        if family.attention_scale_keys {
            traits.attention_scale = (!keys.flag_or("scale_attn_weights", true)?).then_some(1.0);
            traits.scale_by_layer = keys.flag_or("scale_attn_by_inverse_layer_idx", false)?;
        }
        if let Parallel::Key { default, .. } = family.parallel {
            traits.parallel = keys.flag_or("use_parallel_residual", default)?;
        }
        let act = keys.text("hidden_act")?.unwrap_or(family.activation);
        let act = if family.legacy_gelu && act == "gelu" { family.activation } else { act };
        let (known, allowed) = match gelu(family.activation).is_none() {
            true => (["silu", "swish"].contains(&act), "\"silu\" (or \"swish\", its other name)"),
            false => (gelu(act).is_some(), "\"gelu\", \"gelu_new\", \"gelu_fast\" or \"gelu_pytorch_tanh\""),
        };
        if !known {
            let key = keys.name("hidden_act");
            let why = format!("\"{key}\" is {act:?}; {} models need {allowed}", family.class);
            return Err(Error::model(keys.path, why));
        }
        traits.gelu = gelu(act);
        for (key, needs) in family.unsupported {
            if keys.flag_or(key, false)? {
                return Err(Error::model(keys.path, format!("\"{key}\" is true; {needs} not supported")));
            }
        }
        Ok(traits)
    }

    /// Text of everything that differs from Llama, for fingerprints; empty if nothing does.
    pub(crate) fn text(&self) -> String {
        let plain = Self {
            embedding_multiplier: 1.0,
            residual_multiplier: 1.0,
            logits_scaling: 1.0,
            attention_scale: None,
            scale_by_layer: false,
            gelu: None,
            parallel: false,
        };
        if *self == plain { String::new() } else { format!("{self:?}") }
    }
}

/// Variant of GELU by its name in transformers; `None` for other activations.
pub(super) fn gelu(name: &str) -> Option<Gelu> {
    match name {
        "gelu" | "gelu_python" => Some(Gelu::Erf),
        "gelu_new" | "gelu_fast" | "gelu_accurate" | "gelu_pytorch_tanh" | "gelu_python_tanh" => Some(Gelu::Tanh),
        _ => None,
    }
}

impl ModelConfig {
    /// Scale of the attention scores of layer i.
    pub(super) fn attention_scale(&self, i: usize) -> f64 {
        let scale = self.traits.attention_scale.unwrap_or(1.0 / (self.head_dim as f64).sqrt());
        if self.traits.scale_by_layer { scale / (i + 1) as f64 } else { scale }
    }

    /// Offset that a norm adds to its weight.
    pub(super) fn norm_offset(&self) -> f64 {
        f64::from(u8::from(self.family.unit_offset))
    }

    /// Factor on the embeddings. The residual stream is stored divided by the residual multiplier, so that
    /// the outputs of attention and MLP are added without a factor. The norms undo the division.
    pub(super) fn embedding_factor(&self, precision: Precision) -> f64 {
        if self.family.scaled_embeddings {
            let root = (self.hidden as f64).sqrt();
            return match precision {
                Precision::F64 => root,
                Precision::F32 => f64::from(root as f32),
                Precision::Bf16 => half::bf16::from_f64(root).to_f64(),
            };
        }
        self.traits.embedding_multiplier / self.traits.residual_multiplier
    }

    /// Eps of the norms of the residual stream, adjusted to the stored scale of the stream
    /// ([`Self::embedding_factor`]).
    pub(super) fn stream_eps(&self) -> f64 {
        self.rms_norm_eps / (self.traits.residual_multiplier * self.traits.residual_multiplier)
    }

    /// Factor on the normalised hidden states before the head.
    pub(super) fn hidden_factor(&self) -> f64 {
        match self.head {
            Head::LanguageModel => 1.0 / self.traits.logits_scaling,
            Head::Reward => 1.0,
        }
    }

    /// Whether positions are a table of weights.
    pub fn has_position_table(&self) -> bool {
        self.family.learned_positions
    }

    /// Width of the first projection of the MLP: gate and up, or only up.
    pub(crate) fn mlp_width(&self) -> usize {
        if self.family.gated { 2 * self.intermediate } else { self.intermediate }
    }

    /// Whether the ops that fuse a GEMM with SwiGLU can be used.
    pub(super) fn fuses_glu(&self) -> bool {
        self.family.gated && self.traits.gelu.is_none()
    }

    /// Whether attention and MLP of a layer share their norm.
    pub(super) fn shares_norm(&self) -> bool {
        self.traits.parallel && matches!(self.family.parallel, Parallel::Key { shared_norm: true, .. })
    }

    /// Number of statistics of a norm per token: the mean of a LayerNorm, and the reciprocal standard
    /// deviation.
    pub(super) fn norm_stats(&self) -> usize {
        if self.family.layer_norm { 2 } else { 1 }
    }

    /// Number of weights of a norm, including the bias of a LayerNorm.
    pub(super) fn norm_width(&self) -> usize {
        self.norm_stats() * self.hidden
    }
}
