//! Tokenizer of a model folder: encoding and decoding, special tokens, end ids and chat template,
//! and the files that are copied byte for byte into a saved model. `train` trains a new tokenizer.
//!
//! Read: `tokenizer.json` (required), `tokenizer_config.json`, `special_tokens_map.json`,
//! `chat_template.jinja`, and the end ids of `generation_config.json` and `config.json`. Truncation
//! and padding stored in `tokenizer.json` are disabled, because lengths are limited in `tokenize`
//! and nothing is padded.
//!
//! The library runs in worker processes if those are enabled ([`super::worker`]). They get the bytes
//! that this process read, so a folder that changes meanwhile has no effect.
//!
//! Refused: folders without `tokenizer.json`, damaged files, and special tokens that are not in the
//! vocabulary.

mod files;
mod remote;
mod train;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use tokenizers::Tokenizer as Inner;

use super::requests::Loaded;
use super::template::{ChatTemplate, TEMPLATE_FILE};
use super::worker::guard::guarded;
use super::worker::{self, Program, Stage};
use crate::files::write_atomic;
use crate::{Error, Result};
pub use files::StoredFile;
use files::{end_ids, parse_object, read_inner, read_object, stored_files, token_text};
pub(crate) use remote::Remote;
pub use train::train_bpe;

/// Files of a folder that belong to its tokenizer, in copy order.
pub const FILES: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
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

/// A tokenizer with its special tokens and chat template.
#[derive(Debug)]
pub struct Tokenizer {
    engine: Engine,
    /// Folder that it was loaded from, for messages and names; `None` after training.
    dir: Option<PathBuf>,
    /// The folder's tokenizer files. A save writes these bytes, whatever happens to the folder.
    files: Vec<StoredFile>,
    /// Special tokens by name, in the order of [`TOKEN_NAMES`].
    tokens: Vec<(String, String)>,
    bos: Option<u32>,
    pad: Option<u32>,
    /// Id of the end token first, then further end ids of the folder.
    ends: Vec<u32>,
    /// End ids of the folder's other configurations, as they were read.
    further_ends: Vec<u32>,
    /// Number of ids that the post-processor appends to a text.
    suffix: usize,
    template: Option<ChatTemplate>,
    /// The file that replaced the folder's template.
    template_file: Option<StoredFile>,
    notes: Vec<String>,
}

/// Place where the library runs.
#[derive(Debug)]
enum Engine {
    Here(Box<Inner>),
    Worker(Arc<Remote>),
}

