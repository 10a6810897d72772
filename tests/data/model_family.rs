//! Configurations of every family: keys that its table row accepts, rejects, assumes and writes back.

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
pub(crate) fn keys(family: &str, changes: Value) -> Map<String, Value> {
    let class = Family::find(family).unwrap().class_of(Head::LanguageModel);
    let base = json!({
        "architectures": [class], "model_type": family, "vocab_size": 160, "hidden_size": 32,
        "intermediate_size": 56, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "max_position_embeddings": 128, "sliding_window": null,
    });
    // OLMo-3 and Gemma have layers with a window by default, which need its length.
    let windows = ["olmo3", "gemma2", "gemma3_text"].contains(&family);
    let own = if windows { json!({"sliding_window": 4096}) } else { json!({}) };
    let base = Value::Object(changed(&base, &own));
    changed(&keys_of_family(family, base), &changes)
}

pub(crate) fn parse(family: &str, changes: Value) -> mapl::Result<ModelConfig> {
    ModelConfig::from_json(keys(family, changes), Path::new("m/config.json"))
}

#[track_caller]
pub(crate) fn accepted(family: &str, changes: Value) -> ModelConfig {
    parse(family, changes.clone()).unwrap_or_else(|e| panic!("{family} {changes}: {e}"))
}

#[track_caller]
pub(crate) fn refused(family: &str, changes: Value, parts: &[&str]) {
    let error = parse(family, changes.clone()).expect_err(&format!("{family} {changes} was accepted"));
    let text = error.to_string();
    assert_eq!(error.exit_code(), 6, "{text}");
    for part in parts {
        assert!(text.contains(part), "{family}: {text:?} lacks {part:?}");
    }
}

