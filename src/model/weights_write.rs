//! Writing of weight files: sorted tensor names, metadata `{"format": "pt"}`, shards of bounded
//! size with an index. A callback provides the values in chunks. Every file is written under a
//! temporary name, synced and renamed, so a reader never sees a partial file. Files of an earlier
//! save with other names are removed afterwards.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::{Map, Value, json};

use super::config::StoredDtype;
use super::tensors::TensorSpec;
use super::weights::{INDEX_FILE, SINGLE_FILE};
use crate::files::{Unfinished, json_text, sync, write_atomic};
use crate::{Error, Result};

/// Maximum bytes of tensors in one shard, as in transformers (5 GB, decimal).
pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// Source of the values: `fill(tensor, offset, out)` must write the tensor's elements
/// `offset..offset + out.len()` to `out`. Offsets ascend within a tensor; tensors come in order of
/// name.
pub type Fill<'a> = dyn FnMut(&TensorSpec, usize, &mut [f32]) -> Result<()> + 'a;

/// Elements requested from the callback at a time.
const CHUNK: usize = 1 << 16;

/// Complete weight files under temporary names.
pub(super) struct Staged<'a> {
    folder: &'a Path,
    names: Vec<String>,
    shards: Vec<Vec<&'a TensorSpec>>,
    files: Vec<Unfinished>,
    dtype: StoredDtype,
}

/// Writes the weights of `tensors` under temporary names, rounded to nearest even. Weights beyond the range of
/// `dtype` are an error. A tensor larger than `shard_bytes` gets a separate shard.
pub(super) fn stage<'a>(
    folder: &'a Path,
    tensors: &'a [TensorSpec],
    dtype: StoredDtype,
    shard_bytes: u64,
    fill: &mut Fill,
) -> Result<Staged<'a>> {
    let shards = plan(tensors, dtype, shard_bytes);
    let names: Vec<String> = match shards.len() {
        1 => vec![SINGLE_FILE.to_owned()],
        n => (1..=n).map(|i| format!("model-{i:05}-of-{n:05}.safetensors")).collect(),
    };
    let mut files = Vec::new();
    for (name, shard) in names.iter().zip(&shards) {
        files.push(write_shard(&folder.join(name), shard, dtype, fill)?);
    }
    Ok(Staged { folder, names, shards, files, dtype })
}

impl Staged<'_> {
    /// Renames the files, writes the index, and removes files of an earlier save. One rename is
    /// atomic, several are not. The old index is removed first, so old and new shards are never
    /// read as one model.
    pub(super) fn publish(self) -> Result<()> {
        let index = self.folder.join(INDEX_FILE);
        let sharded = self.names.len() > 1;
        if sharded && index.exists() {
            std::fs::remove_file(&index).map_err(Error::io("remove", &index))?;
            sync(self.folder)?;
        }
        for file in self.files {
            file.rename()?;
        }
        if sharded {
            sync(self.folder)?;
            write_index(self.folder, &self.names, &self.shards, self.dtype)?;
        }
        remove_stale(self.folder, &self.names)?;
        sync(self.folder)
    }
}

fn bytes_of(tensor: &TensorSpec, dtype: StoredDtype) -> u64 {
    tensor.elements() as u64 * dtype.bytes() as u64
}

/// Splits the tensors greedily into shards, in order of name.
fn plan(tensors: &[TensorSpec], dtype: StoredDtype, shard_bytes: u64) -> Vec<Vec<&TensorSpec>> {
    let sorted: BTreeMap<&str, &TensorSpec> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let mut shards: Vec<Vec<&TensorSpec>> = vec![Vec::new()];
    let mut used = 0;
    for tensor in sorted.into_values() {
        let bytes = bytes_of(tensor, dtype);
        if used > 0 && used + bytes > shard_bytes {
            shards.push(Vec::new());
            used = 0;
        }
        used += bytes;
        if let Some(last) = shards.last_mut() {
            last.push(tensor);
        }
    }
    shards
}

