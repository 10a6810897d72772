//! What of a `config.json` is supported: family, head, number of labels, and settings that change the
//! computation. Everything else is refused with its key and the way on.

use std::path::Path;

use serde_json::Value;

use super::config::{Head, StoredDtype};
use super::config_json::{Keys, shown};
use super::family::{self, Bias, FAMILIES, Family};
use super::weights_read::stored_shape;
use crate::files::hub::hub_model;
use crate::{Error, Result};

/// Largest number of labels of a classifier.
const MAX_LABELS: usize = 1 << 20;

/// Reason to refuse a folder without `config.json`, with the advice that fits what it holds.
pub(super) fn no_config(folder: &Path) -> String {
    if let Some(advice) = hub_model(folder) {
        return advice;
    }
    let names: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let ends = |end: &str| names.iter().any(|name| name.ends_with(end));
    let why = if ends(".safetensors")
        || ends(".safetensors.index.json")
        || ends(".bin")
        || ends("generation_config.json")
    {
        "contains no config.json, but other files of a model; download the missing files of this model too"
    } else if ends("tokenizer.json") {
        "contains a tokenizer and no config.json; download the model's other files, or make a model with this tokenizer \
         (`mapl init --tokenizer`)"
    } else if folder.is_dir() {
        "contains no config.json; --model takes a Hugging Face model folder (make one with `mapl init`)"
    } else {
        "is not a folder here; --model takes a Hugging Face model folder: download it first, or make one with `mapl init`"
    };
    why.to_owned()
}

/// Returns the names of all supported architectures, for messages.
fn supported() -> String {
    let classes: Vec<&str> = FAMILIES.iter().map(|family| family.class).collect();
    let heads = [Head::LanguageModel, Head::Reward].map(Head::class).join(" and ");
    format!("{heads} of {}", classes.join(", "))
}

pub(super) fn read_family(keys: Keys) -> Result<&'static Family> {
    let types: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
    let types = types.join(", ");
    let Some(found) = keys.text("model_type")? else {
        return Err(keys.missing("model_type", &format!("supported are {types}")));
    };
    Family::find(found).ok_or_else(|| {
        let needs = family::missing(found).map_or(String::new(), |needs| format!(" (it needs {needs})"));
        Error::model(keys.path, format!("model type {found:?} is not supported{needs}; supported are {types}"))
    })
}

/// Whether a projection has a bias.
pub(super) fn read_bias(keys: Keys, bias: Bias) -> Result<bool> {
    match bias {
        Bias::Never => Ok(false),
        Bias::Always => Ok(true),
        Bias::Key(key, default) => keys.flag_or(key, default),
    }
}

/// Head of the architecture that a file names. The base model (`LlamaModel`) counts as a language
/// model: its weights decide whether it has the projection to the vocabulary. `folder` holds the
/// weights, if the file belongs to a model folder.
pub(super) fn read_head(keys: Keys, family: &Family, folder: Option<&Path>) -> Result<Head> {
    let head = match keys.get("architectures") {
        None => Head::LanguageModel,
        Some(Value::Array(list)) if list.len() == 1 => {
            let class = list[0].as_str().unwrap_or_default();
            let kinds = [("Model", Head::LanguageModel), (Head::LanguageModel.class(), Head::LanguageModel)];
            kinds
                .into_iter()
                .chain([(Head::Reward.class(), Head::Reward)])
                .find(|(kind, _)| class.strip_suffix(kind) == Some(family.class))
                .map(|(_, head)| head)
                .ok_or_else(|| {
                    let of_other = FAMILIES.iter().any(|other| {
                        class.strip_prefix(other.class).is_some_and(|rest| {
                            ["Model", Head::LanguageModel.class(), Head::Reward.class()].contains(&rest)
                        })
                    });
                    let why = match of_other {
                        true => {
                            format!("it does not belong to \"model_type\" \"{}\"; make them agree", family.model_type)
                        }
                        false => format!("supported are {}", supported()),
                    };
                    keys.refuse("architectures", &list[0], &why)
                })?
        }
        Some(other) => {
            let allowed = format!("it must be a list of one class name; supported are {}", supported());
            return Err(keys.refuse("architectures", other, &allowed));
        }
    };
    if head == Head::Reward {
        check_labels(keys, folder)?;
    }
    Ok(head)
}

