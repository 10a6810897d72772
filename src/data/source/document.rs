//! JSON files that are neither JSON lines nor a list of rows:
//!
//! - an object with a list of rows, such as `{"version": 1, "data": [...]}`; its other keys are not used
//! - an object of columns: lists of one length, or objects with equal keys, as pandas writes them. One of the
//!   lists must be under a key that never holds a list of texts in a row, such as `prompt`, because lists
//!   under only `chosen` and `rejected` may be the responses to one question
//! - rows that each span several lines
//!
//! The whole file is held in memory.

use std::path::Path;

use serde_json::{Map, Value};

use super::keys::distinct_keys;
use super::odd_values::{Odd, mark, unmark};
use super::rows::{Columns, RowObject, RowResult, array_rows};
use crate::{Error, Result};

/// Maximum size of a document in bytes.
pub(super) const MAX_BYTES: u64 = 1 << 30;

/// Keys that hold the rows of a document.
const DATA: [&str; 8] = ["data", "rows", "train", "examples", "instances", "items", "records", "samples"];

/// Keys by which a row or an object of columns is recognised.
const COLUMNS: [&str; 6] = ["prompt", "chosen", "rejected", "instruction", "question", "completion"];

/// Keys that never hold a list of texts or of lists in a row. Such a list under one of these keys shows that
/// the lists are columns, whatever the number of rows.
const SHOW_COLUMNS: [&str; 5] = ["id", "prompt", "instruction", "question", "completion"];

/// Object of a row, or the reason why it is rejected.
type Object = Result<Map<String, Value>, String>;

/// Rows of a document.
pub(super) enum Document {
    /// The text of the list of rows, and the number of line breaks before it.
    List { text: Vec<u8>, breaks: usize },
    /// Rows, each with the number of line breaks before it, or with its index in the columns.
    Rows(Vec<(usize, Object)>),
}

/// True if the first line may be the start of a document: it is incomplete JSON, or an object with rows under
/// a key or in columns.
pub(super) fn may_start(line: &[u8], row: Option<&RowObject>) -> bool {
    match row {
        Some(row) => list_key(&row.object).is_some() || columns(&row.object).is_some(),
        None => {
            let parsed: Result<serde::de::IgnoredAny, _> = serde_json::from_slice(line);
            parsed.is_err_and(|e| e.is_eof())
        }
    }
}

/// Parses a document (see the module comment); `None` for JSON lines and other text.
pub(super) fn parse(text: &[u8]) -> Option<Document> {
    let marked = mark(text);
    let clean = marked.as_deref().unwrap_or(text);
    let mut stream = serde_json::Deserializer::from_slice(clean).into_iter::<Map<String, Value>>();
    let mut rows = Vec::new();
    let mut start = 0;
    while let Some(next) = stream.next() {
        let lead = clean[start..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let breaks = clean[..start + lead].iter().filter(|&&byte| byte == b'\n').count();
        let object = next.ok()?;
        let inner = &clean[(start + lead + 1).min(stream.byte_offset())..stream.byte_offset()];
        rows.push((breaks, distinct_keys(&object, inner).map(|()| object)));
        start = stream.byte_offset();
    }
    if let [(_, Ok(object))] = &rows[..] {
        if let Some(key) = list_key(object) {
            let (start, end) = list_of(text, key)?;
            let breaks = text[..start].iter().filter(|&&byte| byte == b'\n').count();
            return Some(Document::List { text: text[start..end].to_vec(), breaks });
        }
        if let Some(found) = columns(object) {
            return Some(Document::Rows(found.into_iter().map(Ok).enumerate().collect()));
        }
    }
    Some(Document::Rows(rows))
}

impl Document {
    /// Calls `f` for every row. `line` is the line at which the document starts.
    pub(super) fn rows(
        self,
        path: &Path,
        line: usize,
        columns: Columns<'_>,
        f: &mut dyn FnMut(usize, RowResult) -> Result<()>,
    ) -> Result<()> {
        match self {
            Document::List { text, breaks } => array_rows(path, &text[..], line + breaks, columns, f),
            Document::Rows(rows) => {
                let row = |mut object: Map<String, Value>| {
                    let mut odd: Vec<Odd> = Vec::new();
                    for (key, value) in &mut object {
                        let found = unmark(value, columns.ids.contains(&&**key));
                        odd.extend(found.into_iter().map(|what| Odd { key: key.clone(), what }));
                    }
                    RowObject::new(object, odd)
                };
                rows.into_iter().try_for_each(|(breaks, object)| {
                    let line = line + breaks;
                    f(line, object.map(row).map_err(|why| Error::data(path, line, None, why)))
                })
            }
        }
    }
}

/// Returns the key with a list of rows, if the object does not have the keys of a row itself.
fn list_key(object: &Map<String, Value>) -> Option<&'static str> {
    let rows = |key: &&str| {
        let list = object.get(*key).and_then(Value::as_array);
        list.is_some_and(|list| !list.is_empty() && list.iter().all(Value::is_object))
    };
    if COLUMNS.iter().any(|key| object.contains_key(*key)) {
        return None;
    }
    DATA.into_iter().find(rows)
}

/// Returns the rows of an object of columns; `None` for other objects.
fn columns(object: &Map<String, Value>) -> Option<Vec<Map<String, Value>>> {
    let many = |value: &Value| value.as_array().is_some_and(|list| list.iter().all(|v| v.is_string() || v.is_array()));
    if let [Some(first), ..] = [object.values().find_map(Value::as_array)]
        && object.values().all(|value| value.as_array().is_some_and(|list| list.len() == first.len()))
        && SHOW_COLUMNS.iter().any(|key| object.get(*key).is_some_and(many))
    {
        // Lists of messages are not lists of texts, so a row of two conversations is not a table.
        let row = |i: usize| object.iter().map(|(key, list)| (key.clone(), list[i].clone())).collect();
        return Some((0..first.len()).map(row).collect());
    }
    let keys = COLUMNS.iter().find_map(|key| object.get(*key)?.as_object())?;
    let same = |value: &Value| value.as_object().is_some_and(|column| column.keys().eq(keys.keys()));
    let numbered = keys.keys().all(|key| key.parse::<u64>().is_ok());
    if keys.is_empty() || !numbered || !object.values().all(same) {
        return None;
    }
    let row = |key: &String| object.iter().map(|(name, column)| (name.clone(), column[key].clone())).collect();
    Some(keys.keys().map(row).collect())
}

/// Returns start and end of the text of the list under `key` in a valid JSON object.
fn list_of(text: &[u8], key: &str) -> Option<(usize, usize)> {
    let (mut depth, mut at, mut start) = (0, 0, None);
    let mut last = &text[..0];
    while at < text.len() {
        match text[at] {
            b'"' => {
                let from = at + 1;
                at = from;
                while *text.get(at)? != b'"' {
                    at += if text[at] == b'\\' { 2 } else { 1 };
                }
                if depth == 1 {
                    last = text.get(from..at)?;
                }
            }
            b'{' | b'[' => {
                if depth == 1 && text[at] == b'[' && last == key.as_bytes() {
                    start = Some(at);
                }
                depth += 1;
            }
            b'}' | b']' => {
                depth -= 1;
                if let (1, Some(start)) = (depth, start) {
                    return Some((start, at + 1));
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}