impl Tokenizer {
    /// Reads the tokenizer of a model folder.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::load_with(dir, None)
    }

    /// Reads the tokenizer of a model folder, with the chat template in `template` if given
    /// ([`Tokenizer::set_template_file`]).
    pub fn load_with(dir: &Path, template: Option<&Path>) -> Result<Self> {
        Self::load_in(worker::enabled(), dir, template)
    }

    /// [`Tokenizer::load_with`] in child processes of a program, or without one in this process.
    ///
    /// # Errors
    /// [`Error::Model`] if a file is damaged or a child exceeds a limit; [`Error::Runtime`] if no
    /// child can be started.
    pub fn load_in(program: Option<&Program>, dir: &Path, template: Option<&Path>) -> Result<Self> {
        let file = dir.join("tokenizer.json");
        if !file.is_file() {
            return Err(Error::model(&file, NO_TOKENIZER));
        }
        let files = stored_files(dir)?;
        let mut ends = Vec::new();
        for name in ["generation_config.json", "config.json"] {
            let path = dir.join(name);
            let ids = read_object(&path)?.map_or(Ok(Vec::new()), |object| end_ids(&path, &object))?;
            ends.extend(ids);
        }
        let template = template.map(|file| StoredFile::read(file.to_owned())).transpose()?;
        match program {
            Some(program) => Self::in_worker(program, dir, files, ends, template),
            None => Self::from_files(dir.to_owned(), files, ends, template),
        }
    }

    /// Loads the files into worker processes.
    fn in_worker(
        program: &Program,
        dir: &Path,
        files: Vec<StoredFile>,
        ends: Vec<u32>,
        template: Option<StoredFile>,
    ) -> Result<Self> {
        let place = match files.iter().find(|file| file.path == dir.join(TEMPLATE_FILE)) {
            _ if template.is_some() => template.as_ref().map_or(PathBuf::new(), |file| file.path.clone()),
            Some(file) => file.path.clone(),
            None => dir.join("tokenizer_config.json"),
        };
        let (remote, loaded) = Remote::load(program, dir, &files, &ends, template.as_ref(), place)?;
        let remote = Arc::new(remote);
        let chat = |sources| ChatTemplate::in_worker(Arc::clone(&remote), sources, loaded.tokens.clone());
        Ok(Self {
            template: loaded.sources.map(chat),
            engine: Engine::Worker(Arc::clone(&remote)),
            dir: Some(dir.to_owned()),
            files,
            tokens: loaded.tokens,
            bos: loaded.bos,
            pad: loaded.pad,
            ends: loaded.ends,
            further_ends: ends,
            suffix: loaded.suffix,
            template_file: template,
            notes: loaded.notes,
        })
    }

    /// Loads the files of a folder into this process. `ends` are the end ids of the folder's other
    /// configurations; `template` replaces the folder's chat template.
    pub(crate) fn from_files(
        dir: PathBuf,
        files: Vec<StoredFile>,
        ends: Vec<u32>,
        template: Option<StoredFile>,
    ) -> Result<Self> {
        let file = dir.join("tokenizer.json");
        let object = |name: &str| {
            let stored = files.iter().find(|file| file.path == dir.join(name));
            stored.map(|file| parse_object(&file.path, &file.bytes)).transpose()
        };
        let inner = read_inner(&file, object("tokenizer.json")?.unwrap_or_default())?;
        let config = object("tokenizer_config.json")?.unwrap_or_default();
        let map = object("special_tokens_map.json")?.unwrap_or_default();
        let mut tokenizer = Self::build(inner, Some((&dir, files)), &config, &map, ends)?;
        if let Some(file) = template {
            tokenizer.replace_template(file)?;
        }
        Ok(tokenizer)
    }

    /// Facts for the owner of a worker process.
    pub(super) fn facts(&self) -> Loaded {
        Loaded {
            tokens: self.tokens.clone(),
            bos: self.bos,
            pad: self.pad,
            ends: self.ends.clone(),
            suffix: self.suffix,
            notes: self.notes.clone(),
            vocab_size: self.vocab_size(),
            sources: self.template.as_ref().map(|template| template.sources().to_vec()),
        }
    }

    /// The worker processes, if the library runs in some.
    pub(crate) fn remote(&self) -> Option<&Remote> {
        match &self.engine {
            Engine::Here(_) => None,
            Engine::Worker(remote) => Some(remote),
        }
    }

    fn build(
        mut inner: Inner,
        source: Option<(&Path, Vec<StoredFile>)>,
        config: &Map<String, Value>,
        map: &Map<String, Value>,
        further_end_ids: Vec<u32>,
    ) -> Result<Self> {
        let (dir, files) = source.map_or((None, Vec::new()), |(dir, files)| (Some(dir), files));
        let place = dir.unwrap_or(Path::new("")).join("tokenizer_config.json");
        let fail = |why: String| Error::model(&place, why);
        inner.with_truncation(None).map_err(|e| fail(format!("cannot disable truncation: {e}")))?;
        inner.with_padding(None);
        let mut tokens = Vec::new();
        for name in TOKEN_NAMES {
            let value = config.get(name).filter(|value| !value.is_null()).or_else(|| map.get(name));
            if let Some(token) = value.map_or(Ok(None), |value| token_text(name, value)).map_err(fail)? {
                tokens.push((name.to_owned(), token));
            }
        }
        let id = |name: &str| -> Result<Option<u32>> {
            let Some((_, token)) = tokens.iter().find(|(known, _)| known == name) else { return Ok(None) };
            let id = inner.token_to_id(token);
            id.map(Some).ok_or_else(|| fail(format!("{name} \"{token}\" is not in the vocabulary of tokenizer.json")))
        };
        let (bos, eos, pad) = (id("bos_token")?, id("eos_token")?, id("pad_token")?);
        let mut ends: Vec<u32> = eos.into_iter().collect();
        for &end in &further_end_ids {
            if !ends.contains(&end) {
                ends.push(end);
            }
        }
        let template = match dir {
            Some(dir) => {
                let file = files.iter().find(|file| file.path == dir.join(TEMPLATE_FILE));
                ChatTemplate::load(dir, file.map(|file| file.bytes.as_slice()), config, tokens.clone())?
            }
            None => None,
        };
        let mut tokenizer = Self {
            engine: Engine::Here(Box::new(inner)),
            dir: dir.map(Path::to_owned),
            files,
            tokens,
            bos,
            pad,
            ends,
            further_ends: further_end_ids,
            suffix: 0,
            template,
            template_file: None,
            notes: Vec::new(),
        };
        tokenizer.probe(config)?;
        Ok(tokenizer)
    }

    /// Determines what the post-processor adds, and adds a note if the configuration disagrees.
    fn probe(&mut self, config: &Map<String, Value>) -> Result<()> {
        // A tokenizer that fails for one letter is damaged: advice about texts would mislead.
        let encode =
            |special| self.encode_here("a", special).map_err(|why| self.fail(format!("cannot encode \"a\": {why}")));
        let (plain, complete) = (encode(false)?, encode(true)?);
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
        if let Engine::Worker(remote) = &self.engine {
            return remote.encode(text, special);
        }
        self.encode_here(text, special).map_err(|why| {
            let len = text.len();
            self.fail(format!(
                "cannot encode a text of {len} bytes: {why}; if other texts work, shorten this one or its runs of \
                 equal characters"
            ))
        })
    }

    fn encode_here(&self, text: &str, special: bool) -> Result<Vec<u32>, String> {
        let Engine::Here(inner) = &self.engine else { return Err("the tokenizer is in another process".into()) };
        let encoding = guarded(Stage::Encode, || inner.encode_fast(text, special).map_err(|e| e.to_string()));
        Ok(encoding.and_then(|outcome| outcome)?.get_ids().to_vec())
    }

    /// Encodes a text that will be continued: with the special tokens at its start, without those
    /// at its end.
    pub fn encode_prefix(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.without_suffix(&self.encode(text, true)?).to_vec())
    }

    /// Ids of a whole text without the special tokens that the post-processor appended.
    pub(crate) fn without_suffix<'a>(&self, ids: &'a [u32]) -> &'a [u32] {
        &ids[..ids.len().saturating_sub(self.suffix)]
    }

    /// Decodes ids, with special tokens written out. Ids outside the vocabulary are skipped.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let inner = match &self.engine {
            Engine::Here(inner) => inner,
            Engine::Worker(remote) => return remote.decode(ids),
        };
        let text = guarded(Stage::Decode, || inner.decode(ids, false).map_err(|e| e.to_string()));
        text.and_then(|outcome| outcome).map_err(|why| self.fail(format!("cannot decode ids: {why}")))
    }

    /// Vocabulary entry of an id, in the tokenizer's own spelling.
    pub fn token(&self, id: u32) -> Option<String> {
        match &self.engine {
            Engine::Here(inner) => inner.id_to_token(id),
            Engine::Worker(remote) => remote.entry(id).ok().and_then(|entry| entry.token),
        }
    }

    /// Largest id plus one: the minimum vocabulary size of a model.
    pub fn vocab_size(&self) -> usize {
        let ids = match &self.engine {
            Engine::Here(inner) => inner.get_vocab(true),
            Engine::Worker(remote) => return remote.vocab_size,
        };
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

    /// Replaces the chat template with the one in a file (`--chat-template-path`); saved folders
    /// then contain that file.
    pub fn set_template_file(&mut self, file: &Path) -> Result<()> {
        let stored = StoredFile::read(file.to_owned())?;
        if let Some(program) = self.remote().map(|remote| remote.program.clone()) {
            let dir = self.dir.clone().unwrap_or_default();
            *self = Self::in_worker(&program, &dir, self.files.clone(), self.further_ends.clone(), Some(stored))?;
            return Ok(());
        }
        self.replace_template(stored)
    }

    fn replace_template(&mut self, file: StoredFile) -> Result<()> {
        self.template = Some(ChatTemplate::from_bytes(&file.path, &file.bytes, self.tokens.clone())?);
        self.template_file = Some(file);
        Ok(())
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

    /// Writes the tokenizer's files into a folder with the bytes that were read, each of them
    /// atomically. A template of [`Tokenizer::set_template_file`] replaces the folder's templates.
    /// Tokenizer files of an earlier save that this tokenizer does not have are removed. Copying
    /// onto itself does nothing.
    pub fn copy_to(&self, target: &Path) -> Result<()> {
        let Some(dir) = &self.dir else {
            return Err(Error::Runtime("a new tokenizer has no files to copy; save it first".into()));
        };
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
            write_atomic(&to, &file.bytes)?;
            copied.push(to);
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
        Error::model(&self.file(), why)
    }

    /// The file that errors of the library name.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.clone().unwrap_or_default().join("tokenizer.json")
    }
}
