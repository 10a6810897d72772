//! Reads preference files: every accepted row becomes a [`PreferenceGroup`] with its file and line.
//!
//! - `rows`: reads a file as JSON objects with line numbers: JSON lines, a JSON array, other JSON
//!   (`document`), tables of text (`table`) or Parquet (`parquet_rows`)
//! - `paths`: files, folders and patterns on a command line; `container`: compressed files
//! - `fields`: typed access to the keys of one row, with an error message for every defect;
//!   `message`: messages of conversations
//! - `shape`: detects the format of a row from its keys
//! - `group_row`, `text_pair`, `chat_pair`, `hh`, `candidates`, `two_columns`: the readers
//! - `unpaired`: rows with one response and a label, and pairs that are split into such rows
//! - `context`: system text, earlier turns and question of a row, under any known column name
//! - `overlooked`: unused columns that may hold a part of the conversation
//! - `sft`: prompt and completion, conversations, plain text, and the chosen responses of preference rows
//! - `prompts`: rows that ask for a response, and prompts with one response; `samples`: responses by
//!   prompt; `turns`: text as turns
//! - `kinds`: unsupported kinds of files; `odd_values`: NaN and other values that JSON cannot represent;
//!   `keys`: keys in a row's text; `row_limits`: size limits of a row
//! - `options`: column map, and the flag that allows mixed formats in one file
//!
//! The format is detected from the keys of each row. Each of these is an error with file, line and id: rows
//! that are not JSON objects, missing or mistyped keys, empty responses, files without rows, and two formats
//! in one file unless [`ReadOptions::mixed_formats`] is set. Files are read line by line; memory per line is
//! bounded.

mod candidates;
mod chat_pair;
mod container;
mod context;
mod document;
mod fields;
mod group_row;
mod hh;
mod keys;
mod kinds;
mod message;
mod odd_values;
pub(crate) mod options;
mod overlooked;
mod parquet_rows;
mod paths;
mod prompts;
mod reading;
mod report;
mod row_limits;
mod rows;
mod samples;
mod sft;
mod shape;
mod table;
mod text_pair;
mod turns;
mod two_columns;
mod unpaired;

use std::collections::HashSet;
use std::fmt;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

pub(crate) use container::open_text;
pub(super) use context::user_turns;
pub(crate) use keys::written_number;
pub use options::{ColumnMap, Pairs, ReadOptions};
pub(crate) use rows::{Columns, RowObject, for_each_row};
pub use sft::{read_sft_files, sft_pairs};

use super::group::{PreferenceGroup, Prompt, Response};
use crate::files::is_dash;
use crate::{Error, Result};
use fields::Row;
pub use overlooked::Occurrences;
pub use paths::expand;
pub use prompts::{PromptOptions, PromptRow, Prompts, read_prompts};
pub use reading::check_used;
use reading::read_with;
pub use report::{FileReport, Skipped};
pub use samples::{SampleFiles, Samples, read_samples};
use shape::{Shape, preference_row};
pub use unpaired::{read_unpaired_files, split_pairs};

/// A group with its file and line.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceRow {
    /// The preference group.
    pub group: PreferenceGroup,
    /// File of the row.
    pub file: Arc<Path>,
    /// Line number, from 1.
    pub line: usize,
    /// Scores of the chosen and the rejected response, if the row has them. Only checks read them.
    pub scores: Option<[f64; 2]>,
}

impl SourceRow {
    /// Returns a data error at this row.
    pub fn error(&self, why: impl Into<String>) -> Error {
        Error::data(&self.file, self.line, Some(&self.group.id), why)
    }
}

