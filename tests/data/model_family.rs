//! Configurations of every family: what its row in the table accepts, refuses, assumes and writes back.

use std::path::Path;

use common::fixtures::keys_of_family;
use common::golden;
use mapl::backend::contract::Gelu;
use mapl::backend::cpu::Cpu;
use mapl::model::config::{Head, ModelConfig, StoredDtype};
use mapl::model::decoder::Model;
use mapl::model::family::{FAMILIES, Family};
use mapl::model::rope::RopeScaling;
use mapl::model::tensors::Role;
use serde_json::{Map, Value, json};

use crate::model_config::changed;

/// A small configuration of a family with `changes` merged in; a change to the string "<absent>"
/// removes the key.
fn keys(family: &str, changes: Value) -> Map<String, Value> {
    let class = Family::find(family).unwrap().class_of(Head::LanguageModel);
    let base = json!({
        "architectures": [class], "model_type": family, "vocab_size": 160, "hidden_size": 32,
        "intermediate_size": 56, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "max_position_embeddings": 128, "sliding_window": null,
    });
    changed(&keys_of_family(family, base), &changes)
}

fn parse(family: &str, changes: Value) -> mapl::Result<ModelConfig> {
    ModelConfig::from_json(keys(family, changes), Path::new("m/config.json"))
}

#[track_caller]
fn accepted(family: &str, changes: Value) -> ModelConfig {
    parse(family, changes.clone()).unwrap_or_else(|e| panic!("{family} {changes}: {e}"))
}

#[track_caller]
fn refused(family: &str, changes: Value, parts: &[&str]) {
    let error = parse(family, changes.clone()).expect_err(&format!("{family} {changes} was accepted"));
    let text = error.to_string();
    assert_eq!(error.exit_code(), 6, "{text}");
    for part in parts {
        assert!(text.contains(part), "{family}: {text:?} lacks {part:?}");
    }
}

/// Every family has as many parameters as elements of tensors, and is written so that it is read again.
#[test]
fn every_family_is_written_as_it_was_read() {
    for family in FAMILIES {
        let config = accepted(family.model_type, json!({}));
        assert_eq!(config.architecture(), family.class_of(Head::LanguageModel));
        let elements: usize = config.tensors().iter().map(|t| t.elements()).sum();
        assert_eq!(Some(elements), config.parameters(), "{}", family.model_type);
        assert!(config.tensors().is_sorted_by_key(|t| !t.role.decays()), "decayed tensors must form a prefix");
        let saved = config.to_json(StoredDtype::F32);
        let again = ModelConfig::from_json(saved.clone(), Path::new("config.json")).unwrap();
        assert_eq!((again.tensors(), &again.rope), (config.tensors(), &config.rope));
        assert_eq!(again.layers_without_rope, config.layers_without_rope);
        assert_eq!(again.to_json(StoredDtype::F32), saved);
    }
    for name in golden::models() {
        let config = ModelConfig::read(&golden::model_folder(name)).unwrap();
        let again = ModelConfig::from_json(config.to_json(StoredDtype::F32), Path::new("config.json")).unwrap();
        assert_eq!((again.tensors(), again.rope), (config.tensors(), config.rope), "{name}");
        assert_eq!(again.declared_positions, config.declared_positions, "{name}");
    }
}

