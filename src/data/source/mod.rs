//! Reads preference files: every accepted row becomes a [`PreferenceGroup`] with its file and line.
//!
//! - `rows`: reads a file (JSONL or a JSON array, plain or gzip) as JSON objects with line numbers
//! - `fields`: typed access to the keys of one row, with an error message for every defect
//! - `group_row`, `text_pair`, `chat_pair`, `ultrafeedback`, `hh`: one reader per format
//! - `overlooked`: columns that a reader does not use though they may hold a part of the conversation
//! - `sft`: prompt and completion, conversations, plain text, and the chosen side of preference
//!   rows
//! - `kinds`: files of other kinds, by name; `non_finite`: NaN and infinities; `row_limits`: rows that
//!   would take hours
//! - [`options`]: column map, and the flag that allows mixed formats in one file
//!
//! The format is detected from the keys of each row. Refused, each with file, line and id: rows
//! that are not JSON objects, missing or mistyped keys, empty responses, files without rows, and
//! two formats in one file unless [`ReadOptions::mixed_formats`] is set. Files are read line by
//! line; memory per line is bounded.

mod chat_pair;
mod fields;
mod group_row;
mod hh;
mod kinds;
mod non_finite;
pub mod options;
mod overlooked;
mod row_limits;
mod rows;
mod sft;
mod text_pair;
mod ultrafeedback;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

pub(crate) use kinds::foreign;
pub use options::{ColumnMap, ReadOptions};
pub use sft::{read_sft_files, sft_pairs};

use super::group::{PreferenceGroup, Prompt, Response};
use crate::terminal::shown;
use crate::{Error, Result};
use fields::Row;
pub use overlooked::Occurrences;

/// A group with its file and line.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceRow {
    pub group: PreferenceGroup,
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
    /// `prompt` and `completion` (SFT only).
    PromptCompletion,
    /// `messages` (SFT only).
    Messages,
    /// `text` (SFT only).
    PlainText,
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
            Format::PromptCompletion => "prompts with completions",
            Format::Messages => "conversations",
            Format::PlainText => "plain text",
        })
    }
}

/// Most unused keys that the line of a file names.
const KEYS: usize = 30;

/// Formats and keys of one file; `Display` gives one line for the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileReport {
    pub file: PathBuf,
    /// Rows of each format, in the order of [`Format`].
    pub formats: Vec<(Format, usize)>,
    /// Keys that no reader uses, in ascending order.
    pub ignored_keys: BTreeSet<String>,
    /// Text pairs in which both sides start with the whole prompt: a sign that the prompt is
    /// duplicated.
    pub prompt_repeated: usize,
    /// Columns among `ignored_keys` whose name and value suggest a part of the conversation.
    pub unused_conversation: BTreeMap<String, Occurrences>,
    /// Text columns that hold a list of messages as JSON or Python text.
    pub messages_as_text: BTreeMap<String, Occurrences>,
}

impl FileReport {
    /// Rows of all formats.
    pub fn rows(&self) -> usize {
        self.formats.iter().map(|(_, rows)| rows).sum()
    }
}

impl fmt::Display for FileReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        for (i, (format, rows)) in self.formats.iter().enumerate() {
            write!(f, "{} {rows} {format}", if i == 0 { "" } else { "," })?;
        }
        if !self.ignored_keys.is_empty() {
            let keys: Vec<String> = self.ignored_keys.iter().take(KEYS).map(|key| shown(key)).collect();
            write!(f, "; keys not used: {}", keys.join(", "))?;
            if self.ignored_keys.len() > KEYS {
                write!(f, " and {} more", self.ignored_keys.len() - KEYS)?;
            }
        }
        if self.prompt_repeated > 0 {
            write!(f, "; in {} rows both sides start with the whole prompt: is it duplicated?", self.prompt_repeated)?;
        }
        Ok(())
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

/// Rows refused by the readers, collected by [`read_files_leniently`].
#[derive(Debug, Default)]
pub struct Refused {
    /// First refused rows, each with its place and cause.
    pub first: Vec<Error>,
    /// Number of all refused rows.
    pub count: usize,
}

impl Refused {
    /// Maximum length of `first`.
    const KEPT: usize = 20;
}

