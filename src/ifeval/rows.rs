//! Prompts and responses of an IFEval run: JSON objects with file and line, matched by prompt.
//!
//! Errors are rows without a required key, lists of different lengths, malformed arguments, a prompt or a
//! response that occurs twice, and prompts without a response. Responses to other prompts are counted.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::check::{Instruction, Verdicts, verdicts};
use crate::data::source::{Columns, RowObject, for_each_row, written_number};
use crate::terminal::shown;
use crate::{Error, Result};

/// A prompt with its instructions.
pub struct Prompt {
    /// JSON text of the value of "key", as in the file.
    pub key: String,
    /// The prompt's text.
    pub prompt: String,
    /// Its instructions.
    pub instructions: Vec<Instruction>,
    /// The row as a JSON object on one line, without its closing brace; or the reason why it cannot be copied
    /// into an output file.
    pub row: Result<String, String>,
    /// Keys of the row.
    pub columns: Vec<String>,
    /// File and line, for messages.
    pub place: (PathBuf, usize),
}

/// One response to each prompt, in the order of the prompts.
pub struct Responses {
    /// The responses.
    pub texts: Vec<String>,
    /// Number of responses to other prompts, and file and line of the first of them.
    pub unused: (usize, Option<String>),
}

/// Verdicts on the responses, one response per prompt, in the order of the prompts.
pub struct Judged {
    /// One entry per response.
    pub verdicts: Vec<Verdicts>,
    /// Number of responses of white space only.
    pub blank: usize,
}

/// Reads prompts: `key`, `prompt`, `instruction_id_list`, `kwargs`.
///
/// # Errors
/// [`Error::Data`] with the line of the first defect.
pub fn read_prompts(files: &[PathBuf]) -> Result<Vec<Prompt>> {
    let mut prompts: Vec<Prompt> = Vec::new();
    let mut places: HashMap<String, String> = HashMap::new();
    for file in files {
        let before = prompts.len();
        for_each_row(file, Columns { keep_text: true, ..Columns::default() }, |line, row| {
            let prompt = prompt(&row?, (file.clone(), line)).map_err(|why| Error::data(file, line, None, why))?;
            if let Some(first) = places.insert(prompt.prompt.clone(), format!("{}:{line}", file.display())) {
                let why =
                    format!("the prompt is the same as at {first}; responses are matched by prompt, so remove one row");
                return Err(Error::data(file, line, None, why));
            }
            prompts.push(prompt);
            Ok(())
        })?;
        if prompts.len() == before {
            return Err(Error::data(file, 0, None, "has no rows; expected rows of IFEval"));
        }
    }
    Ok(prompts)
}

fn prompt(row: &RowObject, place: (PathBuf, usize)) -> Result<Prompt, String> {
    let need = |key: &str| match row.object.get(key) {
        Some(value) => Ok(value),
        None => Err(format!(
            "\"{key}\" is missing; rows of IFEval have \"key\", \"prompt\", \"instruction_id_list\" and \"kwargs\""
        )),
    };
    let list = |key: &str| need(key)?.as_array().ok_or_else(|| format!("\"{key}\" is not a list"));
    let key = row.text.as_deref().and_then(|row| written_number(row, "key"));
    let key = key.map_or_else(|| need("key").map(Value::to_string), Ok)?;
    let text = need("prompt")?.as_str().ok_or("\"prompt\" is not a string")?.to_owned();
    let (ids, arguments) = (list("instruction_id_list")?, list("kwargs")?);
    let instructions = instructions_of(ids, arguments)?;
    let columns = row.object.keys().cloned().collect();
    Ok(Prompt { key, prompt: text, instructions, row: row.open_text(), columns, place })
}

/// Instructions of a row, from its `instruction_id_list` and `kwargs`.
pub fn instructions_of(ids: &[Value], arguments: &[Value]) -> Result<Vec<Instruction>, String> {
    if ids.is_empty() {
        return Err("\"instruction_id_list\" is empty".into());
    }
    if ids.len() != arguments.len() {
        return Err(format!(
            "\"instruction_id_list\" has {} entries and \"kwargs\" {}; give one object of arguments for each \
             instruction, at least {{}}",
            ids.len(),
            arguments.len()
        ));
    }
    let none = Map::new();
    let instruction = |(id, arguments): (&Value, &Value)| {
        let id = id.as_str().ok_or("\"instruction_id_list\" has an entry that is not a string")?;
        let arguments = match arguments {
            Value::Null => &none,
            Value::Object(arguments) => arguments,
            _ => return Err("\"kwargs\" has an entry that is not an object".to_owned()),
        };
        Instruction::new(id, arguments)
    };
    ids.iter().zip(arguments).map(instruction).collect()
}

