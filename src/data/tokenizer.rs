//! Tokenizer of a model folder: encoding and decoding, special tokens, end ids and chat template,
//! and the files that are copied byte for byte into a saved model. `train` trains a new tokenizer;
//! `continuation` encodes text that continues other text.
//!
//! Read: `tokenizer.json` (required), `tokenizer_config.json`, `special_tokens_map.json`,
//! `chat_template.jinja` and `additional_chat_templates`, and the end ids of `generation_config.json` and `config.json`. Truncation
//! and padding stored in `tokenizer.json` are disabled, because lengths are limited in `tokenize`
//! and nothing is padded.
//!
//! Refused: folders without `tokenizer.json`, damaged files, and special tokens that are not in the
//! vocabulary.

mod added;
mod continuation;
pub mod pad;
mod train;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer as Inner;

use super::template::{ChatTemplate, TEMPLATE_FILE};
use crate::files::{input, json_text, lfs_pointer, write_atomic};
use crate::terminal::shown;
use crate::{Error, Result};
pub use train::train_bpe;

/// Special tokens by name, in folders of earlier versions of transformers.
const TOKEN_MAP: &str = "special_tokens_map.json";

/// Files of a folder that belong to its tokenizer, in copy order.
pub const FILES: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    TOKEN_MAP,
    TEMPLATE_FILE,
    "chat_template.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
];

/// Reason to refuse a folder without `tokenizer.json`.
const NO_TOKENIZER: &str = "is missing; download it, save the tokenizer in the fast format, or train a new one with \
                            `mapl tokenizer`";

/// Folder of additional named chat templates.
pub const ADDITIONAL_TEMPLATES: &str = "additional_chat_templates";

/// Names of special tokens, as spelled in configurations and chat templates.
const TOKEN_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A file as it was read.
#[derive(Clone, Debug)]
pub struct StoredFile {
    pub path: PathBuf,
    pub bytes: Vec<u8>,
}

impl StoredFile {
    fn read(path: PathBuf) -> Result<Self> {
        let bytes = input::read(&path, input::MAX_TOKENIZER).map_err(input::model_error(&path))?;
        Ok(Self { path, bytes })
    }
}

/// A tokenizer with its special tokens and chat template.
#[derive(Debug)]
pub struct Tokenizer {
    inner: Inner,
    /// Tokenizer of [`Tokenizer::encode_continuation`], if it is another one; made at its first use.
    continuing: OnceLock<Result<Option<Inner>, String>>,
    /// Folder that it was loaded from, for messages and names; `None` after training.
    dir: Option<PathBuf>,
    /// The folder's tokenizer files. A save writes these bytes, whatever happens to the folder.
    files: Vec<StoredFile>,
    /// Special tokens by name, in the order of [`TOKEN_NAMES`].
    tokens: Vec<(String, String)>,
    bos: Option<u32>,
    pad: Option<u32>,
    /// Pad token that replaces the folder's in copies.
    new_pad: Option<String>,
    /// Special tokens of the vocabulary with their ids, in ascending order.
    special: Vec<(u32, String)>,
    /// Id of the end token first, then further end ids of the folder.
    ends: Vec<u32>,
    /// Number of ids that the post-processor appends to a text.
    suffix: usize,
    template: Option<ChatTemplate>,
    /// The file that replaced the folder's template.
    template_file: Option<StoredFile>,
    /// Variables of the template for all rows.
    template_kwargs: Map<String, Value>,
    notes: Vec<String>,
    /// A file that a save must not copy, and why.
    outside: Option<(PathBuf, String)>,
}

impl Tokenizer {
    /// Reads the tokenizer of a model folder.
    pub fn load(dir: &Path) -> Result<Self> {
        let file = dir.join("tokenizer.json");
        if !input::is_named(&file) {
            return Err(Error::model(&file, NO_TOKENIZER));
        }
        let files = stored_files(dir)?;
        let object = |name: &str| {
            let stored = files.iter().find(|file| file.path == dir.join(name));
            stored.map(|file| parse_object(&file.path, &file.bytes)).transpose()
        };
        let inner = read_inner(&file, object("tokenizer.json")?.unwrap_or_default())?;
        let config = object("tokenizer_config.json")?.unwrap_or_default();
        let map = object(TOKEN_MAP)?.unwrap_or_default();
        let mut ends = Vec::new();
        for name in ["generation_config.json", "config.json"] {
            let path = dir.join(name);
            let ids = read_object(&path)?.map_or(Ok(Vec::new()), |object| end_ids(&path, &object))?;
            ends.extend(ids);
        }
        let copied = input::check_copied(dir, files.iter().map(|file| &file.path));
        let mut tokenizer = Self::build(inner, Some((dir, files)), &config, &map, ends)?;
        match copied {
            Ok(()) => {}
            Err(Error::Model { path, why }) => tokenizer.outside = Some((path, why)),
            Err(other) => return Err(other),
        }
        Ok(tokenizer)
    }

