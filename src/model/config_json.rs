//! Checked access to the keys of a configuration file. Every error names the file, the key, the
//! value found and the allowed values. A `null` value counts as missing, as in transformers.

use std::path::Path;

use serde_json::{Map, Value};

use super::family_names::KeyNames;
use crate::files::{input, lfs_pointer};
use crate::{Error, Result};

/// Reads `path` as one JSON object, preserving key order.
pub(super) fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let bytes = input::read(path, input::MAX_CONFIG).map_err(input::model_error(path))?;
    if let Some(why) = lfs_pointer(&bytes) {
        return Err(Error::model(path, why));
    }
    let value: Value = serde_json::from_slice(&bytes)
        .map_err(|e| Error::model(path, format!("is not valid JSON: {e}; copy or download the file again")))?;
    match value {
        Value::Object(map) => Ok(map),
        other => Err(Error::model(path, format!("must contain one JSON object, found {}", kind(&other)))),
    }
}

/// Returns the type of a JSON value, for messages.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Returns a value as JSON text, truncated for messages.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// The keys of one JSON object of a file. `prefix` names the object inside the file, such as
/// `rope_parameters.`.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub map: &'a Map<String, Value>,
    pub path: &'a Path,
    pub prefix: &'a str,
    /// Keys that have a different name in the files of the family.
    pub names: KeyNames,
}

impl<'a> Keys<'a> {
    /// Whether the file has the key, also with the value null.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(self.name(key))
    }

    /// Returns the value of `key`, unless it is missing or null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        let value = self.map.get(self.name(key)).filter(|v| !v.is_null());
        let both = self.names.iter().any(|(generic, _, both)| *generic == key && *both);
        value.or_else(|| self.map.get(key).filter(|v| both && !v.is_null()))
    }

    /// Name of `key` in this file.
    pub fn name<'k>(&self, key: &'k str) -> &'k str {
        self.names.iter().find(|(generic, ..)| *generic == key).map_or(key, |(_, own, _)| own)
    }

    /// Returns the error "key is value; allowed".
    pub fn refuse(&self, key: &str, value: &Value, allowed: &str) -> Error {
        Error::model(self.path, format!("\"{}{}\" is {}; {allowed}", self.prefix, self.name(key), shown(value)))
    }

    /// Returns the error for a missing required key.
    pub fn missing(&self, key: &str, allowed: &str) -> Error {
        Error::model(self.path, format!("\"{}{}\" is missing; {allowed}", self.prefix, self.name(key)))
    }

    /// Returns an integer in `1..=max`, or the default if the key is missing.
    pub fn size_or(&self, key: &str, default: usize, max: usize) -> Result<usize> {
        Ok(self.optional_size(key, max)?.unwrap_or(default))
    }

    /// Returns a required integer in `1..=max`.
    pub fn size(&self, key: &str, max: usize) -> Result<usize> {
        self.optional_size(key, max)?
            .ok_or_else(|| self.missing(key, &format!("it must be an integer from 1 to {max}")))
    }

    /// Returns an integer in `1..=max`, if the key is present.
    pub fn optional_size(&self, key: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=max).contains(&n) => Ok(Some(n)),
            _ => Err(self.refuse(key, value, &format!("it must be an integer from 1 to {max}"))),
        }
    }

    /// Returns a number that satisfies `holds`, or the default if the key is missing. `allowed`
    /// describes `holds` in words.
    pub fn number_or(&self, key: &str, default: f64, holds: impl Fn(f64) -> bool, allowed: &str) -> Result<f64> {
        Ok(self.optional_number(key, holds, allowed)?.unwrap_or(default))
    }

    /// Returns a required number that satisfies `holds`.
    pub fn number(&self, key: &str, holds: impl Fn(f64) -> bool, allowed: &str) -> Result<f64> {
        self.optional_number(key, holds, allowed)?
            .ok_or_else(|| self.missing(key, &format!("it must be a number, {allowed}")))
    }

    /// Returns a number that satisfies `holds`, if the key is present.
    pub fn optional_number(&self, key: &str, holds: impl Fn(f64) -> bool, allowed: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() && holds(x) => Ok(Some(x)),
            _ => Err(self.refuse(key, value, &format!("it must be a number, {allowed}"))),
        }
    }

    /// Returns `true` or `false`, or the default if the key is missing.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.refuse(key, other, "it must be true or false")),
        }
    }

    /// Returns a string, if the key is present.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.refuse(key, other, "it must be a string")),
        }
    }

    /// Returns the object under `key`, if the key is present.
    pub fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(self.refuse(key, other, "it must be an object or null")),
        }
    }

    /// Returns the token ids under `key`: none, one, or a list. `-1` means "none", as in the
    /// configurations of the first Llama models.
    fn token_ids(&self, key: &str, vocab: usize) -> Result<Vec<u32>> {
        let one = |value: &Value| match value.as_i64() {
            Some(-1) => Ok(None),
            Some(id) if id >= 0 => Ok(Some(u32::try_from(id).unwrap_or(u32::MAX))),
            _ => Err(self.refuse_id(key, value, vocab)),
        };
        let mut ids = Vec::new();
        match self.get(key) {
            None => {}
            Some(Value::Array(list)) => {
                for value in list {
                    ids.extend(one(value)?);
                }
            }
            Some(value) => ids.extend(one(value)?),
        }
        Ok(ids)
    }

    fn refuse_id(&self, key: &str, value: &Value, vocab: usize) -> Error {
        self.refuse(key, value, &format!("a token id must be an integer from 0 to {}", vocab - 1))
    }

    /// Returns the token ids under `key` that are below `vocab`. Other ids cannot occur in a text; they are left
    /// out with a note.
    pub fn ids_in_vocabulary(&self, key: &str, vocab: usize, notes: &mut Vec<String>) -> Result<Vec<u32>> {
        let (inside, beyond): (Vec<u32>, Vec<u32>) =
            self.token_ids(key, vocab)?.into_iter().partition(|&id| (id as usize) < vocab);
        if !beyond.is_empty() {
            let value = self.get(key).map(shown).unwrap_or_default();
            notes.push(format!(
                "\"{key}\" of {} is {value}; ids beyond the vocabulary of {vocab} are left out, because no text \
                 contains them",
                self.path.file_name().unwrap_or_default().to_string_lossy()
            ));
        }
        Ok(inside)
    }

    /// Returns the only element of `ids`, the token ids of `key`; `None` if there are none. Several ids are an
    /// error.
    pub fn one_of(&self, key: &str, ids: Vec<u32>) -> Result<Option<u32>> {
        match (ids.as_slice(), self.get(key)) {
            ([], _) => Ok(None),
            ([id], _) => Ok(Some(*id)),
            (_, Some(value)) => Err(self.refuse(key, value, "it must be one token id")),
            (_, None) => Ok(None),
        }
    }

    /// Returns the token id under `key`, if it has one. An id of `vocab` or above is an error, and so are
    /// several ids.
    pub fn token_id(&self, key: &str, vocab: usize) -> Result<Option<u32>> {
        let ids = self.token_ids(key, vocab)?;
        match self.get(key) {
            Some(value) if ids.iter().any(|&id| id as usize >= vocab) => Err(self.refuse_id(key, value, vocab)),
            _ => self.one_of(key, ids),
        }
    }
}
