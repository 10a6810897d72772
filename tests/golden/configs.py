"""Configurations of the tiny models that make.py and families.py make."""

from transformers import LlamaConfig, MinistralConfig, MistralConfig, Phi3Config, Qwen2Config
from transformers import Olmo2Config, Olmo3Config, Qwen3Config, SeedOssConfig, SmolLM3Config
from transformers import Gemma2Config, Gemma3TextConfig, GemmaConfig
from transformers import GPT2Config, GPTNeoXConfig, GraniteConfig, StableLmConfig

VOCAB, PAD, BOS, EOS = 160, 159, 1, 2

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}


def llama(**more):
    return LlamaConfig(**{**SIZES, "intermediate_size": 48, "rms_norm_eps": 1e-5, **more})


def qwen2(**more):
    return Qwen2Config(**{**SIZES, "intermediate_size": 56, "rms_norm_eps": 1e-6, **more})


def small(config, **more):
    if config in BUILDERS:
        return BUILDERS[config](config, **more)
    return config(**{**SIZES, "intermediate_size": 40, "rms_norm_eps": 1e-5, **more})


def layer_norm(config, **more):
    """Sizes of families with a LayerNorm; those without grouped queries get no key for them."""
    sizes = {**SIZES, "intermediate_size": 40, **more}
    if config is not StableLmConfig:
        del sizes["num_key_value_heads"]
    return config(**sizes)


def gpt2(config, **more):
    sizes = {**SIZES, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, **more}
    renamed = ["hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"]
    return config(**{key: value for key, value in sizes.items() if key not in [*renamed, "num_key_value_heads"]})


BUILDERS = {StableLmConfig: layer_norm, GPTNeoXConfig: layer_norm, GPT2Config: gpt2}

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
# YaRN with every optional key. Its ramp ends between two frequencies.
YARN_OF_ALL_KEYS = {
    **YARN,
    "rope_theta": 500.0,
    "beta_fast": 8.0,
    "beta_slow": 0.5,
    "mscale": 0.8,
    "mscale_all_dim": 0.3,
    "truncate": False,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.5}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.5, 2.0],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
}

GRANITE = {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4, "logits_scaling": 2.5}

BY_LAYER_TYPE = {
    "full_attention": YARN,
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}

# Soft caps near the scores and logits of a tiny random model, so that they change both.
GEMMA2 = {
    "head_dim": 8,
    "sliding_window": 5,
    "attn_logit_softcapping": 1.5,
    "final_logit_softcapping": 4.0,
    "query_pre_attn_scalar": 12,
}
GEMMA3 = {
    "head_dim": 12,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 20,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}

# Families that differ from Llama in their row of the family table: name, configuration class, seed, keys of
# the language model, and keys of the reward model or None. Language models are trained only if they are in
# TRAINED.
FAMILIES = [
    ("mistral", MistralConfig, 60, {"head_dim": 12, "sliding_window": None}, {"sliding_window": 128, "rope_parameters": YARN}),
    ("ministral", MinistralConfig, 70, {"head_dim": 8, "sliding_window": 128, "rope_parameters": DYNAMIC, "tie_word_embeddings": True}, None),
    ("seed_oss", SeedOssConfig, 80, {"head_dim": 12}, {"head_dim": 8, "attention_out_bias": True}),
    (
        "smollm3",
        SmolLM3Config,
        90,
        {"no_rope_layers": [0, 1], "rope_parameters": YARN_OF_ALL_KEYS, "tie_word_embeddings": True},
        {"no_rope_layer_interval": 2},
    ),
    (
        "phi3",
        Phi3Config,
        100,
        {"original_max_position_embeddings": 64, "rope_parameters": LONGROPE, "tie_word_embeddings": False},
        {"original_max_position_embeddings": 128},
    ),
    ("qwen3", Qwen3Config, 110, {"head_dim": 16, "tie_word_embeddings": True}, {"head_dim": 8, "attention_bias": True}),
    ("llama_bias", LlamaConfig, 120, {"attention_bias": True, "mlp_bias": True}, None),
    ("granite", GraniteConfig, 130, {**GRANITE, "tie_word_embeddings": True}, {**GRANITE, "attention_bias": True, "mlp_bias": True}),
    ("stablelm", StableLmConfig, 140, {"use_qkv_bias": True, "partial_rotary_factor": 0.5}, {"use_parallel_residual": True}),
    ("gpt_neox", GPTNeoXConfig, 150, {}, {"use_parallel_residual": False, "rotary_pct": 0.5, "hidden_act": "gelu_fast"}),
    ("gpt2", GPT2Config, 160, {"tie_word_embeddings": True}, {"scale_attn_by_inverse_layer_idx": True, "n_inner": 40}),
    # Sliding windows shorter than the sequences.
    ("mistral-window", MistralConfig, 120, {"head_dim": 8, "sliding_window": 7}, {"sliding_window": 5}),
    (
        "qwen2-window",
        Qwen2Config,
        130,
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "tie_word_embeddings": True},
        {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    ("phi3-window", Phi3Config, 140, {"sliding_window": 9, "tie_word_embeddings": False}, None),
    (
        "qwen3-window",
        Qwen3Config,
        150,
        {"head_dim": 8, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0},
        None,
    ),
    ("olmo2", Olmo2Config, 160, {"tie_word_embeddings": True}, {"attention_bias": True, "num_key_value_heads": 4}),
    (
        "olmo3",
        Olmo3Config,
        170,
        {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"], "rope_parameters": BY_LAYER_TYPE},
        {"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"], "rope_parameters": BY_LAYER_TYPE},
    ),
    ("gemma", GemmaConfig, 205, {"head_dim": 12, "tie_word_embeddings": True}, {"head_dim": 8, "attention_bias": True}),
    ("gemma2", Gemma2Config, 210, {**GEMMA2, "tie_word_embeddings": True}, GEMMA2),
    ("gemma2-untied", Gemma2Config, 220, {**GEMMA2, "head_dim": 12, "attn_logit_softcapping": None}, None),
    ("gemma3", Gemma3TextConfig, 230, {**GEMMA3, "tie_word_embeddings": True}, {**GEMMA3, "attention_bias": True}),
    ("gemma3-untied", Gemma3TextConfig, 240, {**GEMMA3, "final_logit_softcapping": 6.0}, None),
]
# Families with a reference, a DPO loss and AdamW steps.
TRAINED = ["gemma2", "gemma3"]
