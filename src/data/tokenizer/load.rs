//! Loads a tokenizer in this process, or in worker processes that receive the files' bytes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value};
use tokenizers::Tokenizer as Inner;

use super::super::requests::Loaded;
use super::super::template::{ChatTemplate, TEMPLATE_FILE};
use super::super::worker::{self, Program};
use super::files::{end_ids, parse_object, read_inner, read_object, stored_files, template_files, token_text};
use super::{Engine, Remote, StoredFile, TOKEN_MAP, TOKEN_NAMES, Tokenizer, added, rebuilt};
use crate::files::input;
use crate::terminal::shown;
use crate::{Error, Result};

/// Error message for a folder without `tokenizer.json`.
const NO_TOKENIZER: &str = "is missing; download it, save the tokenizer in the fast format, or train a new one with \
                            `mapl tokenizer`";

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

    /// [`Tokenizer::load_with`] for an adapter's folder, with `config.json` and `generation_config.json` read
    /// from the folder `configs`.
    pub(crate) fn load_apart(dir: &Path, configs: &Path, template: Option<&Path>) -> Result<Self> {
        Self::load_from(worker::enabled(), (dir, configs), template)
    }

    /// [`Tokenizer::load_with`] in child processes of `program`, or in this process if `program` is `None`.
    ///
    /// # Errors
    /// [`Error::Model`] if a file is damaged or a child exceeds a limit; [`Error::Runtime`] if no
    /// child can be started.
    pub fn load_in(program: Option<&Program>, dir: &Path, template: Option<&Path>) -> Result<Self> {
        Self::load_from(program, (dir, dir), template)
    }

    fn load_from(program: Option<&Program>, (dir, configs): (&Path, &Path), template: Option<&Path>) -> Result<Self> {
        let file = dir.join("tokenizer.json");
        if !input::is_named(&file) {
            return Err(Error::model(&file, NO_TOKENIZER));
        }
        let files = stored_files(dir)?;
        let mut ends = Vec::new();
        for name in ["generation_config.json", "config.json"] {
            let path = configs.join(name);
            let ids = read_object(&path)?.map_or(Ok(Vec::new()), |object| end_ids(&path, &object))?;
            ends.extend(ids);
        }
        let copied = input::check_copied(dir, files.iter().map(|file| &file.path));
        let template = template.map(StoredFile::read_template).transpose()?;
        let mut tokenizer = match program {
            Some(program) => Self::in_worker(program, dir, files, ends, template)?,
            None => Self::from_files(dir.to_owned(), files, ends, template)?,
        };
        match copied {
            Ok(()) => {}
            Err(Error::Model { path, why }) => tokenizer.outside = Some((path, why)),
            Err(other) => return Err(other),
        }
        tokenizer.rebuilt =
            rebuilt::warning(dir, &tokenizer.files, read_object(&configs.join("config.json"))?.as_ref());
        Ok(tokenizer)
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
        let chat = |(sources, settings)| {
            ChatTemplate::in_worker(Arc::clone(&remote), sources, loaded.tokens.clone(), settings)
        };
        Ok(Self {
            template: loaded.template.map(chat),
            engine: Engine::Worker(Arc::clone(&remote)),
            continuing: OnceLock::new(),
            dir: Some(dir.to_owned()),
            files,
            tokens: loaded.tokens,
            bos: loaded.bos,
            pad: loaded.pad,
            new_pad: None,
            special: loaded.special,
            ends: loaded.ends,
            further_ends: ends,
            suffix: loaded.suffix,
            template_file: template,
            template_kwargs: Map::new(),
            notes: loaded.notes,
            outside: None,
            rebuilt: None,
        })
    }

    /// Loads the files of a folder into this process. `ends` are the EOS ids of `generation_config.json` and
    /// `config.json`; `template` replaces the folder's chat template.
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
        let map = object(TOKEN_MAP)?.unwrap_or_default();
        let mut tokenizer = Self::build(inner, Some((&dir, files)), &config, &map, ends)?;
        if let Some(file) = template {
            tokenizer.replace_template(file)?;
        }
        Ok(tokenizer)
    }

    /// Returns the facts that the parent of a worker process needs.
    pub(in super::super) fn facts(&self) -> Loaded {
        Loaded {
            tokens: self.tokens.clone(),
            bos: self.bos,
            pad: self.pad,
            special: self.special.clone(),
            ends: self.ends.clone(),
            suffix: self.suffix,
            notes: self.notes.clone(),
            vocab_size: self.vocab_size(),
            template: self.template.as_ref().map(|t| (t.sources().to_vec(), t.settings().to_vec())),
        }
    }

    pub(super) fn build(
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
        for &end in &further_end_ids {
            if inner.id_to_token(end).is_none() {
                unknown.push(end);
            } else if !ends.contains(&end) {
                ends.push(end);
            }
        }
        if !unknown.is_empty() {
            notes.push(format!(
                "eos_token_id {unknown:?}: the tokenizer has no such token, so this id never ends a response"
            ));
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
            engine: Engine::Here(Box::new(inner)),
            continuing: OnceLock::new(),
            dir: dir.map(Path::to_owned),
            files,
            tokens,
            bos,
            pad,
            new_pad: None,
            special,
            ends,
            further_ends: further_end_ids,
            suffix: 0,
            template,
            template_file: None,
            template_kwargs: Map::new(),
            notes,
            outside: None,
            rebuilt: None,
        };
        tokenizer.probe(config)?;
        Ok(tokenizer)
    }

    /// Determines what the post-processor adds, and adds a note if the configuration disagrees.
    fn probe(&mut self, config: &Map<String, Value>) -> Result<()> {
        // A tokenizer that fails for one letter is damaged, so the error gives no advice about the text.
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

    /// Replaces the chat template with the one in a file (`--chat-template-path`); saved folders
    /// then contain that file.
    pub fn set_template_file(&mut self, file: &Path) -> Result<()> {
        self.set_template(StoredFile::read_template(file)?)
    }

    /// Like [`Tokenizer::set_template_file`], with a file that has already been read.
    pub(crate) fn set_template(&mut self, stored: StoredFile) -> Result<()> {
        let Some(program) = self.remote().map(|remote| remote.program.clone()) else {
            return self.replace_template(stored);
        };
        let dir = self.dir.clone().unwrap_or_default();
        let new = Self::in_worker(&program, &dir, self.files.clone(), self.further_ends.clone(), Some(stored))?;
        (self.engine, self.template, self.template_file) = (new.engine, new.template, new.template_file);
        Ok(())
    }

    fn replace_template(&mut self, file: StoredFile) -> Result<()> {
        self.template = Some(ChatTemplate::from_bytes(&file.path, &file.bytes, self.tokens.clone())?);
        self.template_file = Some(file);
        Ok(())
    }
}
