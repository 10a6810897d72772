//! Main program of a worker process, which answers requests to one tokenizer.

use std::path::PathBuf;

use super::group::{Message, PreferenceGroup};
use super::requests::{EncodedRow, Entry, Fault, Request, json};
use super::source::SourceRow;
use super::template::freeze_date;
use super::tokenize::encode_here;
use super::tokenizer::{StoredFile, Tokenizer};
use super::worker::frame::{Frame, id_bytes, ids};
use crate::{Error, Result};

/// Answers requests from standard input until the input ends. `arguments` are the arguments after
/// [`super::worker::COMMAND`]. Returns the exit code.
#[cfg(target_os = "linux")]
pub fn main(arguments: &[std::ffi::OsString]) -> i32 {
    let memory = arguments.first().and_then(|text| text.to_str()).and_then(|text| text.parse().ok());
    let Some(memory) = memory else { return 2 };
    let mut tokenizer = None;
    match super::worker::host::serve(memory, move |request| parts(&mut tokenizer, &request)) {
        Ok(()) => 0,
        Err(e) => {
            crate::terminal::complain(&format!("the worker process failed: {e}"));
            1
        }
    }
}

/// Worker processes need Linux, so this function returns the exit code for a wrong argument.
#[cfg(not(target_os = "linux"))]
pub fn main(_: &[std::ffi::OsString]) -> i32 {
    2
}

/// Returns the parts of the response to a request.
fn parts(tokenizer: &mut Option<Tokenizer>, request: &Frame) -> Vec<Vec<u8>> {
    respond(tokenizer, request).unwrap_or_else(|fault| vec![json(&Err::<(), _>(fault))])
}

type Parts = Vec<Vec<u8>>;

fn respond(loaded: &mut Option<Tokenizer>, frame: &Frame) -> Result<Parts, Fault> {
    let unreadable = |e: serde_json::Error| Fault::Other(format!("the worker process cannot read a request: {e}"));
    let request = serde_json::from_slice(frame.part(0)).map_err(unreadable)?;
    if let Request::Load { dir, files, ends, template, now } = request {
        freeze_date(now);
        let stored = |(i, path): (usize, std::ffi::OsString)| StoredFile {
            path: path.into(),
            bytes: frame.part(1 + i).to_vec(),
        };
        let template = template.map(|path| stored((files.len(), path)));
        let files = files.into_iter().enumerate().map(stored).collect();
        let tokenizer = Tokenizer::from_files(PathBuf::from(dir), files, ends, template)?;
        let facts = tokenizer.facts();
        *loaded = Some(tokenizer);
        return Ok(vec![json(&Ok::<_, Fault>(facts))]);
    }
    let tokenizer = loaded.as_ref().ok_or_else(|| Fault::Other("the worker process has no tokenizer".into()))?;
    let done = |part: Vec<u8>| Ok(vec![json(&Ok::<_, Fault>(())), part]);
    match request {
        Request::Load { .. } => Err(Fault::Other("the worker process has a tokenizer already".into())),
        Request::Encode { special } => done(id_bytes(&tokenizer.encode(text(frame.part(1))?, special)?)),
        Request::Continue => done(id_bytes(&tokenizer.encode_continuation(text(frame.part(1))?)?)),
        Request::Decode => done(tokenizer.decode(&ids(frame.part(1)))?.into_bytes()),
        Request::Entry(id) => {
            let entry = Entry { token: tokenizer.token(id), text: tokenizer.decode(&[id])? };
            Ok(vec![json(&Ok::<_, Fault>(entry))])
        }
        Request::Render => {
            type Arguments =
                (Vec<Message>, bool, Option<serde_json::Value>, Option<serde_json::Map<String, serde_json::Value>>);
            let (turns, open, tools, kwargs): Arguments = serde_json::from_slice(frame.part(1)).map_err(unreadable)?;
            let template = tokenizer.require_template()?;
            let text = template.render(&turns, open, tools.as_ref(), kwargs.as_ref()).map_err(Fault::Text)?;
            done(text.into_bytes())
        }
        Request::Row { file, line, pairs, kwargs, rules } => {
            let mut group: PreferenceGroup = serde_json::from_slice(frame.part(1)).map_err(unreadable)?;
            group.chat_template_kwargs = kwargs;
            let row = SourceRow { group, file: PathBuf::from(file).into(), line, scores: None };
            let encoded = encode_here(&row, &pairs, tokenizer, rules)?;
            let facts = EncodedRow {
                prompts: encoded.prompt_ids.len(),
                sequences: encoded.sequences.iter().map(|s| (s.prompt, s.response)).collect(),
                plain: encoded.plain,
                mismatches: encoded.mismatches,
                lost: encoded.lost,
            };
            let ids = encoded.prompt_ids.iter().chain(encoded.sequences.iter().map(|s| &s.response_ids));
            Ok([json(&Ok::<_, Fault>(facts))].into_iter().chain(ids.map(|ids| id_bytes(ids))).collect())
        }
    }
}

fn text(bytes: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(bytes).map_err(|_| Error::Runtime("a text for the worker process is not UTF-8".into()))
}
