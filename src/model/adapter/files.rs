//! Reads the weights of an adapter from `adapter_model.safetensors`. They are checked against
//! `adapter_config.json` and the base before any value is read. An adapter's product is added to a weight of
//! the base.
//!
//! Pickled files are an error, and so are tensors that are missing, unknown, misshapen or not finite. A
//! change to one of two tied tensors is an error too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::base::AdapterFolder;
use super::config::{AdapterConfig, CONFIG_FILE, MERGE_ELSEWHERE};
use super::targets::{AdaptedModule, PREFIX, ties};
use crate::files::input::is_named;
use crate::model::config::{Head, ModelConfig};
use crate::model::tensors::{Order, Role, TensorSpec};
use crate::model::weights_names::{LM_HEAD, Stored, without_wrappers};
use crate::model::weights_read::{TensorReader, WeightFiles};
use crate::model::weights_shards::Shard;
use crate::{Error, Result};

/// Name of an adapter's weight file.
pub(crate) const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// Name of a pickled weight file.
const PICKLED_FILE: &str = "adapter_model.bin";
/// Adapter name that some files insert into the names of tensors.
const ADAPTER_NAME: &str = "default";

/// Checked weights of an adapter, by the names of [`AdapterConfig::tensors`].
pub struct AdapterFiles {
    path: PathBuf,
    weights: WeightFiles,
    modules: Vec<AdaptedModule>,
    /// Names of the model's tensors that the adapter stores whole.
    whole: BTreeSet<String>,
    notes: Vec<String>,
}

impl AdapterFiles {
    /// Opens the weights of an adapter for a model with this configuration. Returns [`Error::Model`] with file,
    /// tensor and advice, or [`Error::Io`].
    pub fn open(folder: &Path, config: &AdapterConfig, model: &ModelConfig) -> Result<Self> {
        let path = folder.join(WEIGHTS_FILE);
        if !is_named(&path) {
            let why = match is_named(&folder.join(PICKLED_FILE)) {
                true => format!(
                    "contains {PICKLED_FILE} and no {WEIGHTS_FILE}; pickled weights are not supported: load the adapter \
                     with PEFT and save it again (save_pretrained)"
                ),
                false => format!("contains {CONFIG_FILE} and no {WEIGHTS_FILE}; is the download complete?"),
            };
            return Err(Error::model(folder, why));
        }
        let modules = config.modules(model).map_err(|why| Error::model(&folder.join(CONFIG_FILE), why))?;
        let shard = Shard::open(&path)?;
        let mut stored: BTreeMap<String, Stored> = BTreeMap::new();
        for name in shard.metadata.offset_keys() {
            let own = own_name(&name).map_err(|why| Error::model(&path, why))?;
            if let Some(other) = stored.insert(own.clone(), Stored { name: name.clone(), shard: 0 }) {
                let why =
                    format!("holds the tensors {:?} and {name:?}, which are both {own:?}; remove one", other.name);
                return Err(Error::model(&path, why));
            }
        }
        let mut opened = Opened { path: &path, model, shard: &shard, stored, expected: Vec::new() };
        let whole = opened.check(config, &modules)?;
        let (stored, expected) = (opened.stored, opened.expected);
        let weights = WeightFiles::of_shard(shard, &stored, &expected)?;
        check_tied_tables(&path, &weights, &whole, model)?;
        let mut notes = config.notes.clone();
        if config.fan_in_fan_out && model.family.order != Order::Columns {
            notes.push(
                "\"fan_in_fan_out\" of adapter_config.json is true; the kind of each layer decides, here as in PEFT"
                    .to_owned(),
            );
        }
        let unmatched = config.unmatched(model);
        if !unmatched.is_empty() {
            notes.push(format!("target modules that {} does not have: {}", model.architecture(), unmatched.join(", ")));
        }
        Ok(Self { path, weights, modules, whole, notes })
    }

    /// Notes for the log.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether the adapter stores a tensor of the model whole.
    pub(crate) fn holds_whole(&self, tensor: &str) -> bool {
        self.whole.contains(tensor)
    }

    /// Number of tensors of the model that the adapter changes.
    pub(crate) fn changed(&self) -> usize {
        self.modules.len() + self.whole.len()
    }

    /// Passes the values of a tensor to `sink(offset, values)` in chunks, as [`WeightFiles::read`] does. `name`
    /// is the name in [`AdapterConfig::tensors`].
    pub fn read(&self, name: &str, sink: &mut dyn FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        self.weights.read(name, sink)
    }

