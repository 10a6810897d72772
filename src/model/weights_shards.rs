//! Finds the weight files of a folder and the tensors that they hold.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Metadata, SafeTensorError, SafeTensors};

use super::config_json::{Keys, read_object};
use super::weights::{INDEX_FILE, SINGLE_FILE, VALUE_HEAD_FILE};
use crate::files::input::{self, is_named};
use crate::files::lfs_pointer;
use crate::{Error, Result};

/// Memory-mapped weight file.
pub(super) struct Shard {
    pub path: PathBuf,
    pub map: Mmap,
    pub metadata: Metadata,
    /// Offset of the first byte after the header.
    pub data: usize,
}

/// Opens the weight files of a folder, and returns them with the file index of every tensor. A separate file
/// of a reward head ([`VALUE_HEAD_FILE`]) is one of them; it may also be in the folder `beside`.
pub(super) fn open_shards(folder: &Path, beside: Option<&Path>) -> Result<(Vec<Shard>, BTreeMap<String, usize>)> {
    let (single, index) = (folder.join(SINGLE_FILE), folder.join(INDEX_FILE));
    // If a folder has a single file and an index, the single file takes precedence, as in transformers.
    let (mut shards, listed) = if is_named(&single) {
        (vec![Shard::open(&single)?], None)
    } else if is_named(&index) {
        let listed = read_index(&index)?;
        let mut files: Vec<&str> = listed.values().map(String::as_str).collect();
        files.sort_unstable();
        files.dedup();
        let shards = files.iter().map(|f| Shard::open(&folder.join(f))).collect::<Result<Vec<_>>>()?;
        (shards, Some(listed))
    } else {
        return Err(no_weights(folder));
    };
    let heads = beside.into_iter().chain([folder]).map(|folder| folder.join(VALUE_HEAD_FILE));
    if let Some(head) = heads.into_iter().find(|path| is_named(path)) {
        shards.push(Shard::open(&head)?);
    }
    let found = gather(&shards, listed.as_ref(), &index)?;
    Ok((shards, found))
}

/// Shape of a tensor in the weight files of a folder; `None` if it cannot be found.
pub(super) fn stored_shape(folder: &Path, name: &str) -> Option<Vec<usize>> {
    let single = folder.join(SINGLE_FILE);
    let path =
        if single.is_file() { single } else { folder.join(read_index(&folder.join(INDEX_FILE)).ok()?.get(name)?) };
    let shard = Shard::open(&path).ok()?;
    shard.metadata.info(name).map(|info| info.shape.clone())
}

impl Shard {
    pub fn open(path: &Path) -> Result<Self> {
        let file = input::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::model(path, format!("is missing, but {INDEX_FILE} lists it; is the download complete?"))
            }
            _ => input::model_error(path)(e),
        })?;
        // SAFETY: the map is read-only and every bit pattern is a valid byte. The remaining hazard
        // is another process that changes or truncates the file while it is mapped: values could
        // then differ between two reads, or SIGBUS could end this process. This program never does
        // so: it writes weight files under a temporary name and renames them, so a mapped file
        // keeps its bytes.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| Error::model(path, damage(&map, &e)))?;
        Ok(Self { path: path.to_path_buf(), map, metadata, data: 8 + header })
    }
}

/// Describes why a file is not a readable safetensors file, with sizes if they explain it.
fn damage(map: &Mmap, error: &SafeTensorError) -> String {
    if let Some(why) = lfs_pointer(map) {
        return why.into();
    }
    const TRY: &str = "copy or download it again";
    let size = map.len();
    let header = map.get(..8).map(|b| u64::from_le_bytes(b.try_into().unwrap_or_default()));
    match (error, header) {
        (SafeTensorError::MetadataIncompleteBuffer, Some(header)) => {
            let data = map
                .get(8..8 + header as usize)
                .and_then(|bytes| serde_json::from_slice::<Metadata>(bytes).ok())
                .map(|m| m.data_len() as u64 + 8 + header);
            match data {
                Some(whole) if whole > size as u64 => {
                    format!("is truncated: {size} bytes of {whole}; {TRY}")
                }
                Some(whole) => format!("has {size} bytes, but its header describes {whole}; {TRY}"),
                None => format!("is damaged: {error}; {TRY}"),
            }
        }
        (SafeTensorError::HeaderTooSmall | SafeTensorError::InvalidHeaderLength, _) => {
            format!("is truncated or not a safetensors file: {size} bytes do not contain its header; {TRY}")
        }
        _ => format!("is damaged or not a safetensors file: {error}; {TRY}"),
    }
}

fn no_weights(folder: &Path) -> Error {
    let mut why = format!("contains neither {SINGLE_FILE} nor {INDEX_FILE}");
    if folder.join("pytorch_model.bin").is_file() || folder.join("pytorch_model.bin.index.json").is_file() {
        why += "; pickled weights (pytorch_model.bin) are not supported; save the model as safetensors";
    } else {
        why += "; is the download complete?";
    }
    Error::model(folder, why)
}

/// Reads the map from tensor name to shard file from the index.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let map = read_object(path)?;
    let keys = Keys { map: &map, path, prefix: "", names: &[] };
    let Some(weight_map) = keys.object("weight_map")? else {
        return Err(keys.missing("weight_map", "it must map each tensor to its file"));
    };
    let inner = Keys { map: weight_map, path, prefix: "weight_map.", names: &[] };
    let mut listed = BTreeMap::new();
    for (name, value) in weight_map {
        // A path could leave the folder, so a shard must be a plain file name.
        let plain =
            |file: &&str| !file.is_empty() && !file.contains(['/', '\\', '\0']) && *file != "." && *file != "..";
        let Some(file) = value.as_str().filter(plain) else {
            return Err(inner.refuse(name, value, "it must be the name of a file in this folder"));
        };
        if !is_named(&path.with_file_name(file)) {
            let why =
                format!("names the shard {file:?} for tensor {name:?}, which is missing; is the download complete?");
            return Err(Error::model(path, why));
        }
        listed.insert(name.clone(), file.to_owned());
    }
    if listed.is_empty() {
        return Err(Error::model(path, "\"weight_map\" lists no tensor"));
    }
    Ok(listed)
}

/// Maps each tensor name to its shard. Each tensor must be in exactly one shard, the one that the
/// index names.
fn gather(
    shards: &[Shard],
    listed: Option<&BTreeMap<String, String>>,
    index: &Path,
) -> Result<BTreeMap<String, usize>> {
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for (number, shard) in shards.iter().enumerate() {
        for name in shard.metadata.offset_keys() {
            if let Some(first) = found.insert(name.clone(), number) {
                let why = format!(
                    "tensor {name:?} is also in {}; a tensor belongs to one shard. Save the model again",
                    shards[first].path.display()
                );
                return Err(Error::model(&shard.path, why));
            }
        }
    }
    for (name, file) in listed.into_iter().flatten() {
        let holder = found.get(name).map(|&number| &shards[number].path);
        if holder.is_none_or(|path| path.file_name() != Some(file.as_ref())) {
            let where_ = holder.map_or("no shard holds it".to_owned(), |p| format!("it is in {}", p.display()));
            return Err(Error::model(index, format!("names {file:?} for tensor {name:?}, but {where_}")));
        }
    }
    Ok(found)
}
