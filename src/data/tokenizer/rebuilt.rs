//! Folders for which transformers 5 builds a different tokenizer from the one in `tokenizer.json`. Some
//! tokenizer classes read only the vocabulary and the merges from the file and define the normaliser and the
//! pre-tokenizer themselves. mapl uses the ids of `tokenizer.json`, so a folder for which the two tokenizers
//! differ gets a warning.
//!
//! ```text
//! class = that of the model type, if transformers registers one and does not trust the folder's
//!         (Qwen2), else tokenizer_class of tokenizer_config.json, else that of config.json, else that
//!         of the model type
//! a class in the table REBUILDING splits texts as listed there; every other class as tokenizer.json does
//! ```
//!
//! These rules were derived from the behaviour of AutoTokenizer in transformers 5.23
//! (`tests/golden/rebuilt.py`).

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::StoredFile;
use crate::terminal::shown;

/// Class that uses tokenizer.json as it is.
const BACKEND: &str = "TokenizersBackend";

/// Tokenizer classes that transformers registers for model types, and whether they take precedence
/// over the folder's.
const REGISTERED: [(&str, &str, bool); 5] = [
    ("qwen2", "Qwen2Tokenizer", true),
    ("qwen3", "Qwen2Tokenizer", false),
    ("mistral", BACKEND, false),
    ("ministral", BACKEND, false),
    ("phi3", BACKEND, true),
];

/// Regular expression with which Qwen2Tokenizer splits texts.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Classes that define normaliser and pre-tokenizer themselves: name, normaliser, pre-tokenizer, as [`steps`]
/// writes them. `{space}` stands for the option `add_prefix_space`, `{scheme}` for its form in Metaspace.
const REBUILDING: [(&str, &str, &str); 5] = [
    ("Qwen2Tokenizer", "NFC", "Split({qwen2}, Isolated) + ByteLevel{space} without its expression"),
    ("LlamaTokenizer", "none", "Metaspace({scheme}, without splits)"),
    ("GPT2Tokenizer", "none", "ByteLevel{space}"),
    ("GPTNeoXTokenizer", "NFC", "ByteLevel{space}"),
    ("CohereTokenizer", "NFC", "Digits(single) + ByteLevel{space}"),
];

/// Parts of tokenizer.json.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
}

/// Returns a warning if the tokenizer that transformers builds from these files differs from tokenizer.json.
/// `config` is the model's configuration, if the folder has one.
pub(super) fn warning(dir: &Path, files: &[StoredFile], config: Option<&Map<String, Value>>) -> Option<String> {
    let bytes = |name: &str| files.iter().find(|file| file.path == dir.join(name)).map(|file| &file.bytes[..]);
    let parts: Parts = serde_json::from_slice(bytes("tokenizer.json")?).ok()?;
    let own: Map<String, Value> =
        bytes("tokenizer_config.json").and_then(|b| serde_json::from_slice(b).ok()).unwrap_or_default();
    let text = |map: Option<&Map<String, Value>>, key: &str| map?.get(key)?.as_str().map(str::to_owned);
    let model_type = text(config, "model_type").unwrap_or_default();
    let named = text(Some(&own), "tokenizer_class").or_else(|| text(config, "tokenizer_class"));
    if own.contains_key("auto_map") {
        return None;
    }
    let byte_level =
        [&parts.pre_tokenizer, &parts.decoder].iter().any(|part| part.to_string().contains("\"ByteLevel\""));
    let class = class(&model_type, named.as_deref(), byte_level)?;
    let &(class, normalizer, splits) = REBUILDING.iter().find(|(name, ..)| *name == class)?;
    let flag = |key: &str| own.get(key).and_then(Value::as_bool);
    let spaced = flag("add_prefix_space").unwrap_or(class == "LlamaTokenizer");
    let scheme = match (spaced, flag("legacy").unwrap_or(false)) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    let splits = splits
        .replace("{space}", if spaced { " with a space in front" } else { "" })
        .replace("{scheme}", scheme)
        .replace("{qwen2}", QWEN2);
    let built = format!("{normalizer}, then {splits}");
    let held = format!("{}, then {}", steps(&parts.normalizer), steps(&parts.pre_tokenizer));
    (built != held).then(|| {
        format!(
            "transformers 5 loads the tokenizer of {} as {class}, which prepares texts by {}; mapl follows \
             tokenizer.json, which holds {}, so ids can differ. In transformers, \
             PreTrainedTokenizerFast.from_pretrained follows tokenizer.json",
            dir.display(),
            shown(&built),
            shown(&held)
        )
    })
}

