//! Layers whose attention differs from that of the others: sliding windows, and layers without RoPE.

use serde_json::Value;

use super::config::ModelConfig;
use super::config_json::Keys;
use super::family::{Family, Window};
use crate::{Error, Result};

/// Largest `sliding_window`.
const MAX_WINDOW: usize = 1 << 30;

/// Layers without RoPE, ascending: those with a 0 in `no_rope_layers`, otherwise every
/// `no_rope_layer_interval`-th.
pub(super) fn layers_without_rope(keys: Keys, family: &Family, layers: usize) -> Result<Vec<usize>> {
    if !family.rope.skips_layers {
        return Ok(Vec::new());
    }
    let key = "no_rope_layers";
    let Some(value) = keys.get(key) else {
        let interval = keys.size_or("no_rope_layer_interval", 4, MAX_WINDOW)?;
        return Ok((0..layers).filter(|i| (i + 1).is_multiple_of(interval)).collect());
    };
    let flags = value.as_array().filter(|list| list.len() >= layers).and_then(|list| {
        list[..layers].iter().map(|flag| flag.as_u64().filter(|&flag| flag <= 1)).collect::<Option<Vec<_>>>()
    });
    match flags {
        Some(flags) => Ok((0..layers).filter(|&i| flags[i] == 0).collect()),
        None => Err(keys.refuse(
            key,
            value,
            &format!("it must be a list of 1 (layer with RoPE) and 0 (without) for each of the {layers} layers"),
        )),
    }
}

/// Layers with sliding-window attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Maximum number of keys that a query sees, including the key of the same token.
    pub length: usize,
    /// Indices of the layers, ascending.
    pub layers: Vec<usize>,
}

impl ModelConfig {
    /// Sliding window of layer i.
    pub fn window(&self, i: usize) -> Option<usize> {
        self.window.as_ref().filter(|window| window.layers.contains(&i)).map(|window| window.length)
    }
}

impl SlidingWindow {
    /// Returns the window if it is shorter than the longest sequence of the model, and `None` otherwise. A
    /// window of w positions includes the position of the query, so sequences of up to w tokens have full
    /// attention.
    pub(super) fn that_cuts(self, longest: usize) -> Option<Self> {
        Some(self).filter(|window| window.length < longest && !window.layers.is_empty())
    }
}

/// Reads the sliding window of a model with sequences of up to `longest` tokens. The window may be longer than
/// these sequences.
pub(super) fn read_window(
    keys: Keys,
    family: &Family,
    (layers, longest): (usize, usize),
    without_rope: &[usize],
) -> Result<Option<SlidingWindow>> {
    let types = layer_types(keys, layers)?;
    // `sliding_window` is read only where it has an effect. A null value means no window.
    let read = |default: Option<usize>| -> Result<Option<usize>> {
        let set = keys.optional_size("sliding_window", MAX_WINDOW)?;
        Ok(set.or(default.filter(|_| !keys.map.contains_key("sliding_window"))))
    };
    let used = || keys.flag_or("use_sliding_window", false);
    let named = types.as_ref().map(|types| (0..layers).filter(|&i| types[i]).collect::<Vec<_>>());
    let all = || (0..layers).collect::<Vec<_>>();
    let (chosen, length) = match (family.window, named) {
        (Window::None, None) => return Ok(None),
        (Window::All(default), _) | (Window::LayerTypes(default), None) => (all(), read(default)?),
        (_, Some(named)) if named.is_empty() => return Ok(None),
        (Window::LastLayers, Some(named)) => {
            if !used()? {
                let why = "\"layer_types\" names \"sliding_attention\", but \"use_sliding_window\" is not true, so there is no \
                           window; set it to true, or use \"full_attention\" in all layers";
                return Err(Error::model(keys.path, why));
            }
            (named, required(keys, read(Some(4096))?)?)
        }
        (Window::LayerTypes(default), Some(named)) => (named, required(keys, read(default)?)?),
        (Window::Except(default, ..), Some(named)) => (named, required(keys, read(Some(default))?)?),
        (Window::Except(default, nth, key), None) => {
            let nth = key.map_or(Ok(nth), |key| keys.size_or(key, nth, MAX_WINDOW))?;
            let sliding = (0..layers).filter(|i| !(i + 1).is_multiple_of(nth)).collect();
            (sliding, required(keys, read(Some(default))?)?)
        }
        (Window::LayersWithoutRope, Some(named)) => (named, required(keys, read(None)?)?),
        (Window::None, Some(named)) => {
            let length = required(keys, read(None)?)?;
            if length.is_some_and(|length| length < longest) {
                let why = format!(
                    "\"layer_types\" names \"sliding_attention\", but {} models have no windows in transformers; use \
                     \"full_attention\" in all {layers} layers",
                    family.class
                );
                return Err(Error::model(keys.path, why));
            }
            (named, length)
        }
        // If `sliding_window` is null, `use_sliding_window` has no effect.
        (Window::LastLayers, None) if used()? => {
            let first = first_window_layer(keys)?;
            ((0..layers).filter(|&i| i as u64 >= first).collect(), read(Some(4096))?)
        }
        (Window::LayersWithoutRope, None) if used()? => (without_rope.to_vec(), read(None)?),
        (Window::LastLayers | Window::LayersWithoutRope, None) => return Ok(None),
    };
    Ok(length.map(|length| SlidingWindow { length, layers: chosen }))
}

/// Returns the length of the window, which layers of the type `sliding_attention` need.
fn required(keys: Keys, length: Option<usize>) -> Result<Option<usize>> {
    match length {
        Some(_) => Ok(length),
        None => Err(Error::model(
            keys.path,
            "\"layer_types\" names \"sliding_attention\", or would by default, but \"sliding_window\" is missing; set it \
             to the length of the window, or use \"full_attention\" in all layers",
        )),
    }
}

/// Whether each layer has a sliding window by `layer_types`; `None` without this key.
fn layer_types(keys: Keys, layers: usize) -> Result<Option<Vec<bool>>> {
    let key = "layer_types";
    let Some(value) = keys.get(key) else { return Ok(None) };
    let one = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Some(false),
        Some("sliding_attention") => Some(true),
        _ => None,
    };
    let list = value.as_array().filter(|list| list.len() == layers);
    let types: Option<Vec<bool>> = list.and_then(|list| list.iter().map(one).collect());
    types.map(Some).ok_or_else(|| {
        let allowed = format!(
            "it must be a list with \"full_attention\" or \"sliding_attention\" for each of the {layers} layers; others \
             are not supported"
        );
        keys.refuse(key, value, &allowed)
    })
}

/// Index of the first layer with a window in Qwen's families.
fn first_window_layer(keys: Keys) -> Result<u64> {
    match keys.get("max_window_layers") {
        None => Ok(28),
        Some(value) => value.as_u64().ok_or_else(|| {
            keys.refuse(
                "max_window_layers",
                value,
                "it must be an integer of at least 0: the index of the first layer with a sliding window",
            )
        }),
    }
}
