//! Reading of weight files. [`WeightFiles::open`] checks every name, shape and data type against
//! the configuration before any value is read. [`WeightFiles::read`] then converts one tensor to
//! f32 in chunks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensorError, SafeTensors};

use super::config::{Head, ModelConfig, StoredDtype};
use super::config_json::{Keys, read_object};
use super::weights::{INDEX_FILE, SINGLE_FILE};
use super::weights_names::{EMBEDDING, LM_HEAD, SCORE, Stored, is_other_head, resolve};
use crate::files::input::{self, is_named};
use crate::files::lfs_pointer;
use crate::{Error, Result};

/// Elements converted at a time: 256 KiB of f32, which stays in a core's cache.
const CHUNK: usize = 1 << 16;

/// Tensors that [`WeightFiles::open`] expects in the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadAs {
    /// Exactly the tensors of the configuration.
    Exact,
    /// A reward model, possibly started from a language model: `score.weight` may be missing, and a
    /// vocabulary projection in the files is ignored.
    RewardStart,
}

/// Memory-mapped weight file.
struct Shard {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    /// Offset of the first byte after the header.
    data: usize,
}

/// Location of a tensor.
#[derive(Clone, Copy, Debug)]
struct Place {
    shard: usize,
    start: usize,
    end: usize,
    dtype: StoredDtype,
}

/// Checked weight files of one model folder.
pub struct WeightFiles {
    shards: Vec<Shard>,
    /// Tensors the configuration expects and the files hold.
    places: BTreeMap<String, Place>,
    score_missing: bool,
    ignored: Vec<String>,
    notes: Vec<String>,
}

impl WeightFiles {
    /// Opens the weights of `folder` and checks them against `config`. Failures are
    /// [`Error::Model`] with file, tensor and the expected and found value, or [`Error::Io`].
    pub fn open(folder: &Path, config: &ModelConfig, load_as: LoadAs) -> Result<Self> {
        let (single, index) = (folder.join(SINGLE_FILE), folder.join(INDEX_FILE));
        // If a folder has both, the single file takes precedence, as in transformers.
        let (shards, listed) = if is_named(&single) {
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
        let found = gather(&shards, listed.as_ref(), &index)?;
        check(folder, shards, found, config, load_as)
    }

    /// Returns whether `score.weight` is missing and the caller must draw it; true only with
    /// [`LoadAs::RewardStart`].
    pub fn score_missing(&self) -> bool {
        self.score_missing
    }

    /// Returns the tensors in the files that the model does not use. Examples are stored RoPE
    /// frequencies and the vocabulary projection, if a reward model starts from a language model.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Returns notes for the log: tensors that were read under another name.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Returns the data types of the used tensors, each once.
    pub fn dtypes(&self) -> Vec<StoredDtype> {
        let all = [StoredDtype::F32, StoredDtype::Bf16, StoredDtype::F16];
        all.into_iter().filter(|d| self.places.values().any(|p| p.dtype == *d)).collect()
    }

    /// Passes tensor `name` to `sink(offset, values)` as f32, in ascending chunks that cover it
    /// once. Conversion from bf16 and f16 is exact. Fails with [`Error::Model`] if a value is not
    /// finite or the tensor is missing.
    pub fn read(&self, name: &str, sink: &mut dyn FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        let Some(place) = self.places.get(name) else {
            let path = self.shards.first().map_or(Path::new("weights"), |s| s.path.as_path());
            return Err(Error::model(path, format!("tensor {name:?} is not among the checked tensors")));
        };
        let shard = &self.shards[place.shard];
        let bytes = &shard.map[place.start..place.end];
        let mut values = Vec::with_capacity(CHUNK.min(bytes.len() / place.dtype.bytes()));
        for (number, chunk) in bytes.chunks(CHUNK * place.dtype.bytes()).enumerate() {
            values.clear();
            convert(place.dtype, chunk, &mut values);
            if let Some(bad) = values.iter().position(|x| !x.is_finite()) {
                let why = format!(
                    "tensor {name:?} holds {} at element {}; weights must be finite. The file is damaged or comes \
                     from a diverged run",
                    values[bad],
                    number * CHUNK + bad
                );
                return Err(Error::model(&shard.path, why));
            }
            sink(number * CHUNK, &values)?;
        }
        Ok(())
    }

    /// Reads tensor `name` into one vector.
    pub fn read_all(&self, name: &str) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        self.read(name, &mut |_, values| {
            all.extend_from_slice(values);
            Ok(())
        })?;
        Ok(all)
    }
}

