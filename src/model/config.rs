//! Model configuration, read from a Hugging Face `config.json` and checked before anything is
//! allocated.
//!
//! Families: Llama and Qwen2, as language models or as reward models (`XForSequenceClassification`
//! with one label). Both key styles are read (transformers 4: `rope_theta`, `rope_scaling`,
//! `torch_dtype`; transformers 5: `rope_parameters`, `dtype`) and both are written; a file with
//! conflicting styles is refused. Unknown keys are kept and written back.
//!
//! Refused by name: other model types and architectures, activations other than SiLU, sliding
//! windows in use, biases on the MLP or the attention output, RoPE scalings other than default,
//! linear and llama3, quantised weights, and every size that is missing, not positive, not
//! divisible where required, or implausible.

use std::path::Path;

use serde_json::{Map, Value};

use super::config_json::{Keys, read_object, shown};
use super::rope::{MAX_POSITIONS, RopeConfig};
use crate::files::hub_model;
use crate::{Error, Result};

/// Maximum value of each size, far above every published model of these families.
const MAX_VOCAB: usize = 1 << 22;
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 10;
const MAX_HEADS: usize = 1 << 10;
const MAX_HEAD_DIM: usize = 1 << 10;
/// Maximum number of parameters of a configuration.
const MAX_PARAMETERS: usize = 100_000_000_000;

/// Model family. It determines the transformers classes that load the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Llama,
    Qwen2,
}

impl Family {
    /// Every supported family.
    pub const ALL: [Family; 2] = [Family::Llama, Family::Qwen2];

    /// `model_type` in config.json.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Qwen2 => "qwen2",
        }
    }

    /// Prefix of the architecture's class name.
    fn class(self) -> &'static str {
        match self {
            Family::Llama => "Llama",
            Family::Qwen2 => "Qwen2",
        }
    }

    /// Context length that transformers assumes if a file names none.
    fn default_positions(self) -> usize {
        match self {
            Family::Llama => 2048,
            Family::Qwen2 => 32768,
        }
    }
}

/// Head on the last hidden state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Projection to the vocabulary: `XForCausalLM`.
    LanguageModel,
    /// One scalar, `score.weight`, read at a sequence's last token: `XForSequenceClassification`.
    Reward,
}

impl Head {
    fn class(self) -> &'static str {
        match self {
            Head::LanguageModel => "ForCausalLM",
            Head::Reward => "ForSequenceClassification",
        }
    }
}

/// Data type of weights in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredDtype {
    F32,
    Bf16,
    F16,
}

impl StoredDtype {
    /// Name in config.json.
    pub fn name(self) -> &'static str {
        match self {
            StoredDtype::F32 => "float32",
            StoredDtype::Bf16 => "bfloat16",
            StoredDtype::F16 => "float16",
        }
    }

    /// Bytes per number.
    pub fn bytes(self) -> usize {
        match self {
            StoredDtype::F32 => 4,
            StoredDtype::Bf16 | StoredDtype::F16 => 2,
        }
    }
}

/// Sizes and settings of a model. All fields have passed the checks of [`ModelConfig::read`].
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub family: Family,
    pub head: Head,
    /// Rows of the embedding table.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Intermediate width of the SwiGLU MLP.
    pub intermediate: usize,
    pub layers: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head; even. Not necessarily `hidden / heads`.
    pub head_dim: usize,
    pub rms_norm_eps: f64,
    /// Biases on the query, key and value projections (Qwen2).
    pub qkv_bias: bool,
    /// The vocabulary projection is the embedding table.
    pub tied: bool,
    pub rope: RopeConfig,
    /// Maximum sequence length of the model.
    pub max_positions: usize,
    /// Standard deviation of randomly initialised weights.
    pub initializer_range: f64,
    /// Ids that end a response: the ids of config.json, then further ids of generation_config.json.
    pub eos: Vec<u32>,
    pub bos: Option<u32>,
    /// Padding id. This program never feeds it to a model; reward folders must name it for
    /// transformers.
    pub pad: Option<u32>,
    /// Data type that the file declares for its weights. The weight files decide.
    pub dtype: Option<StoredDtype>,
    /// `config.json` as read, to keep unknown keys; empty for a preset.
    pub(super) original: Map<String, Value>,
    /// `generation_config.json` as read.
    pub(super) generation: Option<Map<String, Value>>,
}

