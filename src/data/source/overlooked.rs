//! Content of rows that a reader would misread or ignore:
//!
//! - columns that no reader uses although their names say that they hold a part of the conversation, such as
//!   `context` or a second question. A row is rejected if such a column holds text that the conversation
//!   lacks; a copy, such as `messages` in some published sets, is harmless
//! - images, audio and videos, which no reader can use; the row is rejected
//! - text columns that hold a list of messages, written as JSON or printed by Python; they are read
//!   as plain text, and counted per file for a warning

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::super::group::{PreferenceGroup, Prompt, Response};
use super::FileReport;
use super::fields::{Row, shorten};
use super::message::messages;
use super::reading::FileCounts;
use crate::terminal::{agreeing, counted};

/// Names of columns that hold a part of a conversation in published sets.
const CONVERSATION: [&str; 27] = [
    "article",
    "background",
    "context",
    "conversation",
    "conversations",
    "dialog",
    "dialogue",
    "documents",
    "history",
    "input",
    "instruction",
    "messages",
    "passage",
    "post",
    "problem",
    "query",
    "question",
    "system",
    "system_message",
    "system_prompt",
    "tools",
    "turns",
    "user",
    "user_input",
    "user_message",
    "user_prompt",
    "user_query",
];

/// Columns with content that is not text.
const MEDIA: [&str; 8] = ["image", "images", "pixel_values", "video", "videos", "audio", "audios", "sound"];

/// Columns that are read as text, if they hold text.
const TEXTS: [&str; 7] = ["prompt", "chosen", "rejected", "completion", "text", "prompts", "responses"];

/// Number of rows in which something occurs, and the line of the first such row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Occurrences {
    /// Number of rows.
    pub rows: usize,
    /// Line of the first row, from 1.
    pub first_line: usize,
}

/// Columns of a file that a reader overlooked, for a warning.
pub(crate) struct Overlooked {
    /// Stable name of the problem.
    pub check: &'static str,
    pub found: Occurrences,
    pub what: String,
    pub why: &'static str,
    pub advice: &'static str,
}

impl FileReport {
    /// Returns the problems of the file. Columns with equal occurrences share one problem.
    pub(crate) fn overlooked(&self) -> Vec<Overlooked> {
        let as_text = by_rows(&self.messages_as_text).into_iter().map(|(columns, found)| Overlooked {
            check: "messages-as-text",
            found,
            what: format!("a list of messages is stored as text and read as plain text (in {columns})"),
            why: "the model is trained on brackets, quotes and keys, and no chat template is applied",
            advice: "store the list itself: in Python, json.loads(text) reads JSON and ast.literal_eval(text) a printed \
                     list",
        });
        as_text.collect()
    }

    /// Returns warnings about messages that are read as plain text, and about rows that are left out.
    pub fn warnings(&self) -> Vec<String> {
        let line = |Overlooked { found, what, why, advice, .. }: Overlooked| {
            let (file, of) = (self.file.display(), self.rows());
            format!("{file}:{}: in {} of {of} rows {what}; {why}; {advice}", found.first_line, found.rows)
        };
        let skipped = self.skipped.iter().map(|skipped| {
            let (file, line, rows) = (self.file.display(), skipped.first_line, skipped.rows);
            let (count, are) = (counted(rows, "bad row"), agreeing(rows, "is", "are"));
            format!("{file}:{line}: {count} {are} left out: {}", skipped.why)
        });
        self.overlooked().into_iter().map(line).chain(skipped).collect()
    }
}

/// Returns columns with their occurrences. Columns with the same number of rows and the same first line are
/// listed together.
fn by_rows(columns: &BTreeMap<String, Occurrences>) -> Vec<(String, Occurrences)> {
    let mut lists: Vec<(String, Occurrences)> = Vec::new();
    for (column, &found) in columns {
        match lists.iter_mut().find(|(_, known)| *known == found) {
            Some((list, _)) => *list += &format!(", \"{column}\""),
            None => lists.push((format!("\"{column}\""), found)),
        }
    }
    lists
}