    fn build(
        mut inner: Inner,
        source: Option<(&Path, Vec<StoredFile>)>,
        config: &Map<String, Value>,
        map: &Map<String, Value>,
        further_end_ids: Vec<u32>,
    ) -> Result<Self> {
        let (dir, files) = source.map_or((None, Vec::new()), |(dir, files)| (Some(dir), files));
        let place = |name: &str| dir.unwrap_or(Path::new("")).join(name);
        let fail = |why: String| Error::model(&place("tokenizer.json"), why);
        inner.with_truncation(None).map_err(|e| fail(format!("cannot disable truncation: {e}")))?;
        inner.with_padding(None);
        let mut tokens = Vec::new();
        let source = |name: &str| {
            let in_config = config.get(name).filter(|value| !value.is_null());
            in_config.map(|value| ("tokenizer_config.json", value)).or(map.get(name).map(|value| (TOKEN_MAP, value)))
        };
        for name in TOKEN_NAMES {
            let Some((file, value)) = source(name) else { continue };
            if let Some(token) = token_text(name, value).map_err(|why| Error::model(&place(file), why))? {
                tokens.push((name.to_owned(), token));
            }
        }
        let mut notes: Vec<String> = added::complete(&mut inner, config, &tokens).map_err(fail)?.into_iter().collect();
        let id = |name: &str| -> Result<Option<u32>> {
            let Some((_, token)) = tokens.iter().find(|(known, _)| known == name) else { return Ok(None) };
            let file = source(name).map_or("tokenizer_config.json", |(file, _)| file);
            inner.token_to_id(token).map(Some).ok_or_else(|| {
                let why = format!(
                    "{name} \"{}\" is not in the vocabulary of tokenizer.json; add it to added_tokens there, or correct \
                     the name",
                    shown(token)
                );
                Error::model(&place(file), why)
            })
        };
        let (bos, eos, pad) = (id("bos_token")?, id("eos_token")?, id("pad_token")?);
        let mut ends: Vec<u32> = eos.into_iter().collect();
        let mut unknown = Vec::new();
        for end in further_end_ids {
            if inner.id_to_token(end).is_none() {
                unknown.push(end);
            } else if !ends.contains(&end) {
                ends.push(end);
            }
        }
        if !unknown.is_empty() {
            notes.push(format!("eos_token_id {unknown:?}: the tokenizer has no such token, so no text ends with it"));
        }
        let added = inner.get_added_tokens_decoder();
        let mut special: Vec<(u32, String)> =
            added.into_iter().filter(|(_, token)| token.special).map(|(id, token)| (id, token.content)).collect();
        special.sort_unstable();
        let template = match dir {
            Some(dir) => ChatTemplate::load(dir, &template_files(dir, &files), config, tokens.clone())?,
            None => None,
        };
        let mut tokenizer = Self {
            inner,
            continuing: OnceLock::new(),
            dir: dir.map(Path::to_owned),
            files,
            tokens,
            bos,
            pad,
            new_pad: None,
            special,
            ends,
            suffix: 0,
            template,
            template_file: None,
            template_kwargs: Map::new(),
            notes,
            outside: None,
        };
        tokenizer.probe(config)?;
        Ok(tokenizer)
    }

    /// Determines what the post-processor adds, and adds a note if the configuration disagrees.
    fn probe(&mut self, config: &Map<String, Value>) -> Result<()> {
        let (plain, complete) = (self.encode("a", false)?, self.encode("a", true)?);
        let start = if plain.is_empty() { None } else { complete.windows(plain.len()).position(|ids| ids == plain) };
        let prefix = start.map_or(&complete[..0], |start| &complete[..start]);
        let suffix = start.map_or(&complete[..0], |start| &complete[start + plain.len()..]);
        let adds = |ids: &[u32], id: Option<u32>| id.is_some_and(|id| ids.contains(&id));
        let eos = self.eos_id();
        for (key, does) in [("add_bos_token", adds(prefix, self.bos)), ("add_eos_token", adds(suffix, eos))] {
            if let Some(says) = config.get(key).and_then(Value::as_bool)
                && says != does
            {
                self.notes.push(format!(
                    "tokenizer_config.json says {key} = {says}, but the post-processor of tokenizer.json {} it; \
                     tokenizer.json takes precedence",
                    if does { "adds" } else { "does not add" }
                ));
            }
        }
        self.suffix = suffix.len();
        Ok(())
    }

