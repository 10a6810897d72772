//! Adapter folders that cannot be merged as they are. The error names the key or the tensor, and a remedy.
//! `tests/training/adapters.rs` checks the values of supported adapters.

use std::path::Path;

use common::golden;
use mapl::model::adapter::{AdapterConfig, AdapterFolder, Targets};
use mapl::model::config::{Head, ModelConfig};
use mapl::model::weights::{LoadAs, WeightFiles};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::model_folder::{Raw, raw_file, write_raw};

/// A copy of a golden adapter that names its base by an absolute path.
fn copy(name: &str) -> tempfile::TempDir {
    let (folder, from) = (tempfile::tempdir().unwrap(), golden::path("adapters").join(name));
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(from.join(file), folder.path().join(file)).unwrap();
    }
    let base = AdapterConfig::read(&from).unwrap().base_model_name_or_path.unwrap();
    set(folder.path(), "base_model_name_or_path", json!(from.join(base)));
    folder
}

fn set(folder: &Path, key: &str, value: Value) {
    let path = folder.join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(path, config.to_string()).unwrap();
}

fn change(folder: &Path, tensors: impl Fn(Raw) -> Raw) {
    let path = folder.join("adapter_model.safetensors");
    let changed = tensors(raw_file(&path));
    write_raw(&path, &changed);
}

fn open(folder: &Path) -> Result<WeightFiles, String> {
    let config = ModelConfig::read(folder).map_err(|e| e.to_string())?;
    WeightFiles::open(folder, &config, LoadAs::Exact).map_err(|e| {
        assert_eq!(e.exit_code(), 6, "{e}");
        e.to_string()
    })
}

#[track_caller]
fn refused(folder: &Path, parts: &[&str]) {
    let why = open(folder).err().unwrap_or_else(|| panic!("accepted, not {parts:?}"));
    assert!(parts.iter().all(|part| why.contains(part)), "{parts:?} in {why}");
}

/// Every PEFT setting that changes the result is rejected; the error names the setting and a remedy.
#[test]
fn settings_that_change_the_result_are_refused_by_name() {
    let folder = copy("plain");
    open(folder.path()).unwrap();
    for (key, value) in [
        ("peft_type", json!("LOHA")),
        ("peft_type", json!("ADALORA")),
        ("use_dora", json!(true)),
        ("use_qalora", json!(true)),
        ("lora_bias", json!(true)),
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("trainable_token_indices", json!([3])),
        ("layer_replication", json!([[0, 1], [0, 1]])),
        ("target_parameters", json!(["mlp.experts.gate_up_proj"])),
        ("alora_invocation_tokens", json!([5])),
        ("arrow_config", json!({"top_k": 3})),
        ("use_bdlora", json!({"nblocks": 2})),
        ("velora_config", json!({"num_groups": 4})),
        ("kasa_config", json!({"beta": 1.0})),
        ("monteclora_config", json!({"num_samples": 2})),
        ("megatron_config", json!({"a": 1})),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("corda")),
        ("init_lora_weights", json!("loftq")),
        ("init_lora_weights", json!("lora_ga")),
        ("init_lora_weights", json!("mica")),
        ("a_key_of_tomorrow", json!(7)),
    ] {
        let folder = copy("plain");
        set(folder.path(), key, value.clone());
        refused(folder.path(), &["adapter_config.json", &format!("\"{key}\""), "merge_and_unload"]);
    }
    for (key, value, part) in [
        ("task_type", json!("TOKEN_CLS"), "CAUSAL_LM"),
        ("target_modules", json!(null), "q_proj"),
        ("target_modules", json!(["w_pack"]), "no module of LlamaForCausalLM"),
        ("target_modules", json!("(?!x)q_proj"), "list the modules by name"),
        ("r", json!(0), "integer from 1"),
        ("lora_alpha", json!("8"), "number"),
        ("layers_to_transform", json!([7]), "layer 7"),
        ("rank_pattern", json!({"q_proj": -1}), "rank_pattern.q_proj"),
    ] {
        let folder = copy("plain");
        set(folder.path(), key, value);
        refused(folder.path(), &["adapter_config.json", part]);
    }
}

