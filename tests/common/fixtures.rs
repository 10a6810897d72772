//! Tiny models and groups for several test files.

use std::path::Path;
use std::sync::Arc;

use mapl::backend::{Backend, View, ViewMut};
use mapl::data::group::{Kind, PreferenceGroup, Prompt, Response};
use mapl::data::tokenized::{Sequence, SequenceComparison, SequenceTerm, TokenizedGroup};
use mapl::model::config::{Head, ModelConfig};
use mapl::model::decoder::Model;
use mapl::model::family::Family;
use mapl::model::store;
use mapl::rng::Rng;
use serde_json::{Value, json};

/// Renames the Llama keys of a `config.json` to those of a family, and removes keys that the family lacks.
pub fn keys_of_family(family: &str, config: Value) -> Value {
    let mut map = config.as_object().unwrap().clone();
    let mut rename = |from: &str, to: &str| map.remove(from).map(|value| map.insert(to.into(), value));
    match family {
        "stablelm" | "gpt_neox" => {
            rename("rms_norm_eps", "layer_norm_eps");
            rename("rope_theta", if family == "gpt_neox" { "rotary_emb_base" } else { "rope_theta" });
            map.remove("head_dim");
            map.insert(if family == "gpt_neox" { "rotary_pct" } else { "partial_rotary_factor" }.into(), json!(0.5));
        }
        "gpt2" => {
            rename("rms_norm_eps", "layer_norm_epsilon");
            rename("hidden_act", "activation_function");
            rename("hidden_size", "n_embd");
            rename("intermediate_size", "n_inner");
            rename("num_hidden_layers", "n_layer");
            rename("num_attention_heads", "n_head");
            rename("max_position_embeddings", "n_positions");
            for key in ["rope_theta", "head_dim"] {
                map.remove(key);
            }
        }
        _ => {}
    }
    if family.starts_with("gemma") {
        let key = if family == "gemma" { "hidden_act" } else { "hidden_activation" };
        map.remove("hidden_act");
        map.insert(key.into(), json!("gelu_pytorch_tanh"));
    }
    for (key, act) in [("hidden_act", "gelu"), ("activation_function", "gelu_new")] {
        if ["gpt_neox", "gpt2"].contains(&family) {
            map.remove("num_key_value_heads");
            if let Some(value) = map.get_mut(key) {
                *value = json!(act);
            }
        }
    }
    Value::Object(map)
}

