//! Names of the tensors in weight files and of the keys in config.json, by family.

/// Names of the modules that hold tensors. In a file, the name of a layer's module follows the number of the
/// layer.
#[derive(Debug)]
pub struct TensorNames {
    /// Start of every tensor name except those of the heads.
    pub base: &'static str,
    pub embedding: &'static str,
    /// Table of learned positions.
    pub positions: &'static str,
    pub layers: &'static str,
    pub input_norm: &'static str,
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    /// Query, key and value as one tensor.
    pub qkv: &'static str,
    pub output: &'static str,
    pub post_norm: &'static str,
    pub gate: &'static str,
    /// Up projection, and the first projection of an MLP without a gate.
    pub up: &'static str,
    /// Gate and up as one tensor.
    pub gate_up: &'static str,
    pub down: &'static str,
    pub final_norm: &'static str,
    /// Name of the vocabulary projection in files, if it is not `lm_head.weight`.
    pub old_head: Option<&'static str>,
    /// Name endings of buffers that are stored although the configuration determines them.
    pub buffers: &'static [&'static str],
}

const LLAMA: TensorNames = TensorNames {
    base: "model.",
    embedding: "embed_tokens",
    positions: "",
    layers: "layers",
    input_norm: "input_layernorm",
    query: "self_attn.q_proj",
    key: "self_attn.k_proj",
    value: "self_attn.v_proj",
    qkv: "self_attn.qkv_proj",
    output: "self_attn.o_proj",
    post_norm: "post_attention_layernorm",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    gate_up: "mlp.gate_up_proj",
    down: "mlp.down_proj",
    final_norm: "norm",
    old_head: None,
    buffers: &["rotary_emb.inv_freq"],
};

/// Names of Llama, which most families have.
pub(super) static LLAMA_NAMES: TensorNames = LLAMA;

/// Names of Gemma 2. Its post-norm of attention has the name of Llama's pre-norm of the MLP.
pub(super) static GEMMA2_NAMES: TensorNames = TensorNames { post_norm: "pre_feedforward_layernorm", ..LLAMA };

/// Names of GPT-NeoX.
pub(super) static NEOX_NAMES: TensorNames = TensorNames {
    base: "gpt_neox.",
    embedding: "embed_in",
    qkv: "attention.query_key_value",
    output: "attention.dense",
    up: "mlp.dense_h_to_4h",
    down: "mlp.dense_4h_to_h",
    final_norm: "final_layer_norm",
    old_head: Some("embed_out.weight"),
    buffers: &["rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias"],
    ..LLAMA
};

/// Names of GPT-2.
pub(super) static GPT2_NAMES: TensorNames = TensorNames {
    base: "transformer.",
    embedding: "wte",
    positions: "wpe",
    layers: "h",
    input_norm: "ln_1",
    qkv: "attn.c_attn",
    output: "attn.c_proj",
    post_norm: "ln_2",
    up: "mlp.c_fc",
    down: "mlp.c_proj",
    final_norm: "ln_f",
    buffers: &[".attn.bias", ".attn.masked_bias"],
    ..LLAMA
};

/// Keys of config.json with a different name from Llama's: Llama's name, the family's name, and whether
/// transformers accepts both.
pub(super) type KeyNames = &'static [(&'static str, &'static str, bool)];

pub(super) const GEMMA_KEYS: KeyNames = &[("hidden_act", "hidden_activation", false)];
/// Families with LayerNorm have a different key for eps.
pub(super) const LAYER_NORM_KEYS: KeyNames = &[("rms_norm_eps", "layer_norm_eps", false)];
pub(super) const NEOX_KEYS: KeyNames = &[
    ("rms_norm_eps", "layer_norm_eps", false),
    ("rope_theta", "rotary_emb_base", false),
    ("partial_rotary_factor", "rotary_pct", false),
];
pub(super) const GPT2_KEYS: KeyNames = &[
    ("hidden_size", "n_embd", true),
    ("num_hidden_layers", "n_layer", true),
    ("num_attention_heads", "n_head", true),
    ("max_position_embeddings", "n_positions", true),
    ("intermediate_size", "n_inner", false),
    ("rms_norm_eps", "layer_norm_epsilon", false),
    ("hidden_act", "activation_function", false),
];
