//! Layers that differ in what their attention sees: sliding windows, which are refused where they
//! could cut a sequence, and layers without RoPE.

use serde_json::Value;

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

/// Refuses a sliding window that is shorter than the longest sequence. A window of w positions holds
/// the position itself, so sequences of up to w tokens have full attention. `follows` are keys of the
/// RoPE scaling that follow from `max_position_embeddings` ([`RopeConfig::follows`]).
///
/// [`RopeConfig::follows`]: super::rope::RopeConfig::follows
pub(super) fn refuse_sliding_window(
    keys: Keys,
    family: &Family,
    layers: usize,
    (longest, follows): (usize, Option<String>),
    without_rope: &[usize],
) -> Result<()> {
    let types = layer_types(keys, layers)?;
    // The key is read only where it has an effect. A null value means no window.
    let read = |default: Option<usize>| -> Result<Option<usize>> {
        let set = keys.optional_size("sliding_window", MAX_WINDOW)?;
        Ok(set.or(default.filter(|_| !keys.map.contains_key("sliding_window"))))
    };
    let by_flag = |layers: &str| -> Result<Option<String>> {
        let used = keys.flag_or("use_sliding_window", false)?;
        Ok(used.then(|| format!("\"use_sliding_window\" is true and {layers} would use it")))
    };
    // What `layer_types` says, if it is there: the layers that have a window, or none.
    let sliding = || "\"layer_types\" names \"sliding_attention\"".to_owned();
    let by_types = types.map(|types| types.contains(&true).then(sliding));
    let all = |window: Option<usize>| window.map(|_| "all layers would use it".to_owned());
    let (why, window) = match (family.window, by_types) {
        (Window::All(default), _) | (Window::LayerTypes(default), None) => {
            let window = read(default)?;
            (all(window), window)
        }
        (Window::None, None) => return Ok(()),
        (_, Some(None)) => return Ok(()),
        (Window::LastLayers, Some(why)) => (why, read(Some(4096))?),
        (Window::LayerTypes(default), Some(why)) => (why, read(default)?),
        (_, Some(why)) => (why, read(None)?),
        (Window::LastLayers, None) => {
            let first = first_window_layer(keys)?;
            match by_flag(&format!("layers from {first} on"))?.filter(|_| first < layers as u64) {
                // Without a window the flag has no effect.
                Some(why) => read(Some(4096))?.map_or((None, None), |window| (Some(why), Some(window))),
                None => (None, None),
            }
        }
        (Window::LayersWithoutRope, None) => {
            match by_flag("layers without RoPE")?.filter(|_| !without_rope.is_empty()) {
                Some(why) => read(None)?.map_or((None, None), |window| (Some(why), Some(window))),
                None => (None, None),
            }
        }
    };
    match (why, window) {
        (Some(_), Some(window)) if window >= longest => Ok(()),
        (Some(why), Some(window)) => Err(Error::model(
            keys.path,
            format!(
                "\"sliding_window\" is {window}, shorter than the longest sequence of {longest} tokens, and {why}; \
                 sliding windows are not supported. Set \"max_position_embeddings\" to {window}: no sequence is then \
                 longer than the window, and attention within it is full{}",
                follows.map_or(String::new(), |keys| format!(
                    ". Write {keys} into the RoPE scaling as well: it follows from the old value"
                ))
            ),
        )),
        (Some(why), None) => Err(Error::model(
            keys.path,
            format!(
                "{why}, but \"sliding_window\" is missing; sliding windows are not supported. Set it to the length of \
                 the window, and \"max_position_embeddings\" to no more, or use \"full_attention\" in all {layers} layers"
            ),
        )),
        (None, _) => Ok(()),
    }
}

/// Whether each layer has a sliding window, if `layer_types` says so.
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
