//! Model folders of other programs: tensor names that transformers also reads, and folders that are rejected.
//! The error names the tensor or the key, and a remedy.

use std::path::Path;

use mapl::model::config::{Head, ModelConfig};
use mapl::model::weights::{LoadAs, WeightFiles};
use serde_json::{Value, json};

use crate::model_folder::{Raw, copy, raw, refused, write_raw};

const HEAD: &str = "lm_head.weight";
const TABLE: &str = "model.embed_tokens.weight";

/// A copy of a golden model with changed tensors and changed keys of config.json.
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

/// OpenRLHF writes `score` or `value_head`, TRL and LLaMA-Factory `v_head.summary`.
#[test]
fn reward_heads_of_other_trainers_are_read_under_their_names() {
    let own = values(copy("llama-reward").path(), LoadAs::Exact);
    for name in ["value_head.weight", "v_head.summary.weight", "v_head.weight", "reward_head.weight"] {
        let other = |tensors| renamed(tensors, |own| own.replace("score.weight", name));
        let folder = changed("llama-reward", other, &[]);
        for load_as in [LoadAs::Exact, LoadAs::RewardStart] {
            assert_eq!(values(folder.path(), load_as), own, "{name}");
            let (_, files) = open(folder.path(), load_as);
            assert!(!files.score_missing() && files.notes()[0].contains(name), "{:?}", files.notes());
        }
    }
    let other = |tensors| renamed(tensors, |own| own.replace("score.weight", "my_head.weight"));
    let folder = changed("llama-reward", other, &[("value_head_prefix", Some(json!("my_head")))]);
    assert_eq!(values(folder.path(), LoadAs::Exact), own);
}

#[test]
fn a_reward_head_under_an_unknown_name_is_named() {
    let other = |tensors| renamed(tensors, |name| name.replace("score.weight", "judge.weight"));
    let folder = changed("llama-reward", other, &[]);
    for load_as in [LoadAs::Exact, LoadAs::RewardStart] {
        let parts = ["\"judge.weight\" of shape [1, 32]", "rename", "\"score.weight\""];
        let config = ModelConfig::read(folder.path()).unwrap();
        let why = WeightFiles::open(folder.path(), &config, load_as).err().unwrap().to_string();
        assert!(parts.iter().all(|part| why.contains(part)), "{why}");
    }
}

/// Weight and bias of a value head, as LLaMA-Factory saves them next to a language model.
fn value_head(tensors: &Raw) -> Raw {
    let weight = tensors["score.weight"].clone();
    let bias = (weight.0, vec![1], weight.2[..weight.2.len() / 32].to_vec());
    [("v_head.summary.weight".to_owned(), weight), ("v_head.summary.bias".to_owned(), bias)].into()
}

#[test]
fn a_language_model_with_a_value_head_is_a_reward_model() {
    let reward = raw(copy("llama-reward").path());
    let language = |mut tensors: Raw| {
        tensors.remove("score.weight").unwrap();
        let table = tensors[TABLE].clone();
        tensors.insert(HEAD.to_owned(), table);
        tensors
    };
    let keys = [
        ("architectures", Some(json!(["LlamaForCausalLM"]))),
        ("id2label", None),
        ("label2id", None),
        ("pad_token_id", None),
    ];
    let own = values(copy("llama-reward").path(), LoadAs::Exact);
    let check = |folder: &Path| {
        let (config, files) = open(folder, LoadAs::Exact);
        assert_eq!((config.head, config.pad), (Head::Reward, None));
        assert!(config.notes.iter().any(|note| note.contains("value head")), "{:?}", config.notes);
        assert_eq!(values(folder, LoadAs::Exact), own);
        let first = f32::from_le_bytes(reward["score.weight"].2[..4].try_into().unwrap());
        assert_eq!((files.head_bias().unwrap(), files.ignored()), (f64::from(first), &[HEAD.to_owned()][..]));
    };
    let folder = changed("llama-reward", language, &keys);
    write_raw(&folder.path().join("value_head.safetensors"), &value_head(&reward));
    check(folder.path());
    // TRL saves the language model and the value head in one file.
    let one_file = |tensors: Raw| language(tensors).into_iter().chain(value_head(&reward)).collect();
    check(changed("llama-reward", one_file, &keys).path());
    std::fs::rename(folder.path().join("value_head.safetensors"), folder.path().join("value_head.bin")).unwrap();
    let why = ModelConfig::read(folder.path()).unwrap_err().to_string();
    assert!(why.contains("value_head.bin") && why.contains("remove it to use the language model"), "{why}");
}

#[test]
fn classes_and_normalisation_of_openrlhf_are_read() {
    for class in ["RewardModel", "LLMForSequenceRegression"] {
        let keys = [
            ("architectures", Some(json!([class]))),
            ("id2label", None),
            ("label2id", None),
            ("normalize_reward", Some(json!(true))),
            ("mean", Some(json!(0.25))),
            ("std", Some(json!(2.0))),
        ];
        let other = |tensors| renamed(tensors, |name| name.replace("score.weight", "value_head.weight"));
        let folder = changed("llama-reward", other, &keys);
        let (config, _) = open(folder.path(), LoadAs::Exact);
        assert_eq!((config.head, config.pad), (Head::Reward, None), "{class}");
        let norm = config.reward_norm.unwrap();
        assert_eq!((norm.mean, norm.deviation), (0.25, 2.0));
        assert_eq!(values(folder.path(), LoadAs::Exact), values(copy("llama-reward").path(), LoadAs::Exact));
        // Further training changes the rewards, so the normalisation is dropped.
        let trained = config.into_reward(3).unwrap();
        assert_eq!(trained.reward_norm, None);
        let written = trained.to_json(mapl::model::config::StoredDtype::F32);
        assert!(["mean", "std", "normalize_reward"].iter().all(|key| !written.contains_key(*key)), "{written:?}");
        assert_eq!(written["architectures"], json!(["LlamaForSequenceClassification"]));
    }
    let message = |std: Value| {
        let keys = [("normalize_reward", Some(json!(true))), ("std", Some(std))];
        ModelConfig::read(changed("llama-reward", |tensors| tensors, &keys).path()).unwrap_err().to_string()
    };
    assert!(message(json!(0.0)).contains("\"std\" is 0.0") && message(json!("1")).contains("\"std\""));
    // Without `normalize_reward`, OpenRLHF does not normalise rewards either.
    let keys = [("normalize_reward", Some(json!(false))), ("mean", Some(json!(1.0))), ("std", Some(json!(2.0)))];
    let folder = changed("llama-reward", |tensors| tensors, &keys);
    assert_eq!(ModelConfig::read(folder.path()).unwrap().reward_norm, None);
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
