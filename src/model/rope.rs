//! Rotary position embedding (RoPE): settings in both key styles of transformers, and the inverse
//! frequencies.
//!
//! transformers 4 writes `rope_theta` and `rope_scaling`; transformers 5 writes `rope_parameters`,
//! which contains both. A file may have both styles if they agree. Refused: every scaling except
//! default, linear and llama3 (by name), settings per layer type, and a partial rotary factor.

use serde_json::{Map, Value, json};

use super::config_json::Keys;
use crate::{Error, Result};

/// Base that transformers uses if a file names none.
const DEFAULT_THETA: f64 = 10_000.0;
/// Accepted bases. Below 1 the frequencies would rise; far above, their powers overflow f32.
const THETA: std::ops::RangeInclusive<f64> = 1.0..=1e15;
/// Maximum scaling factor.
const MAX_FACTOR: f64 = 1e6;
/// Maximum context length of a configuration.
pub(super) const MAX_POSITIONS: usize = 1 << 27;

/// RoPE settings of a model. The angle of pair `i` at position `p` is `p * inv_freq[i]`, with the
/// two elements of a pair half a head apart.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    pub scaling: RopeScaling,
}

/// Scaling of the frequencies for a longer context.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, and a linear blend between them (Llama
    /// 3.1).
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position: usize,
    },
}

impl RopeConfig {
    /// Reads the settings from the top level of a `config.json`. `max_positions` is the model's
    /// longest sequence: the original length of a llama3 scaling that names none, as in
    /// transformers. A note says so.
    pub(super) fn read(keys: Keys, max_positions: usize, notes: &mut Vec<String>) -> Result<Self> {
        let length = OriginalLength { top: keys, default: max_positions };
        let plausible = |x: f64| THETA.contains(&x);
        let theta4 = keys.optional_number("rope_theta", plausible, "from 1 to 1e15")?;
        let scaling4 = keys
            .object("rope_scaling")?
            .map(|map| RopeScaling::read(Keys { map, prefix: "rope_scaling.", ..keys }, length, notes))
            .transpose()?;
        let Some(map) = keys.object("rope_parameters")? else {
            let scaling = scaling4.unwrap_or(RopeScaling::Default);
            return Ok(Self { theta: theta4.unwrap_or(DEFAULT_THETA), scaling });
        };
        let inner = Keys { map, prefix: "rope_parameters.", ..keys };
        if let Some((key, value)) = map.iter().find(|(_, value)| value.is_object()) {
            return Err(inner.refuse(
                key,
                value,
                "RoPE settings per layer type are not supported; use one set for all layers",
            ));
        }
        let theta5 = inner.optional_number("rope_theta", plausible, "from 1 to 1e15")?;
        let scaling5 = RopeScaling::read(inner, length, notes)?;
        if let (Some(four), Some(five)) = (theta4, theta5)
            && four != five
        {
            let why = format!(
                "\"rope_theta\" is {four} but \"rope_parameters.rope_theta\" is {five}; they must agree. Delete the \
                 key that is wrong"
            );
            return Err(Error::model(keys.path, why));
        }
        if scaling4.as_ref().is_some_and(|four| *four != scaling5) {
            let why = "\"rope_scaling\" and \"rope_parameters\" disagree; delete the one that is wrong";
            return Err(Error::model(keys.path, why));
        }
        Ok(Self { theta: theta5.or(theta4).unwrap_or(DEFAULT_THETA), scaling: scaling5 })
    }

    /// Writes the settings in both key styles.
    pub(super) fn write(&self, map: &mut Map<String, Value>) {
        let scaling = self.scaling.to_json();
        let mut parameters = scaling.clone();
        parameters.insert("rope_theta".into(), json!(self.theta));
        let scaling = if self.scaling == RopeScaling::Default { Value::Null } else { scaling.into() };
        map.insert("rope_theta".into(), json!(self.theta));
        map.insert("rope_scaling".into(), scaling);
        map.insert("rope_parameters".into(), parameters.into());
    }