/// Reason to refuse a folder without `config.json`, with the advice that fits what it holds.
fn no_config(folder: &Path) -> String {
    let names: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let ends = |end: &str| names.iter().any(|name| name.ends_with(end));
    if let Some(advice) = hub_model(folder) {
        return advice;
    }
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

impl ModelConfig {
    /// Reads and checks `config.json` of a model folder, and the end ids of
    /// `generation_config.json` if the file exists. Every failure is [`Error::Model`] with key,
    /// value and allowed values, or [`Error::Io`].
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        if !path.is_file() {
            return Err(Error::model(folder, no_config(folder)));
        }
        let mut config = Self::from_json(read_object(&path)?, &path)?;
        let path = folder.join("generation_config.json");
        if path.is_file() {
            let map = read_object(&path)?;
            let more = Keys { map: &map, path: &path, prefix: "" }.token_ids("eos_token_id", config.vocab)?;
            for id in more {
                if !config.eos.contains(&id) {
                    config.eos.push(id);
                }
            }
            config.generation = Some(map);
        }
        Ok(config)
    }

    /// Checks the contents of a `config.json`; `path` is the file named in messages.
    pub fn from_json(map: Map<String, Value>, path: &Path) -> Result<Self> {
        let keys = Keys { map: &map, path, prefix: "" };
        let family = read_family(keys)?;
        let head = read_head(keys, family)?;
        refuse_unsupported(keys, family)?;

        let vocab = keys.size("vocab_size", MAX_VOCAB)?;
        let hidden = keys.size("hidden_size", MAX_WIDTH)?;
        let layers = keys.size("num_hidden_layers", MAX_LAYERS)?;
        let heads = keys.size("num_attention_heads", MAX_HEADS)?;
        if family == Family::Qwen2 && !map.contains_key("num_key_value_heads") {
            return Err(
                keys.missing("num_key_value_heads", "Qwen2 has no default that fits; use null for one per head")
            );
        }
        let kv_heads = keys.size_or("num_key_value_heads", heads, MAX_HEADS)?;
        if !heads.is_multiple_of(kv_heads) {
            let why = format!(
                "\"num_attention_heads\" is {heads} and \"num_key_value_heads\" is {kv_heads}; the first must be a \
                 multiple of the second"
            );
            return Err(Error::model(path, why));
        }
        let explicit = keys.optional_size("head_dim", MAX_HEAD_DIM)?;
        // transformers requires this of Llama even if head_dim is given.
        if (explicit.is_none() || family == Family::Llama) && !hidden.is_multiple_of(heads) {
            let why = format!(
                "\"hidden_size\" is {hidden} and \"num_attention_heads\" is {heads}; the first must be a multiple of \
                 the second"
            );
            return Err(Error::model(path, why));
        }
        let head_dim = explicit.unwrap_or(hidden / heads);
        if !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
            let why = format!(
                "the head width (\"head_dim\", or hidden_size / num_attention_heads) is {head_dim}; rotary embedding \
                 needs an even width of at most {MAX_HEAD_DIM}"
            );
            return Err(Error::model(path, why));
        }
        refuse_sliding_window(keys, family, layers)?;

        let config = Self {
            family,
            head,
            vocab,
            hidden,
            intermediate: keys.size("intermediate_size", MAX_WIDTH)?,
            layers,
            heads,
            kv_heads,
            head_dim,
            // Far below 1e-30 the value is 0 in f32, and the norm of a zero vector is infinite.
            rms_norm_eps: keys.number_or("rms_norm_eps", 1e-6, |x| (1e-30..1.0).contains(&x), "above 0 and below 1")?,
            qkv_bias: family == Family::Qwen2,
            tied: keys.flag_or("tie_word_embeddings", false)?,
            rope: RopeConfig::read(keys)?,
            max_positions: keys.size_or("max_position_embeddings", family.default_positions(), MAX_POSITIONS)?,
            initializer_range: keys.number_or(
                "initializer_range",
                0.02,
                |x| (0.0..=1.0).contains(&x),
                "from 0 to 1",
            )?,
            eos: keys.token_ids("eos_token_id", vocab)?,
            bos: keys.token_id("bos_token_id", vocab)?,
            pad: keys.token_id("pad_token_id", vocab)?,
            dtype: read_dtype(keys)?,
            original: Map::new(),
            generation: None,
        };
        if config.head == Head::Reward && config.pad.is_none() {
            let why = "a reward model must name one: transformers refuses batches without it. Set it to an id that \
                       no text contains";
            return Err(keys.missing("pad_token_id", why));
        }
        match config.parameters() {
            Some(count) if count <= MAX_PARAMETERS => Ok(Self { original: map, ..config }),
            _ => {
                let why = format!(
                    "vocab_size {vocab}, hidden_size {hidden}, intermediate_size {}, num_hidden_layers {layers} and \
                     num_attention_heads {heads} make more than {MAX_PARAMETERS} parameters; check these keys",
                    config.intermediate
                );
                Err(Error::model(path, why))
            }
        }
    }

    /// Replaces the vocabulary projection by a scalar head. `pad` must be in the vocabulary and
    /// should be an id that the chat template never emits.
    pub fn into_reward(mut self, pad: u32) -> Result<Self> {
        if pad as usize >= self.vocab {
            let why = format!("the pad token id {pad} is outside the vocabulary of {} ids", self.vocab);
            return Err(Error::model(Path::new("config.json"), why));
        }
        self.head = Head::Reward;
        self.pad = Some(pad);
        Ok(self)
    }

    /// Replaces vocabulary size and special ids, for a new model that follows a tokenizer. Fails
    /// with [`Error::Model`] if an id is outside the vocabulary or the size is implausible.
    pub fn with_vocabulary(mut self, vocab: usize, eos: Vec<u32>, bos: Option<u32>, pad: Option<u32>) -> Result<Self> {
        let refuse = |why: String| Err(Error::model(Path::new("config.json"), why));
        if vocab == 0 || vocab > MAX_VOCAB {
            return refuse(format!("the vocabulary size is {vocab}; it must be an integer from 1 to {MAX_VOCAB}"));
        }
        if let Some(id) = eos.iter().chain(&bos).chain(&pad).find(|id| **id as usize >= vocab) {
            return refuse(format!("the special token id {id} is outside the vocabulary of {vocab} ids"));
        }
        (self.vocab, self.eos, self.bos, self.pad) = (vocab, eos, bos, pad);
        self.generation = None;
        Ok(self)
    }

    /// Total width of the query heads.
    pub(crate) fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Total width of the key (or value) heads.
    pub(crate) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Number of parameters, with tied weights counted once; `None` if it overflows.
    pub fn parameters(&self) -> Option<usize> {
        let product = |a: usize, b: usize| a.checked_mul(b);
        let kv = product(self.kv_heads, self.head_dim)?;
        let query = product(self.heads, self.head_dim)?;
        let rows =
            query.checked_mul(2)?.checked_add(kv.checked_mul(2)?)?.checked_add(product(3, self.intermediate)?)?;
        let bias = if self.qkv_bias { query.checked_add(kv.checked_mul(2)?)? } else { 0 };
        let layer = product(rows, self.hidden)?.checked_add(bias)?.checked_add(product(2, self.hidden)?)?;
        let table = product(self.vocab, self.hidden)?;
        let head = match (self.head, self.tied) {
            (Head::Reward, _) => self.hidden,
            (Head::LanguageModel, true) => 0,
            (Head::LanguageModel, false) => table,
        };
        product(layer, self.layers)?.checked_add(table)?.checked_add(head)?.checked_add(self.hidden)
    }

    /// Inverse RoPE frequencies, `head_dim / 2` of them; see [`RopeConfig::inv_freq`].
    pub fn inv_freq(&self) -> Vec<f32> {
        self.rope.inv_freq(self.head_dim)
    }

    /// Name of the transformers class that loads this model.
    pub fn architecture(&self) -> String {
        format!("{}{}", self.family.class(), self.head.class())
    }
}

