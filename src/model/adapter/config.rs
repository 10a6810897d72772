//! Reads, checks and writes `adapter_config.json` of PEFT, in the form that PEFT 0.21 writes.
//!
//! Supported are LoRA on linear layers and on the embedding table, with ranks and factors by module
//! (`rank_pattern`, `alpha_pattern`), rank-stabilised factors, and whole modules (`modules_to_save`).
//!
//! Other PEFT types are an error that names the key, and so is every setting that changes the result and is not
//! implemented here: DoRA, biases, trainable token rows, variants of LoRA, and initialisations that changed the
//! base weights. An unknown key that is set is rejected too, because its effect is not known.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::super::config_json::{Keys, read_object};
use crate::{Error, Result};

/// Name of the file.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// Largest rank, far above every adapter in use.
const MAX_RANK: usize = 1 << 16;

/// Advice in the error for an adapter that is not supported.
pub(super) const MERGE_ELSEWHERE: &str =
    "merge it with PEFT (merge_and_unload), save the whole model, and use that folder";

/// Modules that have a low-rank product.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Full names, or ends of names that start after a dot: `q_proj`, `self_attn.q_proj`.
    Names(Vec<String>),
    /// A regular expression that matches whole names.
    Pattern(String),
    /// Every linear layer except the head.
    AllLinear,
}

/// Task that the adapter was trained for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskType {
    /// A language model.
    CausalLm,
    /// Sequence classification: with one label, a reward model.
    SeqCls,
}

/// Settings of a LoRA adapter: module i computes W x + factor_i B A x.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// The model that the adapter belongs to: a folder or a name on the Hugging Face Hub.
    pub base_model_name_or_path: Option<String>,
    /// Branch, tag or commit of a base on the Hub.
    pub revision: Option<String>,
    /// Task type of PEFT.
    pub task_type: Option<TaskType>,
    /// Rank of modules that `rank_pattern` does not name.
    pub r: usize,
    /// Alpha, the numerator of the factor, for modules that `alpha_pattern` does not name.
    pub lora_alpha: f64,
    /// Dropout rate in training; it has no effect when the trained adapter is applied.
    pub lora_dropout: f64,
    /// The factor is alpha / sqrt(rank) instead of alpha / rank.
    pub use_rslora: bool,
    /// Modules that are adapted.
    pub target_modules: Targets,
    /// Modules that are left out although `target_modules` names them.
    pub exclude_modules: Option<Targets>,
    /// Layers with adapters; all if `None`. Needs names in `target_modules`.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Names of the module list that a layer number indexes, for `layers_to_transform`; any name matches if
    /// empty.
    pub layers_pattern: Vec<String>,
    /// Rank for each regular expression, matched against the end of a module's name; the first match counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alpha for each regular expression, matched in the same way.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Modules that are stored whole, such as a reward head.
    pub modules_to_save: Vec<String>,
    /// If the base ties embedding and head, they stay one table when they are trained.
    pub ensure_weight_tying: bool,
    /// Weights of the adapted layers are stored as (inputs, outputs), as in GPT-2. Like PEFT, this program uses
    /// the storage order of each layer and ignores the value.
    pub fan_in_fan_out: bool,
    /// PEFT freezes the adapter when it loads it. True in a new adapter.
    pub inference_mode: bool,
    /// Notes for the log.
    pub notes: Vec<String>,
}

/// Keys that must be null, false or empty, and what they stand for.
const REFUSED: [(&str, &str); 14] = [
    ("use_dora", "DoRA scales every row of the merged weights"),
    ("use_qalora", "QALoRA pools the inputs of each module"),
    ("lora_bias", "it trains biases in the low-rank product"),
    ("trainable_token_indices", "it trains single rows of the embedding table"),
    ("layer_replication", "it repeats layers of the base"),
    ("target_parameters", "it adapts parameters that are not linear layers"),
    ("alora_invocation_tokens", "aLoRA is active only after its invocation tokens"),
    ("arrow_config", "Arrow mixes several adapters"),
    ("use_bdlora", "it makes the products block-diagonal"),
    ("velora_config", "VeLoRA is a variant of LoRA that is not computed here"),
    ("kasa_config", "KaSA changes the base weights"),
    ("monteclora_config", "MonteCLoRA draws the products at random"),
    ("megatron_config", "it belongs to layers of Megatron"),
    ("enable_lora", "it belongs to merged layers of early PEFT versions"),
];

/// Keys that have no effect on the trained model.
const WITHOUT_EFFECT: [&str; 11] = [
    "auto_mapping",
    "peft_version",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
    "merge_weights",
    // The next four keys configure initialisations.
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "inference_mode",
];

/// Keys that `parse` reads.
const READ: [&str; 19] = [
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "bias",
    "fan_in_fan_out",
    "init_lora_weights",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "ensure_weight_tying",
];