    /// Inverse frequencies, `head_dim / 2` of them, in radians per position. Every operation is
    /// rounded to f32 in the order of transformers, because at long positions the last bit of a
    /// frequency is visible in the angle.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f32> {
        let plain = (0..head_dim / 2).map(|i| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            // The power is computed in f64 and rounded once: the f32 power without its last-bit
            // error.
            1.0 / (f64::from(self.theta as f32).powf(f64::from(exponent)) as f32)
        });
        match self.scaling {
            RopeScaling::Default => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|f| f / factor as f32).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                let old_length = original_max_position as f64;
                let longest_kept = (old_length / high_freq_factor) as f32;
                let shortest_scaled = (old_length / low_freq_factor) as f32;
                let factor = factor as f32;
                plain
                    .map(|f| {
                        let wavelength = std::f64::consts::TAU as f32 / f;
                        if wavelength > shortest_scaled {
                            f / factor
                        } else if wavelength < longest_kept {
                            f
                        } else {
                            let smooth = (old_length as f32 / wavelength - low_freq_factor as f32)
                                / (high_freq_factor - low_freq_factor) as f32;
                            (1.0 - smooth) * f / factor + smooth * f
                        }
                    })
                    .collect()
            }
        }
    }
}

/// Where a llama3 scaling finds its original length besides its own key.
#[derive(Clone, Copy)]
struct OriginalLength<'a> {
    /// Top level of the file. Some configurations name the length here; it takes precedence.
    top: Keys<'a>,
    /// The model's longest sequence.
    default: usize,
}

impl OriginalLength<'_> {
    fn read(self, keys: Keys, notes: &mut Vec<String>) -> Result<usize> {
        let key = "original_max_position_embeddings";
        for keys in [self.top, keys] {
            if let Some(length) = keys.optional_size(key, MAX_POSITIONS)? {
                return Ok(length);
            }
        }
        let note = format!(
            "\"{}{key}\" is missing; max_position_embeddings ({}) is used, as in transformers",
            keys.prefix, self.default
        );
        if !notes.contains(&note) {
            notes.push(note);
        }
        Ok(self.default)
    }
}

impl RopeScaling {
    /// Reads the scaling from `rope_scaling` or `rope_parameters`; `type` is the older name of
    /// `rope_type`.
    fn read(keys: Keys, length: OriginalLength, notes: &mut Vec<String>) -> Result<Self> {
        let partial = keys.optional_number("partial_rotary_factor", |x| x > 0.0, "above 0")?;
        if let (Some(factor), Some(value)) = (partial, keys.get("partial_rotary_factor"))
            && factor != 1.0
        {
            return Err(keys.refuse(
                "partial_rotary_factor",
                value,
                "only 1.0, rotation of the whole head, is supported",
            ));
        }
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
        match new.or(old).unwrap_or("default") {
            "default" => Ok(RopeScaling::Default),
            "linear" => Ok(RopeScaling::Linear { factor: stretch()? }),
            "llama3" => {
                let low = factor("low_freq_factor", 0.0, "above 0")?;
                Ok(RopeScaling::Llama3 {
                    factor: stretch()?,
                    low_freq_factor: low,
                    high_freq_factor: factor("high_freq_factor", low, "above low_freq_factor")?,
                    original_max_position: length.read(keys, notes)?,
                })
            }
            other => {
                let why = format!(
                    "RoPE scaling {other:?} is not supported; supported are \"default\", \"linear\" and \"llama3\""
                );
                Err(Error::model(keys.path, why))
            }
        }
    }

    /// Returns the settings under the key names that both transformers versions share.
    fn to_json(&self) -> Map<String, Value> {
        let value = match *self {
            RopeScaling::Default => json!({"rope_type": "default"}),
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position,
            }),
        };
        match value {
            Value::Object(map) => map,
            _ => Map::new(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        let plain = RopeConfig { theta: 500_000.0, scaling: RopeScaling::Default };
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 8192,
        };
        let scaled = RopeConfig { theta: 500_000.0, scaling };
        let (a, b) = (plain.inv_freq(64), scaled.inv_freq(64));
        assert_eq!(a[0], 1.0);
        assert_eq!(a[0], b[0]);
        assert_eq!(a[31] / 32.0, b[31]);
        // Between the two limits (wavelengths 2048 to 8192) the blend is strictly between both
        // values.
        let blended = (0..32).filter(|&i| b[i] < a[i] && b[i] > a[i] / 32.0).count();
        assert_eq!(blended, a.iter().filter(|f| (2048.0..8192.0).contains(&(std::f32::consts::TAU / **f))).count());
        assert!(blended > 0);
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let plain = RopeConfig { theta: 10_000.0, scaling: RopeScaling::Default }.inv_freq(16);
        let scaled = RopeConfig { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 4.0 } }.inv_freq(16);
        assert!(plain.iter().zip(&scaled).all(|(a, b)| a / 4.0 == *b));
        assert_eq!(plain.len(), 8);
    }
}