/// Format of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `prompts`, `responses`, `comparisons`.
    Group,
    /// `prompt`, `chosen`, `rejected` as strings.
    TextExplicit,
    /// `chosen`, `rejected` as strings with a common prefix.
    TextImplicit,
    /// `prompt`, `chosen`, `rejected` as messages.
    ChatExplicit,
    /// `chosen`, `rejected` as conversations with a common prefix.
    ChatImplicit,
    /// `chosen`, `rejected` as dialogues with `\n\nHuman:` and `\n\nAssistant:`.
    HumanAssistant,
    /// `prompt` as a string and `chosen`, `rejected` as conversations.
    UltraFeedback,
    /// `chosen`, `rejected` as text that answers a question under a different name, or follows a system text.
    Question,
    /// Two responses in separate columns, with a label.
    Labelled,
    /// A list of responses with scores or ranks.
    Scored,
    /// `chosen`, `rejected` as lists of responses.
    Lists,
    /// A prompt and one `response` (scoring only).
    Response,
    /// `prompt` and `completion` (SFT only).
    PromptCompletion,
    /// `messages` (SFT only).
    Messages,
    /// `text` (SFT only).
    PlainText,
    /// One response with a label (KTO only).
    Unpaired,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Group => "group rows",
            Format::TextExplicit => "text pairs with a prompt",
            Format::TextImplicit => "text pairs without a prompt",
            Format::ChatExplicit => "conversation pairs with a prompt",
            Format::ChatImplicit => "conversation pairs without a prompt",
            Format::HumanAssistant => "Human/Assistant dialogues",
            Format::UltraFeedback => "prompt with whole conversations",
            Format::Question => "questions with two answers",
            Format::Labelled => "two responses with a label",
            Format::Scored => "responses with scores or ranks",
            Format::Lists => "lists of chosen and rejected responses",
            Format::Response => "prompts with one response",
            Format::PromptCompletion => "prompts with completions",
            Format::Messages => "conversations",
            Format::PlainText => "plain text",
            Format::Unpaired => "responses with a label",
        })
    }
}

/// Reads preference files in the order given. Group rows must have distinct ids over all files.
pub fn read_files(paths: &[PathBuf], options: &ReadOptions) -> Result<Vec<SourceRow>> {
    Ok(read_files_with_reports(paths, options)?.0)
}

/// [`read_files`] with a report per file.
pub fn read_files_with_reports(paths: &[PathBuf], options: &ReadOptions) -> Result<(Vec<SourceRow>, Vec<FileReport>)> {
    read_all(paths, options, preference_row)
}

/// Same as [`read_files_with_reports`], but also accepts rows with one response and a label
/// ([`PreferenceGroup::label`]).
pub fn read_evaluated_files(paths: &[PathBuf], options: &ReadOptions) -> Result<(Vec<SourceRow>, Vec<FileReport>)> {
    read_all(paths, options, evaluated_row)
}

/// Same as [`read_evaluated_files`], but also accepts rows of a prompt with one response, which become groups
/// without comparisons.
pub fn read_scored_files(paths: &[PathBuf], options: &ReadOptions) -> Result<(Vec<SourceRow>, Vec<FileReport>)> {
    read_all(paths, options, scored_row)
}

/// Reads a preference row, or a response with a label.
fn evaluated_row(row: &mut Row<'_>) -> Result<Parsed, String> {
    match two_columns::unpaired(row) {
        Some(_) if !row.has("chosen") && !row.has("rejected") => unpaired::unpaired_row(row),
        _ => preference_row(row),
    }
}

/// Reads a preference row, a response with a label, or a prompt with one response.
fn scored_row(row: &mut Row<'_>) -> Result<Parsed, String> {
    match row.has("response") && !row.has("chosen") && !row.has("rejected") && two_columns::unpaired(row).is_none() {
        true => prompts::response_row(row),
        false => evaluated_row(row),
    }
}

/// Rows rejected by the readers, collected by [`read_files_leniently`].
#[derive(Debug, Default)]
pub struct Refused {
    /// First rejected rows, each with its location and cause.
    pub first: Vec<Error>,
    /// Number of all rejected rows.
    pub count: usize,
}

impl Refused {
    /// Maximum length of `first`.
    const KEPT: usize = 20;
}

