//! Configurations of Gemma 1 to 3: keys, defaults, tensor names, and the keys that are written back.

use std::path::Path;

use mapl::backend::contract::Gelu;
use mapl::model::config::{Head, ModelConfig, StoredDtype};
use mapl::model::family::Family;
use mapl::model::rope::RopeScaling;
use mapl::model::softcaps::Softcaps;
use mapl::model::tensors::Role;
use serde_json::{Value, json};

use crate::model_family::{accepted, refused, window};

const FAMILIES: [&str; 3] = ["gemma", "gemma2", "gemma3_text"];

/// Saves a configuration and returns the configuration read from it.
fn again(config: &ModelConfig) -> ModelConfig {
    let saved = config.to_json(StoredDtype::F32);
    let again = ModelConfig::from_json(saved.clone(), Path::new("config.json")).unwrap();
    assert_eq!(again.to_json(StoredDtype::F32), saved);
    again
}

#[test]
fn soft_caps_have_defaults_and_null_removes_them() {
    let caps = |family: &str, changes: Value| {
        let config = accepted(family, changes);
        assert_eq!(again(&config).softcaps, config.softcaps);
        (config.softcaps.attention, config.softcaps.logits)
    };
    assert_eq!(caps("gemma2", json!({})), (Some(50.0), Some(30.0)));
    let none = json!({"attn_logit_softcapping": null, "final_logit_softcapping": null});
    assert_eq!(caps("gemma2", none), (None, None));
    assert_eq!(caps("gemma2", json!({"final_logit_softcapping": 7})), (Some(50.0), Some(7.0)));
    for family in ["gemma", "llama"] {
        assert_eq!(accepted(family, json!({"final_logit_softcapping": 7})).softcaps, Softcaps::default(), "{family}");
    }
    // In transformers, the attention of Gemma 3 ignores `attn_logit_softcapping`.
    let both = accepted("gemma3_text", json!({"attn_logit_softcapping": 50, "final_logit_softcapping": 30}));
    assert_eq!((both.softcaps.attention, both.softcaps.logits), (None, Some(30.0)));
    assert!(both.notes.iter().any(|note| note.contains("attn_logit_softcapping")), "{:?}", both.notes);
    assert_eq!(caps("gemma3_text", json!({})), (None, None));
    for value in [json!(0), json!(-1), json!("no")] {
        refused("gemma2", json!({"attn_logit_softcapping": value}), &["attn_logit_softcapping", "from 1e-3"]);
    }
}

#[test]
fn attention_scores_and_activations_follow_their_keys() {
    let scale = |family: &str, changes: Value| accepted(family, changes).traits.attention_scale;
    assert_eq!(scale("gemma", json!({"query_pre_attn_scalar": 16})), None);
    for family in ["gemma2", "gemma3_text"] {
        assert_eq!(scale(family, json!({})), Some(0.0625), "{family}");
        assert_eq!(scale(family, json!({"query_pre_attn_scalar": 64})), Some(0.125), "{family}");
        refused(family, json!({"query_pre_attn_scalar": 0}), &["query_pre_attn_scalar"]);
        let erf = accepted(family, json!({"hidden_activation": "gelu"}));
        assert_eq!((erf.traits.gelu, again(&erf).traits.gelu), (Some(Gelu::Erf), Some(Gelu::Erf)));
        refused(family, json!({"hidden_activation": "silu"}), &["\"hidden_activation\" is \"silu\"", "gelu"]);
    }
    // In Gemma 1, "gelu" stands for the tanh approximation.
    for act in ["gelu", "gelu_pytorch_tanh", "<absent>"] {
        let config = accepted("gemma", json!({"hidden_act": act}));
        assert_eq!((config.traits.gelu, again(&config).traits.gelu), (Some(Gelu::Tanh), Some(Gelu::Tanh)), "{act}");
    }
    for family in FAMILIES {
        assert_eq!(accepted(family, json!({"head_dim": "<absent>"})).head_dim, 256, "{family}");
        refused(family, json!({"use_bidirectional_attention": true}), &["use_bidirectional_attention", "directions"]);
        assert!(accepted(family, json!({"use_bidirectional_attention": null})).tied);
    }
}

