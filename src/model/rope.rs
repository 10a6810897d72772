//! Settings of rotary position embedding (RoPE) in both key styles of transformers;
//! `rope_frequencies.rs` computes the angles.
//!
//! transformers 4 writes `rope_theta` and `rope_scaling`; transformers 5 writes `rope_parameters`, which
//! contains both. A file may have both styles if they agree. A scaling that [`RopeScaling`] lacks is an error
//! that names it. Settings per layer type (except those of `rope_layers.rs`) are an error too, and so is a
//! partial rotary factor of a family whose heads rotate whole.
//!
//! Two scalings of transformers depend on the longest sequence of a batch: dynamic beyond
//! `max_position_embeddings` and longrope beyond its original length. Here a sequence's result never depends
//! on other sequences, so sequences beyond these lengths are an error.

use serde_json::{Map, Value, json};

use super::config_json::Keys;
use super::family::RopeRule;
use crate::{Error, Result};

/// Accepted values of `rope_theta`. With a base below 1 the frequencies would rise; powers of a far larger base
/// overflow f32.
const THETA: std::ops::RangeInclusive<f64> = 1.0..=1e15;
/// Maximum scaling factor.
const MAX_FACTOR: f64 = 1e6;
/// Maximum context length of a configuration.
pub(super) const MAX_POSITIONS: usize = 1 << 27;

/// RoPE settings of a model. The angle of pair `i` at position `p` is `p * inv_freq[i]`; the distance between
/// the two elements of a pair is half the number of rotated elements. Cosines and sines are multiplied by
/// [`RopeConfig::attention_factor`].
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// Scaling of the frequencies.
    pub scaling: RopeScaling,
}

/// Scaling of the frequencies for a longer context.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Without scaling.
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// Factor by which the context is extended.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, and a linear blend between them (Llama
    /// 3.1).
    Llama3 {
        /// Factor by which the context is extended.
        factor: f64,
        /// Frequencies with a wavelength above `original_max_position / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Frequencies with a wavelength below `original_max_position / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length in pre-training.
        original_max_position: usize,
    },
    /// transformers uses a larger base for sequences beyond `max_position_embeddings`, which are an error here.
    /// All other sequences have the frequencies of `Default`.
    Dynamic {
        /// Factor by which the context is extended.
        factor: f64,
    },
    /// YaRN (arXiv 2309.00071).
    Yarn(Yarn),
    /// LongRoPE (arXiv 2402.13753).
    LongRope(LongRope),
}

/// YaRN (arXiv 2309.00071): low frequencies divided by `factor`, high ones kept, a linear ramp over
/// the pairs between them, and larger cosines and sines.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// Factor by which the context is extended.
    pub factor: f64,
    /// Context length in pre-training.
    pub original_max_position: usize,
    /// Factor on cosines and sines; `None` for the value that follows from the other fields.
    pub attention_factor: Option<f64>,
    /// Rotations over the original length above which a frequency is kept.
    pub beta_fast: Option<f64>,
    /// Rotations over the original length below which a frequency is divided.
    pub beta_slow: Option<f64>,
    /// Scales ln(factor) in the numerator of the factor on cosines and sines.
    pub mscale: Option<f64>,
    /// Scales ln(factor) in the denominator of the factor on cosines and sines.
    pub mscale_all_dim: Option<f64>,
    /// Whether the ends of the ramp are rounded outwards to whole pairs.
    pub truncate: bool,
}

/// LongRoPE (arXiv 2402.13753): every frequency has a separate divisor.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// (head_dim / 2) divisors for sequences of up to the original length
    pub short: Vec<f64>,
    /// (head_dim / 2) divisors for longer sequences
    pub long: Vec<f64>,
    /// Ratio of extended to original context length in the attention factor, if given.
    pub factor: Option<f64>,
    /// Factor on cosines and sines; `None` for the value that follows from the other fields.
    pub attention_factor: Option<f64>,
    /// Context length in pre-training.
    pub original_max_position: usize,
    /// `max_position_embeddings`.
    pub max_position: usize,
}

