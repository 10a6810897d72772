//! Entry points of the fuzz targets: one function each, used by the targets and by
//! `tests/data/fuzz_seeds.rs`. A function returns for every input, valid or not. It panics if the program
//! violates an invariant: an accepted group must be valid and read back equal, a loaded number must be
//! finite, and a written configuration must read back equal.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use mapl::data::group::Message;
use mapl::data::source::{ReadOptions, SourceRow, read_files, read_sft_files, read_texts};
use mapl::data::template::ChatTemplate;
use mapl::model::config::{ModelConfig, StoredDtype};
use mapl::model::weights::{LoadAs, WeightFiles};

thread_local! {
    static FOLDER: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
}

/// Runs `f` with a scratch folder of this thread, in memory if the system has `/dev/shm`.
fn in_folder<T>(f: impl FnOnce(&Path) -> T) -> T {
    let make = || {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        tempfile::tempdir_in(place).expect("a scratch folder")
    };
    FOLDER.with(|folder| f(folder.get_or_init(make).path()))
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).expect("the scratch folder is writable");
    path
}

/// Reads the bytes as a file of preference rows, as a file of rows for supervised fine-tuning, and as
/// a file of texts for training a tokenizer.
pub fn groups(bytes: &[u8]) {
    in_folder(|folder| {
        let paths = [write(folder, "rows.jsonl", bytes)];
        for mixed_formats in [false, true] {
            let options = ReadOptions { mixed_formats, ..ReadOptions::default() };
            if let Ok(rows) = read_files(&paths, &options) {
                check_rows(folder, &rows);
            }
            if let Ok((rows, reports)) = read_sft_files(&paths, &options) {
                assert_eq!(reports[0].rows(), rows.len());
            }
        }
        let _ = read_texts(&paths, &ReadOptions::default());
    });
}

/// Checks that every accepted row is valid, has no empty response, and survives writing and reading
/// unchanged.
fn check_rows(folder: &Path, rows: &[SourceRow]) {
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        row.group.validate().expect("an accepted group is valid");
        assert!(row.group.responses.iter().all(|response| !response.is_empty()));
        // Group rows need distinct ids, but pairs may share one, so each group gets a new id.
        let group = mapl::data::group::PreferenceGroup { id: format!("row-{i}"), ..row.group.clone() };
        text += &serde_json::to_string(&group).expect("a group is JSON");
        text.push('\n');
    }
    let again = read_files(&[write(folder, "again.jsonl", text.as_bytes())], &ReadOptions::default());
    let again = again.expect("a written group is read");
    assert_eq!(again.len(), rows.len());
    for (before, after) in rows.iter().zip(&again) {
        let after = mapl::data::group::PreferenceGroup { id: before.group.id.clone(), ..after.group.clone() };
        assert_eq!(before.group, after);
    }
}

/// Model that [`weights`] reads: one layer, hidden size 2, four token ids.
pub const TINY: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 4,
    "hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "tie_word_embeddings": false, "pad_token_id": 0}"#;

fn tiny() -> ModelConfig {
    let map = serde_json::from_str(TINY).expect("the constant is JSON");
    ModelConfig::from_json(map, Path::new("config.json")).expect("the constant is a configuration")
}

/// Opens the bytes as `model.safetensors` of a tiny model and reads every tensor. The model is
/// opened as a language model and as the initial weights of a reward model.
pub fn weights(bytes: &[u8]) {
    let config = tiny();
    let reward = config.clone().into_reward(0).expect("the pad id is in the vocabulary");
    in_folder(|folder| {
        write(folder, "model.safetensors", bytes);
        for (config, load_as) in [(&config, LoadAs::Exact), (&reward, LoadAs::RewardStart)] {
            let Ok(files) = WeightFiles::open(folder, config, load_as) else { continue };
            for spec in config.tensors() {
                if files.score_missing() && spec.name == "score.weight" {
                    continue;
                }
                if let Ok(values) = files.read_all(&spec.name) {
                    assert_eq!(values.len(), spec.elements(), "{}", spec.name);
                    assert!(values.iter().all(|x| x.is_finite()), "{}", spec.name);
                }
            }
        }
    });
}

/// Reads the bytes up to the first NUL as `config.json` and the bytes after it as
/// `generation_config.json`.
pub fn config(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |&byte| byte == 0);
    in_folder(|folder| {
        write(folder, "config.json", parts.next().unwrap_or_default());
        let generation = folder.join("generation_config.json");
        match parts.next() {
            Some(bytes) => drop(write(folder, "generation_config.json", bytes)),
            None => drop(std::fs::remove_file(generation)),
        }
        let Ok(config) = ModelConfig::read(folder) else { return };
        let count = config.parameters().expect("an accepted configuration has a number of parameters");
        assert_eq!(config.tensors().iter().map(|t| t.elements()).sum::<usize>(), count);
        assert!(config.inv_freq().iter().all(|x| x.is_finite()));
        let written = folder.join("written");
        std::fs::create_dir_all(&written).expect("the scratch folder is writable");
        config.write(&written, StoredDtype::F32).expect("an accepted configuration is written");
        let again = ModelConfig::read(&written).expect("a written configuration is read");
        assert_eq!(sizes(&config), sizes(&again));
    });
}

/// Returns the fields that affect the computation as one string, for comparison.
fn sizes(c: &ModelConfig) -> String {
    format!(
        "{:?} {:?} {} {} {} {} {} {} {} {} {} {} {} {:?} {:?} {} {} {:?} {:?} {:?}",
        c.family.model_type,
        c.head,
        c.vocab,
        c.hidden,
        c.intermediate,
        c.layers,
        c.heads,
        c.kv_heads,
        c.head_dim,
        c.rms_norm_eps,
        c.qkv_bias,
        c.output_bias,
        c.tied,
        c.rope,
        c.layers_without_rope,
        c.max_positions,
        c.declared_positions,
        c.eos,
        c.bos,
        c.pad
    )
}

/// Compiles the bytes up to the first NUL as a chat template. The following parts, separated by
/// NUL, are rendered as the turns of a conversation.
pub fn template(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.split('\0');
    let source = parts.next().unwrap_or_default();
    let tokens = vec![("bos_token".to_owned(), "<s>".to_owned()), ("eos_token".to_owned(), "</s>".to_owned())];
    let Ok(template) = ChatTemplate::compile(source, tokens) else { return };
    let roles = ["user", "assistant", "system", "tool"];
    let mut messages: Vec<Message> =
        parts.zip(roles.iter().cycle()).map(|(content, role)| Message::new(*role, content)).collect();
    if messages.is_empty() {
        messages.push(Message::new("user", "Name a bird."));
    }
    let tools = serde_json::json!([{"type": "function", "function": {"name": "find", "parameters": {"n": 1.5}}}]);
    let kwargs = serde_json::json!({"enable_thinking": false, "depth": [[1, 2], {"k": null}]});
    // A failed rendering is not repeated: an endless loop uses the whole instruction budget every
    // time.
    let Ok(first) = template.render(&messages, true, Some(&tools), kwargs.as_object()) else { return };
    let again = template.render(&messages, true, Some(&tools), kwargs.as_object());
    assert_eq!(again.as_ref(), Ok(&first), "rendering is repeatable");
    let _ = template.render(&messages, false, None, None);
}
