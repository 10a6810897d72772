//! Rows that ask for a response: any row with a `prompt` or with a question under a different name, and any
//! group row, whose first prompt is used. The row itself is kept, so that a command can write it again.
//!
//! Each of these is an error with file and line: rows without a prompt or with an empty prompt, conversations
//! that end with an answer, keys that the output adds, media, and unused columns that may hold a part of the
//! conversation.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::context::{self, Context};
use super::fields::Row;
use super::message::{messages, not_empty, split_response};
use super::overlooked::{check_columns, check_media, conversation_columns, spells_messages};
use super::shape::Shape;
use super::{ColumnMap, Format, Parsed, ReadOptions, SourceRow, group_row, refuse_pipe_named_twice, rows};
use crate::data::group::{Message, PreferenceGroup, Prompt, Response};
use crate::{Error, Result};

/// Settings of [`read_prompts`].
#[derive(Clone, Debug, Default, clap::Args)]
pub struct PromptOptions {
    /// Input columns for the keys, e.g. prompt=question
    #[arg(long, value_name = "KEY=COLUMN,...", default_value = "", hide_default_value = true)]
    pub column_map: ColumnMap,
    /// Columns that are not a part of the prompt, such as one that an error names; output rows keep them
    #[arg(long, value_name = "COLUMN,...", value_delimiter = ',')]
    pub drop_columns: Vec<String>,
}

/// A prompt with the row that it was read from.
#[derive(Clone, Debug)]
pub struct PromptRow {
    /// The row as a JSON object on one line, without its closing brace. Numbers and texts are written
    /// as in the file.
    pub text: String,
    /// The prompt, in a group with no other prompt and no responses.
    pub row: SourceRow,
}

impl PromptRow {
    /// The prompt.
    pub fn prompt(&self) -> &Prompt {
        &self.row.group.prompts[0]
    }
}

/// Prompts of files, in order.
#[derive(Debug, Default)]
pub struct Prompts {
    /// The prompts.
    pub rows: Vec<PromptRow>,
    /// Warnings about text that may be read differently from what was intended.
    pub warnings: Vec<String>,
}

/// Reads the prompts of files. `added` are the keys that the command adds to a row.
pub fn read_prompts(paths: &[PathBuf], options: &PromptOptions, added: &[&str]) -> Result<Prompts> {
    if paths.is_empty() {
        return Err(Error::Usage("no input file was given".into()));
    }
    refuse_pipe_named_twice(paths)?;
    let reading = ReadOptions {
        column_map: options.column_map.clone(),
        drop_columns: options.drop_columns.clone(),
        ..ReadOptions::default()
    };
    let (mut found, mut dropped, mut mapped) = (Prompts::default(), BTreeSet::new(), false);
    for path in paths {
        let file: Arc<Path> = Arc::from(path.as_path());
        let (mut count, mut spelled, mut several) = (0, None, None);
        let columns = rows::Columns { ids: &["id"], mapped: reading.column_map.pairs(), keep_text: true };
        rows::for_each_row(path, columns, |line, object| {
            let object = object?;
            let text = object.open_text();
            let rows::RowObject { object, odd, .. } = object;
            count += 1;
            let mut row = Row::new(object, path, line);
            row.set_id().map_err(|why| Error::data(path, line, None, why))?;
            let id = row.id().to_owned();
            let fail = |why: String| Error::data(path, line, Some(&id), why);
            let text = text.map_err(fail)?;
            if let Some(key) = added.iter().find(|key| row.columns().any(|(name, _)| name == **key)) {
                return Err(fail(format!("the row has \"{key}\", which the output would replace; rename the column")));
            }
            row.odd = odd;
            row.apply(&reading).map_err(fail)?;
            mapped |= row.mapped;
            dropped.extend(row.dropped.iter().cloned());
            let group = prompt_row(&mut row, &mut several, line).map_err(|why| fail(row.explain(why)))?;
            row.check_odd(&group).map_err(fail)?;
            if let Prompt::Text(text) = &group.prompts[0]
                && spells_messages(text)
            {
                spelled.get_or_insert(line);
            }
            let row = SourceRow { group, file: file.clone(), line, scores: None };
            found.rows.push(PromptRow { text, row });
            Ok(())
        })?;
        if count == 0 {
            return Err(Error::data(path, 0, None, "the file has no rows; expected one JSON object per line"));
        }
        let name = path.display();
        found.warnings.extend(spelled.map(|line| {
            format!(
                "{name}:{line}: a prompt is text that spells a list of messages, and is read as plain text; store the \
                 messages as JSON"
            )
        }));
        found.warnings.extend(several.map(|line| {
            format!("{name}: group rows have several prompts, from line {line} on; only the first of each is answered")
        }));
    }
    if !options.column_map.pairs().is_empty() && !mapped {
        return Err(Error::Usage(
            "--column-map has no effect: every row is a group row, whose keys are fixed; leave it out".into(),
        ));
    }
    match options.drop_columns.iter().find(|column| !dropped.contains(*column)) {
        Some(column) => Err(Error::Usage(format!("--drop-columns {column}: no row has this column; correct its name"))),
        None => Ok(found),
    }
}