/// Refuses a number of labels other than one. transformers takes it from `id2label`, then from
/// `num_labels`, and otherwise assumes 2.
fn check_labels(keys: Keys, folder: Option<&Path>) -> Result<()> {
    let labels = match keys.object("id2label")? {
        Some(map) => Some(map.len()),
        None => keys.optional_size("num_labels", MAX_LABELS)?,
    };
    let found = match labels {
        Some(1) => return Ok(()),
        Some(n) => n.to_string(),
        None => "2 by default".to_owned(),
    };
    let rows = folder.and_then(|folder| stored_shape(folder, "score.weight")).and_then(|shape| shape.first().copied());
    let advice = match (rows, labels) {
        (Some(1), None) => {
            "but \"score.weight\" has one row, as in a reward model: write \"num_labels\": 1 into this file".to_owned()
        }
        (Some(1), Some(_)) => {
            "but \"score.weight\" has one row, as in a reward model: set \"id2label\" to {\"0\": \"LABEL_0\"} in this file"
                .to_owned()
        }
        (Some(rows), _) => format!(
            "and \"score.weight\" has {rows} rows: this is a classifier; a reward model has exactly one label, \
             {{\"0\": \"LABEL_0\"}}, and one row"
        ),
        (None, _) => "a reward model has exactly one, {\"0\": \"LABEL_0\"}".to_owned(),
    };
    let separator = if rows.is_some() { "," } else { ";" };
    let why = format!("the number of labels is {found} (from \"id2label\" or \"num_labels\"){separator} {advice}");
    Err(Error::model(keys.path, why))
}

/// Refuses settings that change the computation in a way that is not implemented.
pub(super) fn refuse_unsupported(keys: Keys, family: &Family) -> Result<()> {
    if let Some(act) = keys.text("hidden_act")?
        && !["silu", "swish"].contains(&act)
    {
        let why =
            format!("\"hidden_act\" is {act:?}; {} models need \"silu\" (or \"swish\", its other name)", family.class);
        return Err(Error::model(keys.path, why));
    }
    if keys.flag_or("mlp_bias", false)? {
        return Err(Error::model(keys.path, "\"mlp_bias\" is true; biases on the MLP projections are not supported"));
    }
    if let Some(quantisation) = keys.get("quantization_config") {
        let allowed = "quantised weights are not supported; use the float32, bfloat16 or float16 release";
        return Err(keys.refuse("quantization_config", quantisation, allowed));
    }
    Ok(())
}

pub(super) fn read_dtype(keys: Keys) -> Result<Option<StoredDtype>> {
    let one = |key: &str| -> Result<Option<StoredDtype>> {
        let Some(text) = keys.text(key)? else { return Ok(None) };
        let known = [StoredDtype::F32, StoredDtype::Bf16, StoredDtype::F16];
        known.into_iter().find(|d| d.name() == text).map(Some).ok_or_else(|| {
            Error::model(keys.path, format!("\"{key}\" is {text:?}; supported are float32, bfloat16 and float16"))
        })
    };
    match (one("torch_dtype")?, one("dtype")?) {
        (Some(four), Some(five)) if four != five => {
            let show = |key: &str| keys.get(key).map(shown).unwrap_or_default();
            let why = format!(
                "\"torch_dtype\" is {} but \"dtype\" is {}; they must agree. Delete the one that is wrong",
                show("torch_dtype"),
                show("dtype")
            );
            Err(Error::model(keys.path, why))
        }
        (four, five) => Ok(five.or(four)),
    }
}