    /// Reader of a tensor that is stored whole, by its name in the model; `None` if it is not stored whole.
    pub(crate) fn whole_reader(&self, tensor: &str) -> Result<Option<TensorReader<'_>>> {
        if !self.holds_whole(tensor) {
            return Ok(None);
        }
        self.weights.reader(&format!("{PREFIX}{tensor}")).map(Some)
    }

    /// Product that the adapter adds to a tensor of the model, if it has one.
    pub(crate) fn product(&self, tensor: &str) -> Result<Option<Product>> {
        let Some(module) = self.modules.iter().find(|module| module.tensor.name == tensor) else { return Ok(None) };
        let [(a, _), (b, _)] = module.parts();
        let (a, b) = (self.weights.read_all(&a)?, self.weights.read_all(&b)?);
        let (rows, columns, rank) = (module.tensor.shape[0], module.tensor.shape[1], module.rank);
        // An embedding table is stored as the transpose of the matrix to which the product is added. So is
        // the weight of a family that stores columns.
        let (left, right) = match module.is_transposed() {
            false => (b, a),
            true => (transposed(&a, rank, rows), transposed(&b, columns, rank)),
        };
        Ok(Some(Product {
            columns,
            rank,
            left: left.into_iter().map(|x| module.scale * f64::from(x)).collect(),
            right: right.into_iter().map(f64::from).collect(),
            place: (self.path.clone(), module.name().to_owned()),
        }))
    }
}

/// A low-rank product in f64.
pub(crate) struct Product {
    columns: usize,
    rank: usize,
    /// (rows, rank), with the factor
    left: Vec<f64>,
    /// (rank, columns)
    right: Vec<f64>,
    /// File and module, for messages.
    place: (PathBuf, String),
}

impl Product {
    /// Adds the product to the elements of the matrix that start at `offset`, in f64, rounded once.
    ///
    /// # Errors
    /// [`Error::Model`] if a sum is not finite in f32.
    pub fn add(&self, offset: usize, values: &mut [f32]) -> Result<()> {
        let columns = self.columns;
        let first = offset % columns;
        let (head, rest) = values.split_at_mut(if first == 0 { 0 } else { (columns - first).min(values.len()) });
        self.add_row(offset / columns, first, head);
        let row = offset.div_ceil(columns);
        rest.par_chunks_mut(columns).enumerate().for_each(|(i, values)| self.add_row(row + i, 0, values));
        if values.iter().all(|x| x.is_finite()) {
            return Ok(());
        }
        let why =
            format!("the merged weight of {} is not finite in f32; the adapter is damaged or diverged", self.place.1);
        Err(Error::model(&self.place.0, why))
    }

    fn add_row(&self, row: usize, first: usize, values: &mut [f32]) {
        let mut sums: Vec<f64> = values.iter().map(|&x| f64::from(x)).collect();
        for k in 0..self.rank {
            let factor = self.left.get(row * self.rank + k).copied().unwrap_or(0.0);
            let from = k * self.columns + first;
            for (sum, x) in sums.iter_mut().zip(&self.right[from..from + values.len()]) {
                *sum += factor * x;
            }
        }
        for (value, sum) in values.iter_mut().zip(&sums) {
            *value = *sum as f32;
        }
    }
}

/// Returns an error if the adapter stores a head without an equal embedding table, although the base ties the
/// two.
fn check_tied_tables(path: &Path, weights: &WeightFiles, whole: &BTreeSet<String>, model: &ModelConfig) -> Result<()> {
    if !ties(model) || !whole.contains(LM_HEAD) {
        return Ok(());
    }
    let table = |name: &str| weights.read_all(&format!("{PREFIX}{name}"));
    let embedding = model.embedding_name();
    if whole.contains(&embedding) && table(&embedding)? == table(LM_HEAD)? {
        return Ok(());
    }
    let why = format!(
        "holds a head that differs from the embedding table, to which the base ties it; {MERGE_ELSEWHERE}, with \
         \"tie_word_embeddings\" false"
    );
    Err(Error::model(path, why))
}

/// The transpose of a (rows, columns) matrix.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