/// Reads the prompt of a row; `several` becomes the line of the first group row with further prompts.
fn prompt_row(row: &mut Row<'_>, several: &mut Option<usize>, line: usize) -> Result<PreferenceGroup, String> {
    let mut group = if group_row::matches(row) {
        let mut group = group_row::read(row)?;
        if group.prompts.len() > 1 {
            several.get_or_insert(line);
        }
        group.prompts.truncate(1);
        PreferenceGroup { responses: Vec::new(), comparisons: Vec::new(), instructions: Vec::new(), ..group }
    } else {
        check_media(row)?;
        let columns = conversation_columns(row);
        let prompt = prompt(row)?;
        let mut group = PreferenceGroup::new(row.id().to_owned(), vec![prompt], Vec::new(), Vec::new());
        row.template_settings(&mut group)?;
        check_columns(row, columns, &group)?;
        group
    };
    let Some(prompt) = group.prompts.first_mut() else { return Err("the row has no prompt".into()) };
    match prompt {
        Prompt::Text(text) if text.is_empty() => Err("the prompt is empty; give it some text".into()),
        Prompt::Messages(turns) if turns.last().is_some_and(|turn| turn.role == "assistant") => {
            let why = "the conversation ends with an assistant turn, so there is nothing to answer; end it with the \
                       turn to answer";
            Err(why.into())
        }
        _ => Ok(group),
    }
}

/// Reads a prompt with one `response`, as `mapl generate` writes it. The group has no comparison.
pub(super) fn response_row(row: &mut Row<'_>) -> Result<Parsed, String> {
    let response = row.take("response");
    if group_row::matches(row) {
        // The keys that generation adds to a group row are removed.
        ["response", "tokens", "finish"].into_iter().for_each(|key| row.remove(key));
    }
    let mut group = prompt_row(row, &mut None, 0)?;
    let response = match response {
        Some(Value::String(text)) => match &group.prompts[0] {
            Prompt::Text(_) => Response::Text(text),
            Prompt::Messages(_) => Response::Message(Message::new("assistant", text)),
        },
        Some(other) => {
            let turns = messages(other, "\"response\"")?;
            if turns.len() != 1 {
                return Err(format!("\"response\" must be one message, found {}", turns.len()));
            }
            split_response(turns, "\"response\"")?.1
        }
        None => return Err("\"response\" is missing".into()),
    };
    group.responses.push(not_empty(response, "\"response\"")?);
    Ok(Parsed::new(Format::Response, group))
}

fn prompt(row: &mut Row<'_>) -> Result<Prompt, String> {
    if context::is_conversation(row) {
        let context = Context::take(row)?;
        if !context.has_no_question() {
            return context.before(Vec::new(), "prompt").map(Prompt::Messages);
        }
    } else if let Some(shape) = row.text_or_chat("prompt")? {
        return match shape {
            Shape::Text => row.text("prompt").map(Prompt::Text),
            Shape::Chat => row.messages("prompt").map(Prompt::Messages),
        };
    }
    let keys = row.keys_for_message();
    Err(format!("\"prompt\" is missing (the row has {keys}); name its column with --column-map prompt=COLUMN"))
}
