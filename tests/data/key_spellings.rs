//! transformers 4 and transformers 5 write different key names in config.json; both are read as the same
//! model.

use std::path::Path;

use common::golden;
use mapl::model::config::{ModelConfig, StoredDtype};
use serde_json::{Map, Value, json};

fn parse(map: Map<String, Value>) -> mapl::Result<ModelConfig> {
    ModelConfig::from_json(map, Path::new("m/config.json"))
}

/// The configuration of a golden model, as transformers 5 wrote it.
fn newer(name: &str) -> Map<String, Value> {
    let text = std::fs::read_to_string(golden::model_folder(name).join("config.json")).unwrap();
    let mut map: Map<String, Value> = serde_json::from_str(&text).unwrap();
    if map["model_type"] == "olmo3" {
        // transformers 5 uses `rope_theta` for the layers without a window, and a base of 500,000 for the
        // layers with one.
        map["rope_parameters"]["sliding_attention"]["rope_theta"] = json!(500_000.0);
    }
    map
}

/// Converts a configuration to the keys of transformers 4; `kind` is the key that stands for `rope_type`.
fn older(mut map: Map<String, Value>, kind: &str) -> Map<String, Value> {
    let family = map["model_type"].as_str().unwrap().to_owned();
    let dtype = map.remove("dtype").unwrap();
    map.insert("torch_dtype".into(), dtype);
    let Some(parameters) = map.remove("rope_parameters") else { return map };
    let full = parameters.get("full_attention").unwrap_or(&parameters);
    let mut scaling = full.as_object().unwrap().clone();
    let mut moved = |from: &str, to: &str| {
        if let Some(value) = scaling.remove(from) {
            map.insert(to.into(), value);
        }
    };
    let neox = family == "gpt_neox";
    moved("rope_theta", if neox { "rotary_emb_base" } else { "rope_theta" });
    moved("partial_rotary_factor", if neox { "rotary_pct" } else { "partial_rotary_factor" });
    if family == "phi3" {
        moved("original_max_position_embeddings", "original_max_position_embeddings");
    }
    if family == "gemma3_text" {
        map.insert("rope_local_base_freq".into(), parameters["sliding_attention"]["rope_theta"].clone());
    }
    let of = scaling.remove("rope_type").unwrap();
    let scaling = if of == "default" {
        Value::Null
    } else {
        scaling.insert(kind.into(), of);
        scaling.into()
    };
    map.insert("rope_scaling".into(), scaling);
    map
}

/// Returns the saved keys without a `partial_rotary_factor` of 1, which is written only if the file that was
/// read has it.
fn written(config: &ModelConfig) -> Map<String, Value> {
    let mut map = config.to_json(StoredDtype::F32);
    if map.get("partial_rotary_factor") == Some(&json!(1.0)) {
        map.remove("partial_rotary_factor");
    }
    map
}

#[test]
fn keys_of_transformers_4_and_5_are_the_same_model() {
    let mut scaled = 0;
    for name in golden::models() {
        let new = parse(newer(name)).unwrap();
        for kind in ["rope_type", "type"] {
            let file = older(newer(name), kind);
            let has_scaling = file.get("rope_scaling").is_some_and(Value::is_object);
            let by_layer = ["olmo3", "gemma3_text"].contains(&new.family.model_type);
            if by_layer && kind == "type" && has_scaling {
                // With this key, transformers would compute the default frequencies.
                let why = parse(file).unwrap_err().to_string();
                assert!(why.contains("under \"type\"") && why.contains("\"rope_type\""), "{name}: {why}");
                continue;
            }
            scaled += usize::from(has_scaling);
            let old = parse(file.clone()).unwrap_or_else(|e| panic!("{name} {kind}: {e}"));
            assert_eq!(written(&old), written(&new), "{name} {kind}");
            assert_eq!((old.inv_freq(), old.max_positions), (new.inv_freq(), new.max_positions), "{name} {kind}");
            assert_eq!((old.tensors(), old.dtype), (new.tensors(), new.dtype), "{name} {kind}");
            // Both spellings in one file must agree.
            if let (Some(theta), Some(_)) = (file.get("rope_theta"), newer(name).get("rope_parameters")) {
                let mut both = newer(name);
                both.insert("rope_theta".into(), json!(theta.as_f64().unwrap() * 2.0));
                let why = parse(both).unwrap_err().to_string();
                assert!(why.contains("rope_theta"), "{name}: {why}");
            }
        }
    }
    assert!(scaled > 20, "{scaled}");
}

/// Mixtures of experts are rejected; the error names the model type and the reason.
#[test]
fn mixtures_of_experts_are_refused_by_name() {
    for (model_type, class) in [("mixtral", "MixtralForCausalLM"), ("qwen3_moe", "Qwen3MoeForCausalLM")] {
        let mut map = newer("mistral");
        map.insert("model_type".into(), json!(model_type));
        map.insert("architectures".into(), json!([class]));
        let why = parse(map).unwrap_err().to_string();
        assert!(why.contains(model_type) && why.contains("a mixture of experts"), "{why}");
    }
}
