//! Reading and writing config.json: both key styles of transformers, rejected values and their messages,
//! presets, and the table of tensor names.

use std::path::Path;

use common::golden;
use mapl::model::config::{Head, ModelConfig, StoredDtype};
use mapl::model::presets;
use mapl::model::rope::RopeScaling;
use mapl::model::tensors::Role;
use serde_json::{Map, Value, json};

/// A small valid Qwen2 configuration with `changes` merged in; a change to the string "<absent>"
/// removes the key.
fn qwen2(changes: Value) -> Map<String, Value> {
    let base = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 160, "hidden_size": 32,
        "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "hidden_act": "silu", "rope_theta": 10000.0,
        "tie_word_embeddings": true, "eos_token_id": 2, "sliding_window": 4096, "use_sliding_window": false,
        "max_window_layers": 21, "torch_dtype": "bfloat16",
    });
    changed(&base, &changes)
}

/// Keys with `changes` merged in.
pub(crate) fn changed(base: &Value, changes: &Value) -> Map<String, Value> {
    let mut map = base.as_object().unwrap().clone();
    for (key, value) in changes.as_object().unwrap() {
        if *value == json!("<absent>") {
            map.remove(key);
        } else {
            map.insert(key.clone(), value.clone());
        }
    }
    map
}

fn parse(map: Map<String, Value>) -> mapl::Result<ModelConfig> {
    ModelConfig::from_json(map, Path::new("m/config.json"))
}

const LLAMA: [(&str, &str); 2] = [("model_type", "llama"), ("architectures", "LlamaForCausalLM")];

/// Same as `qwen2`, as a Llama configuration.
fn llama(changes: Value) -> Map<String, Value> {
    let mut map = qwen2(changes.clone());
    for (key, value) in LLAMA {
        if changes.get(key).is_none() {
            map.insert(key.into(), if key == "architectures" { json!([value]) } else { json!(value) });
        }
    }
    map
}

/// Without a pad token, transformers reads the reward of a single sequence at its last token, and rejects
/// batches.
#[test]
fn a_reward_model_needs_no_pad_token() {
    for pad in [json!({}), json!({"pad_token_id": null}), json!({"pad_token_id": -1})] {
        let mut map = qwen2(json!({"architectures": ["Qwen2ForSequenceClassification"], "id2label": {"0": "LABEL_0"}}));
        map.extend(pad.as_object().unwrap().clone());
        let config = parse(map).unwrap();
        assert_eq!(config.pad, None);
        assert!(config.notes.iter().any(|note| note.contains("read at the last token")), "{:?}", config.notes);
    }
}