/// Returns the class with which AutoTokenizer loads a folder, if it is in [`REBUILDING`]. `byte_level` is true
/// if tokenizer.json holds a byte-level tokenizer.
fn class(model_type: &str, named: Option<&str>, byte_level: bool) -> Option<&'static str> {
    let named = named.map(|name| name.strip_suffix("Fast").unwrap_or(name));
    let registered = REGISTERED.iter().find(|(name, ..)| *name == model_type);
    let rebuilding = |name: &str| REBUILDING.iter().map(|(class, ..)| *class).find(|class| *class == name);
    match (registered, named) {
        // Folders of Llama 3 name the class of Llama 2, although their tokenizer is byte-level.
        (None, Some("LlamaTokenizer")) | (Some((.., false)), Some("LlamaTokenizer")) if byte_level => None,
        (Some((_, own, true)), _) => rebuilding(own),
        (Some((_, BACKEND, _)), _) => None,
        (_, Some(named)) => rebuilding(named),
        (Some((_, own, _)), None) => rebuilding(own),
        (None, None) => None,
    }
}

/// Describes the steps of a normaliser or pre-tokenizer, with every setting that changes ids.
fn steps(part: &Value) -> String {
    let Some(kind) = part["type"].as_str() else { return "none".to_owned() };
    let flag = |key: &str, default: bool| part[key].as_bool().unwrap_or(default);
    let text = |key: &str| part[key].as_str().unwrap_or_default().to_owned();
    let pattern = || match &part["pattern"] {
        Value::Object(map) => map.values().next().and_then(Value::as_str).unwrap_or_default().to_owned(),
        other => other.as_str().unwrap_or_default().to_owned(),
    };
    match kind {
        "Sequence" => {
            let parts = part["normalizers"].as_array().or(part["pretokenizers"].as_array());
            let parts: Vec<String> = parts.into_iter().flatten().map(steps).collect();
            if parts.is_empty() { "none".to_owned() } else { parts.join(" + ") }
        }
        "ByteLevel" => format!(
            "ByteLevel{}{}",
            if flag("add_prefix_space", true) { " with a space in front" } else { "" },
            if flag("use_regex", true) { "" } else { " without its expression" }
        ),
        "Metaspace" => {
            let scheme = match part["prepend_scheme"].as_str() {
                Some(scheme) => scheme,
                None if flag("add_prefix_space", true) => "always",
                None => "never",
            };
            format!("Metaspace({scheme}, {} splits)", if flag("split", true) { "with" } else { "without" })
        }
        "Split" => {
            format!(
                "Split({}, {}{})",
                pattern(),
                text("behavior"),
                if flag("invert", false) { ", inverted" } else { "" }
            )
        }
        "Digits" => format!("Digits({})", if flag("individual_digits", false) { "single" } else { "runs" }),
        "Prepend" => format!("Prepend({})", text("prepend")),
        "Replace" => format!("Replace({}, {})", pattern(), text("content")),
        other => {
            let options: Vec<String> = part
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(key, _)| *key != "type")
                .map(|(k, v)| format!("{k} {v}"))
                .collect();
            if options.is_empty() { other.to_owned() } else { format!("{other}({})", options.join(", ")) }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Checks every combination against the result of AutoTokenizer, which `tests/golden/rebuilt.py` records.
    #[test]
    fn folders_are_warned_of_exactly_if_transformers_splits_in_another_way() {
        let golden: Value = serde_json::from_str(include_str!("../../../tests/golden/rebuilt.json")).unwrap();
        let cases = golden["folders"].as_array().unwrap();
        assert!(cases.len() > 600);
        let dir = Path::new("folder");
        for case in cases {
            let file = |name: &str, content: &Value| StoredFile {
                path: dir.join(name),
                bytes: content.to_string().into_bytes(),
            };
            let way = &golden["ways"][case["way"].as_str().unwrap()];
            assert!(way.is_object());
            let files = [file("tokenizer.json", way), file("tokenizer_config.json", &case["tokenizer_config"])];
            let config = json!({"model_type": case["model_type"]});
            let found = warning(dir, &files, config.as_object());
            assert_eq!(found.is_some(), case["differs"] == true, "{case}: {found:?}");
            if let Some(text) = found {
                let class = case["class"].as_str().unwrap();
                assert!(text.contains(class) && text.contains("tokenizer.json, which holds"), "{text}");
            }
        }
    }
}