impl RopeConfig {
    /// Reads the settings from the top level of a `config.json`. `max_positions` is `max_position_embeddings`.
    /// As in transformers, it is the original length of a scaling that names none; a note then says so.
    pub(super) fn read(
        keys: Keys,
        rule: RopeRule,
        (max_positions, head_dim): (usize, usize),
        notes: &mut Vec<String>,
    ) -> Result<Self> {
        let sizes = Sizes { top: keys, rule, max_positions, head_dim };
        let plausible = |x: f64| THETA.contains(&x);
        let theta4 = keys.optional_number("rope_theta", plausible, "from 1 to 1e15")?;
        let scaling4 = keys
            .object("rope_scaling")?
            .map(|map| RopeScaling::read(Keys { map, prefix: "rope_scaling.", names: &[], ..keys }, sizes, notes))
            .transpose()?;
        let Some(map) = keys.object("rope_parameters")? else {
            let scaling = scaling4.unwrap_or(RopeScaling::Default);
            return Self { theta: theta4.unwrap_or(rule.theta), scaling }.checked(keys);
        };
        let inner = Keys { map, prefix: "rope_parameters.", names: &[], ..keys };
        if let Some((key, value)) = map.iter().find(|(_, value)| value.is_object()) {
            return Err(inner.refuse(
                key,
                value,
                "RoPE settings per layer type are not supported; use one set for all layers",
            ));
        }
        let theta5 = inner.optional_number("rope_theta", plausible, "from 1 to 1e15")?;
        let scaling5 = RopeScaling::read(inner, sizes, notes)?;
        if let (Some(four), Some(five)) = (theta4, theta5)
            && four != five
        {
            let why = format!(
                "\"{}\" is {four} but \"rope_parameters.rope_theta\" is {five}; they must agree. Delete the key that \
                 is wrong",
                keys.name("rope_theta")
            );
            return Err(Error::model(keys.path, why));
        }
        if scaling4.as_ref().is_some_and(|four| *four != scaling5) {
            let why = "\"rope_scaling\" and \"rope_parameters\" disagree; delete the one that is wrong";
            return Err(Error::model(keys.path, why));
        }
        Self { theta: theta5.or(theta4).unwrap_or(rule.theta), scaling: scaling5 }.checked(keys)
    }

    /// Returns an error if the scaling has no frequencies for the base.
    fn checked(self, keys: Keys) -> Result<Self> {
        if matches!(self.scaling, RopeScaling::Yarn(_)) && self.theta == 1.0 {
            return Err(Error::model(keys.path, "\"rope_theta\" is 1; RoPE scaling \"yarn\" needs a base above 1"));
        }
        Ok(self)
    }

    /// Longest sequence whose frequencies do not depend on other sequences, given `max_position_embeddings`.
    /// Adds a note if it is shorter.
    pub(super) fn longest(&self, max_positions: usize, notes: &mut Vec<String>) -> usize {
        match &self.scaling {
            RopeScaling::LongRope(l) if l.short != l.long && l.original_max_position < max_positions => {
                let note = format!(
                    "sequences of more than {} tokens (original_max_position_embeddings) are rejected: transformers \
                     chooses the frequencies of longrope by the longest sequence of a batch",
                    l.original_max_position
                );
                notes.push(note);
                l.original_max_position
            }
            _ => max_positions,
        }
    }

    /// Writes the settings in both key styles.
    pub(super) fn write(&self, rule: RopeRule, partial: f64, map: &mut Map<String, Value>) {
        let mut scaling = self.scaling.to_json();
        let mut parameters = scaling.clone();
        parameters.insert("rope_theta".into(), json!(self.theta));
        if let (RopeScaling::LongRope(l), Some(_)) = (&self.scaling, rule.original) {
            // transformers 4 accepts exactly three keys here.
            scaling.remove("rope_type");
            scaling.insert("type".into(), json!("longrope"));
            scaling.remove(ORIGINAL);
            map.insert(ORIGINAL.into(), json!(l.original_max_position));
        }
        let scaling = if self.scaling == RopeScaling::Default { Value::Null } else { scaling.into() };
        // If the default is 1, the key is written only for other values, so that files without it stay as
        // they were.
        if rule.partial.is_some_and(|default| default != 1.0 || partial != 1.0) {
            parameters.insert(PARTIAL.into(), json!(partial));
            map.insert(PARTIAL.into(), json!(partial));
        }
        map.insert("rope_theta".into(), json!(self.theta));
        map.insert("rope_scaling".into(), scaling);
        map.insert("rope_parameters".into(), parameters.into());
    }
}

/// Key of the context length in pre-training.
const ORIGINAL: &str = "original_max_position_embeddings";

/// Sizes that a scaling depends on.
#[derive(Clone, Copy)]
struct Sizes<'a> {
    /// Top level of the file. An `original_max_position_embeddings` at this level takes precedence.
    top: Keys<'a>,
    rule: RopeRule,
    max_positions: usize,
    head_dim: usize,
}