#[test]
fn missing_keys_have_the_defaults_of_transformers() {
    let config = |family: &str, key: &str| accepted(family, json!({key: "<absent>"}));
    for (family, positions) in [
        ("llama", 2048),
        ("qwen2", 32_768),
        ("qwen3", 32_768),
        ("ministral", 131_072),
        ("seed_oss", 524_288),
        ("smollm3", 32_768),
        ("phi3", 4096),
        ("granite", 2048),
        ("stablelm", 4096),
        ("gpt_neox", 2048),
        ("gpt2", 1024),
    ] {
        let key = if family == "gpt2" { "n_positions" } else { "max_position_embeddings" };
        assert_eq!(config(family, key).max_positions, positions, "{family}");
    }
    for (family, width) in [("llama", 8), ("qwen2", 8), ("qwen3", 128), ("mistral", 8), ("seed_oss", 128), ("phi3", 8)]
    {
        assert_eq!(config(family, "head_dim").head_dim, width, "{family}");
    }
    // null is not missing: transformers then divides.
    assert_eq!(accepted("seed_oss", json!({"head_dim": null})).head_dim, 8);
    for family in FAMILIES {
        let tied = ["smollm3", "gpt2"].contains(&family.model_type);
        let eps = if ["phi3", "stablelm", "gpt_neox", "gpt2"].contains(&family.model_type) { 1e-5 } else { 1e-6 };
        let theta = if family.model_type == "smollm3" { 2e6 } else { 1e4 };
        let config = accepted(family.model_type, json!({}));
        assert_eq!((config.tied, config.rms_norm_eps, config.rope.theta), (tied, eps, theta), "{}", family.model_type);
        let heads = parse(family.model_type, json!({"num_key_value_heads": "<absent>"}));
        match family.model_type {
            "llama" | "phi3" | "granite" | "gpt_neox" | "gpt2" => assert_eq!(heads.unwrap().kv_heads, 4),
            _ => assert!(heads.unwrap_err().to_string().contains("\"num_key_value_heads\" is missing")),
        }
    }
}

#[test]
fn biases_follow_their_keys() {
    let biases = |family: &str, changes: Value| {
        let config = accepted(family, changes);
        let count = |role: Role| config.tensors().iter().filter(|t| t.role == role).count();
        assert_eq!((count(Role::QueryBias), count(Role::ValueBias)), (count(Role::KeyBias), count(Role::KeyBias)));
        assert_eq!(Some(config.tensors().iter().map(|t| t.elements()).sum()), config.parameters());
        (count(Role::QueryBias) > 0, count(Role::OutputBias) > 0)
    };
    for family in ["llama", "qwen3", "smollm3", "granite"] {
        assert_eq!(biases(family, json!({})), (false, false), "{family}");
        assert_eq!(biases(family, json!({"attention_bias": true})), (true, true), "{family}");
    }
    assert_eq!(biases("qwen2", json!({"attention_bias": true})), (true, false));
    for family in ["mistral", "ministral", "phi3"] {
        assert_eq!(biases(family, json!({"attention_bias": true})), (false, false), "{family}");
    }
    assert_eq!(biases("seed_oss", json!({})), (true, false));
    assert_eq!(biases("seed_oss", json!({"attention_bias": false, "attention_out_bias": true})), (false, true));
    for family in ["llama", "seed_oss", "smollm3", "granite"] {
        let config = accepted(family, json!({"mlp_bias": true}));
        let names: Vec<String> = config.tensors().into_iter().map(|t| t.name).collect();
        for module in ["gate_proj", "up_proj", "down_proj"] {
            assert!(names.contains(&format!("model.layers.3.mlp.{module}.bias")), "{family}: {names:?}");
        }
        assert_eq!(config.tensors().iter().map(|t| t.elements()).sum::<usize>(), config.parameters().unwrap());
    }
    refused("mistral", json!({"mlp_bias": true}), &["mlp_bias", "Mistral models have no biases on the MLP"]);
    assert_eq!(biases("stablelm", json!({"use_qkv_bias": true, "attention_bias": true})), (true, false));
    let neox = |changes: Value| {
        let config = accepted("gpt_neox", changes);
        let count = |role: Role| config.tensors().iter().filter(|t| t.role == role).count();
        (count(Role::QueryBias), count(Role::OutputBias), count(Role::DownBias))
    };
    assert_eq!((neox(json!({})), neox(json!({"attention_bias": false}))), ((4, 4, 4), (0, 0, 4)));
}

