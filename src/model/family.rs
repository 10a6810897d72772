//! Model families as data: one row for each, with everything in which its configuration, its
//! tensors and its forward differ from the others. Reader, writer and decoder ask the row and never
//! the name.
//!
//! All families share the decoder of `decoder.rs`: RMSNorm, rotary positions, grouped-query attention,
//! SwiGLU, residual streams without scaling. A second table says what other well-known
//! families would need.

use super::config::ModelConfig;

/// What a family has. Defaults are those of transformers for a key that a file lacks.
#[derive(Debug)]
pub struct Family {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// Prefix of the class names in transformers.
    pub class: &'static str,
    /// Default of `max_position_embeddings`.
    pub(super) positions: usize,
    /// Whether `num_key_value_heads` must be in the file, because the default of transformers belongs
    /// to one published size. Otherwise a missing key means one per query head.
    pub(super) needs_kv_heads: bool,
    /// Default of `head_dim`; `None` for hidden_size / num_attention_heads.
    pub(super) head_dim: Option<usize>,
    /// Whether hidden_size must be a multiple of num_attention_heads even if the file has `head_dim`.
    pub(super) whole_heads: bool,
    /// Default of `rms_norm_eps`.
    pub(super) eps: f64,
    /// Default of `tie_word_embeddings`.
    pub(super) tied: bool,
    /// Bias of the query, key and value projections.
    pub(super) qkv_bias: Bias,
    /// Bias of the attention output.
    pub(super) output_bias: Bias,
    /// RMSNorm of every query head and every key head before RoPE, with one weight of head_dim for
    /// all query heads and one for all key heads.
    pub(super) qk_norm: bool,
    /// As [`Family::qk_norm`], but of all query heads and of all key heads together, with a weight for
    /// each element.
    pub(super) whole_norm: bool,
    /// RMSNorm of the outputs of attention and MLP, behind their last projections, instead of their inputs.
    pub(super) norms_behind: bool,
    pub(super) window: Window,
    pub(super) rope: RopeRule,
    /// Query, key and value projections are one tensor in the files, and so are gate and up.
    pub(super) fused: bool,
}

/// Whether a projection has a bias.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bias {
    Never,
    Always,
    /// As a key of config.json says, with this default.
    Key(&'static str, bool),
}

/// Which layers see only a window of the last positions.
#[derive(Clone, Copy, Debug)]
pub(super) enum Window {
    /// Never.
    None,
    /// All layers, if `sliding_window` is not null; with its default.
    All(Option<usize>),
    /// As `All` unless `layer_types` says otherwise.
    LayerTypes(Option<usize>),
    /// Layers from `max_window_layers` on, if `use_sliding_window` is set.
    LastLayers,
    /// Layers without RoPE, if `use_sliding_window` is set.
    LayersWithoutRope,
    /// All layers except every n-th, unless `layer_types` says otherwise; with the default of
    /// `sliding_window` and n.
    Except(usize, usize),
}

/// Rotary positions of a family.
#[derive(Clone, Copy, Debug)]
pub(super) struct RopeRule {
    /// Default of `rope_theta`.
    pub theta: f64,
    /// Default of a top-level `original_max_position_embeddings`, which then takes precedence over
    /// the key of the scaling. A family with it knows no other scaling than longrope, under the names
    /// `su` and `yarn` too, and older versions of transformers read exactly three keys.
    pub original: Option<usize>,
    /// Whether `no_rope_layers` and `no_rope_layer_interval` name layers without RoPE.
    pub skips_layers: bool,
    /// Layers with a sliding window have settings of their own (`rope_layers.rs`).
    pub by_layer_type: bool,
}

const ROPE: RopeRule = RopeRule { theta: 10_000.0, original: None, skips_layers: false, by_layer_type: false };

/// Common values of the rows.
const COMMON: Family = Family {
    model_type: "llama",
    class: "Llama",
    positions: 2048,
    needs_kv_heads: false,
    head_dim: None,
    whole_heads: true,
    eps: 1e-6,
    tied: false,
    qkv_bias: Bias::Key("attention_bias", false),
    output_bias: Bias::Key("attention_bias", false),
    qk_norm: false,
    whole_norm: false,
    norms_behind: false,
    window: Window::None,
    rope: ROPE,
    fused: false,
};