#[test]
fn every_refusal_names_key_value_and_allowed_values() {
    let cases: Vec<(Map<String, Value>, &[&str])> = vec![
        (qwen2(json!({"vocab_size": 1_000_000_000_000u64})), &["vocab_size", "1000000000000", "from 1 to 4194304"]),
        (qwen2(json!({"num_attention_heads": 0})), &["num_attention_heads", "is 0", "from 1 to"]),
        (qwen2(json!({"num_hidden_layers": -3})), &["num_hidden_layers", "-3", "from 1 to"]),
        (qwen2(json!({"hidden_size": 32.5})), &["hidden_size", "32.5", "integer"]),
        (qwen2(json!({"hidden_size": "32"})), &["hidden_size", "\"32\"", "integer"]),
        (qwen2(json!({"hidden_size": u64::MAX})), &["hidden_size", "18446744073709551615"]),
        (qwen2(json!({"intermediate_size": "<absent>"})), &["intermediate_size", "missing"]),
        (qwen2(json!({"intermediate_size": null})), &["intermediate_size", "missing"]),
        (qwen2(json!({"num_key_value_heads": 3})), &["is 4", "is 3", "multiple"]),
        (qwen2(json!({"num_key_value_heads": "<absent>"})), &["num_key_value_heads", "missing"]),
        (qwen2(json!({"hidden_size": 34})), &["hidden_size", "34", "multiple"]),
        (llama(json!({"hidden_size": 34, "head_dim": 8})), &["hidden_size", "34", "multiple"]),
        (qwen2(json!({"head_dim": 7})), &["head_dim", "7", "even"]),
        (qwen2(json!({"hidden_size": 36})), &["head_dim", "9", "even"]),
        (
            qwen2(json!({"vocab_size": 4_000_000, "hidden_size": 1 << 16, "head_dim": 128})),
            &["vocab_size 4000000", "more than 100000000000 parameters"],
        ),
        (qwen2(json!({"model_type": "mixtral"})), &["\"mixtral\"", "mixture of experts", "llama, qwen2"]),
        (
            qwen2(json!({"model_type": "gemma3"})),
            &["\"gemma3\"", "images", "gemma3_text", "docs/checkpoints.md", "llama, qwen2"],
        ),
        (qwen2(json!({"model_type": "gemma3n_text"})), &["\"gemma3n_text\"", "per-layer embeddings", "llama, qwen2"]),
        (qwen2(json!({"model_type": "mine"})), &["\"mine\" is not supported; mapl supports llama, qwen2"]),
        (qwen2(json!({"model_type": "<absent>"})), &["model_type", "missing", "llama, qwen2"]),
        (
            qwen2(json!({"architectures": ["Qwen2ForTokens"]})),
            &["Qwen2ForTokens", "ForSequenceClassification", "Qwen2"],
        ),
        (qwen2(json!({"architectures": ["LlamaForCausalLM"]})), &["LlamaForCausalLM", "does not belong", "\"qwen2\""]),
        (qwen2(json!({"architectures": []})), &["architectures", "[]", "one class name"]),
        (qwen2(json!({"hidden_act": "gelu"})), &["hidden_act", "gelu", "silu"]),
        (qwen2(json!({"mlp_bias": true})), &["mlp_bias", "true"]),
        (llama(json!({"attention_bias": 1})), &["attention_bias", "1", "true or false"]),
        (qwen2(json!({"quantization_config": {"bits": 4}})), &["quantization_config", "bits", "not supported"]),
        (qwen2(json!({"rms_norm_eps": 0.0})), &["rms_norm_eps", "0.0", "above 0"]),
        (qwen2(json!({"tie_word_embeddings": "yes"})), &["tie_word_embeddings", "yes", "true or false"]),
        (qwen2(json!({"pad_token_id": 160})), &["pad_token_id", "160", "from 0 to 159"]),
        (qwen2(json!({"eos_token_id": -2})), &["eos_token_id", "-2", "from 0 to 159"]),
        (qwen2(json!({"eos_token_id": [2, "x"]})), &["eos_token_id", "\"x\"", "token id"]),
        (qwen2(json!({"pad_token_id": [1, 2]})), &["pad_token_id", "[1,2]", "one token id"]),
        (
            qwen2(json!({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 64})),
            &["layer_types", "sliding_attention", "\"use_sliding_window\" is not true"],
        ),
        (
            llama(json!({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": null})),
            &["layer_types", "\"sliding_window\" is missing"],
        ),
        (qwen2(json!({"layer_types": ["full_attention", "linear_attention"]})), &["layer_types", "full_attention"]),
        (qwen2(json!({"layer_types": ["full_attention"]})), &["layer_types", "2 layers"]),
        (qwen2(json!({"rope_theta": -1.0})), &["rope_theta", "-1.0", "from 1"]),
        (qwen2(json!({"rope_theta": 0.0})), &["rope_theta", "0.0", "from 1"]),
        (qwen2(json!({"rope_theta": 1e300})), &["rope_theta", "1e+300", "to 1e15"]),
        (qwen2(json!({"rms_norm_eps": 1e-300})), &["rms_norm_eps", "1e-300", "above 0"]),
        (qwen2(json!({"rope_scaling": {"type": "ntk", "factor": 4.0}})), &["\"ntk\"", "linear", "yarn", "llama3"]),
        (qwen2(json!({"partial_rotary_factor": 0.5})), &["\"partial_rotary_factor\" is 0.5", "only 1.0"]),
        (qwen2(json!({"rope_scaling": {"type": "linear"}})), &["rope_scaling.factor", "missing"]),
        (
            qwen2(json!({"rope_scaling": {"type": "linear", "rope_type": "llama3", "factor": 4.0}})),
            &["rope_scaling.rope_type", "rope_scaling.type", "agree"],
        ),
        (qwen2(json!({"rope_scaling": {"rope_type": "linear", "factor": 0.5}})), &["factor", "0.5", "from 1"]),
        (qwen2(json!({"rope_scaling": {"rope_type": "linear", "factor": 1e39}})), &["factor", "1e+39", "to 1000000"]),
        (
            qwen2(json!({"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
                "high_freq_factor": 1.0, "original_max_position_embeddings": 64}})),
            &["rope_parameters.high_freq_factor", "1.0", "above low_freq_factor"],
        ),
        (
            qwen2(json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}})),
            &["rope_theta", "10000", "1000000", "agree"],
        ),
        (
            qwen2(
                json!({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2}}),
            ),
            &["rope_scaling", "rope_parameters", "disagree"],
        ),
        (
            qwen2(json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}})),
            &["full_attention", "per layer"],
        ),
        (qwen2(json!({"rope_parameters": {"partial_rotary_factor": 0.5}})), &["partial_rotary_factor", "0.5"]),
        (qwen2(json!({"dtype": "float32"})), &["torch_dtype", "bfloat16", "dtype", "float32", "agree"]),
        (qwen2(json!({"torch_dtype": "int8"})), &["torch_dtype", "int8", "float16"]),
        (
            qwen2(json!({"architectures": ["Qwen2ForSequenceClassification"], "pad_token_id": 0})),
            &["number of labels is 2 by default", "exactly one"],
        ),
        (
            qwen2(json!({"architectures": ["Qwen2ForSequenceClassification"], "id2label": {"0": "a", "1": "b"}})),
            &["number of labels is 2 ", "exactly one"],
        ),
    ];
    for (map, parts) in cases {
        let error = parse(map).expect_err(&format!("{parts:?} was accepted"));
        let text = error.to_string();
        assert_eq!(error.exit_code(), 6, "{text}");
        assert!(text.starts_with("m/config.json: "), "{text}");
        for part in parts {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
    }
}