impl Shard {
    fn open(path: &Path) -> Result<Self> {
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
        why += "; pickled weights (pytorch_model.bin) are not supported, save the model as safetensors";
    } else {
        why += "; is the download complete?";
    }
    Error::model(folder, why)
}

/// Reads the map from tensor name to shard file from the index.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let map = read_object(path)?;
    let keys = Keys { map: &map, path, prefix: "" };
    let Some(weight_map) = keys.object("weight_map")? else {
        return Err(keys.missing("weight_map", "it must map each tensor to its file"));
    };
    let inner = Keys { map: weight_map, path, prefix: "weight_map." };
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

/// Compares the tensors of the files with the tensors of the configuration.
fn check(
    folder: &Path,
    shards: Vec<Shard>,
    found: BTreeMap<String, usize>,
    config: &ModelConfig,
    load_as: LoadAs,
) -> Result<WeightFiles> {
    let expected = config.tensors();
    let names: BTreeSet<&str> = expected.iter().map(|spec| spec.name.as_str()).chain([LM_HEAD]).collect();
    let (mut found, notes) = resolve(folder, found, &names)?;
    let mut files = WeightFiles { shards, places: BTreeMap::new(), score_missing: false, ignored: Vec::new(), notes };
    let language_model =
        config.head == Head::LanguageModel || (load_as == LoadAs::RewardStart && !found.contains_key(SCORE));
    if config.tied
        && language_model
        && !found.contains_key(EMBEDDING)
        && let Some(table) = found.remove(LM_HEAD)
    {
        files.notes.push(format!(
            "{:?} is read as the embedding table {EMBEDDING:?}, because \"tie_word_embeddings\" is true",
            table.name
        ));
        found.insert(EMBEDDING.to_owned(), table);
    }
    for spec in &expected {
        match found.get(&spec.name) {
            Some(stored) => {
                let place = place(&files.shards, stored, &spec.shape)?;
                files.places.insert(spec.name.clone(), place);
            }
            None if spec.name == SCORE && load_as == LoadAs::RewardStart => files.score_missing = true,
            None => {
                let missing: Vec<&str> =
                    expected.iter().map(|s| s.name.as_str()).filter(|n| !found.contains_key(*n)).collect();
                let other = missing.contains(&SCORE).then(|| other_head(&files.shards, &found, config)).flatten();
                return Err(match other {
                    Some(why) => Error::model(folder, why),
                    None => missing_tensor(folder, &missing, spec, &found, config),
                });
            }
        }
    }
    if files.score_missing
        && let Some(why) = other_head(&files.shards, &found, config)
    {
        return Err(Error::model(folder, format!("{why}; remove it to draw a new head")));
    }
    let tied_head = config.tied && config.head == Head::LanguageModel;
    for (name, stored) in &found {
        if files.places.contains_key(name) {
            continue;
        }
        let path = &files.shards[stored.shard].path;
        if name.ends_with("rotary_emb.inv_freq") {
            // A buffer that older transformers versions saved; the configuration determines it.
            files.ignored.push(stored.name.clone());
        } else if name == LM_HEAD && (tied_head || config.head == Head::Reward) {
            if tied_head {
                let head = place(&files.shards, stored, &[config.vocab, config.hidden])?;
                files.places.insert(name.clone(), head);
                check_tied(&files, path)?;
                files.places.remove(name);
            }
            files.ignored.push(stored.name.clone());
        } else {
            let shape = shape(&files.shards, stored);
            let why = format!(
                "holds the tensor {:?} of shape {shape:?}, which {} does not have; does config.json belong to these \
                 weights?",
                stored.name,
                config.architecture()
            );
            return Err(Error::model(path, why));
        }
    }
    Ok(files)
}

fn shape(shards: &[Shard], stored: &Stored) -> Vec<usize> {
    shards[stored.shard].metadata.info(&stored.name).map(|info| info.shape.clone()).unwrap_or_default()
}

/// Describes a tensor that looks like a reward head under another name, if there is one. transformers
/// would draw a new head at random instead of reading it.
fn other_head(shards: &[Shard], found: &BTreeMap<String, Stored>, config: &ModelConfig) -> Option<String> {
    let stored = found.iter().find(|(name, stored)| is_other_head(name, &shape(shards, stored), config.hidden))?.1;
    Some(format!(
        "the weights hold the head {:?} of shape {:?}, but {} reads \"{SCORE}\" (transformers too); rename the tensor \
         to \"{SCORE}\" if it is the trained reward head",
        stored.name,
        [1, config.hidden],
        config.architecture()
    ))
}