/// Rejects images and other media.
pub(super) fn check_media(row: &Row<'_>) -> Result<(), String> {
    let known = |name: &str| MEDIA.iter().any(|known| known.eq_ignore_ascii_case(name));
    match row.columns().find(|(name, value)| known(name) && !is_empty(value)) {
        None => Ok(()),
        Some((name, _)) => Err(format!(
            "\"{name}\" holds media, and models are trained on text only; leave out the row, or the column with \
             --drop-columns {name} if the text can be answered without it"
        )),
    }
}

/// Returns the columns of a row in which lists of messages are stored as text. Must be called before the row is read.
pub(super) fn stored_messages(row: &Row<'_>) -> Vec<String> {
    let stored = row.columns().filter(|(name, value)| TEXTS.contains(name) && holds_messages(value));
    stored.map(|(name, _)| name.to_owned()).collect()
}

/// Returns the columns whose names say that they may hold a part of the conversation, each with its texts. Must
/// be called before the row is read.
pub(super) fn conversation_columns(row: &Row<'_>) -> Vec<(String, Vec<String>)> {
    let known = |name: &str| CONVERSATION.iter().any(|known| known.eq_ignore_ascii_case(name));
    let number = |name: &str, value: &Value| may_be_number(name) && value.is_number();
    let columns = row.columns().filter(|(name, value)| known(name) && (!is_empty(value) || number(name, value)));
    let texts = |value: &Value| if value.is_number() { vec![value.to_string()] } else { texts(value) };
    columns.map(|(name, value)| (name.to_owned(), texts(value))).collect()
}

/// Rejects a row with columns that no reader used, if the group lacks some of their text.
pub(super) fn check_columns(
    row: &Row<'_>,
    columns: Vec<(String, Vec<String>)>,
    group: &PreferenceGroup,
) -> Result<(), String> {
    if columns.is_empty() {
        return Ok(());
    }
    let unused = row.unused();
    let plain = group.prompts.iter().all(|prompt| matches!(prompt, Prompt::Text(_)));
    if plain && group.tools.is_some() {
        return Err(
            "\"tools\" are read by chat templates only, and this row is plain text; write the prompt as a list of \
                    messages, or leave out the column with --drop-columns tools"
                .into(),
        );
    }
    let known = group_texts(group);
    let lost = |texts: &[String]| texts.iter().any(|text| !known.iter().any(|known| known.contains(text.trim())));
    let lost: Vec<String> = columns
        .into_iter()
        .filter(|(name, texts)| unused.contains(name) && lost(texts))
        .map(|(name, _)| name)
        .collect();
    let Some(first) = lost.first() else { return Ok(()) };
    let listed = lost.iter().map(|name| format!("\"{}\"", shorten(name))).collect::<Vec<_>>().join(", ");
    Err(format!(
        "text that may belong to the conversation is not used (in {listed}), so the prompt may lack information that \
         the response needs; name the column with --column-map (such as prompt={first}), add its text to \"prompt\", \
         or leave it out with --drop-columns {}",
        lost.join(",")
    ))
}

/// All texts of prompts and responses.
fn group_texts(group: &PreferenceGroup) -> Vec<&str> {
    let prompts = group.prompts.iter().flat_map(|prompt| match prompt {
        Prompt::Text(text) => vec![text.as_str()],
        Prompt::Messages(turns) => turns.iter().map(|turn| turn.content.as_str()).collect(),
    });
    prompts.chain(group.responses.iter().map(Response::text)).collect()
}

/// Texts of a value: the contents of messages, else every string.
fn texts(value: &Value) -> Vec<String> {
    if let (Value::Array(_) | Value::Object(_), Ok(turns)) = (value, messages(value.clone(), "")) {
        return turns.into_iter().map(|turn| turn.content).collect();
    }
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(list) => list.iter().flat_map(texts).collect(),
        Value::Object(object) => object.values().flat_map(texts).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    }
}

