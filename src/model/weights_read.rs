//! Reading of weight files. [`WeightFiles::open`] checks every name, shape and data type against
//! the configuration before any value is read. [`WeightFiles::read`] then converts one tensor to
//! f32 in chunks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::Dtype;

use super::adapter::base::{AdapterFolder, is_adapter};
use super::adapter::files::{AdapterFiles, Product};
use super::config::{Head, ModelConfig, StoredDtype};
use super::tensors::TensorSpec;
use super::weights_names::{LM_HEAD, OTHER_HEADS, SCORE, Stored, is_other_head, resolve};
use super::weights_shards::{Shard, open_shards};
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

/// Location of a tensor.
#[derive(Clone, Copy, Debug)]
struct Place {
    shard: usize,
    start: usize,
    end: usize,
    dtype: StoredDtype,
}

/// Checked weight files of one model folder.
#[derive(Default)]
pub struct WeightFiles {
    shards: Vec<Shard>,
    /// Tensors the configuration expects and the files hold.
    places: BTreeMap<String, Place>,
    score_missing: bool,
    /// Bias of the reward head of another trainer.
    head_bias: Option<Place>,
    ignored: Vec<String>,
    notes: Vec<String>,
    /// Adapter that changes some of the tensors.
    adapter: Option<Box<AdapterFiles>>,
}

impl WeightFiles {
    /// Opens the weights of `folder` and checks them against `config`. For an adapter's folder, the weights are
    /// those of the base with the adapter merged. Failures are [`Error::Model`] with file, tensor and the
    /// expected and found value, or [`Error::Io`].
    pub fn open(folder: &Path, config: &ModelConfig, load_as: LoadAs) -> Result<Self> {
        if !is_adapter(folder) {
            let (shards, found) = open_shards(folder, None)?;
            return check(folder, shards, found, config, load_as);
        }
        let known = config.adapter.as_deref().filter(|adapter| adapter.path == folder).cloned();
        let Some(adapter) = known.map_or_else(|| AdapterFolder::find(folder, None), |found| Ok(Some(found)))? else {
            return Err(Error::model(folder, "no longer holds an adapter"));
        };
        Self::open_merged(&adapter, config, load_as)
    }

    /// Opens a base and its adapter.
    fn open_merged(adapter: &AdapterFolder, config: &ModelConfig, load_as: LoadAs) -> Result<Self> {
        let own = adapter.open(config)?;
        // The adapter may hold the reward head.
        let base_as = if config.head == Head::Reward { LoadAs::RewardStart } else { load_as };
        let (shards, found) = open_shards(&adapter.base, Some(&adapter.path))?;
        let mut files = check(&adapter.base, shards, found, config, base_as)?;
        files.score_missing &= !own.holds_whole(SCORE);
        if files.score_missing && load_as == LoadAs::Exact {
            let why = format!(
                "neither the adapter nor its base {} holds the reward head \"{SCORE}\"; this is not a trained reward \
                 model",
                adapter.base.display()
            );
            return Err(Error::model(&adapter.path, why));
        }
        if config.head == Head::Reward && own.holds_whole(LM_HEAD) {
            files.ignored.push(format!("{LM_HEAD} of the adapter"));
        }
        files.notes.extend(own.notes().iter().cloned());
        files.notes.push(format!("{}: {} tensors change", adapter.line(), own.changed()));
        files.adapter = Some(Box::new(own));
        Ok(files)
    }

    /// Opens the tensors `expected` of one file, under their names in `expected`; the caller has checked the
    /// shapes.
    pub(super) fn of_shard(shard: Shard, stored: &BTreeMap<String, Stored>, expected: &[TensorSpec]) -> Result<Self> {
        let shards = vec![shard];
        let mut places = BTreeMap::new();
        for spec in expected {
            if let Some(stored) = stored.get(&spec.name) {
                places.insert(spec.name.clone(), place(&shards, stored, &spec.shape)?);
            }
        }
        Ok(Self { shards, places, ..Self::default() })
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

    /// Returns notes for the log on tensors that were read under a different name.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Returns the bias that the reward head adds to every reward; 0 for a head without bias.
    pub fn head_bias(&self) -> Result<f64> {
        let Some(place) = self.head_bias else { return Ok(0.0) };
        let name = "the bias of the reward head".to_owned();
        let mut bias = Vec::new();
        TensorReader { name, shard: &self.shards[place.shard], place, product: None }.read(0, 1, &mut bias)?;
        Ok(bias.first().copied().map_or(0.0, f64::from))
    }

    /// Returns the data types of the used tensors, each once.
    pub fn dtypes(&self) -> Vec<StoredDtype> {
        let all = [StoredDtype::F32, StoredDtype::Bf16, StoredDtype::F16];
        all.into_iter().filter(|d| self.places.values().any(|p| p.dtype == *d)).collect()
    }

    /// Passes tensor `name` to `sink(offset, values)` as f32, in ascending chunks that cover it
    /// once. Conversion from bf16 and f16 is exact; a weight that an adapter changes is summed in f64
    /// and rounded to f32. Fails with [`Error::Model`] if a value is not finite or the tensor is
    /// missing.
    pub fn read(&self, name: &str, sink: &mut dyn FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        let reader = self.reader(name)?;
        let mut values = Vec::with_capacity(CHUNK.min(reader.len()));
        for offset in (0..reader.len()).step_by(CHUNK) {
            reader.read(offset, CHUNK.min(reader.len() - offset), &mut values)?;
            sink(offset, &values)?;
        }
        Ok(())
    }

    /// Prepares the reading of parts of tensor `name`.
    pub fn reader(&self, name: &str) -> Result<TensorReader<'_>> {
        if let Some(adapter) = &self.adapter {
            let mut reader = match adapter.whole_reader(name)? {
                Some(reader) => reader,
                None => self.own_reader(name)?,
            };
            reader.product = adapter.product(name)?;
            return Ok(reader);
        }
        self.own_reader(name)
    }