/// Shape of a tensor in the weight files of a folder; `None` if it cannot be found.
pub(super) fn stored_shape(folder: &Path, name: &str) -> Option<Vec<usize>> {
    let single = folder.join(SINGLE_FILE);
    let path =
        if single.is_file() { single } else { folder.join(read_index(&folder.join(INDEX_FILE)).ok()?.get(name)?) };
    let shard = Shard::open(&path).ok()?;
    shard.metadata.info(name).map(|info| info.shape.clone())
}

fn missing_tensor(
    folder: &Path,
    missing: &[&str],
    first: &super::tensors::TensorSpec,
    found: &BTreeMap<String, Stored>,
    config: &ModelConfig,
) -> Error {
    let more = match missing.len() {
        1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    let hint = if missing == ["score.weight"] {
        "this is not a trained reward model; train one with `mapl reward`"
    } else if missing == [LM_HEAD] {
        "set \"tie_word_embeddings\" to true if the vocabulary projection is the embedding table; a base model without \
         the projection can only start `mapl reward`"
    } else if missing == [EMBEDDING] && found.contains_key(LM_HEAD) {
        "set \"tie_word_embeddings\" to true if \"lm_head.weight\" is the embedding table"
    } else {
        "does config.json belong to these weights?"
    };
    let why = format!(
        "the weights lack the tensor {:?} of shape {:?}{more}, which {} needs; {hint}",
        first.name,
        first.shape,
        config.architecture()
    );
    Error::model(folder, why)
}

/// Returns byte range and data type of a tensor, which must have the given `shape`.
fn place(shards: &[Shard], stored: &Stored, shape: &[usize]) -> Result<Place> {
    let (name, shard) = (&stored.name, stored.shard);
    let file = &shards[shard];
    let Some(info) = file.metadata.info(name) else {
        return Err(Error::model(&file.path, format!("tensor {name:?} is not in the header")));
    };
    if info.shape != shape {
        let why = format!(
            "tensor {name:?} has shape {:?}, expected {shape:?} from config.json; does config.json belong to these \
             weights?",
            info.shape
        );
        return Err(Error::model(&file.path, why));
    }
    let dtype = match info.dtype {
        Dtype::F32 => StoredDtype::F32,
        Dtype::BF16 => StoredDtype::Bf16,
        Dtype::F16 => StoredDtype::F16,
        other => {
            let why = format!("tensor {name:?} is stored as {other}; supported are F32, BF16 and F16");
            return Err(Error::model(&file.path, why));
        }
    };
    // The header was validated against the length of the file, so the range is inside the map.
    Ok(Place { shard, start: file.data + info.data_offsets.0, end: file.data + info.data_offsets.1, dtype })
}

/// Checks that the stored vocabulary projection of a tied model equals the embedding table.
fn check_tied(files: &WeightFiles, path: &Path) -> Result<()> {
    let (head, table) = (files.places[LM_HEAD], files.places[EMBEDDING]);
    let bytes = |p: Place| &files.shards[p.shard].map[p.start..p.end];
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let chunks = |p: Place| bytes(p).chunks(CHUNK * p.dtype.bytes());
    for (number, (x, y)) in chunks(head).zip(chunks(table)).enumerate() {
        a.clear();
        b.clear();
        convert(head.dtype, x, &mut a);
        convert(table.dtype, y, &mut b);
        if let Some(at) = a.iter().zip(&b).position(|(p, q)| p.to_bits() != q.to_bits()) {
            let why = format!(
                "\"tie_word_embeddings\" is true, but \"lm_head.weight\" differs from the embedding table at element \
                 {} ({} against {}); set the key to false to use both",
                number * CHUNK + at,
                a[at],
                b[at]
            );
            return Err(Error::model(path, why));
        }
    }
    Ok(())
}

/// Appends `bytes` as f32; `bytes` holds whole little-endian numbers of `dtype`, at any alignment.
fn convert(dtype: StoredDtype, bytes: &[u8], out: &mut Vec<f32>) {
    match dtype {
        StoredDtype::F32 => {
            out.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
        }
        StoredDtype::Bf16 => {
            out.extend(bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()));
        }
        StoredDtype::F16 => {
            out.extend(bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()));
        }
    }
}
