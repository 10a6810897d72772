//! Model folders of other programs: names of tensors that transformers also reads, and what is refused
//! with the name of the tensor or key and the way on.

use std::path::Path;

use mapl::model::config::{Head, ModelConfig};
use mapl::model::weights::{LoadAs, WeightFiles};
use serde_json::{Value, json};

use crate::model_folder::{Raw, copy, raw, refused, write_raw};

const HEAD: &str = "lm_head.weight";
const TABLE: &str = "model.embed_tokens.weight";

/// A copy of a golden model with other tensors and keys of config.json.
fn changed(name: &str, tensors: impl Fn(Raw) -> Raw, keys: &[(&str, Option<Value>)]) -> tempfile::TempDir {
    let folder = copy(name);
    write_raw(&folder.path().join("model.safetensors"), &tensors(raw(folder.path())));
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, value) in keys {
        match value {
            Some(value) => config[*key] = value.clone(),
            None => drop(config.as_object_mut().unwrap().shift_remove(*key)),
        }
    }
    std::fs::write(path, config.to_string()).unwrap();
    folder
}

fn renamed(tensors: Raw, name: impl Fn(&str) -> String) -> Raw {
    tensors.into_iter().map(|(own, tensor)| (name(&own), tensor)).collect()
}

fn open(folder: &Path, load_as: LoadAs) -> (ModelConfig, WeightFiles) {
    let config = ModelConfig::read(folder).unwrap();
    let reward = load_as == LoadAs::RewardStart && config.head == Head::LanguageModel;
    let config = if reward { config.into_reward(0).unwrap() } else { config };
    let files = WeightFiles::open(folder, &config, load_as).unwrap_or_else(|e| panic!("{e}"));
    (config, files)
}

/// Values of all tensors of the configuration.
fn values(folder: &Path, load_as: LoadAs) -> Vec<Vec<f32>> {
    let (config, files) = open(folder, load_as);
    let known = config.tensors().into_iter().filter(|t| t.name != "score.weight" || !files.score_missing());
    known.map(|t| files.read_all(&t.name).unwrap()).collect()
}

#[test]
fn wrapped_and_bare_names_are_read_with_a_note() {
    let own = values(copy("llama").path(), LoadAs::Exact);
    for prefix in ["module.", "_orig_mod.", "module._orig_mod."] {
        let folder = changed("llama", |t| renamed(t, |name| format!("{prefix}{name}")), &[]);
        assert_eq!(values(folder.path(), LoadAs::Exact), own, "{prefix}");
        let note = &open(folder.path(), LoadAs::Exact).1.notes()[0].clone();
        assert!(note.contains(prefix), "{note}");
    }
    let bare = |tensors| renamed(tensors, |name| name.trim_start_matches("model.").to_owned());
    assert_eq!(values(changed("llama", bare, &[]).path(), LoadAs::Exact), own);
    assert!(open(copy("llama").path(), LoadAs::Exact).1.notes().is_empty());
}

#[test]
fn a_base_model_starts_a_reward_model() {
    let base = |tensors: Raw| {
        let body = tensors.into_iter().filter(|(name, _)| name.starts_with("model.")).collect();
        renamed(body, |name| name.trim_start_matches("model.").to_owned())
    };
    let folder = changed("llama", base, &[("architectures", Some(json!(["LlamaModel"])))]);
    let (start, own) = (values(folder.path(), LoadAs::RewardStart), values(copy("llama").path(), LoadAs::RewardStart));
    assert_eq!(start, own);
    refused(folder.path(), LoadAs::Exact, &[HEAD, "base model", "mapl reward"]);
}

#[test]
fn a_tied_table_may_be_stored_as_the_head_only() {
    let only_head = |mut tensors: Raw| {
        let table = tensors.remove(TABLE).unwrap();
        tensors.insert(HEAD.to_owned(), table);
        tensors
    };
    let own = values(copy("qwen2").path(), LoadAs::Exact);
    let folder = changed("qwen2", only_head, &[("tie_word_embeddings", Some(json!(true)))]);
    let (config, files) = open(folder.path(), LoadAs::Exact);
    assert!(config.tied && files.notes()[0].contains(HEAD), "{:?}", files.notes());
    assert_eq!(values(folder.path(), LoadAs::Exact), own);
    assert_eq!(values(folder.path(), LoadAs::RewardStart), values(copy("qwen2").path(), LoadAs::RewardStart));
    let folder = changed("qwen2", only_head, &[("tie_word_embeddings", Some(json!(false)))]);
    refused(folder.path(), LoadAs::Exact, &[TABLE, "tie_word_embeddings"]);
}

#[test]
fn a_leftover_head_of_a_reward_model_is_not_used() {
    let leftover = |mut tensors: Raw| {
        let table = tensors[TABLE].clone();
        tensors.insert(HEAD.to_owned(), table);
        tensors
    };
    let folder = changed("llama-reward", leftover, &[]);
    assert_eq!(values(folder.path(), LoadAs::Exact), values(copy("llama-reward").path(), LoadAs::Exact));
    assert_eq!(open(folder.path(), LoadAs::Exact).1.ignored(), [HEAD]);
}

#[test]
fn a_reward_head_under_another_name_is_named() {
    let other = |tensors| renamed(tensors, |name| name.replace("score.weight", "value_head.weight"));
    let folder = changed("llama-reward", other, &[]);
    for load_as in [LoadAs::Exact, LoadAs::RewardStart] {
        let parts = ["\"value_head.weight\" of shape [1, 32]", "rename", "\"score.weight\""];
        let config = ModelConfig::read(folder.path()).unwrap();
        let why = WeightFiles::open(folder.path(), &config, load_as).err().unwrap().to_string();
        assert!(parts.iter().all(|part| why.contains(part)), "{why}");
    }
}

#[test]
fn labels_that_contradict_the_stored_head_name_the_key_to_write() {
    let message = |keys: &[(&str, Option<Value>)]| {
        let folder = changed("llama-reward", |tensors| tensors, keys);
        ModelConfig::read(folder.path()).unwrap_err().to_string()
    };
    let none = [("id2label", None), ("label2id", None), ("num_labels", None)];
    let why = message(&none);
    assert!(why.contains("\"score.weight\" has one row") && why.contains("write \"num_labels\": 1"), "{why}");
    let why = message(&[("id2label", Some(json!({"0": "a", "1": "b"})))]);
    assert!(why.contains("labels is 2 ") && why.contains("set \"id2label\""), "{why}");
    let wide = |mut tensors: Raw| {
        let score = tensors.get_mut("score.weight").unwrap();
        (score.1, score.2) = (vec![2, 32], [score.2.clone(), score.2.clone()].concat());
        tensors
    };
    let folder = changed("llama-reward", wide, &none);
    let why = ModelConfig::read(folder.path()).unwrap_err().to_string();
    assert!(why.contains("has 2 rows") && why.contains("classifier"), "{why}");
}