/// [`read_files_with_reports`] that skips and collects what it refuses: rows, and the rest of a
/// file after damage. Files that cannot be opened or read are still errors.
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
/// response once per row, in row order. A file may mix formats.
pub fn read_texts(paths: &[PathBuf], options: &ReadOptions) -> Result<Vec<String>> {
    let options = ReadOptions { mixed_formats: true, whole_conversations: true, ..options.clone() };
    let (rows, _) = read_all(paths, &options, any_row)?;
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
    Ok(texts)
}

/// Reads a preference row, or a row for supervised fine-tuning.
fn any_row(row: &mut Row<'_>) -> Result<Parsed, String> {
    let tuning = ["completion", "messages", "text"].iter().any(|key| row.has(key));
    if tuning && !row.has("chosen") && !row.has("rejected") { sft::sft_row(row) } else { preference_row(row) }
}

/// Reader of one row.
type RowReader = fn(&mut Row<'_>) -> Result<Parsed, String>;

/// Result of a reader.
struct Parsed {
    format: Format,
    group: PreferenceGroup,
    /// True if both sides start with the whole prompt.
    prompt_repeated: bool,
}

impl Parsed {
    fn new(format: Format, group: PreferenceGroup) -> Self {
        Self { format, group, prompt_repeated: false }
    }
}

fn read_all(paths: &[PathBuf], options: &ReadOptions, reader: RowReader) -> Result<(Vec<SourceRow>, Vec<FileReport>)> {
    read_with(paths, options, reader, &mut Err)
}

/// Reads files. Every defect of a row or file goes to `on_error`; reading stops if it returns an
/// error.
fn read_with(
    paths: &[PathBuf],
    options: &ReadOptions,
    reader: RowReader,
    on_error: &mut dyn FnMut(Error) -> Result<()>,
) -> Result<(Vec<SourceRow>, Vec<FileReport>)> {
    if paths.is_empty() {
        return Err(Error::Usage("no input file was given".into()));
    }
    refuse_pipe_named_twice(paths)?;
    let mut all = Vec::new();
    let mut reports = Vec::with_capacity(paths.len());
    // Id of each group row, with its file and line.
    let mut seen: HashMap<String, (Arc<Path>, usize)> = HashMap::new();
    for path in paths {
        let file: Arc<Path> = Arc::from(path.as_path());
        let mut counts = FileCounts::default();
        let mut rows = 0;
        let mut read = |line, rows::RowObject { object, non_finite }| {
            let mut row = Row::new(object, path, line);
            row.non_finite = non_finite;
            let fail = |id: &str, why: String| Error::data(path, line, Some(id), why);
            row.set_id().map_err(|why| Error::data(path, line, None, why))?;
            let id = row.id().to_owned();
            row.apply(options).map_err(|why| fail(&id, why))?;
            let scores = row.scores();
            let columns = overlooked::Columns::of(&row);
            let parsed = reader(&mut row).map_err(|why| fail(&id, row.explain(why)))?;
            row.check_finite().map_err(|why| fail(&id, why))?;
            columns.count(&row, &parsed.group, line, &mut counts);
            counts.add(&parsed, line, options).map_err(|why| fail(&id, why))?;
            if parsed.format == Format::Group
                && let Some((other, first)) = seen.insert(id.clone(), (file.clone(), line))
            {
                let why = format!(
                    "the id was already used in {}:{first}; ids of group rows must be distinct",
                    other.display()
                );
                return Err(fail(&id, why));
            }
            counts.ignored_keys.extend(row.unused());
            all.push(SourceRow { group: parsed.group, file: file.clone(), line, scores });
            Ok(())
        };
        let mapped = options.column_map.pairs().iter().find(|(key, _)| key == "id").map(|(_, column)| column.as_str());
        let ids: Vec<&str> = mapped.into_iter().chain(["id"]).collect();
        let outcome = rows::for_each_row(path, &ids, |line, object| {
            rows += 1;
            object.and_then(|object| read(line, object)).or_else(&mut *on_error)
        });
        match outcome {
            Ok(()) if rows == 0 => {
                on_error(Error::data(path, 0, None, "the file has no rows; expected one JSON object per line"))?;
            }
            outcome => outcome.or_else(&mut *on_error)?,
        }
        let mut formats: Vec<_> = counts.formats.iter().map(|f| (f.format, f.rows)).collect();
        formats.sort_unstable();
        reports.push(FileReport {
            file: path.clone(),
            formats,
            ignored_keys: counts.ignored_keys,
            prompt_repeated: counts.prompt_repeated,
            unused_conversation: counts.unused_conversation,
            messages_as_text: counts.messages_as_text,
        });
    }
    Ok((all, reports))
}

/// Refuses a list in which one pipe is named twice: the second reading would find it empty, or wait.
pub(crate) fn refuse_pipe_named_twice(paths: &[PathBuf]) -> Result<()> {
    let mut pipes = HashSet::new();
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

/// Count of one format in a file, with the line of its first row.
struct FormatCount {
    format: Format,
    first_line: usize,
    rows: usize,
}

/// Running counts of one file.
#[derive(Default)]
struct FileCounts {
    formats: Vec<FormatCount>,
    ignored_keys: BTreeSet<String>,
    prompt_repeated: usize,
    unused_conversation: BTreeMap<String, Occurrences>,
    messages_as_text: BTreeMap<String, Occurrences>,
}

impl FileCounts {
    fn add(&mut self, parsed: &Parsed, line: usize, options: &ReadOptions) -> Result<(), String> {
        self.prompt_repeated += usize::from(parsed.prompt_repeated);
        if let Some(known) = self.formats.iter_mut().find(|f| f.format == parsed.format) {
            known.rows += 1;
            return Ok(());
        }
        if let Some(other) = self.formats.first().filter(|_| !options.mixed_formats) {
            return Err(format!(
                "line {line} has format \"{}\" but line {} has format \"{}\"; split the file or pass \
                 --mixed-formats",
                parsed.format, other.first_line, other.format
            ));
        }
        self.formats.push(FormatCount { format: parsed.format, first_line: line, rows: 1 });
        Ok(())
    }
}

/// Detects the format of a preference row from its keys and reads it.
fn preference_row(row: &mut Row<'_>) -> Result<Parsed, String> {
    if group_row::matches(row) {
        return Ok(Parsed::new(Format::Group, group_row::read(row)?));
    }
    match (row.has("chosen"), row.has("rejected")) {
        (true, true) => {}
        (false, false) => return Err(not_a_preference_row(row)),
        (chosen, _) => {
            let missing = if chosen { "rejected" } else { "chosen" };
            return Err(format!(
                "\"{missing}\" is missing; a preference row needs chosen and rejected; rename columns with --column-map"
            ));
        }
    }
    let text = |key: &str| row.text_or_chat(key);
    match (text("prompt")?, text("chosen")?, text("rejected")?) {
        (None, Some(Shape::Text), Some(Shape::Text)) if hh::matches(row) => hh::read(row),
        (None, Some(Shape::Text), Some(Shape::Text)) => text_pair::read_implicit(row),
        (Some(Shape::Text), Some(Shape::Text), Some(Shape::Text)) => text_pair::read_explicit(row),
        (None, Some(Shape::Chat), Some(Shape::Chat)) => chat_pair::read_implicit(row),
        (Some(Shape::Text), Some(Shape::Chat), Some(Shape::Chat)) => ultrafeedback::read(row),
        (Some(Shape::Chat), Some(a), Some(b)) if a == b => chat_pair::read_explicit(row),
        _ => Err("\"chosen\" and \"rejected\" must both be strings or both be lists of messages".into()),
    }
}

/// Form of a value: plain text or messages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Text,
    Chat,
}

/// Message for a row without chosen and rejected; the advice depends on the keys of the row.
fn not_a_preference_row(row: &Row<'_>) -> String {
    let any = |keys: &[&str]| keys.iter().any(|key| row.has(key));
    let advice = if any(&["prompt_ids", "chosen_ids", "rejected_ids", "chosen_input_ids", "rejected_input_ids"]) {
        "rows of token ids are not supported; provide the text"
    } else if any(&["conversations", "instruction"]) {
        "LLaMA-Factory formats are not supported; convert the row to prompt, chosen and rejected"
    } else if any(&["completion", "messages", "text"]) {
        "this looks like a row for `mapl sft`: it has no comparison"
    } else {
        "a preference row needs chosen and rejected; rename columns with --column-map"
    };
    let keys = row.keys_for_message();
    format!("\"chosen\" and \"rejected\" are missing (the row has {keys}); {advice}")
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