#[test]
fn files_without_a_configuration_are_model_errors() {
    let folder = tempfile::tempdir().unwrap();
    let text = ModelConfig::read(folder.path()).unwrap_err().to_string();
    assert!(text.contains("config.json"), "{text}");
    let deep = "[".repeat(100_000);
    for (content, part) in [
        (&b"{\"model_type\": "[..], "not valid JSON"),
        (b"{\"model_type\": \"\xff\"}", "not valid JSON"),
        (b"[1]", "one JSON object, found a list"),
        (b"", "not valid JSON"),
        (deep.as_bytes(), "not valid JSON"),
    ] {
        std::fs::write(folder.path().join("config.json"), content).unwrap();
        let error = ModelConfig::read(folder.path()).unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn both_key_styles_give_the_same_model() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64});
    let four = llama(json!({"rope_theta": 5e5, "rope_scaling": scaling, "torch_dtype": "float16"}));
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(5e5);
    let five = llama(json!({"rope_theta": "<absent>", "rope_parameters": parameters, "torch_dtype": "<absent>",
        "dtype": "float16"}));
    let (four, five) = (parse(four).unwrap(), parse(five).unwrap());
    assert_eq!(four.rope, five.rope);
    assert_eq!(four.rope.theta, 5e5);
    assert!(matches!(four.rope.scaling, RopeScaling::Llama3 { original_max_position: 64, .. }));
    assert_eq!((four.dtype, five.dtype), (Some(StoredDtype::F16), Some(StoredDtype::F16)));
    // The written file has the keys of both styles with equal values. The keys of either style
    // suffice to read the model.
    let saved = four.to_json(StoredDtype::Bf16);
    assert_eq!(saved["torch_dtype"], saved["dtype"]);
    assert_eq!(saved["rope_scaling"]["factor"], saved["rope_parameters"]["factor"]);
    assert_eq!((&saved["rope_theta"], &saved["rope_parameters"]["rope_theta"]), (&json!(5e5), &json!(5e5)));
    for drop in [&["rope_theta", "rope_scaling", "torch_dtype"][..], &["rope_parameters", "dtype"]] {
        let mut half = saved.clone();
        half.retain(|key, _| !drop.contains(&key.as_str()));
        let again = parse(half).unwrap();
        assert_eq!((again.rope, again.dtype), (four.rope.clone(), Some(StoredDtype::Bf16)));
    }
}

#[test]
fn unknown_keys_keep_their_order_and_value() {
    let map =
        qwen2(json!({"my_key": {"b": [1, null], "a": "x"}, "transformers_version": "4.51.3", "use_cache": false}));
    let keys: Vec<String> = map.keys().cloned().collect();
    let saved = parse(map.clone()).unwrap().to_json(StoredDtype::F32);
    assert_eq!(saved["my_key"].to_string(), r#"{"b":[1,null],"a":"x"}"#);
    assert_eq!((&saved["transformers_version"], &saved["use_cache"]), (&json!("4.51.3"), &json!(false)));
    assert_eq!(saved.keys().take(keys.len()).cloned().collect::<Vec<_>>(), keys);
    // A second round trip changes nothing.
    assert_eq!(parse(saved.clone()).unwrap().to_json(StoredDtype::F32), saved);
}

#[test]
fn end_ids_come_from_both_files_and_both_are_written_back() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, value: Value| std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    write("config.json", Value::Object(qwen2(json!({"eos_token_id": 7, "pad_token_id": -1, "bos_token_id": null}))));
    write("generation_config.json", json!({"eos_token_id": [9, 7], "temperature": 0.7}));
    let config = ModelConfig::read(folder.path()).unwrap();
    assert_eq!((config.eos.as_slice(), config.pad, config.bos), (&[7, 9][..], None, None));
    let out = tempfile::tempdir().unwrap();
    config.write(out.path(), StoredDtype::F32).unwrap();
    let saved =
        |name: &str| -> Value { serde_json::from_slice(&std::fs::read(out.path().join(name)).unwrap()).unwrap() };
    assert_eq!(saved("config.json")["eos_token_id"], json!(7));
    assert_eq!(saved("generation_config.json"), json!({"eos_token_id": [9, 7], "temperature": 0.7}));
    assert_eq!(ModelConfig::read(out.path()).unwrap().eos, [7, 9]);
}

