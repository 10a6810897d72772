//! Requests to the worker process of a tokenizer, and the responses to them.
//!
//! Part 0 of a message is JSON: a [`Request`], or `Result<response, Fault>`. Texts, files, token ids and rows
//! follow as separate parts, so that large ones are neither escaped nor parsed.

use std::ffi::OsString;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::template::NamedSources;
use super::tokenize::{Lost, Rules};
use super::worker::Failure;
use super::worker::frame::Frame;
use crate::{Error, Result};

/// Request to a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Loads a tokenizer; it must be the first request. The parts are the files, then the template file.
    Load {
        dir: OsString,
        files: Vec<OsString>,
        /// EOS token ids from `generation_config.json` and `config.json`.
        ends: Vec<u32>,
        template: Option<OsString>,
        /// Date that templates see, in seconds since 1970.
        now: u64,
    },
    /// Encodes a text (part 1). Part 1 of the response holds the ids.
    Encode { special: bool },
    /// Encodes a text (part 1) that continues other text. Part 1 of the response holds the ids.
    Continue,
    /// Decodes ids (part 1). Part 1 of the response holds the text.
    Decode,
    /// Looks up the vocabulary entry of an id. The response is an [`Entry`].
    Entry(u32),
    /// Renders the chat template for the JSON (part 1) of messages, generation prompt, tools and variables.
    /// Part 1 of the response holds the text.
    Render,
    /// Encodes the row whose group is the JSON in part 1. The response is an [`EncodedRow`]; its further parts
    /// hold the ids of the prompts, then of the responses.
    Row {
        file: OsString,
        line: usize,
        pairs: Vec<(usize, usize)>,
        /// Variables of the chat template for this row.
        kwargs: Option<Map<String, Value>>,
        rules: Rules,
    },
}

/// Facts about a loaded tokenizer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Loaded {
    pub tokens: Vec<(String, String)>,
    pub bos: Option<u32>,
    pub pad: Option<u32>,
    /// Special tokens of the vocabulary with their ids.
    pub special: Vec<(u32, String)>,
    pub ends: Vec<u32>,
    pub suffix: usize,
    pub notes: Vec<String>,
    pub vocab_size: usize,
    /// Sources of the chat template by name, and the settings that it reads.
    pub template: Option<(NamedSources, Vec<String>)>,
}

/// One vocabulary entry: its token string and the text that it decodes to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    pub token: Option<String>,
    pub text: String,
}

/// Facts about an encoded row; its ids are in further parts of the message.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct EncodedRow {
    pub prompts: usize,
    /// Prompt and response of each sequence.
    pub sequences: Vec<(usize, usize)>,
    pub plain: usize,
    pub mismatches: usize,
    pub lost: Lost,
}

/// An [`Error`] in the form that is sent between processes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Fault {
    Usage(String),
    Data {
        file: OsString,
        line: usize,
        id: Option<String>,
        why: String,
    },
    Model {
        path: OsString,
        why: String,
    },
    /// A failed rendering, to which the caller adds the file and the row.
    Text(String),
    Other(String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::Usage(why) => Fault::Usage(why),
            Error::Data { file, line, id, why } => Fault::Data { file: file.into(), line, id, why },
            Error::Model { path, why } => Fault::Model { path: path.into(), why },
            other => Fault::Other(other.to_string()),
        }
    }
}

impl Fault {
    /// Converts the fault to an error in the process that receives it.
    pub(super) fn into_error(self) -> Error {
        match self {
            Fault::Usage(why) => Error::Usage(why),
            Fault::Data { file, line, id, why } => Error::data(Path::new(&file), line, id.as_deref(), why),
            Fault::Model { path, why } => Error::model(Path::new(&path), why),
            Fault::Text(why) | Fault::Other(why) => Error::Runtime(why),
        }
    }
}

/// Returns the JSON of part 0 of a message.
pub(super) fn json(value: &impl Serialize) -> Vec<u8> {
    // The value holds only numbers, strings and lists, so the conversion cannot fail. The reader rejects an
    // empty part.
    serde_json::to_vec(value).unwrap_or_default()
}

/// Sends a request and parses part 0 of the response.
///
/// # Errors
/// The outer error is a failure of the worker, the inner one an error that the worker returns.
pub(super) fn ask<T: DeserializeOwned>(
    pool: &super::worker::Pool,
    request: &Request,
    parts: &[&[u8]],
    bytes: usize,
) -> Result<Result<(T, Frame), Fault>, Failure> {
    let head = json(request);
    let parts: Vec<&[u8]> = [&head[..]].into_iter().chain(parts.iter().copied()).collect();
    Ok(answer(pool.ask(&parts, bytes)?))
}

/// Parses part 0 of a response.
pub(super) fn answer<T: DeserializeOwned>(frame: Frame) -> Result<(T, Frame), Fault> {
    match serde_json::from_slice::<Result<T, Fault>>(frame.part(0)) {
        Ok(outcome) => outcome.map(|value| (value, frame)),
        Err(e) => Err(Fault::Other(format!("the worker process sent a response that cannot be read: {e}"))),
    }
}