/// The parameter count equals the elements of the tensors, and a written configuration reads back the same.
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
        ("olmo2", 2048),
        ("olmo3", 2048),
        ("gemma", 8192),
        ("gemma2", 8192),
        ("gemma3_text", 131_072),
    ] {
        let key = if family == "gpt2" { "n_positions" } else { "max_position_embeddings" };
        assert_eq!(config(family, key).max_positions, positions, "{family}");
    }
    for (family, width) in
        [("llama", 8), ("qwen2", 8), ("qwen3", 128), ("mistral", 8), ("seed_oss", 128), ("phi3", 8), ("olmo2", 8)]
    {
        assert_eq!(config(family, "head_dim").head_dim, width, "{family}");
    }
    // null differs from a missing key: transformers then divides the hidden size by the number of heads.
    assert_eq!(accepted("seed_oss", json!({"head_dim": null})).head_dim, 8);
    for family in FAMILIES {
        let tied = ["smollm3", "gpt2", "gemma", "gemma2", "gemma3_text"].contains(&family.model_type);
        let wide = ["phi3", "stablelm", "gpt_neox", "gpt2", "olmo2", "olmo3"];
        let eps = if wide.contains(&family.model_type) { 1e-5 } else { 1e-6 };
        let theta = match family.model_type {
            "smollm3" => 2e6,
            "olmo3" => 5e5,
            "gemma3_text" => 1e6,
            _ => 1e4,
        };
        let config = accepted(family.model_type, json!({}));
        assert_eq!((config.tied, config.rms_norm_eps, config.rope.theta), (tied, eps, theta), "{}", family.model_type);
        let heads = parse(family.model_type, json!({"num_key_value_heads": "<absent>"}));
        match family.model_type {
            "llama" | "phi3" | "granite" | "gpt_neox" | "gpt2" | "olmo2" | "olmo3" => {
                assert_eq!(heads.unwrap().kv_heads, 4);
            }
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

/// Returns the length of the window and the layers that have one.
#[track_caller]
pub(crate) fn window(family: &str, changes: Value) -> Option<(usize, Vec<usize>)> {
    let config = accepted(family, changes);
    let window = config.window.as_ref().map(|window| (window.length, window.layers.clone()));
    for i in 0..config.layers {
        assert_eq!(
            config.window(i),
            window.as_ref().filter(|(_, layers)| layers.contains(&i)).map(|(length, _)| *length)
        );
    }
    let again = ModelConfig::from_json(config.to_json(StoredDtype::F32), Path::new("config.json")).unwrap();
    assert_eq!(again.window, config.window);
    window
}

#[test]
fn windows_belong_to_the_layers_that_transformers_gives_them() {
    let types = |layers: [usize; 4]| layers.map(|sliding| ["full_attention", "sliding_attention"][sliding]);
    for family in ["mistral", "ministral", "phi3"] {
        assert_eq!(window(family, json!({"sliding_window": 127})), Some((127, vec![0, 1, 2, 3])), "{family}");
        assert_eq!(window(family, json!({"sliding_window": 1})), Some((1, vec![0, 1, 2, 3])), "{family}");
        // Full attention: no sequence is longer than the window.
        for none in [json!(null), json!(128), json!(4096)] {
            assert_eq!(window(family, json!({"sliding_window": none})), None, "{family}");
        }
        refused(family, json!({"sliding_window": 0}), &["sliding_window", "from 1 to"]);
    }
    // Without the key, transformers assumes a window of 4096 in Mistral, and none in Phi-3.
    let long = json!({"sliding_window": "<absent>", "max_position_embeddings": 4097});
    for family in ["mistral", "ministral"] {
        assert_eq!(window(family, json!({"sliding_window": "<absent>"})), None);
        assert_eq!(window(family, long.clone()), Some((4096, vec![0, 1, 2, 3])));
    }
    assert_eq!(window("phi3", long), None);
    // Ministral reads `layer_types`; the classes of Mistral and Phi-3 do not.
    let named = |length: Value, layers| json!({"sliding_window": length, "layer_types": types(layers)});
    assert_eq!(window("ministral", named(json!(16), [0, 0, 0, 0])), None);
    assert_eq!(window("ministral", named(json!(16), [0, 1, 0, 1])), Some((16, vec![1, 3])));
    assert_eq!(window("ministral", named(json!("<absent>"), [0, 1, 0, 0])), None);
    for family in ["mistral", "phi3"] {
        assert_eq!(window(family, named(json!(16), [0, 0, 0, 0])), Some((16, vec![0, 1, 2, 3])));
    }
    for family in ["qwen2", "qwen3"] {
        let used = |more: Value| {
            let mut keys = json!({"sliding_window": 16, "use_sliding_window": true});
            keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            keys
        };
        assert_eq!(window(family, json!({"sliding_window": 16, "max_window_layers": 0})), None);
        assert_eq!(window(family, used(json!({"max_window_layers": 3}))), Some((16, vec![3])));
        assert_eq!(window(family, used(json!({"max_window_layers": 4}))), None);
        assert_eq!(window(family, used(json!({}))), None);
        assert_eq!(window(family, used(json!({"sliding_window": null, "max_window_layers": 0}))), None);
        // `layer_types` takes precedence over `max_window_layers`.
        let listed = json!({"layer_types": types([1, 0, 1, 0]), "max_window_layers": 3});
        assert_eq!(window(family, used(listed)), Some((16, vec![0, 2])));
        let unused = json!({"layer_types": types([1, 0, 1, 0]), "sliding_window": 16});
        refused(family, unused, &["layer_types", "\"use_sliding_window\" is not true"]);
    }
    let used = json!({"sliding_window": 16, "use_sliding_window": true});
    assert_eq!(window("smollm3", used), Some((16, vec![3])));
    let used = json!({"sliding_window": 16, "use_sliding_window": true, "no_rope_layers": [1, 1, 1, 1]});
    assert_eq!(window("smollm3", used), None);
    assert_eq!(window("smollm3", named(json!(16), [1, 0, 0, 0])), Some((16, vec![0])));
    for family in ["llama", "smollm3", "ministral"] {
        refused(family, named(json!(null), [1, 0, 0, 0]), &["layer_types", "\"sliding_window\" is missing"]);
    }
    refused("llama", named(json!(16), [1, 0, 0, 0]), &["layer_types", "Llama models have no windows"]);
    // A key that has no effect may hold anything.
    for family in ["llama", "qwen2", "smollm3"] {
        assert_eq!(window(family, json!({"sliding_window": 16})), None);
        assert_eq!(window(family, json!({"sliding_window": 0, "use_sliding_window": false})), None);
    }
}

/// OLMo has norms after the blocks (post-norm), and query and key norms over all heads of a kind.
#[test]
fn olmo_has_norms_of_outputs_and_of_all_heads() {
    for family in ["olmo2", "olmo3"] {
        let config = accepted(family, json!({"attention_bias": true}));
        let of = |role: Role| -> Vec<(String, Vec<usize>)> {
            let tensors = config.tensors().into_iter().filter(|t| t.role == role && t.layer == Some(1));
            tensors.map(|t| (t.name, t.shape)).collect()
        };
        let norm = |name: &str, width| vec![(format!("model.layers.1.{name}.weight"), vec![width])];
        assert_eq!(of(Role::AttentionOutputNorm), norm("post_attention_layernorm", 32));
        assert_eq!(of(Role::MlpOutputNorm), norm("post_feedforward_layernorm", 32));
        assert_eq!((of(Role::InputNorm), of(Role::PostAttentionNorm)), (vec![], vec![]));
        assert_eq!(
            (of(Role::QueryNorm), of(Role::KeyNorm)),
            (norm("self_attn.q_norm", 32), norm("self_attn.k_norm", 16))
        );
        assert_eq!((of(Role::OutputBias).len(), of(Role::QueryBias).len()), (1, 1));
        assert!(config.tensors().iter().any(|t| t.name == "model.norm.weight"));
    }
}

/// OLMo-3: every fourth layer has full attention; layers with a window have separate RoPE settings.
#[test]
fn rope_and_windows_by_layer_type() {
    let short = |more: Value| {
        let mut keys = json!({"sliding_window": 16});
        keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        accepted("olmo3", keys)
    };
    let config = short(json!({}));
    assert_eq!(config.window.as_ref().map(|w| (w.length, w.layers.clone())), Some((16, vec![0, 1, 2])));
    assert_eq!((config.rope.theta, &config.local_rope), (5e5, &None));
    assert_eq!(
        window("olmo3", json!({"sliding_window": "<absent>", "max_position_embeddings": 4097})),
        Some((4096, vec![0, 1, 2]))
    );
    let named = json!({"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention", "full_attention",
        "full_attention"]});
    assert_eq!(window("olmo3", named), Some((16, vec![1])));
    refused("olmo3", json!({"sliding_window": null}), &["\"sliding_window\" is missing", "by default"]);

    // RoPE settings of transformers 4 are those of full attention; the other layers have the default base.
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32});
    let old = short(json!({"rope_theta": 1e4, "rope_scaling": yarn}));
    let local = old.local_rope.clone().unwrap();
    assert_eq!((local.layers, local.rope.theta, local.rope.scaling), (vec![0, 1, 2], 5e5, RopeScaling::Default));
    assert!(matches!(old.rope.scaling, RopeScaling::Yarn(_)) && old.rope.theta == 1e4);
    // transformers reads the original length only inside the settings.
    let outer = short(json!({"rope_theta": 1e4, "rope_scaling": yarn, "original_max_position_embeddings": 16}));
    assert_eq!(outer.rope, old.rope);
    assert!(old.notes.iter().any(|note| note.contains("rope_theta 500000")), "{:?}", old.notes);
    assert_eq!((old.rope_of(3), old.rope_of(1)), (&old.rope, &old.local_rope.as_ref().unwrap().rope));
    // RoPE depends on the type of a layer, even if its window is longer than every sequence.
    assert_eq!(short(json!({"sliding_window": 4096, "rope_theta": 1e4})).local_rope.unwrap().layers, [0, 1, 2]);

    let both = |full: Value, sliding: Value| json!({"rope_parameters": {"full_attention": full, "sliding_attention": sliding}});
    let new = short(both(
        json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}),
        json!({"rope_type": "default", "rope_theta": 5e5}),
    ));
    assert_eq!((&new.rope, &new.local_rope), (&old.rope, &old.local_rope));
    for config in [&old, &new, &short(json!({}))] {
        let saved = config.to_json(StoredDtype::F32);
        let again = ModelConfig::from_json(saved.clone(), Path::new("config.json")).unwrap();
        assert_eq!((&again.rope, &again.local_rope, &again.window), (&config.rope, &config.local_rope, &config.window));
        assert_eq!(again.to_json(StoredDtype::F32), saved);
    }
    refused("olmo3", json!({"rope_parameters": {"rope_theta": 1e4}}), &["rope_parameters", "full_attention"]);
    let wrong = both(json!({"rope_type": "default"}), json!({"rope_theta": -1}));
    refused("olmo3", wrong, &["rope_theta", "-1"]);
    for (full, sliding) in
        [(json!({"partial_rotary_factor": 0.5}), json!({})), (json!({}), json!({"partial_rotary_factor": 0.5}))]
    {
        refused("olmo3", both(full, sliding), &["partial_rotary_factor", "0.5", "only 1.0"]);
    }
    refused("olmo2", both(json!({}), json!({})), &["per layer type"]);
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
    // Older names of Phi-3's scaling, with the three keys that transformers 4 reads.
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
    // With equal lists, frequencies do not depend on the length of a sequence.
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
    // As in Phi-4-mini, LongRoPE has one factor for each frequency of the rotated part of a head.
    let lists = |list: Value| json!({"type": "longrope", "short_factor": list, "long_factor": list});
    let half = |list: Value| json!({"rope_scaling": lists(list), "partial_rotary_factor": 0.5});
    let partial = accepted("phi3", half(json!([1, 2])));
    assert_eq!((partial.rotated, partial.head_dim), (4, 8));
    assert_eq!(partial.to_json(StoredDtype::F32)["partial_rotary_factor"], json!(0.5));
    assert!(accepted("phi3", json!({})).to_json(StoredDtype::F32).get("partial_rotary_factor").is_none());
    refused("phi3", half(json!([1, 2, 3, 4])), &["rope_scaling.short_factor", "2 numbers"]);
    refused("phi3", json!({"partial_rotary_factor": 0.4}), &["partial_rotary_factor", "3 of the 8 elements", "even"]);
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
        refused(family, json!({"rope_parameters": five}), &[key, "is 0.5", "a different place", "1; they must agree"]);
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
    // For GPT-2, transformers also accepts the key names of other families.
    let general = json!({"n_embd": "<absent>", "hidden_size": 32, "n_positions": "<absent>"});
    let config = accepted("gpt2", general);
    assert_eq!((config.hidden, config.max_positions), (32, 1024));
    let saved = config.to_json(StoredDtype::F32);
    assert_eq!((saved["n_embd"].clone(), saved.get("hidden_size"), saved.get("head_dim")), (json!(32), None, None));
    refused("gpt2", json!({"n_embd": "<absent>"}), &["\"n_embd\" is missing"]);
    refused("gpt2", json!({"n_head": 5}), &["\"n_embd\" is 32 and \"n_head\" is 5"]);
    refused("gpt_neox", json!({"head_dim": 16}), &["\"head_dim\" is 16", "here 8", "delete the key"]);
}