/// Same as [`read_files_with_reports`], but skips and collects rejected rows, and skips the rest of a damaged
/// file. Files that cannot be opened or read are still errors.
pub fn read_files_leniently(
    paths: &[PathBuf],
    options: &ReadOptions,
) -> Result<(Vec<SourceRow>, Vec<FileReport>, Refused)> {
    let mut refused = Refused::default();
    let mut on_error = |error: Error| match error {
        Error::Data { .. } => {
            if refused.count < Refused::KEPT {
                refused.first.push(error);
            }
            refused.count += 1;
            Ok(())
        }
        other => Err(other),
    };
    let (rows, reports) = read_with(paths, options, preference_row, &mut on_error)?;
    Ok((rows, reports, refused))
}

/// Reads all texts of files of any format, for training a tokenizer: each prompt, message and
/// response once per row, in row order, with a report per file. A file may mix formats.
pub fn read_texts(paths: &[PathBuf], options: &ReadOptions) -> Result<(Vec<String>, Vec<FileReport>)> {
    let options = ReadOptions { mixed_formats: true, whole_conversations: true, any_columns: true, ..options.clone() };
    let (rows, reports) = read_all(paths, &options, any_row)?;
    let mut texts = Vec::new();
    for row in rows {
        let start = texts.len();
        let prompts = row.group.prompts.into_iter().flat_map(|prompt| match prompt {
            Prompt::Text(text) => vec![text],
            Prompt::Messages(turns) => turns.into_iter().map(|turn| turn.content).collect(),
        });
        let responses = row.group.responses.into_iter().map(|response| match response {
            Response::Text(text) => text,
            Response::Message(turn) => turn.content,
        });
        texts.extend(prompts.chain(responses).filter(|text| !text.is_empty()));
        let mut known = HashSet::new();
        let first: Vec<bool> = texts[start..].iter().map(|text| known.insert(text.as_str())).collect();
        let mut first = std::iter::repeat_n(true, start).chain(first);
        texts.retain(|_| first.next().unwrap_or(true));
    }
    Ok((texts, reports))
}

/// Reads a preference row, or a row for supervised fine-tuning.
fn any_row(row: &mut Row<'_>) -> Result<Parsed, String> {
    let tuning = ["completion", "messages", "text", "conversations", "output"].iter().any(|key| row.has(key));
    let listed = candidates::list_column(row).is_some();
    match tuning && !listed && !row.has("chosen") && !row.has("rejected") {
        true => sft::sft_row(row),
        false => preference_row(row),
    }
}

/// Reader of one row.
type RowReader = fn(&mut Row<'_>) -> Result<Parsed, String>;

/// Result of a reader.
struct Parsed {
    format: Format,
    group: PreferenceGroup,
    /// True if `chosen` and `rejected` both start with the whole prompt.
    prompt_repeated: bool,
    /// Number of pairs of equally good responses.
    ties: usize,
    /// True if the row has ties only, and so no pair to compare.
    tied: bool,
    /// Number of responses without a score or rank.
    unrated: usize,
}

impl Parsed {
    fn new(format: Format, group: PreferenceGroup) -> Self {
        Self { format, group, prompt_repeated: false, ties: 0, tied: false, unrated: 0 }
    }
}

fn read_all(paths: &[PathBuf], options: &ReadOptions, reader: RowReader) -> Result<(Vec<SourceRow>, Vec<FileReport>)> {
    read_with(paths, options, reader, &mut Err)
}

/// Rejects a list that names one pipe twice, because the second read would find it empty or block.
pub(crate) fn refuse_pipe_named_twice(paths: &[PathBuf]) -> Result<()> {
    let mut pipes = HashSet::new();
    if paths.iter().filter(|path| is_dash(path)).count() > 1 {
        return Err(Error::Usage("standard input (-) is named twice, and can be read only once".into()));
    }
    for path in paths {
        let Ok(found) = std::fs::metadata(path) else { continue };
        let pipe = found.file_type().is_fifo() || found.file_type().is_socket();
        if pipe && !pipes.insert((found.dev(), found.ino())) {
            let path = path.display();
            return Err(Error::Usage(format!("{path} is a pipe, which can be read only once; write it to a file")));
        }
    }
    Ok(())
}

/// Name of a JSON type, for messages.
fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