    fn own_reader(&self, name: &str) -> Result<TensorReader<'_>> {
        let Some(&place) = self.places.get(name) else {
            let path = self.shards.first().map_or(Path::new("weights"), |s| s.path.as_path());
            return Err(Error::model(path, format!("tensor {name:?} is not among the checked tensors")));
        };
        Ok(TensorReader { name: name.to_owned(), shard: &self.shards[place.shard], place, product: None })
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

/// One tensor of weight files, converted to f32 part by part.
pub struct TensorReader<'a> {
    name: String,
    shard: &'a Shard,
    place: Place,
    /// Product that an adapter adds.
    product: Option<Product>,
}

impl TensorReader<'_> {
    /// Number of elements.
    fn len(&self) -> usize {
        (self.place.end - self.place.start) / self.place.dtype.bytes()
    }

    /// Replaces `values` by the elements `offset..offset + len`, which must exist. A value that is not finite is
    /// an [`Error::Model`].
    pub fn read(&self, offset: usize, len: usize, values: &mut Vec<f32>) -> Result<()> {
        let start = self.place.start + offset * self.place.dtype.bytes();
        values.clear();
        convert(self.place.dtype, &self.shard.map[start..start + len * self.place.dtype.bytes()], values);
        if let Some(bad) = values.iter().position(|x| !x.is_finite()) {
            let why = format!(
                "tensor {:?} holds {} at element {}; weights must be finite. The file is damaged or comes from a \
                 diverged run",
                self.name,
                values[bad],
                offset + bad
            );
            return Err(Error::model(&self.shard.path, why));
        }
        self.product.as_ref().map_or(Ok(()), |product| product.add(offset, values))
    }
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
    let (mut found, notes) = resolve(folder, found, &names, config.family.names)?;
    let embedding = config.embedding_name();
    let mut files = WeightFiles { shards, notes, ..WeightFiles::default() };
    if config.head == Head::Reward {
        name_head(&mut files, &mut found, config)?;
    }
    let language_model =
        config.head == Head::LanguageModel || (load_as == LoadAs::RewardStart && !found.contains_key(SCORE));
    if config.tied
        && language_model
        && !found.contains_key(&embedding)
        && let Some(table) = found.remove(LM_HEAD)
    {
        files.notes.push(format!(
            "{:?} is read as the embedding table {embedding:?}, because \"tie_word_embeddings\" is true",
            table.name
        ));
        found.insert(embedding.clone(), table);
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
        if config.family.names.buffers.iter().any(|buffer| name.ends_with(buffer)) {
            // Older versions of transformers saved this buffer, which the configuration determines.
            files.ignored.push(stored.name.clone());
        } else if name == LM_HEAD && (tied_head || config.head == Head::Reward) {
            if tied_head {
                let head = place(&files.shards, stored, &[config.vocab, config.hidden])?;
                files.places.insert(name.clone(), head);
                check_tied(&files, &embedding, path)?;
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

/// Renames the head of another trainer to its name in transformers, and stores its bias separately.
fn name_head(files: &mut WeightFiles, found: &mut BTreeMap<String, Stored>, config: &ModelConfig) -> Result<()> {
    if found.contains_key(SCORE) {
        return Ok(());
    }
    let own = config.value_head_prefix().map(|module| format!("{module}.weight"));
    let names = own.into_iter().chain(OTHER_HEADS.map(str::to_owned));
    let Some((name, head)) = names.into_iter().find_map(|name| found.remove_entry(&name)) else { return Ok(()) };
    files.notes.push(format!("the reward head is the tensor {:?}", head.name));
    if let Some(bias) = name.strip_suffix("weight").and_then(|module| found.remove(&format!("{module}bias"))) {
        files.head_bias = Some(place(&files.shards, &bias, &[1])?);
        files.notes.push(format!(
            "its bias {:?} is added to every reward in scores; it changes no comparison, and training leaves it out",
            bias.name
        ));
    }
    place(&files.shards, &head, &[1, config.hidden])?;
    found.insert(SCORE.to_owned(), head);
    Ok(())
}

/// Describes a tensor that looks like a reward head under a different name; `None` if there is no such tensor.
/// transformers would draw a new head at random instead of reading this tensor.
fn other_head(shards: &[Shard], found: &BTreeMap<String, Stored>, config: &ModelConfig) -> Option<String> {
    let stored = found.iter().find(|(name, stored)| is_other_head(name, &shape(shards, stored), config.hidden))?.1;
    Some(format!(
        "the weights hold the head {:?} of shape {:?}, but {} reads \"{SCORE}\", here and in transformers; rename the tensor \
         to \"{SCORE}\" if it is the trained reward head",
        stored.name,
        [1, config.hidden],
        config.architecture()
    ))
}

fn missing_tensor(
    folder: &Path,
    missing: &[&str],
    first: &TensorSpec,
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
    } else if missing == [config.embedding_name().as_str()] && found.contains_key(LM_HEAD) {
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
            let why = format!("tensor {name:?} is stored as {other}; mapl supports F32, BF16 and F16");
            return Err(Error::model(&file.path, why));
        }
    };
    // The header was validated against the length of the file, so the range is inside the map.
    Ok(Place { shard, start: file.data + info.data_offsets.0, end: file.data + info.data_offsets.1, dtype })
}

/// Checks that the stored vocabulary projection of a tied model equals the embedding table.
fn check_tied(files: &WeightFiles, embedding: &str, path: &Path) -> Result<()> {
    let (head, table) = (files.places[LM_HEAD], files.places[embedding]);
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