    /// Encodes a text. With `special`, the post-processor adds its special tokens, such as BOS.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, special);
        Ok(encoding.map_err(|e| self.fail(format!("cannot encode a text: {e}")))?.get_ids().to_vec())
    }

    /// Encodes a text that will be continued: with the special tokens at its start, without those
    /// at its end.
    pub fn encode_prefix(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.without_suffix(&self.encode(text, true)?).to_vec())
    }

    /// Encodes a text that continues other text: without special tokens, and without the space that
    /// some tokenizers put in front of a text.
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>> {
        let continuing = self.continuing.get_or_init(|| continuation::continuing(&self.inner));
        let inner = continuing.as_ref().map_err(|why| self.fail(why.clone()))?.as_ref().unwrap_or(&self.inner);
        let encoding = inner.encode_fast(text, false);
        Ok(encoding.map_err(|e| self.fail(format!("cannot encode a text: {e}")))?.get_ids().to_vec())
    }

    /// Ids of a whole text without the special tokens that the post-processor appended.
    pub(crate) fn without_suffix<'a>(&self, ids: &'a [u32]) -> &'a [u32] {
        &ids[..ids.len().saturating_sub(self.suffix)]
    }

    /// Decodes ids, with special tokens written out. Ids outside the vocabulary are skipped.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false).map_err(|e| self.fail(format!("cannot decode ids: {e}")))
    }

    /// Vocabulary entry of an id, in the tokenizer's own spelling.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Largest id plus one: the minimum vocabulary size of a model.
    pub fn vocab_size(&self) -> usize {
        let ids = self.inner.get_vocab(true);
        ids.values().max().map_or(0, |&id| id as usize + 1)
    }

    /// Beginning-of-text id.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// Id appended to plain text: the folder's `eos_token`, else its first end id.
    pub fn eos_id(&self) -> Option<u32> {
        self.ends.first().copied()
    }

    /// All ids that end a response.
    pub fn end_ids(&self) -> &[u32] {
        &self.ends
    }

    /// Padding id; only written to configurations, never an input of a model.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// The folder's chat template.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The chat template, or an error that says how to provide one.
    pub fn require_template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().ok_or_else(|| {
            let place = self.dir.clone().unwrap_or_default();
            Error::model(
                &place,
                "the folder has no chat template, but conversations need one; pass --chat-template-path",
            )
        })
    }

    /// [`Tokenizer::eos_id`], or an error that says where to set it.
    pub fn require_eos(&self) -> Result<u32> {
        self.eos_id().ok_or_else(|| {
            let place = self.dir.clone().unwrap_or_default();
            Error::model(
                &place,
                "no end token is defined, but plain text needs one; set eos_token in tokenizer_config.json",
            )
        })
    }

    /// Reads the tokenizer of a model folder, with the chat template in `template` if given
    /// ([`Tokenizer::set_template_file`]).
    pub fn load_with(dir: &Path, template: Option<&Path>) -> Result<Self> {
        let mut tokenizer = Self::load(dir)?;
        if let Some(file) = template {
            tokenizer.set_template_file(file)?;
        }
        Ok(tokenizer)
    }

    /// Replaces the chat template with the one in a file (`--chat-template-path`); saved folders
    /// then contain that file.
    pub fn set_template_file(&mut self, file: &Path) -> Result<()> {
        let bytes = input::read_once(file, input::MAX_CONFIG).map_err(input::model_error(file))?;
        let stored = StoredFile { path: file.to_owned(), bytes };
        self.template = Some(ChatTemplate::from_bytes(file, &stored.bytes, self.tokens.clone())?);
        self.template_file = Some(stored);
        Ok(())
    }

    /// Sets variables of the chat template for all rows (`--chat-template-kwargs`).
    pub fn set_template_kwargs(&mut self, kwargs: Map<String, Value>) {
        self.template_kwargs = kwargs;
    }

    /// Variables of [`Tokenizer::set_template_kwargs`].
    pub fn template_kwargs(&self) -> &Map<String, Value> {
        &self.template_kwargs
    }

    /// Adds a note for the log.
    pub fn add_note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Variables of the chat template for a row with its own `kwargs`, which take precedence by key.
    pub(crate) fn kwargs_of(&self, own: Option<&Map<String, Value>>) -> Option<Map<String, Value>> {
        let mut all = self.template_kwargs.clone();
        all.extend(own.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
        (!all.is_empty()).then_some(all)
    }

    /// The file of [`Tokenizer::set_template_file`].
    pub fn template_file(&self) -> Option<&StoredFile> {
        self.template_file.as_ref()
    }

    /// Notes for the log: disagreements between the folder's files.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Tokenizer files of the folder as they were read, in a fixed order.
    pub fn files(&self) -> &[StoredFile] {
        &self.files
    }

    /// Refuses a tokenizer with a file that a save must not copy: a link that leads out of the folder
    /// ([`input::check_copied`]).
    pub(crate) fn check_copied(&self) -> Result<()> {
        self.outside.as_ref().map_or(Ok(()), |(file, why)| Err(Error::model(file, why)))
    }

    /// Writes the tokenizer's files into a folder with the bytes that were read, each of them
    /// atomically. A template of [`Tokenizer::set_template_file`] replaces the folder's templates.
    /// Tokenizer files of an earlier save that this tokenizer does not have are removed. Copying
    /// onto itself does nothing.
    pub fn copy_to(&self, target: &Path) -> Result<()> {
        let Some(dir) = &self.dir else {
            return Err(Error::Runtime("a new tokenizer has no files to copy; save it first".into()));
        };
        self.check_copied()?;
        std::fs::create_dir_all(target).map_err(Error::io("create", target))?;
        // The folder may have been removed since it was read.
        if let (Ok(own), Ok(target)) = (dir.canonicalize(), target.canonicalize())
            && own == target
        {
            return Ok(());
        }
        let mut copied = Vec::new();
        for file in &self.files {
            let Ok(name) = file.path.strip_prefix(dir) else { continue };
            if self.template_file.is_some()
                && (name == Path::new(TEMPLATE_FILE) || name.starts_with(ADDITIONAL_TEMPLATES))
            {
                continue;
            }
            let to = target.join(name);
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
            }
            write_atomic(&to, &self.content_to_copy(file))?;
            copied.push(to);
        }
        let config = target.join("tokenizer_config.json");
        if let Some(pad) = &self.new_pad
            && !copied.contains(&config)
        {
            write_atomic(&config, json_text(&json!({ "pad_token": pad })).as_bytes())?;
            copied.push(config);
        }
        if let Some(template) = &self.template_file {
            let to = target.join(TEMPLATE_FILE);
            write_atomic(&to, &template.bytes)?;
            copied.push(to);
        }
        for stale in FILES.iter().map(|name| target.join(name)).filter(|file| file.is_file() && !copied.contains(file))
        {
            std::fs::remove_file(&stale).map_err(Error::io("remove", &stale))?;
        }
        Ok(())
    }

    fn fail(&self, why: String) -> Error {
        Error::model(&self.dir.clone().unwrap_or_default().join("tokenizer.json"), why)
    }
}