impl Sizes<'_> {
    /// Context length in pre-training, for a scaling.
    fn original(self, keys: Keys, notes: &mut Vec<String>) -> Result<usize> {
        if let Some(length) = self.top.optional_size(ORIGINAL, MAX_POSITIONS)?.or(self.rule.original) {
            return Ok(length);
        }
        if let Some(length) = keys.optional_size(ORIGINAL, MAX_POSITIONS)? {
            return Ok(length);
        }
        let note = format!(
            "\"{}{ORIGINAL}\" is missing; max_position_embeddings ({}) is used, as in transformers",
            keys.prefix, self.max_positions
        );
        if !notes.contains(&note) {
            notes.push(note);
        }
        Ok(self.max_positions)
    }
}

/// Key of the fraction of each head that rotates.
const PARTIAL: &str = "partial_rotary_factor";

/// Reads the fraction of each head that rotates, and its number of elements. The key may be in three places,
/// which must agree. A family whose heads rotate whole accepts only 1.
pub(super) fn read_partial(keys: Keys, rule: RopeRule, head_dim: usize) -> Result<(f64, usize)> {
    let mut found: Option<f64> = None;
    for place in ["rope_parameters", "rope_scaling", ""] {
        let inner = match place {
            "" => Some(keys),
            _ => keys.get(place).and_then(Value::as_object).map(|map| Keys {
                map,
                prefix: if place == "rope_scaling" { "rope_scaling." } else { "rope_parameters." },
                names: &[],
                ..keys
            }),
        };
        let Some(keys) = inner else { continue };
        let Some(factor) = keys.optional_number(PARTIAL, |x| x > 0.0, "above 0")? else { continue };
        let Some(value) = keys.get(PARTIAL) else { continue };
        match (rule.partial, found) {
            (None, _) if factor != 1.0 => {
                return Err(keys.refuse(PARTIAL, value, "only 1.0, rotation of the whole head, is supported"));
            }
            (_, Some(other)) if other != factor => {
                let why = format!("a different place in this file says {other}; they must agree");
                return Err(keys.refuse(PARTIAL, value, &why));
            }
            _ => found = Some(factor),
        }
    }
    let factor = found.or(rule.partial).unwrap_or(1.0);
    let rotated = (head_dim as f64 * factor) as usize;
    if !rotated.is_multiple_of(2) || !(1..=head_dim).contains(&rotated) {
        let why = format!(
            "\"{}\" is {factor}, so {rotated} of the {head_dim} elements of a head would rotate; it must be an even \
             number of at most {head_dim}",
            keys.name(PARTIAL)
        );
        return Err(Error::model(keys.path, why));
    }
    Ok((factor, rotated))
}

impl RopeScaling {
    /// Reads the scaling from `rope_scaling` or `rope_parameters`; `type` is the older name of
    /// `rope_type`.
    fn read(keys: Keys, sizes: Sizes, notes: &mut Vec<String>) -> Result<Self> {
        let (new, old) = (keys.text("rope_type")?, keys.text("type")?);
        if let (Some(new), Some(old)) = (new, old)
            && new != old
        {
            let why = format!("\"{0}rope_type\" is {new:?} but \"{0}type\" is {old:?}; they must agree", keys.prefix);
            return Err(Error::model(keys.path, why));
        }
        let factor = |key: &str, low: f64, words: &str| {
            keys.number(key, |x| x > low && x <= MAX_FACTOR, &format!("{words} and at most {MAX_FACTOR}"))
        };
        let stretch = || keys.number("factor", |x| (1.0..=MAX_FACTOR).contains(&x), &format!("from 1 to {MAX_FACTOR}"));
        let kind = new.or(old).unwrap_or("default");
        let only_long = sizes.rule.original.is_some();
        match kind {
            "default" => Ok(RopeScaling::Default),
            "longrope" => LongRope::read(keys, sizes, notes).map(RopeScaling::LongRope),
            "su" | "yarn" if only_long => LongRope::read(keys, sizes, notes).map(RopeScaling::LongRope),
            "linear" if !only_long => Ok(RopeScaling::Linear { factor: stretch()? }),
            "dynamic" if !only_long => Ok(RopeScaling::Dynamic { factor: stretch()? }),
            "yarn" => Yarn::read(keys, stretch()?, sizes, notes).map(RopeScaling::Yarn),
            "llama3" if !only_long => {
                let low = factor("low_freq_factor", 0.0, "above 0")?;
                Ok(RopeScaling::Llama3 {
                    factor: stretch()?,
                    low_freq_factor: low,
                    high_freq_factor: factor("high_freq_factor", low, "above low_freq_factor")?,
                    original_max_position: sizes.original(keys, notes)?,
                })
            }
            other => {
                let supported = match only_long {
                    true => "\"default\" and \"longrope\"",
                    false => "\"default\", \"linear\", \"dynamic\", \"yarn\", \"longrope\" and \"llama3\"",
                };
                let why = format!("RoPE scaling {other:?} is not supported; mapl supports {supported}");
                Err(Error::model(keys.path, why))
            }
        }
    }