#[test]
fn a_window_is_accepted_if_no_sequence_is_longer() {
    for family in ["mistral", "ministral", "phi3"] {
        for window in [json!(null), json!(128), json!(4096)] {
            accepted(family, json!({"sliding_window": window}));
        }
        let parts = ["\"sliding_window\" is 127", "128 tokens", "\"max_position_embeddings\" to 127"];
        refused(family, json!({"sliding_window": 127}), &parts);
        refused(family, json!({"sliding_window": 0}), &["sliding_window", "from 1 to"]);
        accepted(family, json!({"sliding_window": 127, "max_position_embeddings": 127}));
    }
    // Without the key, transformers assumes a window of 4096 in Mistral, and none in Phi-3.
    for family in ["mistral", "ministral"] {
        accepted(family, json!({"sliding_window": "<absent>"}));
        let long = json!({"sliding_window": "<absent>", "max_position_embeddings": 4097});
        refused(family, long, &["\"sliding_window\" is 4096", "\"max_position_embeddings\" to 4096"]);
    }
    accepted("phi3", json!({"sliding_window": "<absent>", "max_position_embeddings": 4097}));
    // Ministral names its layers; Mistral's transformers class does not read the key.
    let full = json!({"sliding_window": 16, "layer_types": ["full_attention", "full_attention", "full_attention",
        "full_attention"]});
    accepted("ministral", full.clone());
    let sliding = json!({"sliding_window": "<absent>", "layer_types": ["full_attention", "sliding_attention",
        "full_attention", "full_attention"]});
    accepted("ministral", sliding);
    refused("mistral", full, &["\"sliding_window\" is 16", "all layers"]);
    for family in ["qwen2", "qwen3"] {
        accepted(family, json!({"sliding_window": 16, "max_window_layers": 0}));
        let used = json!({"sliding_window": 16, "max_window_layers": 3, "use_sliding_window": true});
        refused(family, used, &["layers from 3 on", "\"sliding_window\" is 16"]);
    }
    let used = json!({"sliding_window": 16, "use_sliding_window": true});
    refused("smollm3", used, &["layers without RoPE", "\"sliding_window\" is 16"]);
    accepted("smollm3", json!({"sliding_window": 16, "use_sliding_window": true, "no_rope_layers": [1, 1, 1, 1]}));
    // What follows from the length is named, and with it the scaling stays the same.
    let factors = json!([1.0, 1.1, 1.2, 1.3]);
    let long = |more: Value, window: Value, positions: usize| {
        let mut scaling = json!({"type": "longrope", "short_factor": factors, "long_factor": factors});
        scaling.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"rope_scaling": scaling, "original_max_position_embeddings": 64, "sliding_window": window,
               "max_position_embeddings": positions})
    };
    let kept = accepted("phi3", long(json!({}), json!(null), 128)).rope.attention_factor();
    let advice = format!("Write \"attention_factor\": {kept} into the RoPE scaling");
    refused("phi3", long(json!({}), json!(100), 128), &[&advice]);
    let followed = accepted("phi3", long(json!({"attention_factor": kept}), json!(100), 100));
    assert_eq!(followed.rope.attention_factor(), kept);
    // A key without effect may hold anything.
    for family in ["llama", "qwen2", "smollm3"] {
        accepted(family, json!({"sliding_window": 16}));
        accepted(family, json!({"sliding_window": 0, "use_sliding_window": false}));
    }
}

#[test]
fn layers_without_rope_are_listed_or_come_at_an_interval() {
    let layers = |changes: Value| accepted("smollm3", changes).layers_without_rope;
    assert_eq!(layers(json!({})), [3]);
    assert_eq!(layers(json!({"no_rope_layer_interval": 2})), [1, 3]);
    // More entries than layers are allowed, as in transformers.
    assert_eq!(layers(json!({"no_rope_layers": [0, 1, 1, 0, 0], "no_rope_layer_interval": 2})), [0, 3]);
    assert!(accepted("llama", json!({"no_rope_layers": [0, 0, 0, 0]})).layers_without_rope.is_empty());
    refused("smollm3", json!({"no_rope_layers": [1, 1, 1]}), &["no_rope_layers", "[1,1,1]", "4 layers"]);
    refused("smollm3", json!({"no_rope_layers": [1, 1, 1, 2]}), &["no_rope_layers", "1 (layer with RoPE)"]);
    refused("smollm3", json!({"no_rope_layers": true}), &["no_rope_layers", "true"]);
    refused("smollm3", json!({"no_rope_layer_interval": 0}), &["no_rope_layer_interval", "from 1"]);
}