/// Returns the name in [`AdapterConfig::tensors`] of a stored tensor, without the parts that wrappers and the
/// adapter's name insert.
///
/// # Errors
/// The reason if the tensor belongs to a feature that is not supported.
fn own_name(name: &str) -> Result<String, String> {
    let refuse = |what: &str| Err(format!("holds the tensor {name:?}, {what}; {MERGE_ELSEWHERE}"));
    if name.contains("lora_magnitude_vector") {
        return refuse("by which DoRA scales the merged weights; it is not supported");
    }
    if name.ends_with("lora_B.bias") || name.ends_with("lora_B.default.bias") {
        return refuse("a bias of the low-rank product; \"lora_bias\" is not supported");
    }
    if name.contains("token_adapter") || name.contains("trainable_tokens") {
        return refuse("single rows of the embedding table; they are not supported");
    }
    let plain = without_wrappers(name);
    let plain = plain.strip_prefix(PREFIX).unwrap_or(&plain);
    let mut parts: Vec<&str> = plain.split('.').collect();
    parts.retain(|part| !["base_layer", "modules_to_save", ADAPTER_NAME].contains(part));
    Ok(format!("{PREFIX}{}", parts.join(".")))
}

/// A weight file whose tensors are compared with the expected ones.
struct Opened<'a> {
    path: &'a Path,
    model: &'a ModelConfig,
    shard: &'a Shard,
    stored: BTreeMap<String, Stored>,
    /// Tensors that the file may hold, by the names of [`AdapterConfig::tensors`].
    expected: Vec<TensorSpec>,
}

impl Opened<'_> {
    /// Compares names and shapes; returns the names of the model's tensors that are stored whole.
    fn check(&mut self, config: &AdapterConfig, modules: &[AdaptedModule]) -> Result<BTreeSet<String>> {
        for module in modules {
            let parts = module.parts();
            let held = parts.each_ref().map(|(name, _)| self.stored.contains_key(name));
            if held != [true, true] {
                return Err(self.missing(module, held, &parts));
            }
            for (name, shape) in parts {
                self.expect(name, shape, &module.tensor)?;
            }
        }
        let mut whole = BTreeSet::new();
        let tensors = self.model.tensors();
        let lm_head = TensorSpec {
            name: LM_HEAD.into(),
            shape: vec![self.model.vocab, self.model.hidden],
            role: Role::LmHead,
            layer: None,
            order: Order::Rows,
            heads: self.model.heads,
        };
        // A reward model may also start from a language model whose adapter stores the language-model head.
        let own_head = tensors.iter().any(|tensor| tensor.role == Role::LmHead);
        for tensor in tensors.iter().chain(Some(&lm_head).filter(|_| !own_head)) {
            let name = format!("{PREFIX}{}", tensor.name);
            if self.stored.contains_key(&name) {
                self.expect(name, tensor.shape.clone(), tensor)?;
                whole.insert(tensor.name.clone());
            }
        }
        if let Some(tensor) = config.whole(self.model).iter().find(|tensor| !whole.contains(&tensor.name)) {
            let why = format!(
                "lacks the tensor \"{PREFIX}{}\", although \"modules_to_save\" of {CONFIG_FILE} names it; is the file \
                 complete?",
                tensor.name
            );
            return Err(Error::model(self.path, why));
        }
        let known: BTreeSet<&str> = self.expected.iter().map(|spec| spec.name.as_str()).collect();
        if let Some((own, stored)) = self.stored.iter().find(|(own, _)| !known.contains(own.as_str())) {
            return Err(Error::model(self.path, self.unknown(own, &stored.name)));
        }
        self.check_ties(config, modules, &whole)?;
        Ok(whole)
    }

    fn shape(&self, name: &str) -> Vec<usize> {
        let stored = self.stored.get(name).and_then(|stored| self.shard.metadata.info(&stored.name));
        stored.map(|info| info.shape.clone()).unwrap_or_default()
    }

    fn expect(&mut self, name: String, shape: Vec<usize>, of: &TensorSpec) -> Result<()> {
        let found = self.shape(&name);
        if found != shape {
            let advice = match of.role {
                Role::Score => "a reward model has one label, and its head one row".to_owned(),
                Role::Embedding | Role::LmHead if found.len() == 2 && found[0] != shape[0] => {
                    format!("the vocabulary was resized, which is not supported; {MERGE_ELSEWHERE}")
                }
                _ => format!("does {CONFIG_FILE} belong to this file, and the base to this adapter?"),
            };
            let why = format!(
                "tensor {:?} has shape {found:?}, expected {shape:?} from {CONFIG_FILE} and the base; {advice}",
                self.stored[&name].name
            );
            return Err(Error::model(self.path, why));
        }
        self.expected.push(TensorSpec { name, shape, ..of.clone() });
        Ok(())
    }

    fn missing(&self, module: &AdaptedModule, held: [bool; 2], parts: &[(String, Vec<usize>); 2]) -> Error {
        let name = &parts[usize::from(held[0])].0;
        let why = format!(
            "lacks the tensor {name:?}, although \"target_modules\" of {CONFIG_FILE} names the module {}; is the file \
             complete, and the base that of this adapter?",
            module.name()
        );
        Error::model(self.path, why)
    }

    fn unknown(&self, own: &str, name: &str) -> String {
        let shape = self.shape(own);
        let module = own.strip_prefix(PREFIX).unwrap_or(own);
        let module = module.split_once(".lora_").map(|(module, _)| module);
        let reason = match module {
            Some(module) if self.model.tensors().iter().any(|t| t.name == format!("{module}.weight")) => {
                format!("but {CONFIG_FILE} does not target that module")
            }
            None if ["score.", "classifier."].iter().any(|head| own.contains(head)) => {
                format!(
                    "the head of a classifier; set \"task_type\" to \"SEQ_CLS\" in {CONFIG_FILE} if it is a reward model's"
                )
            }
            _ => format!("which {} does not have; does the adapter belong to this base?", self.model.architecture()),
        };
        format!("holds the tensor {name:?} of shape {shape:?}, {reason}")
    }

    /// Returns an error if the adapter changes the embedding table or the head of a base that ties the two. PEFT
    /// changes a copy, so the result has two tables.
    fn check_ties(&self, config: &AdapterConfig, modules: &[AdaptedModule], whole: &BTreeSet<String>) -> Result<()> {
        if !ties(self.model) {
            return Ok(());
        }
        let table = |role: Role| matches!(role, Role::Embedding | Role::LmHead);
        let trained = modules.iter().any(|module| table(module.tensor.role));
        let stored = whole.contains(&self.model.embedding_name()) || whole.contains(LM_HEAD);
        let tied_by_peft = config.ensure_weight_tying && !trained;
        // save_pretrained may add an unchanged table.
        let changes = stored
            && config
                .modules_to_save
                .iter()
                .any(|name| name.ends_with(self.model.family.names.embedding) || name == "lm_head");
        let targets_head = match &config.target_modules {
            super::config::Targets::Names(names) => names.iter().any(|name| name == "lm_head"),
            _ => false,
        };
        if trained || targets_head || (changes && !tied_by_peft) {
            let why = format!(
                "changes the embedding table or the head of a model that ties them, so its result has two tables; \
                 {MERGE_ELSEWHERE}, with \"tie_word_embeddings\" false"
            );
            return Err(Error::model(&self.path.with_file_name(CONFIG_FILE), why));
        }
        Ok(())
    }
}

