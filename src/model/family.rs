//! Model families as data: one row per family holds everything in which its configuration, its tensors and
//! its forward differ from the others. Reader, writer and decoder depend on the row and never on the name.
//!
//! All families share the decoder of `decoder.rs`: RMSNorm or LayerNorm, rotary or learned positions,
//! grouped-query attention, SwiGLU, GeGLU or GELU. `family_missing.rs` lists what other well-known families
//! would need.

use super::config::{Head, ModelConfig};
use super::family_ids::ClassIds;
use super::family_names::TensorNames;
use super::family_names::{GEMMA_KEYS, GEMMA2_NAMES};
use super::family_names::{GPT2_KEYS, GPT2_NAMES, KeyNames, LAYER_NORM_KEYS, LLAMA_NAMES, NEOX_KEYS, NEOX_NAMES};
use super::softcaps::SoftcapRule;
use super::tensors::Order;

/// Properties of a family. Defaults are those of transformers for a key that a file lacks.
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
    /// Whether [`Family::qk_norm`] normalises all query heads together and all key heads together, with a
    /// weight for each element.
    pub(super) whole_norm: bool,
    /// Pre-norms: norms of the inputs of attention and MLP.
    pub(super) norms_in_front: bool,
    /// Post-norms: RMSNorm of the outputs of attention and MLP, after their last projections.
    pub(super) norms_behind: bool,
    /// Norm weights are stored as their distance from 1.
    pub(super) unit_offset: bool,
    /// Embeddings are multiplied by sqrt(hidden_size), rounded to the type of the weights.
    pub(super) scaled_embeddings: bool,
    /// Default of `query_pre_attn_scalar`: attention scores are divided by its square root instead of
    /// that of head_dim.
    pub(super) query_scalar: Option<f64>,
    pub(super) softcaps: Option<SoftcapRule>,
    pub(super) window: Window,
    pub(super) rope: RopeRule,
    /// Query, key and value projections are one tensor in the files, and so are gate and up.
    pub(super) fused: bool,
    /// LayerNorm with weight and bias instead of RMSNorm.
    pub(super) layer_norm: bool,
    /// The MLP multiplies the outputs of two projections (SwiGLU, GeGLU) instead of using one projection.
    pub(super) gated: bool,
    /// Default of `hidden_act`.
    pub(super) activation: &'static str,
    /// Whether the activation name `gelu` means the tanh approximation of GELU.
    pub(super) legacy_gelu: bool,
    /// Biases of the projections of the MLP.
    pub(super) mlp_bias: Bias,
    /// Default of `intermediate_size`, as a multiple of `hidden_size`.
    pub(super) default_inner: Option<usize>,
    pub(super) parallel: Parallel,
    /// Factors on embeddings, residuals, attention scores and logits.
    pub(super) multipliers: bool,
    /// Whether `scale_attn_weights` and `scale_attn_by_inverse_layer_idx` are read.
    pub(super) attention_scale_keys: bool,
    /// A table of positions, added to the embeddings, instead of RoPE.
    pub(super) learned_positions: bool,
    /// Whether the file has `num_key_value_heads`; otherwise there is one per query head.
    pub(super) grouped: bool,
    /// Whether the file has `head_dim`; otherwise it is hidden_size / num_attention_heads.
    pub(super) wide_heads: bool,
    /// Initial random weights of the projections to the residual stream are divided by sqrt(2 layers).
    pub(super) small_outputs: bool,
    /// Keys that must not be true, and the unsupported feature that each would need.
    pub(super) unsupported: &'static [(&'static str, &'static str)],
    /// Order of the elements of a layer's matrices in the files. `RowsByHead` applies only to query, key and
    /// value.
    pub(super) order: Order,
    pub(super) names: &'static TensorNames,
    pub(super) keys: KeyNames,
    /// Whether transformers has a class for reward models of the family.
    pub(super) has_classifier: bool,
    /// Class of the language model, after the prefix.
    pub(super) language_model: &'static str,
    /// Class of the model without a head, after the prefix.
    pub(super) base_model: &'static str,
    /// Class of the reward model, after the prefix.
    pub(super) classifier: &'static str,
    pub(super) ids: ClassIds,
}

/// Whether attention and MLP of a layer have the same input, and both are added to the stream.
#[derive(Clone, Copy, Debug)]
pub(super) enum Parallel {
    Never,
    /// The key `use_parallel_residual` decides. `shared_norm` says whether parallel blocks share one norm.
    Key {
        default: bool,
        shared_norm: bool,
    },
}

/// Whether a projection has a bias.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bias {
    Never,
    Always,
    /// A key of config.json decides, with this default.
    Key(&'static str, bool),
}

