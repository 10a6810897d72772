//! Weights of a Hugging Face model folder: `model.safetensors`, or shards
//! `model-00001-of-0000N.safetensors` with `model.safetensors.index.json`. `weights_read` reads and
//! `weights_write` writes them; both stream, so the whole model is never held twice.
//!
//! Errors: missing, unexpected or misshapen tensors; data types other than f32, bf16 and f16; truncated or
//! damaged files; a tensor in two shards; values that are not finite.

use std::path::Path;

pub use super::weights_read::{LoadAs, TensorReader, WeightFiles};
pub use super::weights_write::{DEFAULT_SHARD_BYTES, Fill};

use super::config::{ModelConfig, StoredDtype};
use super::tensors::{Role, TensorSpec};
pub(crate) use super::weights_write::overflows;
use super::weights_write::stage;
use crate::Result;

/// Name of an unsharded weight file.
pub(super) const SINGLE_FILE: &str = "model.safetensors";
/// Name of a separate file of a reward head, as LLaMA-Factory writes it.
pub(super) const VALUE_HEAD_FILE: &str = "value_head.safetensors";
/// Name of the shard index.
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";

/// Writes a model folder that transformers loads: `config.json`, `generation_config.json` (language
/// models) and the weights as `dtype`, in shards of at most `shard_bytes`. The folder must exist;
/// the caller writes the tokenizer files.
pub fn write_model(
    folder: &Path,
    config: &ModelConfig,
    dtype: StoredDtype,
    shard_bytes: u64,
    fill: &mut Fill,
) -> Result<()> {
    // The head is written under the name that both transformers 4 and 5 know.
    let old_head = config.family.names.old_head;
    let own = config.tensors();
    let head = own.iter().find(|tensor| tensor.role == Role::LmHead);
    let stored = |tensor: &TensorSpec| match old_head {
        Some(name) if tensor.role == Role::LmHead => TensorSpec { name: name.to_owned(), ..tensor.clone() },
        _ => tensor.clone(),
    };
    let tensors: Vec<TensorSpec> = own.iter().map(stored).collect();
    let weights = stage(folder, &tensors, dtype, shard_bytes, &mut |tensor, offset, out| {
        fill(head.filter(|_| tensor.role == Role::LmHead).unwrap_or(tensor), offset, out)
    })?;
    // Weights are renamed last: a folder with weights under their final names is complete.
    config.write(folder, dtype)?;
    weights.publish()
}