/// Returns the configuration of a tiny model of the given family and head: 2 layers, hidden size
/// 16, 4 query heads and 2 key-value heads of width 6 (not hidden / heads).
pub fn tiny_config(family: &str, reward: bool) -> ModelConfig {
    let head = if reward { Head::Reward } else { Head::LanguageModel };
    let mut value = json!({
        "architectures": [Family::find(family).unwrap().class_of(head)], "model_type": family, "vocab_size": 23, "hidden_size": 16,
        "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 6, "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "initializer_range": 0.3, "tie_word_embeddings": family == "qwen2", "rope_theta": 100.0,
        "eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 0,
    });
    let more = match family {
        "seed_oss" => json!({"attention_out_bias": true}),
        "smollm3" => json!({"no_rope_layers": [1, 0]}),
        "mistral" => json!({"sliding_window": null}),
        "ministral" => json!({"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}),
        "olmo3" => json!({"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}),
        "granite" => json!({"attention_bias": true, "mlp_bias": true, "embedding_multiplier": 3.0,
            "attention_multiplier": 0.3, "residual_multiplier": 0.5, "logits_scaling": 2.0}),
        "stablelm" => json!({"use_qkv_bias": true, "use_parallel_residual": reward}),
        "gpt2" => json!({"scale_attn_by_inverse_layer_idx": true}),
        "gemma2" => json!({"sliding_window": 3, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.5,
            "query_pre_attn_scalar": 9, "tie_word_embeddings": true}),
        "gemma3_text" => json!({"sliding_window": 3, "sliding_window_pattern": 2, "query_pre_attn_scalar": 5,
            "rope_local_base_freq": 20.0}),
        _ => json!({}),
    };
    value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    if reward {
        value["id2label"] = json!({"0": "LABEL_0"});
        value["label2id"] = json!({"LABEL_0": 0});
    }
    let map = keys_of_family(family, value).as_object().unwrap().clone();
    ModelConfig::from_json(map, Path::new("config.json")).unwrap()
}

/// Returns a model with random parameters, biases and norms included.
pub fn random_model<B: Backend>(backend: &B, config: &ModelConfig, seed: u64) -> Model<B> {
    let mut model = store::random(backend, config.clone(), seed).unwrap();
    let mut rng = Rng::keyed(seed, &["perturb"]);
    let slots: Vec<_> = model.layout.slots.iter().map(|s| (s.range(), s.spec.shape.len())).collect();
    for (range, rank) in slots {
        if rank == 1 {
            let mut values = vec![0.0; range.len()];
            backend.read_act(View::new(&model.weights, range.start, range.len()), &mut values).unwrap();
            for v in &mut values {
                *v = f64::from((*v + 0.2 * rng.normal()) as f32);
            }
            backend.write_act(ViewMut::new(&mut model.weights, range.start, range.len()), &values).unwrap();
        }
    }
    model
}

/// (prompt, response, sign) terms of a comparison; see [`group`].
pub type Terms<'a> = &'a [(usize, usize, i8)];

/// Builds a tokenised group from prompts, responses and comparisons of signed (prompt, response)
/// pairs.
pub fn group(id: &str, prompts: &[&[u32]], responses: &[&[u32]], comparisons: &[(Kind, Terms<'_>)]) -> TokenizedGroup {
    let mut pairs: Vec<(usize, usize)> =
        comparisons.iter().flat_map(|(_, terms)| terms.iter().map(|t| (t.0, t.1))).collect();
    pairs.sort_unstable();
    pairs.dedup();
    let place = |p, r| pairs.iter().position(|&pair| pair == (p, r)).unwrap();
    let text = || Response::Text(String::new());
    let source = PreferenceGroup::pair(id.into(), Prompt::Text(String::new()), text(), text(), 0.0);
    TokenizedGroup {
        group: Arc::new(source),
        prompt_ids: prompts.iter().map(|p| p.to_vec()).collect(),
        sequences: pairs
            .iter()
            .map(|&(prompt, response)| Sequence { prompt, response, response_ids: responses[response].to_vec() })
            .collect(),
        comparisons: comparisons
            .iter()
            .map(|(kind, terms)| SequenceComparison {
                kind: *kind,
                terms: terms
                    .iter()
                    .map(|&(p, r, sign)| SequenceTerm { sequence: place(p, r), sign, detached: false })
                    .collect(),
                margin: 0.0,
                weight: 1.0,
                detached_clip: None,
            })
            .collect(),
    }
}

/// Returns a full MAPL group (five prompts, two responses, eight sequences), a pair of prompts
/// without a common prefix, and a pair with one-token responses.
pub fn groups() -> Vec<TokenizedGroup> {
    let full = group(
        "full",
        &[&[2, 5, 6, 7], &[2, 5, 6, 7, 8, 9], &[2, 5, 6, 7, 8, 10], &[2, 5, 6, 7, 11, 9, 3], &[2, 5, 6, 7, 11]],
        &[&[12, 13, 14, 1], &[15, 12, 1]],
        &[
            (Kind::Base, &[(0, 0, 1), (0, 1, -1)]),
            (Kind::Intra, &[(1, 0, 1), (2, 0, -1)]),
            (Kind::Intra, &[(3, 1, 1), (4, 1, -1)]),
            (Kind::Inter, &[(1, 0, 1), (0, 1, 1), (1, 1, -1), (0, 0, -1)]),
            (Kind::Inter, &[(3, 1, 1), (0, 0, 1), (3, 0, -1), (0, 1, -1)]),
        ],
    );
    let pair = group(
        "apart",
        &[&[2, 4, 4], &[3, 4]],
        &[&[16, 17, 1], &[18, 1]],
        &[(Kind::Base, &[(0, 0, 1), (0, 1, -1)]), (Kind::Intra, &[(0, 0, 1), (1, 0, -1)])],
    );
    let short = group("short", &[&[2]], &[&[1], &[20]], &[(Kind::Base, &[(0, 1, 1), (0, 0, -1)])]);
    vec![full, pair, short]
}