/// Rule for the layers that see only a window of the last positions.
#[derive(Clone, Copy, Debug)]
pub(super) enum Window {
    /// Never.
    None,
    /// All layers, if `sliding_window` is not null. Holds the default of that key.
    All(Option<usize>),
    /// As `All` unless `layer_types` says otherwise.
    LayerTypes(Option<usize>),
    /// Layers from `max_window_layers` on, if `use_sliding_window` is set.
    LastLayers,
    /// Layers without RoPE, if `use_sliding_window` is set.
    LayersWithoutRope,
    /// All layers except every n-th, unless `layer_types` says otherwise. Holds the default of `sliding_window`,
    /// n (or its default), and the key that sets n.
    Except(usize, usize, Option<&'static str>),
}

/// RoPE rules of a family.
#[derive(Clone, Copy, Debug)]
pub(super) struct RopeRule {
    /// Default of `rope_theta`.
    pub theta: f64,
    /// Default of a top-level `original_max_position_embeddings`, which then takes precedence over the key of
    /// the scaling. A family with this default supports only longrope scaling, also under the names `su` and
    /// `yarn`. transformers 4 accepts exactly three keys in the scaling of such a family.
    pub original: Option<usize>,
    /// Whether `no_rope_layers` and `no_rope_layer_interval` name layers without RoPE.
    pub skips_layers: bool,
    /// Default of `partial_rotary_factor`; `None` for a family that always rotates whole heads.
    pub partial: Option<f64>,
    /// Layers with a sliding window have separate RoPE settings (`rope_layers.rs`).
    pub by_layer_type: bool,
    /// Default of `rope_local_base_freq`, the base of layers with a sliding window.
    pub local_theta: Option<f64>,
}

const ROPE: RopeRule = RopeRule {
    theta: 10_000.0,
    original: None,
    skips_layers: false,
    partial: None,
    by_layer_type: false,
    local_theta: None,
};

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
    norms_in_front: true,
    norms_behind: false,
    unit_offset: false,
    scaled_embeddings: false,
    query_scalar: None,
    softcaps: None,
    window: Window::None,
    rope: ROPE,
    fused: false,
    layer_norm: false,
    gated: true,
    activation: "silu",
    legacy_gelu: false,
    mlp_bias: Bias::Never,
    default_inner: None,
    parallel: Parallel::Never,
    multipliers: false,
    attention_scale_keys: false,
    learned_positions: false,
    grouped: true,
    wide_heads: true,
    small_outputs: false,
    unsupported: &[],
    order: Order::Rows,
    names: &LLAMA_NAMES,
    keys: &[],
    has_classifier: true,
    language_model: "ForCausalLM",
    base_model: "Model",
    classifier: "ForSequenceClassification",
    ids: ClassIds::COMMON,
};

/// The family of most models.
pub(super) static LLAMA: Family = Family { mlp_bias: Bias::Key("mlp_bias", false), ..COMMON };

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
    ids: ClassIds::NONE,
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
    norms_in_front: false,
    norms_behind: true,
    ids: ClassIds { pad: Some(1), bos: None, eos: Some(50_279) },
    ..COMMON
};

/// Gemma; later versions add post-norms and windows.
const GEMMA: Family = Family {
    model_type: "gemma",
    class: "Gemma",
    positions: 8192,
    needs_kv_heads: true,
    head_dim: Some(256),
    whole_heads: false,
    tied: true,
    unit_offset: true,
    scaled_embeddings: true,
    activation: "gelu_pytorch_tanh",
    legacy_gelu: true,
    unsupported: &[("use_bidirectional_attention", "attention in both directions is")],
    ids: ClassIds { pad: Some(0), bos: Some(2), eos: Some(1) },
    ..COMMON
};

/// Gemma 2; Gemma 3 has norms of query and key heads instead of the softcap of attention.
const GEMMA2: Family = Family {
    model_type: "gemma2",
    class: "Gemma2",
    norms_behind: true,
    query_scalar: Some(256.0),
    softcaps: Some(SoftcapRule { attention: Some(50.0), logits: Some(30.0), reads_attention: true }),
    window: Window::Except(4096, 2, None),
    legacy_gelu: false,
    names: &GEMMA2_NAMES,
    keys: GEMMA_KEYS,
    ..GEMMA
};

