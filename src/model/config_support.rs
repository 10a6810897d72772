//! Checks which families and settings of a `config.json` are supported. For every other setting that changes the
//! computation, an error names the key and gives advice.

use std::path::Path;

use serde_json::Value;

use super::config::{Head, ModelConfig, StoredDtype};
use super::config_json::{Keys, shown};
use super::family::{Bias, FAMILIES, Family, LLAMA, Parallel};
use super::family_missing::missing;
use crate::files::hub::hub_model;
use crate::{Error, Result};

/// Error text for a folder without `config.json`, with advice that fits the contents of the folder.
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
        "contains no config.json; --model needs a Hugging Face model folder (make one with `mapl init`)"
    } else {
        "is not a local folder; --model needs a Hugging Face model folder: download it first, or make one with `mapl \
         init`"
    };
    why.to_owned()
}

/// Keys of dropout rates in the configurations of all families.
const DROPOUT: [&str; 8] = [
    "attention_dropout",
    "hidden_dropout",
    "residual_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "classifier_dropout",
    "summary_first_dropout",
];

impl ModelConfig {
    /// Keys and rates of dropout above 0. transformers applies dropout in training; this program does not.
    pub fn dropout(&self) -> Vec<(&'static str, f64)> {
        let rate = |key: &str| self.original.get(key).and_then(Value::as_f64).filter(|&rate| rate > 0.0);
        DROPOUT.into_iter().filter_map(|key| Some((key, rate(key)?))).collect()
    }
}

/// Returns the names of all supported architectures, for messages.
pub(super) fn supported() -> String {
    let classes: Vec<&str> = FAMILIES.iter().map(|family| family.class).collect();
    let heads = [Head::LanguageModel, Head::Reward].map(|head| head.class(&LLAMA)).join(" and ");
    let of_others = FAMILIES.iter().flat_map(|family| {
        [Head::LanguageModel, Head::Reward]
            .into_iter()
            .filter(|head| head.class(family) != head.class(&LLAMA))
            .map(|head| format!(", {}", family.class_of(head)))
    });
    let others: String = of_others.collect();
    format!("{heads} of {}{others}", classes.join(", "))
}

pub(super) fn read_family(keys: Keys) -> Result<&'static Family> {
    let types: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
    let types = types.join(", ");
    let Some(found) = keys.text("model_type")? else {
        return Err(keys.missing("model_type", &format!("mapl supports {types}")));
    };
    Family::find(found).ok_or_else(|| {
        let needs = missing(found).map_or(String::new(), |needs| format!(" (it needs {needs})"));
        Error::model(keys.path, format!("model type {found:?} is not supported{needs}; mapl supports {types}"))
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

/// Names of two traits of a family that are not supported together, if it has such a pair.
fn clash(family: &Family) -> Option<(&'static str, &'static str)> {
    let parallel = matches!(family.parallel, Parallel::Key { .. });
    let (behind, by_type) = ("post-norms of attention and MLP", "RoPE settings by layer type");
    [
        (family.norms_behind && family.layer_norm, behind, "LayerNorm"),
        (family.norms_behind && family.multipliers, behind, "factors on the residuals"),
        (family.norms_behind && parallel, behind, "attention and MLP in parallel"),
        (!family.norms_in_front && !family.norms_behind, "attention and MLP without pre-norms", "no post-norms"),
        (family.unit_offset && family.layer_norm, "norm weights stored as their distance from 1", "LayerNorm"),
        (family.scaled_embeddings && family.multipliers, "scaled embeddings", "factors on the residuals"),
        (family.whole_norm && !family.qk_norm, "one norm of all heads", "no norm of queries and keys"),
        (family.rope.by_layer_type && family.rope.partial.is_some(), by_type, "RoPE on a part of each head"),
        (family.rope.by_layer_type && family.learned_positions, by_type, "learned positions"),
    ]
    .into_iter()
    .find_map(|(clashes, one, other)| clashes.then_some((one, other)))
}

/// Returns an error for settings that change the computation in a way that is not implemented.
pub(super) fn refuse_unsupported(keys: Keys, family: &Family) -> Result<()> {
    if let Some((one, other)) = clash(family) {
        let why = format!("{} models would have {one} and {other}, which are not supported together", family.class);
        return Err(Error::model(keys.path, why));
    }
    if matches!(family.mlp_bias, Bias::Never) && keys.flag_or("mlp_bias", false)? {
        let why = format!("\"mlp_bias\" is true; {} models have no biases on the MLP projections", family.class);
        return Err(Error::model(keys.path, why));
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
            Error::model(keys.path, format!("\"{key}\" is {text:?}; mapl supports float32, bfloat16 and float16"))
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

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::super::family::RopeRule;
    use super::*;

    #[test]
    fn traits_that_do_not_go_together_are_refused_by_name() {
        let map = Map::new();
        let keys = Keys { map: &map, path: Path::new("config.json"), prefix: "", names: &[] };
        FAMILIES.iter().for_each(|family| refuse_unsupported(keys, family).unwrap());
        let by_type = |partial| RopeRule { by_layer_type: true, partial, ..LLAMA.rope };
        let parallel = Parallel::Key { default: false, shared_norm: false };
        for (family, parts) in [
            (Family { norms_behind: true, layer_norm: true, ..LLAMA }, ["post-norms", "LayerNorm"]),
            (Family { norms_behind: true, multipliers: true, ..LLAMA }, ["post-norms", "factors"]),
            (Family { norms_behind: true, parallel, ..LLAMA }, ["post-norms", "in parallel"]),
            (Family { norms_in_front: false, ..LLAMA }, ["without pre-norms", "no post-norms"]),
            (Family { unit_offset: true, layer_norm: true, ..LLAMA }, ["distance from 1", "LayerNorm"]),
            (Family { scaled_embeddings: true, multipliers: true, ..LLAMA }, ["scaled embeddings", "factors"]),
            (Family { whole_norm: true, ..LLAMA }, ["all heads", "no norm"]),
            (Family { rope: by_type(Some(0.5)), ..LLAMA }, ["by layer type", "part of each head"]),
            (Family { rope: by_type(None), learned_positions: true, ..LLAMA }, ["by layer type", "learned"]),
        ] {
            let text = refuse_unsupported(keys, &family).unwrap_err().to_string();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }
}
