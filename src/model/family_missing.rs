//! Well-known families that are not supported, and the features that they need, for an error that names them.

/// `model_type`s of well-known families, and the unsupported features that they need.
const MISSING: &[(&[&str], &str)] = &[
    (
        &["gemma3"],
        "images next to text; its language model without images has the type gemma3_text, and docs/checkpoints.md has \
         the lines of Python that save it",
    ),
    (
        &["gemma3n", "gemma3n_text"],
        "per-layer embeddings, several residual streams, and keys and values shared between layers",
    ),
    (
        &["gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"],
        "per-layer embeddings, heads of two widths, and keys and values shared between layers",
    ),
    (&["vaultgemma"], "a row like that of Gemma 2, without the norms after attention and MLP"),
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
    (&["phi"], "a bias on the vocabulary projection"),
    (&["cohere", "cohere2"], "LayerNorm without a bias, interleaved RoPE and scaled logits"),
    (&["olmo"], "LayerNorm without weights"),
    (&["glm", "glm4"], "interleaved RoPE on a part of each head"),
    (&["ernie4_5", "helium"], "interleaved RoPE"),
    (&["persimmon", "nemotron"], "an MLP without a gate with a squared ReLU"),
    (&["starcoder2"], "different names of tensors and keys"),
    (
        &["gpt_neo", "gptj", "gpt_bigcode", "opt", "bloom", "falcon", "mpt", "codegen", "biogpt", "xglm"],
        "different positions, windows, activations or biases",
    ),
    (&["smollm2"], "the model type llama, which SmolLM2 has"),
    (&["exaone4"], "RoPE in the layers with a sliding window only"),
    (&["hunyuan_v1_dense"], "query and key norms after RoPE"),
    (&["arcee", "apertus"], "a different activation in an MLP without a gate"),
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

/// Unsupported features that a model of this type needs.
pub(super) fn missing(model_type: &str) -> Option<&'static str> {
    MISSING.iter().find(|(types, _)| types.contains(&model_type)).map(|(_, needs)| *needs)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::family::{FAMILIES, Family};
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