    /// Returns the settings under the key names that both transformers versions share.
    pub(super) fn to_json(&self) -> Map<String, Value> {
        let value = match self {
            RopeScaling::Default => json!({"rope_type": "default"}),
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Dynamic { factor } => json!({"rope_type": "dynamic", "factor": factor}),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position,
            }),
            RopeScaling::Yarn(y) => json!({
                "rope_type": "yarn",
                "factor": y.factor,
                "original_max_position_embeddings": y.original_max_position,
                "attention_factor": y.attention_factor,
                "beta_fast": y.beta_fast,
                "beta_slow": y.beta_slow,
                "mscale": y.mscale,
                "mscale_all_dim": y.mscale_all_dim,
                "truncate": y.truncate,
            }),
            RopeScaling::LongRope(l) => json!({
                "rope_type": "longrope",
                "short_factor": l.short,
                "long_factor": l.long,
                "factor": l.factor,
                "attention_factor": l.attention_factor,
                "original_max_position_embeddings": l.original_max_position,
            }),
        };
        let Value::Object(mut map) = value else { return Map::new() };
        map.retain(|_, value| !value.is_null());
        map
    }
}

/// A positive number of a plausible size under `key`; `None` if the key is missing.
fn positive(keys: Keys, key: &str) -> Result<Option<f64>> {
    keys.optional_number(key, |x| (1e-6..=MAX_FACTOR).contains(&x), &format!("from 1e-6 to {MAX_FACTOR}"))
}

impl Yarn {
    fn read(keys: Keys, factor: f64, sizes: Sizes, notes: &mut Vec<String>) -> Result<Self> {
        let yarn = Self {
            factor,
            original_max_position: sizes.original(keys, notes)?,
            attention_factor: positive(keys, "attention_factor")?,
            beta_fast: positive(keys, "beta_fast")?,
            beta_slow: positive(keys, "beta_slow")?,
            mscale: positive(keys, "mscale")?,
            mscale_all_dim: positive(keys, "mscale_all_dim")?,
            truncate: keys.flag_or("truncate", true)?,
        };
        let (fast, slow) = yarn.betas();
        if fast < slow {
            let why = format!(
                "\"{0}beta_fast\" is {fast} and \"{0}beta_slow\" is {slow}; the first must not be smaller",
                keys.prefix
            );
            return Err(Error::model(keys.path, why));
        }
        Ok(yarn)
    }

    /// `beta_fast` and `beta_slow`, by default as in the paper.
    pub(super) fn betas(&self) -> (f64, f64) {
        (self.beta_fast.unwrap_or(32.0), self.beta_slow.unwrap_or(1.0))
    }
}

impl LongRope {
    fn read(keys: Keys, sizes: Sizes, notes: &mut Vec<String>) -> Result<Self> {
        let list = |key: &str| -> Result<Vec<f64>> {
            let pairs = sizes.head_dim / 2;
            let allowed =
                format!("it must be a list of {pairs} numbers from 1e-6 to {MAX_FACTOR}, one for each frequency");
            let Some(value) = keys.get(key) else { return Err(keys.missing(key, &allowed)) };
            let plausible = |x: &Value| x.as_f64().filter(|x| (1e-6..=MAX_FACTOR).contains(x));
            let numbers = value.as_array().and_then(|list| list.iter().map(plausible).collect::<Option<Vec<f64>>>());
            numbers.filter(|list| list.len() == pairs).ok_or_else(|| keys.refuse(key, value, &allowed))
        };
        let long = Self {
            short: list("short_factor")?,
            long: list("long_factor")?,
            factor: positive(keys, "factor")?,
            attention_factor: positive(keys, "attention_factor")?,
            original_max_position: sizes.original(keys, notes)?,
            max_position: sizes.max_positions,
        };
        match long.original_max_position {
            1 => Err(Error::model(keys.path, format!("\"{ORIGINAL}\" is 1; longrope needs at least 2"))),
            _ => Ok(long),
        }
    }
}

/// Reads the maximum sequence length; `default` is that of the family.
pub(super) fn read_positions(keys: Keys, default: usize) -> Result<usize> {
    let key = "max_position_embeddings";
    match (keys.size_or(key, default, MAX_POSITIONS)?, keys.get(key)) {
        (1, Some(value)) => Err(keys.refuse(key, value, "it must be at least 2, for a prompt and a response")),
        (positions, _) => Ok(positions),
    }
}