impl AdapterFolder {
    /// Opens the weights and checks them for a model with this configuration.
    pub(crate) fn open(&self, model: &ModelConfig) -> Result<AdapterFiles> {
        AdapterFiles::open(&self.path, &self.config, model)
    }

    /// Head of the merged model, if the base has the head `of_base`. An adapter for sequence classification makes
    /// a reward model.
    pub(crate) fn head(&self, of_base: Head) -> Head {
        match self.config.task_type {
            Some(super::config::TaskType::SeqCls) => Head::Reward,
            _ => of_base,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// Large matrices are read in parts that begin and end within rows, so the product is added in such parts.
    #[test]
    fn a_product_is_the_same_in_parts_and_equals_the_sum_over_ranks() {
        let (rows, columns, rank) = (7, 11, 3);
        let mut rng = Rng::keyed(3, &["product"]);
        let mut draw = |len: usize| -> Vec<f64> { (0..len).map(|_| rng.normal()).collect() };
        let (left, right) = (draw(rows * rank), draw(rank * columns));
        let weight: Vec<f32> = draw(rows * columns).into_iter().map(|x| x as f32).collect();
        let expected: Vec<f32> = (0..rows * columns)
            .map(|i| {
                let (row, column) = (i / columns, i % columns);
                let sum: f64 = (0..rank).map(|k| left[row * rank + k] * right[k * columns + column]).sum();
                (f64::from(weight[i]) + sum) as f32
            })
            .collect();
        let product = Product { columns, rank, left, right, place: ("file".into(), "module".into()) };
        for part in [1, 4, 11, 13, 50, 77] {
            let mut merged = weight.clone();
            for (i, values) in merged.chunks_mut(part).enumerate() {
                product.add(i * part, values).unwrap();
            }
            for (a, b) in merged.iter().zip(&expected) {
                assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "parts of {part}: {a} {b}");
            }
        }
        let mut large = vec![f32::MAX; 77];
        let beyond = Product { left: vec![1e39; rows * rank], ..product };
        assert!(beyond.add(0, &mut large).unwrap_err().to_string().contains("module"));
    }
}