/// PEFT also writes keys that have no effect on the merged weights, and neutral values of keys that are
/// otherwise rejected. Both are accepted.
#[test]
fn neutral_settings_are_accepted() {
    for (key, value) in [
        ("use_dora", json!(false)),
        ("trainable_token_indices", json!(null)),
        ("layer_replication", json!([])),
        ("init_lora_weights", json!("gaussian")),
        ("init_lora_weights", json!("eva")),
        ("init_lora_weights", json!("orthogonal")),
        ("eva_config", json!({"rho": 2.0})),
        ("inference_mode", json!(false)),
        ("lora_dropout", json!(0.1)),
        ("peft_version", json!("0.99.0")),
        ("auto_mapping", json!({"base_model_class": "LlamaForCausalLM"})),
        ("a_key_of_tomorrow", json!(null)),
        ("fan_in_fan_out", json!(true)),
    ] {
        let folder = copy("plain");
        set(folder.path(), key, value);
        open(folder.path()).unwrap_or_else(|why| panic!("{key}: {why}"));
    }
    let folder = copy("plain");
    set(folder.path(), "fan_in_fan_out", json!(true));
    set(folder.path(), "target_modules", json!(["q_proj", "v_proj", "w_pack"]));
    let notes = open(folder.path()).unwrap().notes().join("\n");
    assert!(notes.contains("fan_in_fan_out") && notes.contains("w_pack"), "{notes}");
    assert!(notes.contains("4 tensors change"), "{notes}");
}

const Q_A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";

#[test]
fn tensors_that_do_not_fit_are_named() {
    let with = |name: &str, tensors: &dyn Fn(Raw) -> Raw, parts: &[&str]| {
        let folder = copy(name);
        change(folder.path(), tensors);
        refused(folder.path(), parts);
    };
    let one = |name: &'static str, shape: &'static [usize]| {
        move |mut tensors: Raw| {
            let bytes = vec![0; 4 * shape.iter().product::<usize>()];
            tensors.insert(name.to_owned(), (Dtype::F32, shape.to_vec(), bytes));
            tensors
        }
    };
    let without = |name: &'static str| {
        move |mut tensors: Raw| {
            tensors.remove(name).unwrap();
            tensors
        }
    };
    with("plain", &without(Q_A), &[Q_A, "lacks", "self_attn.q_proj"]);
    with("plain", &one(Q_A, &[5, 32]), &[Q_A, "[5, 32]", "[4, 32]"]);
    let other = "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight";
    with("plain", &one(other, &[4, 32]), &[other, "does not target"]);
    let unknown = "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight";
    with("plain", &one(unknown, &[4, 32]), &[unknown, "LlamaForCausalLM does not have"]);
    let magnitude = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector";
    with("plain", &one(magnitude, &[48]), &[magnitude, "DoRA", "merge_and_unload"]);
    let bias = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias";
    with("plain", &one(bias, &[48]), &[bias, "lora_bias"]);
    let score = "base_model.model.score.weight";
    with("reward", &without(score), &[score, "modules_to_save"]);
    with("reward", &one(score, &[3, 32]), &[score, "one label"]);
    with("tables", &one("base_model.model.lm_head.weight", &[176, 32]), &["resized"]);
    let folder = copy("reward");
    set(folder.path(), "task_type", json!(null));
    refused(folder.path(), &[score, "\"task_type\"", "SEQ_CLS"]);
    let nan = |mut tensors: Raw| {
        tensors.get_mut(Q_A).unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        tensors
    };
    let folder = copy("plain");
    change(folder.path(), nan);
    let why = open(folder.path()).unwrap().read_all("model.layers.0.self_attn.q_proj.weight").unwrap_err().to_string();
    assert!(why.contains(Q_A) && why.contains("finite"), "{why}");
}

#[test]
fn names_with_wrappers_and_adapter_names_are_read() {
    let own = open(copy("reward").path()).unwrap();
    let folder = copy("reward");
    change(folder.path(), |tensors| {
        let name = |name: String| {
            let name = name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default.");
            let name = name.replace("score.weight", "score.modules_to_save.default.weight");
            name.replace("base_model.model.model.", "base_model.model._orig_mod.model.")
        };
        tensors.into_iter().map(|(own, tensor)| (name(own), tensor)).collect()
    });
    let other = open(folder.path()).unwrap();
    for name in ["model.layers.0.self_attn.q_proj.weight", "score.weight"] {
        assert_eq!(own.read_all(name).unwrap(), other.read_all(name).unwrap(), "{name}");
    }
}