/// Every supported family.
pub static FAMILIES: [&Family; 17] = [
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
        ids: ClassIds::NONE,
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
        mlp_bias: Bias::Key("mlp_bias", false),
        ids: ClassIds { pad: Some(1), bos: Some(0), eos: Some(2) },
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
        mlp_bias: Bias::Key("mlp_bias", false),
        rope: RopeRule { theta: 2_000_000.0, skips_layers: true, ..ROPE },
        ids: ClassIds { pad: Some(128_004), bos: Some(128_000), eos: Some(128_001) },
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
        rope: RopeRule { original: Some(4096), partial: Some(1.0), ..ROPE },
        fused: true,
        ids: ClassIds { pad: Some(32_000), bos: Some(1), eos: Some(32_000) },
        ..COMMON
    },
    &Family {
        model_type: "granite",
        class: "Granite",
        mlp_bias: Bias::Key("mlp_bias", false),
        multipliers: true,
        has_classifier: false,
        ..COMMON
    },
    &Family {
        model_type: "stablelm",
        class: "StableLm",
        positions: 4096,
        needs_kv_heads: true,
        eps: 1e-5,
        qkv_bias: Bias::Key("use_qkv_bias", false),
        output_bias: Bias::Never,
        rope: RopeRule { partial: Some(0.25), ..ROPE },
        layer_norm: true,
        parallel: Parallel::Key { default: false, shared_norm: true },
        wide_heads: false,
        unsupported: &[("qk_layernorm", "LayerNorms of query and key heads are")],
        keys: LAYER_NORM_KEYS,
        ids: ClassIds { pad: None, bos: Some(0), eos: Some(0) },
        ..COMMON
    },
    &Family {
        model_type: "gpt_neox",
        class: "GPTNeoX",
        eps: 1e-5,
        qkv_bias: Bias::Key("attention_bias", true),
        output_bias: Bias::Key("attention_bias", true),
        rope: RopeRule { partial: Some(0.25), ..ROPE },
        fused: true,
        layer_norm: true,
        gated: false,
        activation: "gelu",
        mlp_bias: Bias::Always,
        parallel: Parallel::Key { default: true, shared_norm: false },
        grouped: false,
        wide_heads: false,
        order: Order::RowsByHead,
        names: &NEOX_NAMES,
        keys: NEOX_KEYS,
        ids: ClassIds { pad: None, bos: Some(0), eos: Some(2) },
        ..COMMON
    },
    &Family {
        model_type: "gpt2",
        class: "GPT2",
        positions: 1024,
        eps: 1e-5,
        tied: true,
        qkv_bias: Bias::Always,
        output_bias: Bias::Always,
        fused: true,
        layer_norm: true,
        gated: false,
        activation: "gelu_new",
        mlp_bias: Bias::Always,
        default_inner: Some(4),
        attention_scale_keys: true,
        learned_positions: true,
        grouped: false,
        wide_heads: false,
        small_outputs: true,
        unsupported: &[("add_cross_attention", "attention to an encoder is")],
        order: Order::Columns,
        names: &GPT2_NAMES,
        keys: GPT2_KEYS,
        language_model: "LMHeadModel",
        ids: ClassIds { pad: None, bos: Some(50_256), eos: Some(50_256) },
        ..COMMON
    },
    &OLMO2,
    &Family {
        model_type: "olmo3",
        class: "Olmo3",
        window: Window::Except(4096, 4, None),
        rope: RopeRule { theta: 500_000.0, by_layer_type: true, ..ROPE },
        ..OLMO2
    },
    &GEMMA,
    &GEMMA2,
    &Family {
        model_type: "gemma3_text",
        class: "Gemma3",
        positions: 131_072,
        qk_norm: true,
        softcaps: Some(SoftcapRule { attention: None, logits: None, reads_attention: false }),
        window: Window::Except(4096, 6, Some("sliding_window_pattern")),
        rope: RopeRule { theta: 1_000_000.0, by_layer_type: true, local_theta: Some(10_000.0), ..ROPE },
        base_model: "TextModel",
        classifier: "TextForSequenceClassification",
        ..GEMMA2
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

    /// Name of a class in transformers, for messages and tests.
    pub fn class_of(&self, head: Head) -> String {
        format!("{}{}", self.class, head.class(self))
    }

    /// Note for the log on a reward model that transformers cannot load.
    pub(super) fn classifier_note(&self) -> Option<String> {
        let class = self.class_of(Head::Reward);
        (!self.has_classifier)
            .then(|| format!("transformers has no class {class}; only this program reads such a model"))
    }

    /// Whether the projection with this rule has a bias if the file lacks the key.
    pub(super) fn default_bias(bias: Bias) -> bool {
        matches!(bias, Bias::Always | Bias::Key(_, true))
    }
}

impl ModelConfig {
    /// Whether layer `i` rotates its queries and keys.
    pub(super) fn rotates(&self, i: usize) -> bool {
        !self.family.learned_positions && !self.layers_without_rope.contains(&i)
    }
}