impl AdapterConfig {
    /// A new adapter of rank `r` with factor `lora_alpha` / `r`.
    pub fn new(base: Option<String>, task_type: TaskType, (r, lora_alpha): (usize, f64), targets: Targets) -> Self {
        Self {
            base_model_name_or_path: base,
            revision: None,
            task_type: Some(task_type),
            r,
            lora_alpha,
            lora_dropout: 0.0,
            use_rslora: false,
            target_modules: targets,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            modules_to_save: Vec::new(),
            ensure_weight_tying: false,
            fan_in_fan_out: false,
            inference_mode: true,
            notes: Vec::new(),
        }
    }

    /// Reads and checks `adapter_config.json` of a folder. Returns [`Error::Model`] with key, value and advice,
    /// or [`Error::Io`].
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG_FILE);
        Self::parse(&read_object(&path)?, &path)
    }

    /// Checks the contents of a file; `path` is named in messages.
    pub fn parse(map: &Map<String, Value>, path: &Path) -> Result<Self> {
        let keys = Keys { map, path, prefix: "", names: &[] };
        match keys.text("peft_type")? {
            Some("LORA") => {}
            Some(other) => {
                let why =
                    format!("\"peft_type\" is {other:?}; only \"LORA\" adapters are supported: {MERGE_ELSEWHERE}");
                return Err(Error::model(path, why));
            }
            None => return Err(keys.missing("peft_type", "it must be \"LORA\"")),
        }
        refuse_settings(keys)?;
        let task_type = match keys.text("task_type")? {
            None => None,
            Some("CAUSAL_LM") => Some(TaskType::CausalLm),
            Some("SEQ_CLS") => Some(TaskType::SeqCls),
            Some(other) => {
                let why = format!(
                    "\"task_type\" is {other:?}; mapl supports \"CAUSAL_LM\", and \"SEQ_CLS\" for reward models"
                );
                return Err(Error::model(path, why));
            }
        };
        let target_modules = targets(keys, "target_modules")?.ok_or_else(|| {
            keys.missing("target_modules", "it must list the adapted modules, as in [\"q_proj\", \"v_proj\"]")
        })?;
        let layers_to_transform = match keys.get("layers_to_transform") {
            Some(Value::Number(_)) => Some(vec![index(keys, "layers_to_transform", keys.get("layers_to_transform"))?]),
            Some(Value::Array(list)) if !list.is_empty() => Some(
                list.iter().map(|one| index(keys, "layers_to_transform", Some(one))).collect::<Result<Vec<usize>>>()?,
            ),
            Some(Value::Array(_)) | None => None,
            Some(other) => return Err(keys.refuse("layers_to_transform", other, "it must be a list of layer numbers")),
        };
        if layers_to_transform.is_some() && !matches!(target_modules, Targets::Names(_)) {
            let why = "\"layers_to_transform\" needs a list in \"target_modules\"; name the layers in the expression";
            return Err(Error::model(path, why));
        }
        let positive = |x: f64| x > 0.0;
        Ok(Self {
            base_model_name_or_path: keys.text("base_model_name_or_path")?.filter(|s| !s.is_empty()).map(str::to_owned),
            revision: keys.text("revision")?.map(str::to_owned),
            task_type,
            r: keys.size("r", MAX_RANK)?,
            lora_alpha: keys.number("lora_alpha", |_| true, "finite")?,
            lora_dropout: keys.number_or("lora_dropout", 0.0, |x| (0.0..1.0).contains(&x), "from 0 to below 1")?,
            use_rslora: keys.flag_or("use_rslora", false)?,
            target_modules,
            exclude_modules: targets(keys, "exclude_modules")?,
            layers_to_transform,
            layers_pattern: names(keys, "layers_pattern")?,
            rank_pattern: pattern(keys, "rank_pattern", "an integer from 1", |value| {
                value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=MAX_RANK).contains(n))
            })?,
            alpha_pattern: pattern(keys, "alpha_pattern", "a number above 0", |value| {
                value.as_f64().filter(|&x| x.is_finite() && positive(x))
            })?,
            modules_to_save: names(keys, "modules_to_save")?,
            ensure_weight_tying: keys.flag_or("ensure_weight_tying", false)?,
            fan_in_fan_out: keys.flag_or("fan_in_fan_out", false)?,
            inference_mode: keys.flag_or("inference_mode", true)?,
            notes: Vec::new(),
        })
    }

    /// Contents of the file, with keys in the order in which PEFT sorts them.
    pub fn to_json(&self) -> Map<String, Value> {
        let pairs = |list: Vec<(&String, Value)>| {
            Value::Object(list.into_iter().map(|(name, value)| (name.clone(), value)).collect())
        };
        let json = json!({
            "alpha_pattern": pairs(self.alpha_pattern.iter().map(|(name, x)| (name, number(*x))).collect()),
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": "none",
            "exclude_modules": self.exclude_modules.as_ref().map(Targets::to_json),
            "fan_in_fan_out": self.fan_in_fan_out,
            "inference_mode": self.inference_mode,
            "init_lora_weights": true,
            "layers_pattern": if self.layers_pattern.is_empty() { Value::Null } else { json!(self.layers_pattern) },
            "layers_to_transform": self.layers_to_transform,
            "lora_alpha": number(self.lora_alpha),
            "lora_dropout": number(self.lora_dropout),
            "modules_to_save": if self.modules_to_save.is_empty() { Value::Null } else { json!(self.modules_to_save) },
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": pairs(self.rank_pattern.iter().map(|(name, r)| (name, json!(r))).collect()),
            "revision": self.revision,
            "target_modules": self.target_modules.to_json(),
            "task_type": self.task_type.map(TaskType::name),
            "use_dora": false,
            "use_rslora": self.use_rslora,
        });
        match json {
            Value::Object(map) if self.ensure_weight_tying => {
                // Only new versions of PEFT know the key.
                let (before, after): (Map<_, _>, Map<_, _>) =
                    map.into_iter().partition(|(name, _)| name.as_str() < "ensure_weight_tying");
                before.into_iter().chain([("ensure_weight_tying".to_owned(), json!(true))]).chain(after).collect()
            }
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

impl TaskType {
    fn name(self) -> &'static str {
        match self {
            TaskType::CausalLm => "CAUSAL_LM",
            TaskType::SeqCls => "SEQ_CLS",
        }
    }
}

impl Targets {
    fn to_json(&self) -> Value {
        match self {
            Targets::Names(names) => json!(names),
            Targets::Pattern(pattern) => json!(pattern),
            Targets::AllLinear => json!("all-linear"),
        }
    }
}

/// Returns a number as JSON, as an integer if it has no fraction: PEFT documents alpha as an integer.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

/// Returns an error for settings that change the result and are not implemented here.
fn refuse_settings(keys: Keys) -> Result<()> {
    for (key, meaning) in REFUSED {
        if let Some(value) = keys.get(key).filter(|value| is_set(value)) {
            return Err(keys.refuse(key, value, &format!("this is not supported ({meaning}); {MERGE_ELSEWHERE}")));
        }
    }
    if let Some(bias) = keys.text("bias")?
        && bias != "none"
    {
        let why = format!(
            "\"bias\" is {bias:?}; only \"none\" is supported, because biases are not merged here; {MERGE_ELSEWHERE}"
        );
        return Err(Error::model(keys.path, why));
    }
    match keys.get("init_lora_weights") {
        None | Some(Value::Bool(_)) => {}
        Some(Value::String(name)) if ["gaussian", "eva", "orthogonal"].contains(&name.as_str()) => {}
        Some(other) => {
            let allowed = format!(
                "this initialisation changes the base weights, so the adapter does not fit the original base; save it \
                 as plain LoRA (save_pretrained with path_initial_model_for_weight_conversion), or {MERGE_ELSEWHERE}"
            );
            return Err(keys.refuse("init_lora_weights", other, &allowed));
        }
    }
    let refused = REFUSED.map(|(key, _)| key);
    let known = |key: &str| READ.contains(&key) || WITHOUT_EFFECT.contains(&key) || refused.contains(&key);
    if let Some((key, value)) = keys.map.iter().find(|(key, value)| !known(key) && is_set(value)) {
        let allowed = format!("this key is unknown, and so is its effect; {MERGE_ELSEWHERE}");
        return Err(keys.refuse(key, value, &allowed));
    }
    Ok(())
}

/// Whether a value is neither null nor false nor empty.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Number(_) => true,
    }
}