/// Counts columns in which lists of messages are stored as text.
pub(super) fn count_stored(names: Vec<String>, line: usize, counts: &mut FileCounts) {
    for name in names {
        add(&mut counts.messages_as_text, name, line);
    }
}

fn add(columns: &mut BTreeMap<String, Occurrences>, name: String, line: usize) {
    columns.entry(name).or_insert(Occurrences { rows: 0, first_line: line }).rows += 1;
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

/// Whether a column may hold a question that is a number. Numbers in other columns, such as `turns`, are counts.
fn may_be_number(name: &str) -> bool {
    ["input", "instruction", "question", "query", "problem", "context", "user_input"].contains(&name)
}

/// True if a value is a list of messages stored as text, or a list with such a text.
fn holds_messages(value: &Value) -> bool {
    match value {
        Value::String(text) => spells_messages(text),
        Value::Array(list) => list.iter().any(|entry| entry.as_str().is_some_and(spells_messages)),
        _ => false,
    }
}

/// True for the text of a list of messages, or of one message, in JSON or as Python prints it.
pub(super) fn spells_messages(text: &str) -> bool {
    let text = text.trim();
    let list = text.starts_with('[') && text.ends_with(']');
    if !(list || (text.starts_with('{') && text.ends_with('}'))) {
        return false;
    }
    let pairs = [["role", "content"], ["from", "value"]];
    if let Ok(value) = serde_json::from_str::<Value>(text) {
        let messages = value.as_array().map_or(std::slice::from_ref(&value), Vec::as_slice);
        let has_text = |value: &Value| value.is_string() || value.is_array() || value.is_null();
        let is_message = |message: &Value| {
            let spelled = pairs
                .iter()
                .any(|[role, content]| message[*role].is_string() && message.get(content).is_some_and(has_text));
            spelled || (message["role"].is_string() && message["tool_calls"].is_array())
        };
        return !messages.is_empty() && messages.iter().all(is_message);
    }
    // Python prints a list as [{'role': 'user', 'content': 'text'}], with the keys in any order.
    let inner = text.trim_start_matches(['[', ' ', '\n']);
    let opens = |key: &str| ['\'', '"'].iter().any(|quote| inner.starts_with(&format!("{{{quote}{key}{quote}:")));
    let has = |key: &str| ['\'', '"'].iter().any(|quote| text.contains(&format!("{quote}{key}{quote}:")));
    pairs.iter().any(|keys| keys.iter().any(|key| opens(key)) && keys.iter().all(|key| has(key)))
}

#[cfg(test)]
mod tests {
    use super::spells_messages;

    #[test]
    fn json_and_python_lists_of_messages_are_recognised() {
        for text in [
            r#"[{"role": "user", "content": "Name a bird."}]"#,
            r#" {"content": "x", "role": "user"} "#,
            r#"[{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]"#,
            r#"[{"role": "user", "content": [{"type": "text", "text": "x"}]}]"#,
            r#"[{"role": "assistant", "content": null}, {"role": "assistant", "tool_calls": []}]"#,
            "[{'role': 'user', 'content': \"It's a bird.\"}]",
            "[{'content': 'x', 'role': 'user'}\n {'content': 'y', 'role': 'assistant'}]",
        ] {
            assert!(spells_messages(text), "{text}");
        }
        for text in [
            "",
            "[]",
            "{}",
            "[1, 2]",
            "Name a bird.",
            r#"[{"role": "user"}]"#,
            r#"[{"name": "rain", "content": 3}]"#,
            r#"{"role": "user", "content": {"x": 1}}"#,
            "[a note that says 'role': 'user' and 'content': 'x']",
            "{x} is 'role': 1 {y}",
        ] {
            assert!(!spells_messages(text), "{text}");
        }
    }
}
