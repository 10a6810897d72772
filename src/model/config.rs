//! Model configuration, read from a Hugging Face `config.json` and checked before anything is
//! allocated.
//!
//! The supported families are the rows of [`FAMILIES`](super::family::FAMILIES), as language models or as reward
//! models (`XForSequenceClassification` with one label). Both key styles are read (transformers 4: `rope_theta`,
//! `rope_scaling`, `torch_dtype`; transformers 5: `rope_parameters`, `dtype`) and both are written; a file with
//! conflicting styles is an error. Unknown keys are kept and written back.
//!
//! As in transformers, EOS token ids beyond the vocabulary are accepted, because no text contains them. So is
//! llama3 RoPE scaling without an original length. Both give a note.
//!
//! An error names the key of an unsupported model type, architecture, activation, RoPE scaling or
//! quantisation. It also names the key of a size that is missing, not positive, not divisible where required,
//! or implausible.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::adapter::base::AdapterFolder;
use super::config_json::{Keys, read_object};
use super::config_support::{no_config, read_bias, read_dtype, read_family, refuse_unsupported};
use super::family::Family;
use super::reward_heads::{RewardNorm, has_value_head, read_head};
use super::rope::{self, RopeConfig, read_partial};
use super::rope_layers::LocalRope;
use super::softcaps::Softcaps;
use super::traits::Traits;
use super::window::{SlidingWindow, layers_without_rope, read_window};
use crate::files::input::is_named;
use crate::{Error, Result};

/// Maximum value of each size, far above every published model of these families.
const MAX_VOCAB: usize = 1 << 22;
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 10;
const MAX_HEADS: usize = 1 << 10;
const MAX_HEAD_DIM: usize = 1 << 10;
/// Maximum number of parameters of a configuration.
const MAX_PARAMETERS: usize = 100_000_000_000;

/// Head on the last hidden state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Projection to the vocabulary: `XForCausalLM`.
    LanguageModel,
    /// One scalar, `score.weight`, read at a sequence's last token: `XForSequenceClassification`.
    Reward,
}

impl Head {
    /// End of the class name in transformers, after the prefix of the family.
    pub(super) fn class(self, family: &Family) -> &'static str {
        match self {
            Head::LanguageModel => family.language_model,
            Head::Reward => family.classifier,
        }
    }
}

/// Data type of weights in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoredDtype {
    /// f32.
    #[default]
    #[serde(rename = "float32")]
    F32,
    /// bf16.
    #[serde(rename = "bfloat16")]
    Bf16,
    /// f16.
    #[serde(rename = "float16")]
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
    /// Family.
    pub family: &'static Family,
    /// Head on the last hidden state.
    pub head: Head,
    /// Rows of the embedding table.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Intermediate width of the MLP.
    pub intermediate: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head; even. Not necessarily `hidden / heads`.
    pub head_dim: usize,
    /// Eps of the norms, RMSNorm or LayerNorm.
    pub rms_norm_eps: f64,
    /// Biases on the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias on the attention output.
    pub output_bias: bool,
    /// Biases on the projections of the MLP.
    pub mlp_bias: bool,
    /// Traits of the family's layers.
    pub traits: Traits,
    /// Soft caps.
    pub softcaps: Softcaps,
    /// The vocabulary projection is the embedding table.
    pub tied: bool,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Fraction of a head that rotates, as in the file.
    pub partial_rotary_factor: f64,
    /// Number of elements at the start of a head that rotate; even.
    pub rotated: usize,
    /// Layers that do not rotate queries and keys, ascending.
    pub layers_without_rope: Vec<usize>,
    /// Sliding window of some layers; `None` if it is not shorter than the longest sequence.
    pub window: Option<SlidingWindow>,
    /// RoPE settings of the layers that do not use `rope`.
    pub local_rope: Option<LocalRope>,
    /// Maximum length of a sequence: `declared_positions`, or less if RoPE of longer sequences would depend on
    /// the other sequences of a batch (longrope).
    pub max_positions: usize,
    /// `max_position_embeddings` of the file.
    pub declared_positions: usize,
    /// Standard deviation of randomly initialised weights.
    pub initializer_range: f64,
    /// EOS token ids: those of config.json, then further ids of generation_config.json.
    pub eos: Vec<u32>,
    /// Id of the BOS token.
    pub bos: Option<u32>,
    /// Id of the pad token. This program never feeds it to a model; folders of reward models must name it for
    /// transformers.
    pub pad: Option<u32>,
    /// Mean and standard deviation by which the scores of a reward model are normalised.
    pub reward_norm: Option<RewardNorm>,
    /// Adapter that the weights are merged with, if the folder holds one.
    pub adapter: Option<Arc<AdapterFolder>>,
    /// Data type that the file declares for its weights. The type in the weight files takes precedence.
    pub dtype: Option<StoredDtype>,
    /// Notes for the log about values that are interpreted differently from how they are written.
    pub notes: Vec<String>,
    /// `config.json` as read, to keep unknown keys; empty for a preset.
    pub(super) original: Map<String, Value>,
    /// `generation_config.json` as read.
    pub(super) generation: Option<Map<String, Value>>,
}

