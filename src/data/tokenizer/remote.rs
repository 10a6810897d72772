//! A tokenizer in worker processes. Its methods send requests instead of calling the tokenizers library.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::requests::{Entry, Fault, Loaded, Request, answer, ask, json};
use super::super::template::now;
use super::super::worker::frame::{Frame, id_bytes, ids};
use super::super::worker::{Failure, Pool, Program, Stage};
use super::StoredFile;
use crate::{Error, Result};

/// Worker processes with one tokenizer and its chat template.
#[derive(Debug)]
pub(crate) struct Remote {
    pub(super) program: Program,
    pool: Pool,
    pub(super) vocab_size: usize,
    /// Files of the tokenizer and of the chat template, which errors name.
    tokenizer: PathBuf,
    template: PathBuf,
    /// Vocabulary entries that workers have already returned, by token id.
    entries: RwLock<HashMap<u32, Entry>>,
}

impl Remote {
    /// Loads a tokenizer into a first worker. `place` is the file with the chat template.
    pub(super) fn load(
        program: &Program,
        dir: &Path,
        files: &[StoredFile],
        ends: &[u32],
        template: Option<&StoredFile>,
        place: PathBuf,
    ) -> Result<(Self, Loaded)> {
        let request = Request::Load {
            dir: dir.into(),
            files: files.iter().map(|file| file.path.clone().into()).collect(),
            ends: ends.to_vec(),
            template: template.map(|file| file.path.clone().into()),
            now: now(),
        };
        let parts = files.iter().chain(template).map(|file| file.bytes.clone());
        let parts = [json(&request)].into_iter().chain(parts).collect();
        let tokenizer = dir.join("tokenizer.json");
        let (pool, frame) = Pool::new(program, parts).map_err(|failure| {
            at_fault(&failure, if failure.stage().is_some_and(Stage::is_template) { &place } else { &tokenizer })
        })?;
        let (loaded, _) = answer::<Loaded>(frame).map_err(Fault::into_error)?;
        let (program, vocab_size) = (program.clone(), loaded.vocab_size);
        let remote = Self { program, pool, vocab_size, tokenizer, template: place, entries: RwLock::default() };
        Ok((remote, loaded))
    }

    pub(super) fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let (_, frame) = self.ask::<()>(&Request::Encode { special }, &[text.as_bytes()], text.len())?;
        Ok(ids(frame.part(1)))
    }

    pub(super) fn encode_continuation(&self, text: &str) -> Result<Vec<u32>> {
        let (_, frame) = self.ask::<()>(&Request::Continue, &[text.as_bytes()], text.len())?;
        Ok(ids(frame.part(1)))
    }

    pub(super) fn decode(&self, ids: &[u32]) -> Result<String> {
        if let &[id] = ids {
            return Ok(self.entry(id)?.text);
        }
        let (_, frame) = self.ask::<()>(&Request::Decode, &[&id_bytes(ids)], 8 * ids.len())?;
        text(&frame)
    }

    /// Returns the vocabulary entry of a token id.
    pub(super) fn entry(&self, id: u32) -> Result<Entry> {
        let known = self.entries.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        if let Some(entry) = known {
            return Ok(entry);
        }
        let (entry, _) = self.ask::<Entry>(&Request::Entry(id), &[], 0)?;
        self.entries.write().unwrap_or_else(PoisonError::into_inner).insert(id, entry.clone());
        Ok(entry)
    }

    /// Renders a conversation; `arguments` are those of the template's `render`.
    pub(crate) fn render(&self, arguments: &impl Serialize) -> Result<String, String> {
        let arguments = json(arguments);
        match ask::<()>(&self.pool, &Request::Render, &[&arguments], arguments.len()) {
            Ok(Ok((_, frame))) => text(&frame).map_err(|e| e.to_string()),
            Ok(Err(Fault::Text(why))) => Err(why),
            Ok(Err(fault)) => Err(fault.into_error().to_string()),
            Err(failure) => Err(self.blame(&failure).to_string()),
        }
    }

    /// Sends a request about a row, or returns why its worker failed.
    pub(in super::super) fn ask_about_row<T: DeserializeOwned>(
        &self,
        request: &Request,
        row: &[u8],
        bytes: usize,
    ) -> Result<Result<(T, Frame)>, Failure> {
        Ok(ask(&self.pool, request, &[row], bytes)?.map_err(Fault::into_error))
    }

    /// Number of workers that died during a request, and true if the pool therefore starts no more workers.
    pub(in super::super) fn deaths(&self) -> (usize, bool) {
        self.pool.deaths()
    }

    /// Forgets all worker deaths except the first `deaths`, so that workers receive requests again.
    pub(in super::super) fn forget_deaths(&self, deaths: usize) {
        self.pool.forget_deaths(deaths);
    }

    fn ask<T: DeserializeOwned>(&self, request: &Request, parts: &[&[u8]], bytes: usize) -> Result<(T, Frame)> {
        let outcome = ask(&self.pool, request, parts, bytes).map_err(|failure| self.blame(&failure))?;
        outcome.map_err(Fault::into_error)
    }

    /// Converts a worker's failure to an error that names the file in use, the chat template or the
    /// tokenizer.
    pub(crate) fn blame(&self, failure: &Failure) -> Error {
        at_fault(
            failure,
            if failure.stage().is_some_and(Stage::is_template) { &self.template } else { &self.tokenizer },
        )
    }
}

fn at_fault(failure: &Failure, file: &Path) -> Error {
    match failure {
        Failure::Start(_) => Error::Runtime(failure.to_string()),
        _ => Error::model(file, failure.to_string()),
    }
}

/// Returns the text in part 1 of a response.
fn text(frame: &Frame) -> Result<String> {
    String::from_utf8(frame.part(1).to_vec())
        .map_err(|_| Error::Runtime("the worker process sent text that is not UTF-8".into()))
}
