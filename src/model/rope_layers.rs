//! RoPE settings by layer type: `full_attention` for most layers, `sliding_attention` for those with a
//! sliding window.
//!
//! transformers 5 writes the settings of both types under `rope_parameters`. In the style of transformers 4,
//! `rope_theta` and `rope_scaling` apply to full attention, and layers with a window have no scaling. Their base
//! is `rope_local_base_freq` in Gemma 3, and the family's base in other families, as in transformers 5.

use serde_json::{Map, Value, json};

use super::config::ModelConfig;
use super::config_json::Keys;
use super::family::RopeRule;
use super::family_names::KeyNames;
use super::rope::{RopeConfig, read_partial};
use crate::Result;

/// Keys of layers with a window.
const LOCAL_KEYS: KeyNames = &[("rope_theta", LOCAL_THETA, false)];
const LOCAL_THETA: &str = "rope_local_base_freq";

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// RoPE settings of the layers with a sliding window, if they differ from those of the other layers.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalRope {
    pub rope: RopeConfig,
    /// Indices of the layers, ascending.
    pub layers: Vec<usize>,
}

impl LocalRope {
    /// Settings of layers with a window; `None` if all layers have the same settings.
    pub(super) fn of(local: Option<RopeConfig>, others: &RopeConfig, layers: &[usize]) -> Option<Self> {
        let rope = local.filter(|rope| rope != others && !layers.is_empty())?;
        Some(Self { rope, layers: layers.to_vec() })
    }
}

impl RopeConfig {
    /// Reads the settings of the model and, for a family with settings by layer type, those of layers with a
    /// window.
    pub(super) fn of_layers(
        keys: Keys,
        rule: RopeRule,
        sizes: (usize, usize),
        notes: &mut Vec<String>,
    ) -> Result<(Self, Option<Self>)> {
        if !rule.by_layer_type {
            return Ok((Self::read(keys, rule, sizes, notes)?, None));
        }
        let both = keys.object("rope_parameters")?;
        if let (Some(map), Some(value)) = (both, keys.get("rope_parameters"))
            && map
                .iter()
                .any(|(key, value)| ![FULL, SLIDING].contains(&key.as_str()) || !(value.is_object() || value.is_null()))
        {
            let allowed = format!("it must hold an object under {FULL:?} and one under {SLIDING:?}, and nothing else");
            return Err(keys.refuse("rope_parameters", value, &allowed));
        }
        if let Some(scaling) = keys.object("rope_scaling")?
            && scaling.get("rope_type").is_none_or(Value::is_null)
            && let Some(kind) = scaling.get("type").filter(|kind| !kind.is_null() && *kind != "default")
        {
            let why = format!(
                "it names the scaling {kind} under \"type\", which transformers ignores for this family, so nothing is \
                 scaled; name it under \"rope_type\", or remove \"rope_scaling\""
            );
            return Err(keys.refuse("rope_scaling", &Value::Object(scaling.clone()), &why));
        }
        // Builds the keys of a file that has only the settings of one layer type.
        let of_type = |kind: &str, old: bool| {
            let mut map = keys.map.clone();
            map.remove("rope_parameters");
            // transformers reads this key only inside the settings of a layer type.
            map.remove("original_max_position_embeddings");
            if !old {
                map.remove("rope_theta");
                map.remove("rope_scaling");
            }
            if let Some(own) = both.and_then(|both| both.get(kind)).filter(|own| !own.is_null()) {
                map.insert("rope_parameters".into(), own.clone());
            }
            map
        };
        let (full, sliding) = (of_type(FULL, true), of_type(SLIDING, false));
        // Such a family rotates whole heads, so a partial factor under a layer type is an error.
        for map in [&full, &sliding] {
            read_partial(Keys { map, ..keys }, rule, sizes.1)?;
        }
        let rope = Self::read(Keys { map: &full, ..keys }, rule, sizes, notes)?;
        let names = if rule.local_theta.is_some() { LOCAL_KEYS } else { keys.names };
        let local_rule = RopeRule { theta: rule.local_theta.unwrap_or(rule.theta), ..rule };
        let local = Self::read(Keys { map: &sliding, names, ..keys }, local_rule, sizes, notes)?;
        let inherits = rule.local_theta.is_none() && !sliding.contains_key("rope_parameters");
        if inherits && keys.get("rope_theta").is_some() && rope.theta != local.theta {
            notes.push(format!(
                "layers with a sliding window have rope_theta {}, the default, as in transformers 5; \"rope_theta\" is \
                 that of the others",
                local.theta
            ));
        }
        Ok((rope, Some(local)))
    }
}

impl ModelConfig {
    /// RoPE settings of layer i.
    pub fn rope_of(&self, i: usize) -> &RopeConfig {
        self.local_rope.as_ref().filter(|local| local.layers.contains(&i)).map_or(&self.rope, |local| &local.rope)
    }

    /// Replaces `rope_parameters` by the settings of each layer type, in a family that has them.
    pub(super) fn write_layer_types(&self, map: &mut Map<String, Value>) {
        if !self.family.rope.by_layer_type {
            return;
        }
        let local = self.local_rope.as_ref().map_or(&self.rope, |local| &local.rope);
        let parameters = |rope: &RopeConfig| {
            let mut parameters = rope.scaling.to_json();
            parameters.insert("rope_theta".into(), json!(rope.theta));
            parameters
        };
        if self.family.rope.local_theta.is_some() {
            map.insert(LOCAL_THETA.into(), json!(local.theta));
        }
        map.insert("rope_parameters".into(), json!({FULL: parameters(&self.rope), SLIDING: parameters(local)}));
    }
}