/// Returns the length prefix and header of a shard, padded with spaces to 8 bytes so that the data
/// is aligned.
fn header(path: &Path, shard: &[&TensorSpec], dtype: StoredDtype) -> Result<Vec<u8>> {
    let stored = match dtype {
        StoredDtype::F32 => Dtype::F32,
        StoredDtype::Bf16 => Dtype::BF16,
        StoredDtype::F16 => Dtype::F16,
    };
    let mut end = 0;
    let infos = shard.iter().map(|tensor| {
        let start = end;
        end += bytes_of(tensor, dtype) as usize;
        (tensor.name.clone(), TensorInfo { dtype: stored, shape: tensor.shape.clone(), data_offsets: (start, end) })
    });
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let invalid = |e: String| Error::model(path, format!("cannot describe these tensors: {e}"));
    let metadata = Metadata::new(Some(format), infos.collect()).map_err(|e| invalid(e.to_string()))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|e| invalid(e.to_string()))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    Ok(bytes)
}

/// Writes one shard under its temporary name.
pub(super) fn write_shard(
    path: &Path,
    shard: &[&TensorSpec],
    dtype: StoredDtype,
    fill: &mut Fill,
) -> Result<Unfinished> {
    let failed = |e: std::io::Error| Error::io("write", path)(e);
    Unfinished::write(path, |out| {
        out.write_all(&header(path, shard, dtype)?).map_err(failed)?;
        let mut values = vec![0f32; CHUNK];
        let mut bytes = Vec::with_capacity(CHUNK * dtype.bytes());
        for tensor in shard {
            let elements = tensor.elements();
            for offset in (0..elements).step_by(CHUNK) {
                let chunk = &mut values[..CHUNK.min(elements - offset)];
                fill(tensor, offset, chunk)?;
                if let Some(beyond) = chunk.iter().find(|x| overflows(**x, dtype)) {
                    let why = format!(
                        "tensor {:?} holds {beyond:e}, which {} cannot hold; save it as float32 or bfloat16",
                        tensor.name,
                        dtype.name()
                    );
                    return Err(Error::model(path, why));
                }
                bytes.clear();
                match dtype {
                    StoredDtype::F32 => bytes.extend(chunk.iter().flat_map(|x| x.to_le_bytes())),
                    StoredDtype::Bf16 => bytes.extend(chunk.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes())),
                    StoredDtype::F16 => bytes.extend(chunk.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes())),
                }
                out.write_all(&bytes).map_err(failed)?;
            }
        }
        Ok(())
    })
}

/// Whether a finite number is beyond the range of `dtype`.
pub(crate) fn overflows(x: f32, dtype: StoredDtype) -> bool {
    x.is_finite() && !rounded(x, dtype).is_finite()
}

/// A number rounded to the precision of the file.
fn rounded(x: f32, dtype: StoredDtype) -> f32 {
    match dtype {
        StoredDtype::F32 => x,
        StoredDtype::Bf16 => bf16::from_f32(x).to_f32(),
        StoredDtype::F16 => f16::from_f32(x).to_f32(),
    }
}

fn write_index(folder: &Path, names: &[String], shards: &[Vec<&TensorSpec>], dtype: StoredDtype) -> Result<()> {
    let mut weight_map = Map::new();
    // Shards are consecutive runs of the sorted names, so the map is sorted.
    for (file, shard) in names.iter().zip(shards) {
        for tensor in shard {
            weight_map.insert(tensor.name.clone(), json!(file));
        }
    }
    let total: u64 = shards.iter().flatten().map(|t| bytes_of(t, dtype)).sum();
    let mut index = Map::new();
    index.insert("metadata".into(), json!({"total_size": total}));
    index.insert("weight_map".into(), Value::Object(weight_map));
    write_atomic(&folder.join(INDEX_FILE), json_text(&Value::Object(index)).as_bytes())
}

/// Removes weight files of an earlier save that the new save did not replace. A stale
/// `model.safetensors` would take precedence over new shards.
fn remove_stale(folder: &Path, names: &[String]) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(Error::io("list", folder))?;
    for entry in entries {
        let entry = entry.map_err(Error::io("list", folder))?;
        let file = entry.file_name();
        let Some(name) = file.to_str() else { continue };
        let stale = if name == INDEX_FILE { names.len() == 1 } else { is_weight_file(name) };
        if stale && !names.iter().any(|n| n == name) {
            std::fs::remove_file(entry.path()).map_err(Error::io("remove", &entry.path()))?;
        }
    }
    Ok(())
}

/// True for `model.safetensors` and names like `model-00001-of-00002.safetensors`.
fn is_weight_file(name: &str) -> bool {
    if name == SINGLE_FILE {
        return true;
    }
    let parts = name.strip_prefix("model-").and_then(|n| n.strip_suffix(".safetensors"));
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    parts.and_then(|p| p.split_once("-of-")).is_some_and(|(a, b)| digits(a) && digits(b))
}