/// Chat templates among the files of a folder: `chat_template.jinja` as `default`, then the additional
/// ones by name.
fn template_files<'a>(dir: &Path, files: &'a [StoredFile]) -> Vec<(String, &'a StoredFile)> {
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

/// Reads the tokenizer files of a folder that exist.
fn stored_files(dir: &Path) -> Result<Vec<StoredFile>> {
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

/// Reads the object of `tokenizer.json`. The JSON is parsed before the tokenizers crate sees it, because parts of
/// the crate panic on broken JSON.
fn read_inner(file: &Path, object: Map<String, Value>) -> Result<Inner> {
    let fail = |why: String| Error::model(file, why);
    if object.get("model").and_then(|model| model.get("dropout")).and_then(Value::as_f64).is_some_and(|rate| rate > 0.0)
    {
        return Err(fail("the model has dropout, so equal texts would get different ids; set dropout to null".into()));
    }
    let added = object.get("added_tokens").and_then(Value::as_array).cloned().unwrap_or_default();
    // Passed as text: the order of keys matters to the crate, and numbers must keep their spelling.
    let json = serde_json::to_vec(&Value::Object(object)).map_err(|e| fail(format!("cannot be read: {e}")))?;
    let inner = Inner::from_bytes(&json).map_err(|e| fail(format!("cannot be read: {e}")))?;
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
fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !input::is_named(path) {
        return Ok(None);
    }
    let bytes = input::read(path, input::MAX_CONFIG).map_err(input::model_error(path))?;
    parse_object(path, &bytes).map(Some)
}

/// Parses the JSON object of a file.
fn parse_object(path: &Path, bytes: &[u8]) -> Result<Map<String, Value>> {
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
fn token_text(name: &str, value: &Value) -> Result<Option<String>, String> {
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
fn end_ids(path: &Path, object: &Map<String, Value>) -> Result<Vec<u32>> {
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