const FACTORS: [f64; 4] = [1.0, 1.5, 2.0, 4.0];

#[test]
fn longrope_accepts_sequences_within_the_original_length() {
    let scaling = json!({"rope_type": "longrope", "short_factor": FACTORS, "long_factor": [2.0, 4.0, 8.0, 16.0]});
    let file = json!({"rope_scaling": scaling, "original_max_position_embeddings": 64});
    let config = accepted("phi3", file.clone());
    assert_eq!((config.max_positions, config.declared_positions), (64, 128));
    assert!(config.notes.iter().any(|note| note.contains("more than 64 tokens")), "{:?}", config.notes);
    assert_eq!(config.longest_text(), "original_max_position_embeddings 64");
    // sqrt(1 + ln(128 / 64) / ln 64)
    assert!((config.rope.attention_factor() - (7.0f64 / 6.0).sqrt()).abs() < 1e-15);
    let mut model = Model::zeros(&Cpu::new(), config.clone(), 8).unwrap();
    model.reserve_positions(&Cpu::new(), 64).unwrap();
    let error = model.reserve_positions(&Cpu::new(), 65).unwrap_err().to_string();
    assert!(error.contains("65 tokens is longer than the model's original_max_position_embeddings 64"), "{error}");
    // Phi-3's older names, and the three keys that transformers 4 reads.
    for name in ["su", "yarn", "longrope"] {
        let mut old = file.clone();
        old["rope_scaling"] = json!({"type": name, "short_factor": FACTORS, "long_factor": [2.0, 4.0, 8.0, 16.0]});
        assert_eq!(accepted("phi3", old).rope, config.rope, "{name}");
    }
    let saved = config.to_json(StoredDtype::F32);
    let names = |key: &str| saved[key].as_object().unwrap().keys().cloned().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(names("rope_scaling").into_iter().collect::<Vec<_>>(), ["long_factor", "short_factor", "type"]);
    assert_eq!(saved["original_max_position_embeddings"], json!(64));
    assert_eq!(saved["max_position_embeddings"], json!(128));
    assert_eq!(saved["rope_parameters"]["original_max_position_embeddings"], json!(64));
    // Equal lists do not depend on the length.
    let equal = json!({"rope_type": "longrope", "short_factor": FACTORS, "long_factor": FACTORS,
        "original_max_position_embeddings": 64, "attention_factor": 1.25});
    let config = accepted("llama", json!({"rope_scaling": equal}));
    assert_eq!((config.max_positions, config.rope.attention_factor()), (128, 1.25));
    assert_eq!(config.to_json(StoredDtype::F32)["rope_scaling"], equal);
    // Without the key, Phi-3's original length is 4096.
    let config = accepted("phi3", json!({"rope_scaling": scaling, "max_position_embeddings": 131_072}));
    assert_eq!((config.max_positions, config.declared_positions), (4096, 131_072));
}