/// Reads responses (`prompt`, `response`).
///
/// # Errors
/// [`Error::Data`] with the line of the first defect, and for prompts without a response.
pub fn read_responses(prompts: &[Prompt], files: &[PathBuf]) -> Result<Responses> {
    let of: HashMap<&str, usize> = prompts.iter().enumerate().map(|(i, p)| (p.prompt.as_str(), i)).collect();
    let mut found: Vec<Option<(String, String)>> = prompts.iter().map(|_| None).collect();
    let mut unused = (0, None);
    for file in files {
        for_each_row(file, Columns::default(), |line, row| {
            let row = row?.object;
            let fail = |why: String| Err(Error::data(file, line, None, why));
            let asked = row.get("prompt").and_then(question);
            let (prompt, response) = match ["prompt", "response"].map(|key| row.get(key)) {
                [Some(Value::String(prompt)), Some(Value::String(response))] => (prompt.as_str(), response),
                [Some(_), Some(Value::String(response))] if asked.is_some() => (asked.unwrap_or_default(), response),
                [None, _] | [_, None] => {
                    return fail("rows of responses have \"prompt\" and \"response\"; one is missing".into());
                }
                [_, Some(Value::String(_))] => {
                    return fail(
                        "\"prompt\" is neither a string nor a conversation with one user turn; give the text of the \
                         prompt as in --input"
                            .into(),
                    );
                }
                _ => return fail("\"response\" is not a string".into()),
            };
            let place = format!("{}:{line}", file.display());
            let Some(&at) = of.get(prompt) else {
                unused.0 += 1;
                unused.1.get_or_insert(place);
                return Ok(());
            };
            if let Some((_, first)) = &found[at] {
                return fail(format!("the prompt has a response at {first}; give one response per prompt"));
            }
            found[at] = Some((response.clone(), place));
            Ok(())
        })?;
    }
    let missing: Vec<&Prompt> = prompts.iter().zip(&found).filter(|(_, f)| f.is_none()).map(|(p, _)| p).collect();
    if let (Some(first), Some(file)) = (missing.first(), files.first()) {
        return Err(unanswered(first, missing.len(), prompts.len(), file, unused.0));
    }
    Ok(Responses { texts: found.into_iter().flatten().map(|(response, _)| response).collect(), unused })
}

/// Checks responses, one to every prompt.
pub fn judge(prompts: &[Prompt], responses: &[String]) -> Judged {
    let blank = responses.iter().filter(|response| response.trim().is_empty()).count();
    let verdicts = prompts.par_iter().zip(responses).map(|(p, response)| verdicts(&p.instructions, response)).collect();
    Judged { verdicts, blank }
}

/// Text of the only user turn of a conversation.
fn question(prompt: &Value) -> Option<&str> {
    let mut users = prompt.as_array()?.iter().filter(|turn| turn["role"] == "user");
    let text = users.next()?["content"].as_str()?;
    users.next().is_none().then_some(text)
}

fn unanswered(first: &Prompt, missing: usize, of: usize, file: &Path, unused: usize) -> Error {
    let (input, line) = &first.place;
    let hint = match unused {
        0 => "add them, or leave their rows out of --input".to_owned(),
        n => format!("responses to other prompts: {n}; a response is matched by the exact text of its prompt"),
    };
    let why = format!(
        "prompts without a response: {missing} of {of}, first {}:{line}, {}; {hint}",
        input.display(),
        shown(&first.prompt)
    );
    Error::data(file, 0, None, why)
}

/// Rows of verdicts as JSON lines, in the order of the prompts. An instruction without a verdict has null.
pub fn verdict_lines(prompts: &[Prompt], judged: &Judged) -> String {
    let mut out = String::new();
    for (prompt, verdicts) in prompts.iter().zip(&judged.verdicts) {
        let ids: Vec<&str> = prompt.instructions.iter().map(|instruction| instruction.id.as_str()).collect();
        let row = json!({
            "prompt": prompt.prompt, "instruction_id_list": ids,
            "strict": verdicts.strict, "loose": verdicts.loose,
        });
        // The key is written first, with its original digits.
        out += &format!("{{\"key\":{},{}\n", prompt.key, &row.to_string()[1..]);
    }
    out
}
