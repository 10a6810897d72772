//! Writes adapter folders that PEFT can load: `adapter_config.json`, then `adapter_model.safetensors`, each under
//! a temporary name first. The caller copies the tokenizer's files.

use std::path::Path;

use super::config::{AdapterConfig, CONFIG_FILE};
use super::files::WEIGHTS_FILE;
use super::targets::{PREFIX, module_name};
use crate::Result;
use crate::files::{json_text, sync, write_atomic};
use crate::model::config::{ModelConfig, StoredDtype};
use crate::model::tensors::{Order, TensorSpec};
use crate::model::weights::Fill;
use crate::model::weights_write::write_shard;

impl AdapterConfig {
    /// Every tensor of the adapter's file for a model: A and B of each module, then the tensors of
    /// modules that are stored whole. Roles and layers are those of the model's tensor.
    ///
    /// # Errors
    /// Like [`AdapterConfig::modules`].
    pub fn tensors(&self, model: &ModelConfig) -> Result<Vec<TensorSpec>, String> {
        let mut tensors = Vec::new();
        for module in self.modules(model)? {
            let of = &module.tensor;
            let part = |(name, shape)| TensorSpec { name, shape, order: Order::Rows, ..of.clone() };
            tensors.extend(module.parts().map(part));
        }
        let whole = self.whole(model).into_iter();
        tensors.extend(whole.map(|tensor| TensorSpec { name: format!("{PREFIX}{}", tensor.name), ..tensor }));
        Ok(tensors)
    }

    /// Tensors of a model that the adapter stores whole (`modules_to_save`).
    pub(crate) fn whole(&self, model: &ModelConfig) -> Vec<TensorSpec> {
        let stored = |tensor: &TensorSpec| {
            let name = module_name(tensor);
            self.saves_whole(name.strip_suffix(".bias").unwrap_or(name))
        };
        model.tensors().into_iter().filter(stored).collect()
    }
}

/// Writes an adapter into an existing folder, with the weights of `tensors` ([`AdapterConfig::tensors`]) as
/// `dtype`. `fill` supplies the values of each tensor. The weight file gets its final name last, so a folder
/// that has it is complete.
pub fn write_adapter(
    folder: &Path,
    config: &AdapterConfig,
    tensors: &[TensorSpec],
    dtype: StoredDtype,
    fill: &mut Fill,
) -> Result<()> {
    let mut sorted: Vec<&TensorSpec> = tensors.iter().collect();
    sorted.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let weights = write_shard(&folder.join(WEIGHTS_FILE), &sorted, dtype, fill)?;
    write_atomic(&folder.join(CONFIG_FILE), json_text(&serde_json::Value::Object(config.to_json())).as_bytes())?;
    weights.rename()?;
    sync(folder)
}