#[test]
fn rope_scalings_are_refused_by_key() {
    let scaling = |value: Value| json!({"rope_scaling": value});
    let long =
        |short: Value, long: Value| scaling(json!({"type": "longrope", "short_factor": short, "long_factor": long}));
    refused("phi3", long(json!([1, 1, 1]), json!(FACTORS)), &["rope_scaling.short_factor", "[1,1,1]", "4 numbers"]);
    refused("phi3", long(json!(FACTORS), json!(null)), &["rope_scaling.long_factor", "missing", "4 numbers"]);
    refused("phi3", long(json!(FACTORS), json!([1, 1, 1, 0])), &["rope_scaling.long_factor", "from 1e-6"]);
    let one = json!({"rope_scaling": {"type": "longrope", "short_factor": FACTORS, "long_factor": FACTORS},
        "original_max_position_embeddings": 1});
    refused("phi3", one, &["original_max_position_embeddings", "is 1", "at least 2"]);
    for kind in ["linear", "dynamic", "llama3"] {
        refused("phi3", scaling(json!({"type": kind, "factor": 2})), &[kind, "\"default\" and \"longrope\""]);
    }
    refused("phi3", json!({"partial_rotary_factor": 0.75}), &["\"partial_rotary_factor\" is 0.75", "only 1.0"]);
    let yarn = |more: Value| {
        let mut value = json!({"type": "yarn", "factor": 4, "original_max_position_embeddings": 32});
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        scaling(value)
    };
    refused("qwen3", yarn(json!({"factor": null})), &["rope_scaling.factor", "missing"]);
    refused("qwen3", yarn(json!({"factor": 0.5})), &["rope_scaling.factor", "0.5", "from 1"]);
    refused("qwen3", yarn(json!({"beta_fast": 0.5})), &["rope_scaling.beta_fast", "0.5", "must not be smaller"]);
    for key in ["attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"] {
        refused("qwen3", yarn(json!({key: -1})), &[&format!("rope_scaling.{key}"), "-1", "from 1e-6"]);
    }
    refused("qwen3", yarn(json!({"truncate": 1})), &["rope_scaling.truncate", "true or false"]);
    let mut flat = yarn(json!({}));
    flat["rope_theta"] = json!(1.0);
    refused("qwen3", flat, &["rope_theta", "yarn", "above 1"]);
    refused("qwen3", scaling(json!({"type": "dynamic"})), &["rope_scaling.factor", "missing"]);
}

#[test]
fn yarn_keeps_every_key_and_dynamic_has_the_default_frequencies() {
    let all = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.5,
        "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.5, "mscale_all_dim": 0.25, "truncate": false});
    let config = accepted("qwen3", json!({"rope_scaling": all}));
    assert_eq!(config.to_json(StoredDtype::F32)["rope_scaling"], all);
    assert_eq!(config.rope.attention_factor(), 1.5);
    let few = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32});
    let config = accepted("qwen3", json!({"rope_scaling": few}));
    assert!((config.rope.attention_factor() - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-15);
    // High frequencies are kept, low ones divided.
    let (plain, scaled) = (accepted("qwen3", json!({})).inv_freq(), config.inv_freq());
    assert_eq!((scaled[0], scaled[3]), (plain[0], plain[3] / 4.0));
    let dynamic = accepted("qwen3", json!({"rope_scaling": {"rope_type": "dynamic", "factor": 3.0}}));
    assert_eq!(dynamic.rope.scaling, RopeScaling::Dynamic { factor: 3.0 });
    assert_eq!((dynamic.inv_freq(), dynamic.rope.attention_factor()), (plain, 1.0));
}

