//! Reads and parses the files of a tokenizer.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::Tokenizer as Inner;

use super::super::template::TEMPLATE_FILE;
use super::super::worker::Stage;
use super::super::worker::guard::guarded;
use super::{ADDITIONAL_TEMPLATES, FILES};
use crate::files::{input, lfs_pointer};
use crate::terminal::shown;
use crate::{Error, Result};

/// A file as it was read.
#[derive(Clone, Debug)]
pub struct StoredFile {
    /// Path that the file was read from.
    pub path: PathBuf,
    /// Contents.
    pub bytes: Vec<u8>,
}

impl StoredFile {
    fn read(path: PathBuf) -> Result<Self> {
        let bytes = input::read(&path, input::MAX_TOKENIZER).map_err(input::model_error(&path))?;
        Ok(Self { path, bytes })
    }

    /// Reads a chat template that a user named.
    pub(super) fn read_template(path: &Path) -> Result<Self> {
        let bytes = input::read_once(path, input::MAX_CONFIG).map_err(input::model_error(path))?;
        Ok(Self { path: path.to_owned(), bytes })
    }
}

/// Chat templates among the files of a folder: `chat_template.jinja` as `default`, then the additional
/// ones by name.
pub(super) fn template_files<'a>(dir: &Path, files: &'a [StoredFile]) -> Vec<(String, &'a StoredFile)> {
    let folder = dir.join(ADDITIONAL_TEMPLATES);
    let name = |file: &StoredFile| {
        if file.path == dir.join(TEMPLATE_FILE) {
            return Some("default".to_owned());
        }
        let name = file.path.file_name()?.to_str()?.strip_suffix(".jinja")?.to_owned();
        (file.path.parent() == Some(&folder)).then_some(name)
    };
    files.iter().filter_map(|file| Some((name(file)?, file))).collect()
}

/// The default chat template of a folder: `chat_template.jinja`, or the text in `tokenizer_config.json`. `None`
/// if the folder has neither.
pub fn template_of(dir: &Path) -> Result<Option<StoredFile>> {
    let file = dir.join(TEMPLATE_FILE);
    if input::is_named(&file) {
        return StoredFile::read_template(&file).map(Some);
    }
    let path = dir.join("tokenizer_config.json");
    let config = read_object(&path)?.unwrap_or_default();
    let text = config.get("chat_template").and_then(Value::as_str);
    Ok(text.map(|text| StoredFile { path, bytes: text.as_bytes().to_vec() }))
}

/// Reads the tokenizer files of a folder that exist.
pub(super) fn stored_files(dir: &Path) -> Result<Vec<StoredFile>> {
    let mut paths: Vec<PathBuf> =
        FILES.iter().map(|name| dir.join(name)).filter(|file| input::is_named(file)).collect();
    let more = std::fs::read_dir(dir.join(ADDITIONAL_TEMPLATES)).into_iter().flatten().flatten();
    let mut more: Vec<PathBuf> = more.map(|entry| entry.path()).filter(|file| file.is_file()).collect();
    more.sort_unstable();
    if let Some(unnamed) = more.iter().find(|path| path.to_str().is_none()) {
        return Err(Error::model(unnamed, "has a name that is not UTF-8, which a checkpoint cannot record; rename it"));
    }
    paths.extend(more);
    paths.into_iter().map(StoredFile::read).collect()
}

/// Builds a tokenizer from the JSON object of `tokenizer.json`. The JSON is parsed before the tokenizers crate
/// sees it, because parts of the crate panic on broken JSON.
pub(super) fn read_inner(file: &Path, object: Map<String, Value>) -> Result<Inner> {
    let fail = |why: String| Error::model(file, why);
    if object.get("model").and_then(|model| model.get("dropout")).and_then(Value::as_f64).is_some_and(|rate| rate > 0.0)
    {
        return Err(fail("the model has dropout, so equal texts would get different ids; set dropout to null".into()));
    }
    let added = object.get("added_tokens").and_then(Value::as_array).cloned().unwrap_or_default();
    // The object is passed as text, because the crate depends on the order of keys and on the spelling of
    // numbers.
    let json = serde_json::to_vec(&Value::Object(object)).map_err(|e| fail(format!("cannot be read: {e}")))?;
    let inner = guarded(Stage::LoadTokenizer, || Inner::from_bytes(&json).map_err(|e| e.to_string()));
    let inner = inner.and_then(|outcome| outcome).map_err(|why| fail(format!("cannot be read: {why}")))?;
    for token in added {
        let (Some(text), Some(id)) = (token["content"].as_str(), token["id"].as_u64()) else { continue };
        if inner.token_to_id(text).map(u64::from) != Some(id) {
            return Err(fail(format!(
                "the added token \"{}\" is listed with id {id}, but the vocabulary does not map it to that id",
                shown(text)
            )));
        }
    }
    Ok(inner)
}

/// Reads a JSON object from a file; `None` if the file does not exist.
pub(super) fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !input::is_named(path) {
        return Ok(None);
    }
    let bytes = input::read(path, input::MAX_CONFIG).map_err(input::model_error(path))?;
    parse_object(path, &bytes).map(Some)
}

/// Parses the JSON object of a file.
pub(super) fn parse_object(path: &Path, bytes: &[u8]) -> Result<Map<String, Value>> {
    if let Some(why) = lfs_pointer(bytes) {
        return Err(Error::model(path, why));
    }
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::model(path, "must hold a JSON object")),
        Err(e) => Err(Error::model(path, format!("is not valid JSON: {e}"))),
    }
}

/// Text of a special token, given as a string, an object with `content`, or null.
pub(super) fn token_text(name: &str, value: &Value) -> Result<Option<String>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(token) => Ok(Some(token.clone())),
        Value::Object(object) => match object.get("content") {
            Some(Value::String(token)) => Ok(Some(token.clone())),
            _ => Err(format!("{name} is an object without the string \"content\"")),
        },
        _ => Err(format!("{name} must be a string, an object with \"content\", or null")),
    }
}

/// Ids of `eos_token_id`, which is a number or a list of numbers.
pub(super) fn end_ids(path: &Path, object: &Map<String, Value>) -> Result<Vec<u32>> {
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| Error::model(path, format!("eos_token_id {} is not a token id", shown(&value.to_string()))))
    };
    match object.get("eos_token_id") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(id).collect(),
        Some(value) => Ok(vec![id(value)?]),
    }
}