/// transformers never looks up an EOS id in the embedding table, so an id beyond the vocabulary is only a
/// note.
#[test]
fn end_ids_beyond_the_vocabulary_are_left_out_with_a_note() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, value: Value| std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    let big = 1_u64 << 40;
    write("config.json", Value::Object(qwen2(json!({"eos_token_id": [7, 160], "bos_token_id": big}))));
    write("generation_config.json", json!({"eos_token_id": [160, 9]}));
    let config = ModelConfig::read(folder.path()).unwrap();
    assert_eq!((config.eos.as_slice(), config.bos), (&[7, 9][..], None));
    let notes = config.notes.join("\n");
    for part in ["\"eos_token_id\" of config.json is [7,160]", "\"bos_token_id\"", "generation_config.json is [160,9]"]
    {
        assert!(notes.contains(part), "{part} is not in {notes}");
    }
}

#[test]
fn swish_and_the_base_model_are_read() {
    let config = parse(qwen2(json!({"hidden_act": "swish", "architectures": ["Qwen2Model"]}))).unwrap();
    assert_eq!(
        (config.head, config.to_json(StoredDtype::F32)["hidden_act"].clone()),
        (Head::LanguageModel, json!("silu"))
    );
}

/// The original length comes from the top level, else from the scaling's key, else it is the longest
/// sequence, as in transformers.
#[test]
fn llama3_scaling_without_an_original_length_takes_the_longest_sequence() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
    let mut with_length = scaling.clone();
    with_length["original_max_position_embeddings"] = json!(64);
    let read = |keys: Value| {
        let config = parse(llama(keys)).unwrap();
        match config.rope.scaling {
            RopeScaling::Llama3 { original_max_position, .. } => (original_max_position, config.notes.len()),
            other => panic!("{other:?}"),
        }
    };
    let max = parse(llama(json!({}))).unwrap().max_positions;
    assert_eq!(read(json!({"rope_scaling": scaling})), (max, 1));
    assert_eq!(read(json!({"rope_scaling": with_length})), (64, 0));
    assert_eq!(read(json!({"rope_scaling": with_length, "original_max_position_embeddings": 32})), (32, 0));
}

#[test]
fn missing_keys_get_the_defaults_of_transformers() {
    let keys = [
        "tie_word_embeddings",
        "rms_norm_eps",
        "max_position_embeddings",
        "rope_theta",
        "torch_dtype",
        "eos_token_id",
        "num_key_value_heads",
        "architectures",
        "hidden_act",
    ];
    let mut map = llama(json!({}));
    map.retain(|key, _| !keys.contains(&key.as_str()));
    let config = parse(map).unwrap();
    assert_eq!((config.tied, config.rms_norm_eps, config.max_positions), (false, 1e-6, 2048));
    assert_eq!((config.rope.theta, &config.rope.scaling), (10_000.0, &RopeScaling::Default));
    assert_eq!((config.kv_heads, config.head_dim, config.head), (4, 8, Head::LanguageModel));
    assert_eq!((config.dtype, &config.eos[..], config.initializer_range), (None, &[2][..], 0.02));
    let mut map = qwen2(json!({}));
    map.remove("max_position_embeddings");
    assert_eq!(parse(map).unwrap().max_positions, 32_768);
    // The written file states every default except the special ids, which transformers also takes from the
    // configuration class.
    let saved = config.to_json(StoredDtype::F32);
    let of_class = ["bos_token_id", "eos_token_id"];
    assert!(keys.iter().all(|key| saved.contains_key(*key) != of_class.contains(key)), "{saved:?}");
}

#[test]
fn a_sliding_window_on_no_layer_is_accepted() {
    assert!(parse(qwen2(json!({"use_sliding_window": true, "max_window_layers": 2, "sliding_window": 8}))).is_ok());
    assert!(parse(qwen2(json!({"use_sliding_window": true, "max_window_layers": 0, "sliding_window": null}))).is_ok());
    assert!(parse(qwen2(json!({"layer_types": ["full_attention", "full_attention"]}))).is_ok());
}

