//! Finds the reward head of a folder: by the architecture, by the classes of OpenRLHF, or as a value head
//! next to a language model (LLaMA-Factory, TRL). Also checks the number of labels and reads the
//! normalisation of rewards.

use std::path::Path;

use serde_json::Value;

use super::config::{Head, ModelConfig};
use super::config_json::Keys;
use super::config_support::supported;
use super::family::{FAMILIES, Family};
use super::weights::VALUE_HEAD_FILE;
use super::weights_shards::stored_shape;
use crate::files::input::is_named;
use crate::{Error, Result};

/// Largest number of labels of a classifier.
const MAX_LABELS: usize = 1 << 20;

/// Classes of OpenRLHF's reward models, of new and of old versions.
const OPENRLHF_CLASSES: [&str; 2] = ["RewardModel", "LLMForSequenceRegression"];

/// Name of a value head among the weights of a language model.
const VALUE_HEAD: &str = "v_head.summary.weight";
/// Name of a value head in a pickled file.
const PICKLED_HEAD: &str = "value_head.bin";

/// Keys of OpenRLHF that normalise rewards.
const NORM_KEYS: [&str; 3] = ["normalize_reward", "mean", "std"];

/// Head that a model folder holds.
#[derive(Debug)]
pub(super) struct FoundHead {
    pub head: Head,
    /// Rewards are read at the last token, regardless of the pad token, as the trainer of the model reads
    /// them.
    pub last_token: bool,
    pub note: Option<String>,
}

/// Normalisation of rewards: (reward - mean) / deviation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RewardNorm {
    pub mean: f64,
    /// Above 0.
    pub deviation: f64,
}

impl RewardNorm {
    /// Reads mean and standard deviation of a file that sets `normalize_reward`, as OpenRLHF writes it.
    pub(super) fn read(keys: Keys) -> Result<Option<Self>> {
        if !keys.flag_or("normalize_reward", false)? {
            return Ok(None);
        }
        let mean = keys.number_or("mean", 0.0, |_| true, "finite")?;
        let deviation = keys.number_or("std", 1.0, |x| x > 0.0, "above 0")?;
        Ok(Some(Self { mean, deviation }))
    }

    /// One line about the normalisation of scores.
    pub fn line(self) -> String {
        let Self { mean, deviation } = self;
        format!("rewards are normalised as config.json says (OpenRLHF): (reward - {mean}) / {deviation}")
    }
}

impl ModelConfig {
    /// Removes the normalisation of rewards, which does not fit the head after more training.
    pub(super) fn without_norm(mut self) -> Self {
        if self.reward_norm.take().is_some() {
            self.notes.push(
                "\"mean\" and \"std\" of the start model's rewards are left out: training changes the rewards"
                    .to_owned(),
            );
        }
        // Without `normalize_reward`, `mean` and `std` are not OpenRLHF's, so they stay.
        if self.original.contains_key(NORM_KEYS[0]) {
            self.original.retain(|key, _| !NORM_KEYS.contains(&key.as_str()));
        }
        self
    }

    /// Module name of the reward head in OpenRLHF's configuration.
    pub(super) fn value_head_prefix(&self) -> Option<&str> {
        self.original.get("value_head_prefix").and_then(Value::as_str)
    }
}

/// Whether a folder holds a value head next to a language model.
///
/// # Errors
/// [`Error::Model`] if the head is pickled.
pub(super) fn has_value_head(folder: &Path) -> Result<bool> {
    if is_named(&folder.join(VALUE_HEAD_FILE)) || stored_shape(folder, VALUE_HEAD).is_some() {
        return Ok(true);
    }
    if is_named(&folder.join(PICKLED_HEAD)) {
        let why = format!(
            "contains the value head {PICKLED_HEAD}; pickled weights are not supported: save it as {VALUE_HEAD_FILE} \
             (with the tensors v_head.summary.weight and v_head.summary.bias), or remove it to use the language model"
        );
        return Err(Error::model(folder, why));
    }
    Ok(false)
}

/// Head of the architecture that a file names. The base model (`LlamaModel`) counts as a language model; its
/// weights decide whether it has the projection to the vocabulary. `folder` is the model folder of the file, if
/// it has one. With a value head in this folder, any architecture is a reward model.
pub(super) fn read_head(keys: Keys, family: &Family, folder: Option<&Path>) -> Result<FoundHead> {
    let class = match keys.get("architectures") {
        Some(Value::Array(list)) if list.len() == 1 => list[0].as_str().unwrap_or_default(),
        _ => "",
    };
    if OPENRLHF_CLASSES.contains(&class) {
        let note = "a reward model of OpenRLHF: rewards are read at the last token".to_owned();
        return Ok(FoundHead { head: Head::Reward, last_token: true, note: Some(note) });
    }
    let head = match keys.get("architectures") {
        None => Head::LanguageModel,
        Some(Value::Array(list)) if list.len() == 1 => {
            let class = list[0].as_str().unwrap_or_default();
            let kinds =
                [(family.base_model, Head::LanguageModel), (Head::LanguageModel.class(family), Head::LanguageModel)];
            kinds
                .into_iter()
                .chain([(Head::Reward.class(family), Head::Reward)])
                .find(|(kind, _)| class.strip_suffix(kind) == Some(family.class))
                .map(|(_, head)| head)
                .ok_or_else(|| {
                    let of_other = FAMILIES.iter().any(|other| {
                        class.strip_prefix(other.class).is_some_and(|rest| {
                            [other.base_model, Head::LanguageModel.class(other), Head::Reward.class(other)]
                                .contains(&rest)
                        })
                    });
                    let why = match of_other {
                        true => {
                            format!("it does not belong to \"model_type\" \"{}\"; make them agree", family.model_type)
                        }
                        false => format!("mapl supports {}", supported()),
                    };
                    keys.refuse("architectures", &list[0], &why)
                })?
        }
        Some(other) => {
            let allowed = format!("it must be a list of one class name; mapl supports {}", supported());
            return Err(keys.refuse("architectures", other, &allowed));
        }
    };
    if head == Head::Reward {
        check_labels(keys, folder)?;
    } else if let Some(folder) = folder
        && has_value_head(folder)?
    {
        let note =
            "the folder holds a value head, as LLaMA-Factory and TRL write it, so it is a reward model, read at the \
                    last token"
                .to_owned();
        return Ok(FoundHead { head: Head::Reward, last_token: true, note: Some(note) });
    }
    Ok(FoundHead { head, last_token: false, note: None })
}

/// Returns an error for a number of labels other than one. transformers reads it from `id2label`, then from
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