impl ModelConfig {
    /// Reads and checks `config.json` of a model folder, and the EOS token ids of `generation_config.json` if the
    /// file exists. For an adapter's folder, reads the files of its base. Returns [`Error::Model`] with key,
    /// value and allowed values, or [`Error::Io`].
    pub fn read(folder: &Path) -> Result<Self> {
        Self::read_on(folder, None)
    }

    /// Like [`Self::read`], but `base` replaces the folder of the base that an adapter names. It has no effect on a
    /// whole model.
    pub fn read_on(folder: &Path, base: Option<&Path>) -> Result<Self> {
        let Some(adapter) = AdapterFolder::find(folder, base)? else { return Self::read_whole(folder) };
        let mut config = Self::read_whole(&adapter.base)?;
        if has_value_head(&adapter.path)? && config.head == Head::LanguageModel {
            config.head = Head::Reward;
            config.pad = None;
        }
        config.head = adapter.head(config.head);
        config.adapter = Some(Arc::new(adapter));
        Ok(config)
    }

    fn read_whole(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        if !is_named(&path) {
            return Err(Error::model(folder, no_config(folder)));
        }
        let mut config = Self::parse(read_object(&path)?, &path, Some(folder))?;
        let path = folder.join("generation_config.json");
        if is_named(&path) {
            let map = read_object(&path)?;
            let keys = Keys { map: &map, path: &path, prefix: "", names: &[] };
            for id in keys.ids_in_vocabulary("eos_token_id", config.vocab, &mut config.notes)? {
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
        Self::parse(map, path, None)
    }

    /// Like [`Self::from_json`]; some errors also depend on the weights in `folder`.
    fn parse(map: Map<String, Value>, path: &Path, folder: Option<&Path>) -> Result<Self> {
        let keys = Keys { map: &map, path, prefix: "", names: &[] };
        let family = read_family(keys)?;
        let keys = Keys { names: family.keys, ..keys };
        let found_head = read_head(keys, family, folder)?;
        let head = found_head.head;
        refuse_unsupported(keys, family)?;

        let vocab = keys.size("vocab_size", MAX_VOCAB)?;
        let hidden = keys.size("hidden_size", MAX_WIDTH)?;
        let layers = keys.size("num_hidden_layers", MAX_LAYERS)?;
        let heads = keys.size("num_attention_heads", MAX_HEADS)?;
        if family.needs_kv_heads && !map.contains_key("num_key_value_heads") {
            let why = format!("{} has no default that fits; use null for one per head", family.class);
            return Err(keys.missing("num_key_value_heads", &why));
        }
        let kv_heads = match family.grouped {
            true => keys.size_or("num_key_value_heads", heads, MAX_HEADS)?,
            false => heads,
        };
        if !heads.is_multiple_of(kv_heads) {
            let why = format!(
                "\"num_attention_heads\" is {heads} and \"num_key_value_heads\" is {kv_heads}; the first must be a \
                 multiple of the second"
            );
            return Err(Error::model(path, why));
        }
        let default = family.head_dim.filter(|_| !map.contains_key("head_dim"));
        let explicit = keys.optional_size("head_dim", MAX_HEAD_DIM)?.or(default);
        if (explicit.is_none() || family.whole_heads) && !hidden.is_multiple_of(heads) {
            let why = format!(
                "\"{}\" is {hidden} and \"{}\" is {heads}; the first must be a multiple of the second",
                keys.name("hidden_size"),
                keys.name("num_attention_heads")
            );
            return Err(Error::model(path, why));
        }
        let head_dim = explicit.unwrap_or(hidden / heads);
        if !family.wide_heads && head_dim * heads != hidden {
            let why = format!(
                "\"head_dim\" is {head_dim}, but heads of {} models have hidden_size / num_attention_heads elements, here \
                 {}; delete the key",
                family.class,
                hidden / heads
            );
            return Err(Error::model(path, why));
        }
        if !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
            let why = format!(
                "the head width (\"head_dim\", or hidden_size / num_attention_heads) is {head_dim}; rotary embedding \
                 needs an even width of at most {MAX_HEAD_DIM}"
            );
            return Err(Error::model(path, why));
        }
        let layers_without_rope = layers_without_rope(keys, family, layers)?;
        let declared_positions = rope::read_positions(keys, family.positions)?;
        let mut notes: Vec<String> = found_head.note.into_iter().collect();
        notes.extend(family.classifier_note().filter(|_| head == Head::Reward));
        let (partial_rotary_factor, rotated) = read_partial(keys, family.rope, head_dim)?;
        let (rope, local) = match family.learned_positions {
            true => (RopeConfig { theta: family.rope.theta, scaling: rope::RopeScaling::Default }, None),
            false => RopeConfig::of_layers(keys, family.rope, (declared_positions, rotated), &mut notes)?,
        };
        let of_all = rope.longest(declared_positions, &mut notes);
        let max_positions =
            local.as_ref().map_or(of_all, |rope| of_all.min(rope.longest(declared_positions, &mut notes)));
        let window = read_window(keys, family, (layers, max_positions), &layers_without_rope)?;
        let sliding = window.as_ref().map_or(&[][..], |window| &window.layers);
        let local_rope = LocalRope::of(local, &rope, sliding);
        let window = window.and_then(|window| window.that_cuts(max_positions));

        let softcaps = Softcaps::read(keys, family, &mut notes)?;
        // The class default is ignored if it is outside the vocabulary. It then belongs to the published model
        // size.
        let of_class = |key: &str, id: Option<u32>| id.filter(|&id| !keys.has(key) && (id as usize) < vocab);
        let pad = keys.token_id("pad_token_id", vocab)?.or(of_class("pad_token_id", family.ids.pad));
        let mut eos = keys.ids_in_vocabulary("eos_token_id", vocab, &mut notes)?;
        eos.extend(of_class("eos_token_id", family.ids.eos));
        let bos = keys.one_of("bos_token_id", keys.ids_in_vocabulary("bos_token_id", vocab, &mut notes)?)?;
        if head == Head::Reward && pad.is_none() {
            notes.push(
                "config.json names no pad_token_id, so rewards are read at the last token, as transformers does for \
                 one sequence at a time; transformers rejects batches"
                    .into(),
            );
        }
        let config = Self {
            family,
            head,
            vocab,
            hidden,
            intermediate: match family.default_inner {
                Some(times) => keys.size_or("intermediate_size", times * hidden, MAX_WIDTH)?,
                None => keys.size("intermediate_size", MAX_WIDTH)?,
            },
            layers,
            heads,
            kv_heads,
            head_dim,
            // An eps far below 1e-30 is 0 in f32, and the reciprocal norm of a zero vector is then infinite.
            rms_norm_eps: keys.number_or(
                "rms_norm_eps",
                family.eps,
                |x| (1e-30..1.0).contains(&x),
                "above 0 and below 1",
            )?,
            qkv_bias: read_bias(keys, family.qkv_bias)?,
            output_bias: read_bias(keys, family.output_bias)?,
            mlp_bias: read_bias(keys, family.mlp_bias)?,
            traits: Traits::read(keys, family)?,
            softcaps,
            tied: keys.flag_or("tie_word_embeddings", family.tied)?,
            rope,
            partial_rotary_factor,
            rotated,
            layers_without_rope,
            window,
            local_rope,
            max_positions,
            declared_positions,
            initializer_range: keys.number_or(
                "initializer_range",
                0.02,
                |x| (0.0..=1.0).contains(&x),
                "from 0 to 1",
            )?,
            eos,
            bos: bos.or(of_class("bos_token_id", family.ids.bos)),
            pad: pad.filter(|_| !found_head.last_token),
            reward_norm: if head == Head::Reward { RewardNorm::read(keys)? } else { None },
            adapter: None,
            dtype: read_dtype(keys)?,
            notes,
            original: Map::new(),
            generation: None,
        };
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
        if self.head == Head::LanguageModel {
            self.notes.extend(self.family.classifier_note());
        }
        self.head = Head::Reward;
        self.pad = Some(pad);
        Ok(self.without_norm())
    }

    /// Sets or replaces the pad token of a reward model.
    pub(crate) fn with_pad(self, pad: u32) -> Result<Self> {
        let norm = (self.reward_norm, self.original.clone());
        let mut config = Self { reward_norm: None, ..self }.into_reward(pad)?;
        (config.reward_norm, config.original) = norm;
        Ok(config)
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
        let projections = if self.family.gated { 3 } else { 2 };
        let rows = query
            .checked_mul(2)?
            .checked_add(kv.checked_mul(2)?)?
            .checked_add(product(projections, self.intermediate)?)?;
        let bias = if self.qkv_bias { query.checked_add(kv.checked_mul(2)?)? } else { 0 };
        let norms = match (self.family.qk_norm, self.family.whole_norm) {
            (false, _) => 0,
            (true, false) => 2 * self.head_dim,
            (true, true) => query.checked_add(kv)?,
        };
        let norm = self.norm_width();
        let of_layer = match (self.shares_norm(), self.family.norms_in_front && self.family.norms_behind) {
            (true, _) => 1,
            (false, both) => 2 * (1 + usize::from(both)),
        };
        let output = usize::from(self.output_bias) * self.hidden;
        let mlp = usize::from(self.mlp_bias) * self.mlp_width().checked_add(self.hidden)?;
        let wide = product(of_layer, norm)?.checked_add(output)?.checked_add(mlp)?;
        let layer = product(rows, self.hidden)?.checked_add(bias)?.checked_add(wide)?.checked_add(norms)?;
        let table = product(self.vocab, self.hidden)?;
        let head = match (self.head, self.tied) {
            (Head::Reward, _) => self.hidden,
            (Head::LanguageModel, true) => 0,
            (Head::LanguageModel, false) => table,
        };
        let learned = usize::from(self.family.learned_positions);
        let positions = product(learned * self.declared_positions, self.hidden)?;
        product(layer, self.layers)?.checked_add(table)?.checked_add(positions)?.checked_add(head)?.checked_add(norm)
    }

    /// Inverse RoPE frequencies, `rotated / 2` of them, none with learned positions; see [`RopeConfig::inv_freq`].
    pub fn inv_freq(&self) -> Vec<f32> {
        self.inv_freq_of(&self.rope)
    }

    /// Like [`Self::inv_freq`], with the RoPE settings of some layers.
    pub(super) fn inv_freq_of(&self, rope: &RopeConfig) -> Vec<f32> {
        match self.family.learned_positions {
            true => Vec::new(),
            false => rope.inv_freq(self.rotated),
        }
    }

    /// Name of the transformers class that loads this model.
    pub fn architecture(&self) -> String {
        self.family.class_of(self.head)
    }

    /// Value of a key of `generation_config.json`; `None` if the file or the key is missing, or the value is
    /// null.
    pub fn generation_setting(&self, key: &str) -> Option<&Value> {
        self.generation.as_ref()?.get(key).filter(|value| !value.is_null())
    }

    /// The key that limits the length of a sequence and its value, for messages.
    pub fn longest_text(&self) -> String {
        match self.max_positions < self.declared_positions {
            false => format!("max_position_embeddings {}", self.max_positions),
            true => format!("original_max_position_embeddings {}", self.max_positions),
        }
    }
}