/// Returns the names of all supported architectures, for messages.
fn supported() -> String {
    let names: Vec<String> = Family::ALL
        .iter()
        .flat_map(|f| [Head::LanguageModel, Head::Reward].map(|h| format!("{}{}", f.class(), h.class())))
        .collect();
    names.join(", ")
}

fn read_family(keys: Keys) -> Result<Family> {
    let types = Family::ALL.map(Family::model_type).join(", ");
    let Some(found) = keys.text("model_type")? else {
        return Err(keys.missing("model_type", &format!("supported are {types}")));
    };
    Family::ALL
        .into_iter()
        .find(|f| f.model_type() == found)
        .ok_or_else(|| Error::model(keys.path, format!("model type {found:?} is not supported; supported are {types}")))
}

fn read_head(keys: Keys, family: Family) -> Result<Head> {
    let head = match keys.get("architectures") {
        None => Head::LanguageModel,
        Some(Value::Array(list)) if list.len() == 1 => {
            let class = list[0].as_str().unwrap_or_default();
            let heads = [Head::LanguageModel, Head::Reward];
            heads
                .into_iter()
                .find(|h| class.strip_suffix(h.class()) == Some(family.class()))
                .ok_or_else(|| keys.refuse("architectures", &list[0], &format!("supported are {}", supported())))?
        }
        Some(other) => {
            let allowed = format!("it must be a list of one class name; supported are {}", supported());
            return Err(keys.refuse("architectures", other, &allowed));
        }
    };
    if head == Head::Reward {
        // transformers takes the number of labels from id2label, then from num_labels, and
        // otherwise assumes 2.
        let labels = match keys.object("id2label")? {
            Some(map) => Some(map.len()),
            None => keys.optional_size("num_labels", MAX_WIDTH)?,
        };
        if labels != Some(1) {
            let found = labels.map_or("2 by default".to_owned(), |n| n.to_string());
            let why = format!(
                "the number of labels is {found} (from \"id2label\" or \"num_labels\"); a reward model has exactly \
                 one, {{\"0\": \"LABEL_0\"}}"
            );
            return Err(Error::model(keys.path, why));
        }
    }
    Ok(head)
}