#[test]
fn a_language_model_becomes_a_reward_model() {
    let config = parse(qwen2(json!({}))).unwrap();
    let count = config.parameters().unwrap();
    assert!(config.clone().into_reward(160).unwrap_err().to_string().contains("160"));
    let reward = config.into_reward(159).unwrap();
    assert_eq!(reward.parameters(), Some(count + 32));
    let saved = reward.to_json(StoredDtype::F32);
    assert_eq!(saved["architectures"], json!(["Qwen2ForSequenceClassification"]));
    assert_eq!((&saved["id2label"], &saved["label2id"]), (&json!({"0": "LABEL_0"}), &json!({"LABEL_0": 0})));
    assert_eq!(saved["pad_token_id"], json!(159));
    assert_eq!(reward.generation_json(), None);
    let again = parse(saved).unwrap();
    assert_eq!((again.head, again.pad, again.tensors()), (Head::Reward, Some(159), reward.tensors()));
}

#[test]
fn presets_are_valid_and_have_the_published_sizes() {
    assert!(presets::config("nope").unwrap_err().to_string().contains("llama-3.2-1b"));
    for preset in presets::list() {
        let config = presets::config(preset.name).unwrap().with_vocabulary(300, vec![2], Some(1), Some(0)).unwrap();
        let again = parse(config.to_json(StoredDtype::F32)).unwrap_or_else(|e| panic!("{}: {e}", preset.name));
        assert_eq!(again.tensors(), config.tensors(), "{}", preset.name);
        assert_eq!((again.rope, again.eos, again.bos, again.pad), (config.rope, vec![2], Some(1), Some(0)));
        assert!(!preset.summary.is_empty());
    }
    // Parameter counts of the published weights.
    for (name, parameters) in [
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-3b", 3_085_938_688),
        ("smollm2-135m", 134_515_008),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("llama-3.1-8b", 8_030_261_248),
    ] {
        assert_eq!(presets::config(name).unwrap().parameters(), Some(parameters), "{name}");
    }
    let refused = |ids: Vec<u32>, vocab| presets::config("quickstart").unwrap().with_vocabulary(vocab, ids, None, None);
    assert!(refused(vec![300], 300).unwrap_err().to_string().contains("300"));
    assert!(refused(vec![], 0).unwrap_err().to_string().contains("the vocabulary size is 0"));
}

#[test]
fn the_tensor_table_keeps_the_arena_order() {
    use Role::*;
    let layer = [Query, Key, Value, Output, Gate, Up, Down];
    let roles = |config: &ModelConfig| config.tensors().iter().map(|t| t.role).collect::<Vec<_>>();
    let tied = parse(qwen2(json!({}))).unwrap();
    let norms = [InputNorm, QueryBias, KeyBias, ValueBias, PostAttentionNorm];
    let expected = [&[Embedding][..], &layer, &layer, &norms, &norms, &[FinalNorm]].concat();
    assert_eq!(roles(&tied), expected);
    let untied = parse(llama(json!({"tie_word_embeddings": false, "head_dim": 12}))).unwrap();
    assert_eq!((untied.family.model_type, untied.qkv_bias), ("llama", false));
    let norms = [InputNorm, PostAttentionNorm];
    assert_eq!(roles(&untied), [&[Embedding][..], &layer, &layer, &[LmHead], &norms, &norms, &[FinalNorm]].concat());
    for config in [tied, untied] {
        let tensors = config.tensors();
        assert!(tensors.is_sorted_by_key(|t| !t.role.decays()), "decayed tensors must form a prefix");
        assert_eq!(Some(tensors.iter().map(|t| t.elements()).sum()), config.parameters());
    }
}

#[test]
fn a_reward_model_keeps_every_end_id_and_no_generation_config() {
    let folder = tempfile::tempdir().unwrap();
    let generation = folder.path().join("generation_config.json");
    let source = golden::model_folder("llama");
    std::fs::copy(source.join("config.json"), folder.path().join("config.json")).unwrap();
    std::fs::write(&generation, json!({"eos_token_id": [2, 7]}).to_string()).unwrap();
    let config = ModelConfig::read(folder.path()).unwrap();
    assert_eq!(config.eos, [2, 7]);
    // Overwrites the language model, as --overwrite-output-dir does.
    config.into_reward(159).unwrap().write(folder.path(), StoredDtype::F32).unwrap();
    assert!(!generation.exists());
    assert_eq!(ModelConfig::read(folder.path()).unwrap().eos, [2, 7]);
}