#[test]
fn files_that_are_not_there_are_named() {
    let folder = copy("plain");
    std::fs::rename(folder.path().join("adapter_model.safetensors"), folder.path().join("adapter_model.bin")).unwrap();
    refused(folder.path(), &["adapter_model.bin", "pickled", "save_pretrained"]);
    std::fs::remove_file(folder.path().join("adapter_model.bin")).unwrap();
    refused(folder.path(), &["no adapter_model.safetensors", "download"]);
}

/// PEFT trains a copy of one of two tied tensors, so after a merge the two tensors would differ.
#[test]
fn changes_to_one_of_two_tied_tables_are_refused() {
    for (targets, saved) in [
        (json!(["embed_tokens"]), json!(null)),
        (json!(["q_proj", "lm_head"]), json!(null)),
        (json!(["q_proj", "gate_proj"]), json!(["embed_tokens"])),
    ] {
        let folder = copy("layers");
        set(folder.path(), "layers_to_transform", json!(null));
        set(folder.path(), "exclude_modules", json!(null));
        set(folder.path(), "target_modules", targets.clone());
        set(folder.path(), "modules_to_save", saved.clone());
        let config = AdapterConfig::read(folder.path()).unwrap();
        let model = ModelConfig::read(folder.path()).unwrap();
        assert!(model.tied);
        let tensors = config.tensors(&model).unwrap();
        mapl::model::adapter::write_adapter(
            folder.path(),
            &config,
            &tensors,
            mapl::model::config::StoredDtype::F32,
            &mut |_, _, out| {
                out.fill(0.5);
                Ok(())
            },
        )
        .unwrap();
        refused(folder.path(), &["ties", "tie_word_embeddings"]);
    }
}

#[test]
fn a_sequence_classifier_is_a_reward_model() {
    let folder = copy("reward");
    let config = ModelConfig::read(folder.path()).unwrap();
    assert_eq!((config.head, config.architecture().as_str()), (Head::Reward, "LlamaForSequenceClassification"));
    let files = WeightFiles::open(folder.path(), &config, LoadAs::Exact).unwrap();
    assert_eq!(files.ignored(), ["lm_head.weight"]);
    // Without the head's tensor, the adapter has no trained reward head.
    set(folder.path(), "modules_to_save", json!(null));
    change(folder.path(), |mut tensors| {
        tensors.remove("base_model.model.score.weight").unwrap();
        tensors
    });
    refused(folder.path(), &["score.weight", "not a trained reward"]);
}

#[test]
fn the_writer_spells_what_the_reader_reads() {
    let targets = [Targets::Names(vec!["q_proj".into()]), Targets::Pattern(".*q_proj".into()), Targets::AllLinear];
    for target_modules in targets {
        let config = AdapterConfig {
            rank_pattern: vec![("q_proj".into(), 3)],
            alpha_pattern: vec![("q_proj".into(), 2.5)],
            use_rslora: true,
            modules_to_save: vec!["lm_head".into()],
            fan_in_fan_out: true,
            ..AdapterConfig::new(None, mapl::model::adapter::TaskType::CausalLm, (4, 8.0), target_modules)
        };
        let again = AdapterConfig::parse(&config.to_json(), Path::new("adapter_config.json")).unwrap();
        assert_eq!(again, config);
        let keys: Vec<String> = config.to_json().keys().cloned().collect();
        assert!(keys.is_sorted(), "{keys:?}");
    }
}

#[test]
fn the_base_is_the_named_folder_or_the_one_that_is_given() {
    let folder = copy("plain");
    let found = |given| AdapterFolder::find(folder.path(), given).unwrap().unwrap().base;
    let named = found(None);
    assert!(named.ends_with("models/llama"), "{}", named.display());
    assert_eq!(found(Some(Path::new("elsewhere"))), Path::new("elsewhere"));
    assert_eq!(AdapterFolder::find(&named, None).unwrap(), None);
    set(folder.path(), "base_model_name_or_path", json!("org/small-base"));
    refused(folder.path(), &["org/small-base", "`hf download org/small-base --local-dir small-base`", "--base-model"]);
    set(folder.path(), "base_model_name_or_path", json!("/no/such/folder"));
    refused(folder.path(), &["/no/such/folder", "--base-model"]);
    set(folder.path(), "base_model_name_or_path", json!(null));
    refused(folder.path(), &["names no base", "--base-model"]);
    // An adapter whose base is an adapter must be merged in two steps.
    let other = copy("plain");
    set(folder.path(), "base_model_name_or_path", json!(other.path()));
    refused(folder.path(), &["adapter itself", "mapl export --merge"]);
}