/// Refuses settings that change the computation in a way that is not implemented.
fn refuse_unsupported(keys: Keys, family: Family) -> Result<()> {
    if let Some(act) = keys.text("hidden_act")?
        && act != "silu"
    {
        let why = format!("\"hidden_act\" is {act:?}; {} models need \"silu\"", family.class());
        return Err(Error::model(keys.path, why));
    }
    if keys.flag_or("mlp_bias", false)? {
        return Err(Error::model(keys.path, "\"mlp_bias\" is true; biases on the MLP projections are not supported"));
    }
    if family == Family::Llama && keys.flag_or("attention_bias", false)? {
        let why = "\"attention_bias\" is true; in Llama it also adds a bias to the attention output, which is not \
                   supported";
        return Err(Error::model(keys.path, why));
    }
    if let Some(quantisation) = keys.get("quantization_config") {
        let allowed = "quantised weights are not supported; use the float32, bfloat16 or float16 release";
        return Err(keys.refuse("quantization_config", quantisation, allowed));
    }
    Ok(())
}

fn refuse_sliding_window(keys: Keys, family: Family, layers: usize) -> Result<()> {
    if let Some(types) = keys.get("layer_types") {
        let full = |list: &Vec<Value>| list.len() == layers && list.iter().all(|t| t == "full_attention");
        if !types.as_array().is_some_and(full) {
            let allowed = format!("only \"full_attention\" in each of the {layers} layers is supported");
            return Err(keys.refuse("layer_types", types, &allowed));
        }
        return Ok(());
    }
    // Qwen2 uses sliding windows in layers from max_window_layers on, if use_sliding_window is set.
    // Llama never reads the keys.
    let used = family == Family::Qwen2 && keys.flag_or("use_sliding_window", false)?;
    let first = match keys.get("max_window_layers") {
        None => 28,
        Some(value) => value.as_u64().ok_or_else(|| {
            keys.refuse(
                "max_window_layers",
                value,
                "it must be an integer of at least 0: the index of the first layer with a sliding window",
            )
        })?,
    };
    // A null value means no window; an absent key means transformers' default of 4096.
    let window = !keys.map.get("sliding_window").is_some_and(Value::is_null);
    if used && window && first < layers as u64 {
        let why = format!(
            "\"use_sliding_window\" is true and layers from {first} on would use it; sliding windows are not \
             supported. Set \"use_sliding_window\" to false if no sequence is longer than the window"
        );
        return Err(Error::model(keys.path, why));
    }
    Ok(())
}

fn read_dtype(keys: Keys) -> Result<Option<StoredDtype>> {
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