/// The family of most models.
pub(super) static LLAMA: Family = COMMON;

/// Qwen2 and Qwen2.5.
pub(super) static QWEN2: Family = Family {
    model_type: "qwen2",
    class: "Qwen2",
    positions: 32_768,
    needs_kv_heads: true,
    whole_heads: false,
    qkv_bias: Bias::Always,
    output_bias: Bias::Never,
    window: Window::LastLayers,
    ..COMMON
};

/// OLMo-2; OLMo-3 adds windows.
const OLMO2: Family = Family {
    model_type: "olmo2",
    class: "Olmo2",
    whole_heads: false,
    eps: 1e-5,
    qk_norm: true,
    whole_norm: true,
    norms_behind: true,
    ..COMMON
};

/// Every supported family.
pub static FAMILIES: [&Family; 10] = [
    &LLAMA,
    &QWEN2,
    &Family {
        model_type: "qwen3",
        class: "Qwen3",
        positions: 32_768,
        needs_kv_heads: true,
        head_dim: Some(128),
        whole_heads: false,
        qk_norm: true,
        window: Window::LastLayers,
        ..COMMON
    },
    &Family {
        model_type: "mistral",
        class: "Mistral",
        positions: 131_072,
        needs_kv_heads: true,
        whole_heads: false,
        qkv_bias: Bias::Never,
        output_bias: Bias::Never,
        window: Window::All(Some(4096)),
        ..COMMON
    },
    &Family {
        model_type: "ministral",
        class: "Ministral",
        positions: 131_072,
        needs_kv_heads: true,
        whole_heads: false,
        qkv_bias: Bias::Never,
        output_bias: Bias::Never,
        window: Window::LayerTypes(Some(4096)),
        ..COMMON
    },
    &Family {
        model_type: "seed_oss",
        class: "SeedOss",
        positions: 524_288,
        needs_kv_heads: true,
        head_dim: Some(128),
        whole_heads: false,
        qkv_bias: Bias::Key("attention_bias", true),
        output_bias: Bias::Key("attention_out_bias", false),
        ..COMMON
    },
    &Family {
        model_type: "smollm3",
        class: "SmolLM3",
        positions: 32_768,
        needs_kv_heads: true,
        whole_heads: false,
        tied: true,
        window: Window::LayersWithoutRope,
        rope: RopeRule { theta: 2_000_000.0, skips_layers: true, ..ROPE },
        ..COMMON
    },
    &Family {
        model_type: "phi3",
        class: "Phi3",
        positions: 4096,
        whole_heads: false,
        eps: 1e-5,
        qkv_bias: Bias::Never,
        output_bias: Bias::Never,
        window: Window::All(None),
        rope: RopeRule { original: Some(4096), ..ROPE },
        fused: true,
        ..COMMON
    },
    &OLMO2,
    &Family {
        model_type: "olmo3",
        class: "Olmo3",
        window: Window::Except(4096, 4),
        rope: RopeRule { theta: 500_000.0, by_layer_type: true, ..ROPE },
        ..OLMO2
    },
];

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.model_type == other.model_type
    }
}

impl Family {
    /// The family of a `model_type`.
    pub fn find(model_type: &str) -> Option<&'static Family> {
        FAMILIES.into_iter().find(|family| family.model_type == model_type)
    }

    /// Whether the projection with this rule has a bias if the file lacks the key.
    pub(super) fn default_bias(bias: Bias) -> bool {
        matches!(bias, Bias::Always | Bias::Key(_, true))
    }
}

impl ModelConfig {
    /// Whether layer `i` rotates its queries and keys.
    pub(super) fn rotates(&self, i: usize) -> bool {
        !self.layers_without_rope.contains(&i)
    }
}

