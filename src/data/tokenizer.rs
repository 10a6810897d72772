//! Tokenizer of a model folder: encoding and decoding, special tokens, EOS ids and chat template. `load` and
//! `files` read it, `copy` writes its files into a saved model, `pad` chooses the pad token of a reward model,
//! `added` adds tokens that only the configuration lists, `continuation` encodes text that continues other
//! text, `rebuilt` warns if transformers would build a different tokenizer from the folder, `remote` is a
//! tokenizer in worker processes, and `train` trains a new tokenizer.
//!
//! These files are read: `tokenizer.json` (required), `tokenizer_config.json`, `special_tokens_map.json`,
//! `chat_template.jinja` and `additional_chat_templates`, and the EOS ids of `generation_config.json` and
//! `config.json`. Truncation and padding stored in `tokenizer.json` are disabled, because lengths are limited
//! in `tokenize` and nothing is padded.
//!
//! The tokenizers library runs in worker processes if those are enabled ([`super::worker`]). They receive the
//! bytes that this process read, so later changes to the folder have no effect.
//!
//! Folders without `tokenizer.json`, damaged files, and special tokens that are not in the vocabulary are
//! errors.

mod added;
mod continuation;
mod copy;
mod files;
mod load;
pub(crate) mod pad;
mod rebuilt;
mod remote;
mod train;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value};
use tokenizers::Tokenizer as Inner;

use super::template::{ChatTemplate, TEMPLATE_FILE};
use super::worker::Stage;
use super::worker::guard::guarded;
use crate::{Error, Result};
pub use files::{StoredFile, template_of};
pub(crate) use remote::Remote;
pub use train::train_bpe;

/// File that maps names to special tokens, written by earlier versions of transformers.
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

/// Folder of additional named chat templates.
pub const ADDITIONAL_TEMPLATES: &str = "additional_chat_templates";

/// Names of special tokens, as spelled in configurations and chat templates.
const TOKEN_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A tokenizer with its special tokens and chat template.
#[derive(Debug)]
pub struct Tokenizer {
    engine: Engine,
    /// Tokenizer of [`Tokenizer::encode_continuation`], if it differs from the one of `engine`; created at
    /// its first use.
    continuing: OnceLock<Result<Option<Inner>, String>>,
    /// Folder of the tokenizer's files, for messages and names; `None` for a new tokenizer that is not saved
    /// yet.
    dir: Option<PathBuf>,
    /// The folder's tokenizer files. A save writes these bytes, even if the folder has changed.
    files: Vec<StoredFile>,
    /// Special tokens by name, in the order of [`TOKEN_NAMES`].
    tokens: Vec<(String, String)>,
    bos: Option<u32>,
    pad: Option<u32>,
    /// Pad token that is written into copies of the folder's files, instead of the folder's pad token.
    new_pad: Option<String>,
    /// Special tokens of the vocabulary with their ids, in ascending order of ids.
    special: Vec<(u32, String)>,
    /// EOS ids: the id of the EOS token first, then further ids of the folder.
    ends: Vec<u32>,
    /// EOS ids of `generation_config.json` and `config.json`, as they were read.
    further_ends: Vec<u32>,
    /// Number of ids that the post-processor appends to a text.
    suffix: usize,
    template: Option<ChatTemplate>,
    /// Chat template file that replaces the folder's template (`--chat-template-path`).
    template_file: Option<StoredFile>,
    /// Variables of the template for all rows.
    template_kwargs: Map<String, Value>,
    notes: Vec<String>,
    /// A file that a save must not copy, and why.
    outside: Option<(PathBuf, String)>,
    /// Warning that transformers builds a tokenizer from the folder that differs from `tokenizer.json`.
    rebuilt: Option<String>,
}

/// Process in which the tokenizers library runs.
#[derive(Debug)]
enum Engine {
    Here(Box<Inner>),
    Worker(Arc<Remote>),
}