fn index(keys: Keys, key: &str, value: Option<&Value>) -> Result<usize> {
    let value = value.unwrap_or(&Value::Null);
    value
        .as_u64()
        .and_then(|n| usize::try_from(n).ok())
        .ok_or_else(|| keys.refuse(key, value, "it must be a list of layer numbers from 0"))
}

/// A string or a list of strings as a list; empty if the key is missing.
fn names(keys: Keys, key: &str) -> Result<Vec<String>> {
    let refuse = |value: &Value| keys.refuse(key, value, "it must be a list of names, or null");
    match keys.get(key) {
        None => Ok(Vec::new()),
        Some(Value::String(name)) => Ok(vec![name.clone()]),
        Some(value @ Value::Array(list)) => {
            list.iter().map(|one| one.as_str().map(str::to_owned).ok_or_else(|| refuse(value))).collect()
        }
        Some(other) => Err(refuse(other)),
    }
}

/// Module names or an expression; `None` if the key is missing or empty.
fn targets(keys: Keys, key: &str) -> Result<Option<Targets>> {
    Ok(match keys.get(key) {
        Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => Some(Targets::AllLinear),
        Some(Value::String(text)) if text.is_empty() => None,
        Some(Value::String(text)) => Some(Targets::Pattern(text.clone())),
        _ => Some(names(keys, key)?).filter(|names| !names.is_empty()).map(Targets::Names),
    })
}

/// Reads an object from regular expressions to values, in the order of the file.
fn pattern<T>(keys: Keys, key: &str, allowed: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Vec<(String, T)>> {
    let Some(map) = keys.object(key)? else { return Ok(Vec::new()) };
    let inner = Keys { map, path: keys.path, prefix: &format!("{key}."), names: &[] };
    let one = |(name, value): (&String, &Value)| {
        let found = read(value).ok_or_else(|| inner.refuse(name, value, &format!("it must be {allowed}")))?;
        Ok((name.clone(), found))
    };
    map.iter().map(one).collect()
}