#[test]
fn gemma_2_has_four_norms_a_layer_and_gemma_3_norms_of_heads() {
    for family in FAMILIES {
        let config = accepted(family, json!({}));
        let of = |role: Role| -> Vec<String> {
            let tensors = config.tensors().into_iter().filter(|t| t.role == role && t.layer == Some(1));
            tensors.map(|t| t.name.replace("model.layers.1.", "")).collect()
        };
        let first = family == "gemma";
        let mlp = if first { "post_attention_layernorm.weight" } else { "pre_feedforward_layernorm.weight" };
        assert_eq!(of(Role::InputNorm), ["input_layernorm.weight"]);
        assert_eq!(of(Role::PostAttentionNorm), [mlp]);
        let behind = |name: &str| if first { vec![] } else { vec![format!("{name}.weight")] };
        assert_eq!(of(Role::AttentionOutputNorm), behind("post_attention_layernorm"));
        assert_eq!(of(Role::MlpOutputNorm), behind("post_feedforward_layernorm"));
        assert_eq!(of(Role::QueryNorm).len(), usize::from(family == "gemma3_text"));
        assert_eq!(config.tensors().iter().map(|t| t.elements()).sum::<usize>(), config.parameters().unwrap());
    }
}

#[test]
fn layers_alternate_and_gemma_3_has_rope_by_layer_type() {
    assert_eq!(window("gemma2", json!({"sliding_window": 16})), Some((16, vec![0, 2])));
    assert_eq!(window("gemma3_text", json!({"sliding_window": 16})), Some((16, vec![0, 1, 2, 3])));
    let pattern = json!({"sliding_window": 16, "sliding_window_pattern": 3});
    assert_eq!(window("gemma3_text", pattern.clone()), Some((16, vec![0, 1, 3])));
    refused("gemma3_text", json!({"sliding_window_pattern": 0}), &["sliding_window_pattern", "from 1"]);

    let of = |more: Value| {
        let mut keys = pattern.clone();
        keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        accepted("gemma3_text", keys)
    };
    let linear = json!({"rope_type": "linear", "factor": 8.0});
    let old = of(json!({"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": linear}));
    let full = json!({"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5});
    let new = of(json!({"rope_parameters": {"full_attention": full, "sliding_attention": {"rope_theta": 2e4}}}));
    for config in [&old, &new] {
        assert_eq!((config.rope.theta, &config.rope.scaling), (5e5, &RopeScaling::Linear { factor: 8.0 }));
        let local = config.local_rope.as_ref().unwrap();
        assert_eq!((local.rope.theta, &local.rope.scaling), (2e4, &RopeScaling::Default));
        assert_eq!((local.layers.as_slice(), config.notes.len()), (&[0, 1, 3][..], 0));
        let read = again(config);
        assert_eq!((&read.rope, &read.local_rope), (&config.rope, &config.local_rope));
        assert_eq!(config.to_json(StoredDtype::F32)["rope_local_base_freq"], 2e4);
    }
    let default = of(json!({}));
    assert_eq!((default.rope.theta, default.local_rope.unwrap().rope.theta), (1e6, 1e4));
    let both = json!({"rope_local_base_freq": 1e3, "rope_parameters": {"sliding_attention": {"rope_theta": 2e4}}});
    let mut keys = pattern.clone();
    keys.as_object_mut().unwrap().extend(both.as_object().unwrap().clone());
    refused("gemma3_text", keys, &["rope_local_base_freq", "must agree"]);
}

#[test]
fn classes_have_the_names_of_transformers() {
    let names =
        |family: &str| [Head::LanguageModel, Head::Reward].map(|head| Family::find(family).unwrap().class_of(head));
    assert_eq!(names("gemma"), ["GemmaForCausalLM", "GemmaForSequenceClassification"]);
    assert_eq!(names("gemma2"), ["Gemma2ForCausalLM", "Gemma2ForSequenceClassification"]);
    assert_eq!(names("gemma3_text"), ["Gemma3ForCausalLM", "Gemma3TextForSequenceClassification"]);
    assert_eq!(accepted("gemma3_text", json!({"architectures": ["Gemma3TextModel"]})).head, Head::LanguageModel);
    refused(
        "gemma3_text",
        json!({"architectures": ["Gemma3ForConditionalGeneration"]}),
        &["Gemma3ForConditionalGeneration"],
    );
    refused("gemma", json!({"architectures": ["Gemma2ForCausalLM"]}), &["make them agree"]);
}
