//! Soft caps of attention scores and of logits: c tanh(x / c).

use super::config_json::Keys;
use super::family::Family;
use crate::Result;

/// Key of the cap of attention scores.
const ATTENTION: &str = "attn_logit_softcapping";
/// Key of the cap of logits.
const LOGITS: &str = "final_logit_softcapping";

/// Caps of a model; `None` for no cap.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Softcaps {
    /// Cap of attention scores; `None` without one.
    pub attention: Option<f64>,
    /// Cap of the logits of a language model. A reward has none.
    pub logits: Option<f64>,
}

/// Default caps of a family.
#[derive(Clone, Copy, Debug)]
pub(super) struct SoftcapRule {
    /// Default of the cap of attention scores.
    pub attention: Option<f64>,
    /// Default of the cap of logits.
    pub logits: Option<f64>,
    /// Whether `attn_logit_softcapping` has an effect in transformers.
    pub reads_attention: bool,
}

impl Softcaps {
    /// Caps of a family for a file without the keys.
    pub(super) fn of_family(family: &Family) -> Self {
        family.softcaps.map_or(Self::default(), |rule| Self { attention: rule.attention, logits: rule.logits })
    }

    /// Reads the caps. A null value means no cap.
    pub(super) fn read(keys: Keys, family: &Family, notes: &mut Vec<String>) -> Result<Self> {
        let Some(rule) = family.softcaps else { return Ok(Self::default()) };
        let read = |key: &str, default: Option<f64>| -> Result<Option<f64>> {
            let set = keys.optional_number(key, |x| (1e-3..=1e6).contains(&x), "from 1e-3 to 1e6")?;
            Ok(set.or(default.filter(|_| !keys.map.contains_key(key))))
        };
        let attention = read(ATTENTION, rule.attention)?;
        if attention.is_some() && !rule.reads_attention {
            notes.push(format!("\"{ATTENTION}\" has no effect in {} models, as in transformers", family.class));
        }
        Ok(Self { attention: attention.filter(|_| rule.reads_attention), logits: read(LOGITS, rule.logits)? })
    }

    /// Text of the caps, for fingerprints; empty without caps.
    pub(crate) fn text(self) -> String {
        if self == Self::default() { String::new() } else { format!("{self:?}") }
    }
}