#[test]
fn a_part_of_each_head_rotates_in_families_that_say_so() {
    let rotated = |family: &str, changes: Value| accepted(family, changes).rotated;
    let both = |family: &str, key: &str| {
        assert_eq!(rotated(family, json!({})), 4, "half of 8, as the keys of the test say");
        assert_eq!(rotated(family, json!({key: "<absent>"})), 2, "a quarter by default");
        let five = json!({"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0});
        let config = accepted(family, json!({key: "<absent>", "rope_parameters": five}));
        assert_eq!((config.rotated, config.rope.theta), (8, 500.0));
        refused(family, json!({"rope_parameters": five}), &[key, "is 0.5", "another place", "1; they must agree"]);
        refused(family, json!({key: 0.4}), &[key, "0.4", "3 of the 8 elements", "even"]);
        refused(family, json!({key: 1.5}), &[key, "12 of the 8"]);
        let saved = accepted(family, json!({})).to_json(StoredDtype::F32);
        assert_eq!((&saved[key], &saved["rope_parameters"]["partial_rotary_factor"]), (&json!(0.5), &json!(0.5)));
    };
    both("stablelm", "partial_rotary_factor");
    both("gpt_neox", "rotary_pct");
    let saved = accepted("gpt_neox", json!({"rotary_emb_base": 300.0})).to_json(StoredDtype::F32);
    assert_eq!((&saved["rotary_emb_base"], saved.get("rope_theta")), (&json!(300.0), None));
}

#[test]
fn multipliers_activations_and_parallel_blocks_follow_their_keys() {
    let factors = json!({"embedding_multiplier": 12, "attention_multiplier": 0.5, "residual_multiplier": 0.22,
        "logits_scaling": 8.0});
    let traits = accepted("granite", factors.clone()).traits;
    assert_eq!((traits.embedding_multiplier, traits.residual_multiplier, traits.logits_scaling), (12.0, 0.22, 8.0));
    assert_eq!((traits.attention_scale, accepted("granite", json!({})).traits.attention_scale), (Some(0.5), Some(1.0)));
    assert_eq!(accepted("llama", factors).traits, accepted("llama", json!({})).traits);
    for key in ["embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"] {
        refused("granite", json!({key: 0}), &[key, "0", "from 1e-6"]);
    }
    let gelu = |family: &str, key: &str, act: &str| accepted(family, json!({key: act})).traits.gelu;
    for (act, form) in [("gelu", Gelu::Erf), ("gelu_new", Gelu::Tanh), ("gelu_pytorch_tanh", Gelu::Tanh)] {
        assert_eq!(gelu("gpt_neox", "hidden_act", act), Some(form));
        assert_eq!(gelu("gpt2", "activation_function", act), Some(form));
        let saved = accepted("gpt2", json!({"activation_function": act})).to_json(StoredDtype::F32);
        assert_eq!((&saved["activation_function"], saved.get("hidden_act")), (&json!(act), None));
    }
    assert_eq!(accepted("gpt2", json!({"activation_function": "<absent>"})).traits.gelu, Some(Gelu::Tanh));
    refused("gpt_neox", json!({"hidden_act": "relu"}), &["\"hidden_act\" is \"relu\"", "gelu_fast"]);
    refused("gpt2", json!({"activation_function": "silu"}), &["\"activation_function\" is \"silu\""]);
    refused("granite", json!({"hidden_act": "gelu"}), &["\"hidden_act\" is \"gelu\"", "silu"]);
    let parallel = |family: &str, changes: Value| accepted(family, changes).traits.parallel;
    assert!(parallel("gpt_neox", json!({})) && !parallel("stablelm", json!({})));
    assert!(!parallel("gpt_neox", json!({"use_parallel_residual": false})));
    let shared = accepted("stablelm", json!({"use_parallel_residual": true}));
    assert!(shared.tensors().iter().all(|t| t.role != Role::PostAttentionNorm));
    assert_eq!(shared.tensors().iter().map(|t| t.elements()).sum::<usize>(), shared.parameters().unwrap());
    refused("stablelm", json!({"qk_layernorm": true}), &["\"qk_layernorm\" is true", "not supported"]);
    refused("gpt2", json!({"add_cross_attention": true}), &["\"add_cross_attention\" is true", "encoder"]);
}

#[test]
fn gpt2_has_keys_of_its_own() {
    let config = accepted("gpt2", json!({"n_inner": null}));
    assert_eq!((config.hidden, config.layers, config.heads, config.intermediate), (32, 4, 4, 128));
    // transformers takes the general names too.
    let general = json!({"n_embd": "<absent>", "hidden_size": 32, "n_positions": "<absent>"});
    let config = accepted("gpt2", general);
    assert_eq!((config.hidden, config.max_positions), (32, 1024));
    let saved = config.to_json(StoredDtype::F32);
    assert_eq!((saved["n_embd"].clone(), saved.get("hidden_size"), saved.get("head_dim")), (json!(32), None, None));
    refused("gpt2", json!({"n_embd": "<absent>"}), &["\"n_embd\" is missing"]);
    refused("gpt2", json!({"n_head": 5}), &["\"n_embd\" is 32 and \"n_head\" is 5"]);
    refused("gpt_neox", json!({"head_dim": 16}), &["\"head_dim\" is 16", "here 8", "delete the key"]);
}