/// Well-known families that need what is not here.
const MISSING: &[(&[&str], &str)] = &[
    (&["gemma"], "RMSNorm with 1 + weight, GELU in the MLP and scaled embeddings"),
    (
        &["gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma4", "vaultgemma"],
        "RMSNorm with 1 + weight, norms after attention and MLP, GELU, scaled embeddings, sliding windows and, in some, \
         softcaps",
    ),
    (
        &[
            "mixtral",
            "qwen2_moe",
            "qwen3_moe",
            "deepseek_v2",
            "deepseek_v3",
            "gpt_oss",
            "olmoe",
            "granitemoe",
            "phimoe",
            "dbrx",
            "llama4",
            "llama4_text",
            "glm4_moe",
            "ernie4_5_moe",
            "hunyuan_v1_moe",
            "minimax",
            "ernie4_5_vl_moe",
        ],
        "a mixture of experts",
    ),
    (&["qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe"], "linear attention layers"),
    (
        &[
            "mamba",
            "mamba2",
            "jamba",
            "bamba",
            "zamba2",
            "falcon_mamba",
            "falcon_h1",
            "lfm2",
            "recurrent_gemma",
            "rwkv",
            "granitemoehybrid",
            "nemotron_h",
        ],
        "recurrent or convolution layers",
    ),
    (&["phi"], "LayerNorm, attention and MLP in parallel, and RoPE on a part of each head"),
    (&["granite"], "multipliers on embeddings, residuals, attention scores and logits"),
    (&["cohere", "cohere2"], "LayerNorm, attention and MLP in parallel, interleaved RoPE and scaled logits"),
    (&["olmo"], "LayerNorm without weights"),
    (&["glm", "glm4"], "interleaved RoPE on a part of each head"),
    (&["ernie4_5", "helium"], "interleaved RoPE"),
    (&["stablelm", "persimmon", "nemotron"], "LayerNorm and RoPE on a part of each head"),
    (&["starcoder2"], "LayerNorm, and an MLP without a gate and with biases"),
    (
        &[
            "gpt2",
            "gpt_neo",
            "gptj",
            "gpt_neox",
            "gpt_bigcode",
            "opt",
            "bloom",
            "falcon",
            "mpt",
            "codegen",
            "biogpt",
            "xglm",
        ],
        "LayerNorm, and an MLP without a gate and with biases",
    ),
    (&["smollm2"], "the model type llama, which SmolLM2 has"),
    (&["exaone4"], "norms after attention and MLP, and sliding windows"),
    (&["hunyuan_v1_dense"], "query and key norms after RoPE"),
    (&["arcee", "apertus"], "an MLP without a gate"),
    (&["minicpm", "minicpm3"], "scaled embeddings, residuals and logits"),
    (
        &[
            "qwen2_vl",
            "qwen2_5_vl",
            "qwen3_vl",
            "llava",
            "llava_next",
            "mllama",
            "mistral3",
            "paligemma",
            "idefics3",
            "smolvlm",
            "internvl",
            "pixtral",
            "phi4_multimodal",
            "qwen2_audio",
            "qwen2_5_omni",
        ],
        "images or sound next to text",
    ),
    (
        &["bert", "roberta", "xlm-roberta", "deberta", "deberta-v2", "electra", "albert", "distilbert", "modernbert"],
        "attention in both directions; only decoders are supported",
    ),
    (&["t5", "mt5", "bart", "umt5", "mbart", "pegasus", "t5gemma"], "an encoder; only decoders are supported"),
    (&["internlm2", "baichuan", "chatglm", "xverse", "aquila", "qwen"], "code that comes with the model"),
];

/// What a model of this type would need that is not here.
pub(super) fn missing(model_type: &str) -> Option<&'static str> {
    MISSING.iter().find(|(types, _)| types.contains(&model_type)).map(|(_, needs)| *needs)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_model_type_is_either_supported_or_refused_once() {
        let supported = FAMILIES.iter().map(|family| family.model_type);
        let refused = MISSING.iter().flat_map(|(types, _)| types.iter().copied());
        let all: Vec<&str> = supported.chain(refused).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        assert!(FAMILIES.iter().all(|family| Family::find(family.model_type) == Some(*family)));
    }
}