impl Tokenizer {
    /// Encodes a text. With `special`, the post-processor adds its special tokens, such as BOS.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        if let Engine::Worker(remote) = &self.engine {
            return remote.encode(text, special);
        }
        self.encode_here(text, special).map_err(|why| self.cannot_encode(text, &why))
    }

    fn encode_here(&self, text: &str, special: bool) -> Result<Vec<u32>, String> {
        ids_of(self.here()?, text, special)
    }

    fn here(&self) -> Result<&Inner, String> {
        match &self.engine {
            Engine::Here(inner) => Ok(inner),
            Engine::Worker(_) => Err("the tokenizer is in another process".into()),
        }
    }

    fn cannot_encode(&self, text: &str, why: &str) -> Error {
        let len = text.len();
        self.fail(format!(
            "cannot encode a text of {len} bytes: {why}; if other texts work, shorten this one or its runs of equal \
             characters"
        ))
    }

    /// Encodes a text that will be continued: with the special tokens at its start, without those
    /// at its end.
    pub fn encode_prefix(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.without_suffix(&self.encode(text, true)?).to_vec())
    }

    /// Encodes a text that continues other text: without special tokens, and without the space that
    /// some tokenizers put in front of a text.
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>> {
        let inner = match &self.engine {
            Engine::Here(inner) => inner,
            Engine::Worker(remote) => return remote.encode_continuation(text),
        };
        let continuing = self.continuing.get_or_init(|| continuation::continuing(inner));
        let inner = continuing.as_ref().map_err(|why| self.fail(why.clone()))?.as_ref().unwrap_or(inner);
        ids_of(inner, text, false).map_err(|why| self.cannot_encode(text, &why))
    }

    /// Ids of a whole text without the special tokens that the post-processor appended.
    pub(crate) fn without_suffix<'a>(&self, ids: &'a [u32]) -> &'a [u32] {
        &ids[..ids.len().saturating_sub(self.suffix)]
    }

    /// Decodes ids. Special tokens appear as text. Ids outside the vocabulary are skipped.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let inner = match &self.engine {
            Engine::Here(inner) => inner,
            Engine::Worker(remote) => return remote.decode(ids),
        };
        let text = guarded(Stage::Decode, || inner.decode(ids, false).map_err(|e| e.to_string()));
        text.and_then(|outcome| outcome).map_err(|why| self.fail(format!("cannot decode ids: {why}")))
    }

    /// Vocabulary entry of an id, as the tokenizer spells it.
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

    /// Id of the BOS token.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// Id appended to plain text: the folder's `eos_token`, else its first EOS id.
    pub fn eos_id(&self) -> Option<u32> {
        self.ends.first().copied()
    }

    /// All EOS ids, each of which ends a response.
    pub fn end_ids(&self) -> &[u32] {
        &self.ends
    }

    /// Id of the pad token, which is only written to configurations and is never an input of a model.
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
                "no EOS token is defined, but plain text needs one; set eos_token in tokenizer_config.json",
            )
        })
    }

    /// Sets variables of the chat template for all rows (`--chat-template-kwargs`).
    pub fn set_template_kwargs(&mut self, kwargs: Map<String, Value>) {
        self.template_kwargs = kwargs;
    }

    /// Variables of [`Tokenizer::set_template_kwargs`].
    pub fn template_kwargs(&self) -> &Map<String, Value> {
        &self.template_kwargs
    }

    /// Warning that the tokenizer that transformers builds from the folder differs from `tokenizer.json`.
    pub(crate) fn rebuilt_by_transformers(&self) -> Option<String> {
        self.rebuilt.clone()
    }

    /// Adds a note for the log.
    pub fn add_note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Merges the chat-template variables for all rows with the `kwargs` of a row, which take precedence by
    /// key.
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

    /// The worker processes, if the library runs in them.
    pub(crate) fn remote(&self) -> Option<&Remote> {
        match &self.engine {
            Engine::Here(_) => None,
            Engine::Worker(remote) => Some(remote),
        }
    }

    fn fail(&self, why: String) -> Error {
        Error::model(&self.file(), why)
    }

    /// Path that errors of the tokenizers library name.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.clone().unwrap_or_default().join("tokenizer.json")
    }
}

/// Encodes a text; panics of the library become errors.
fn ids_of(inner: &Inner, text: &str, special: bool) -> Result<Vec<u32>, String> {
    let encoding = guarded(Stage::Encode, || inner.encode_fast(text, special).map_err(|e| e.to_string()));
    Ok(encoding.and_then(|outcome| outcome)?.get_ids().to_vec())
}
