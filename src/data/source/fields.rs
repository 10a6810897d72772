//! Typed access to the keys of one row. A key with the value `null` counts as absent, because table
//! tools write every column of every row. Each message names the key, the value found, and the
//! expectation; the caller adds file and line.

use std::path::Path;

use serde_json::{Map, Value};

use super::super::group::{Message, PreferenceGroup, Prompt, Response};
use super::message::messages;
use super::odd_values::{Odd, What};
use super::options::{Pairs, ReadOptions};
use super::{Shape, type_name};
use crate::files::is_dash;

/// Keys that are never reported as unused: they identify a row and hold nothing to train on.
const ALWAYS_USED: [&str; 1] = ["id"];

/// Names of the scores of the chosen and the rejected response.
const SCORES: [[&str; 2]; 4] = [
    ["score_chosen", "score_rejected"],
    ["chosen_score", "rejected_score"],
    ["chosen-rating", "rejected-rating"],
    ["chosen_rating", "rejected_rating"],
];

/// One row: its object, its id, and the keys that were used.
pub(super) struct Row<'a> {
    object: Map<String, Value>,
    id: String,
    file: &'a Path,
    line: usize,
    used: Vec<&'static str>,
    /// [`ReadOptions::whole_conversations`].
    pub(super) whole_conversations: bool,
    /// [`ReadOptions::pairs`], and whether the row has more than one pair to choose from.
    pub(super) pairs: Pairs,
    pub(super) used_pairs: bool,
    /// [`ReadOptions::score_key`], and whether the reader used it.
    pub(super) score_key: Option<String>,
    pub(super) used_score_key: bool,
    /// [`ReadOptions::score_margin`], and whether the reader used it.
    pub(super) score_margin: bool,
    pub(super) used_score_margin: bool,
    /// Columns of [`ReadOptions::drop_columns`] that the row has.
    pub(super) dropped: Vec<String>,
    /// Whether the column map renamed columns of the row.
    pub(super) mapped: bool,
    /// Whether text became turns of a conversation.
    pub(super) made_turns: bool,
    /// Whether rows may have columns that no reader uses, whatever the columns hold.
    pub(super) any_columns: bool,
    margin_given: bool,
    /// Keys with values that JSON or this program cannot represent, such as NaN and 1e999. [`super::odd_values`]
    /// says what `object` holds instead.
    pub(super) odd: Vec<Odd>,
}

impl<'a> Row<'a> {
    pub(super) fn new(object: Map<String, Value>, file: &'a Path, line: usize) -> Self {
        Self {
            object,
            id: String::new(),
            file,
            line,
            used: ALWAYS_USED.to_vec(),
            whole_conversations: false,
            pairs: Pairs::default(),
            used_pairs: false,
            score_key: None,
            used_score_key: false,
            score_margin: false,
            used_score_margin: false,
            dropped: Vec::new(),
            mapped: false,
            made_turns: false,
            any_columns: false,
            margin_given: false,
            odd: Vec::new(),
        }
    }

    /// Sets the id of the row: the string or the number, as it is written, under `id`, or else `<file stem>-<line>`.
    pub(super) fn set_id(&mut self) -> Result<(), String> {
        self.id = match self.get("id") {
            None => {
                if is_dash(self.file) {
                    self.id = format!("stdin-{}", self.line);
                    return Ok(());
                }
                let stem = self.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                let stem = stem.split('.').next().filter(|stem| !stem.is_empty()).unwrap_or("row").to_owned();
                format!("{stem}-{}", self.line)
            }
            Some(Value::String(id)) if !id.is_empty() => id.clone(),
            Some(Value::Number(id)) => id.to_string(),
            Some(other) => {
                return Err(format!("\"id\" must be a non-empty string or a number, found {}", describe(other)));
            }
        };
        Ok(())
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Applies the options: leaves columns out, and renames columns, except in group rows, which keep
    /// their keys.
    pub(super) fn apply(&mut self, options: &ReadOptions) -> Result<(), String> {
        self.whole_conversations = options.whole_conversations;
        self.pairs = options.pairs.unwrap_or_default();
        self.score_key.clone_from(&options.score_key);
        self.score_margin = options.score_margin;
        self.any_columns = options.any_columns;
        for column in &options.drop_columns {
            if self.object.shift_remove(column).is_some() {
                self.dropped.push(column.clone());
            }
        }
        if options.column_map.pairs().is_empty() || super::group_row::matches(self) {
            return Ok(());
        }
        let mut taken = Vec::new();
        for (key, column) in options.column_map.pairs() {
            let Some(value) = self.object.get(column) else {
                let keys = self.keys_for_message();
                return Err(format!(
                    "column \"{column}\", mapped to \"{key}\", is missing (the row has {keys}); correct --column-map"
                ));
            };
            taken.push((key, column, value.clone()));
        }
        for (_, column, _) in &taken {
            self.object.shift_remove(column.as_str());
        }
        for (key, column, value) in taken {
            if self.has(key) {
                return Err(format!(
                    "column \"{column}\" is mapped to \"{key}\", which the row has too; leave one of them out with \
                     --drop-columns"
                ));
            }
            self.object.insert(key.clone(), value);
            self.odd.iter_mut().filter(|odd| odd.key == *column).for_each(|odd| odd.key.clone_from(key));
        }
        if options.column_map.pairs().iter().any(|(key, _)| key == "id") {
            self.set_id()?;
        }
        self.mapped = true;
        Ok(())
    }

    /// Returns an error if a used key held a value that JSON or this program cannot represent (`odd`). A long
    /// integer is an error only if the group contains it.
    pub(super) fn check_odd(&self, group: &PreferenceGroup) -> Result<(), String> {
        let lost = |odd: &&Odd| odd.what != What::LongInteger || carries_long_integer(group);
        match self.odd.iter().filter(|odd| self.used.contains(&odd.key.as_str())).find(lost) {
            None => Ok(()),
            Some(Odd { key, what }) => Err(format!("\"{}\" holds {}", shorten(key), what.fault())),
        }
    }

    /// Extends a reader's message if a key that it names held a value that JSON cannot represent (`odd`).
    pub(super) fn explain(&self, why: String) -> String {
        let named = |odd: &&Odd| odd.what != What::LongInteger && why.contains(&format!("\"{}\"", odd.key));
        match self.odd.iter().find(named) {
            None => why,
            Some(Odd { key, what }) => {
                let fault = what.fault().split(';').next().unwrap_or_default();
                format!("{why}; \"{}\" holds {fault}", shorten(key))
            }
        }
    }

    /// Value of a key; absent and `null` are both `None`.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// All keys of the row, `null` ones included.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.object.keys().map(String::as_str)
    }

    /// Lists the first keys of the row, quoted, for messages.
    pub(super) fn keys_for_message(&self) -> String {
        if self.object.is_empty() {
            return "no keys".into();
        }
        let shown: Vec<String> = self.object.keys().take(8).map(|key| format!("\"{}\"", shorten(key))).collect();
        format!("{}{}", shown.join(", "), if self.object.len() > 8 { ", ..." } else { "" })
    }

    /// Keys and values of the row.
    pub(super) fn columns(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.object.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Keys with a value that no reader used.
    pub(super) fn unused(&self) -> Vec<String> {
        let unused = |key: &&String| self.has(key) && !self.used.contains(&key.as_str());
        self.object.keys().filter(unused).cloned().collect()
    }

    /// Removes and returns a key's value, and marks the key as used.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Value> {
        self.used.push(key);
        self.object.get_mut(key).map(Value::take).filter(|value| !value.is_null())
    }

    /// Shape of a key's value, text or messages; an error for any other type.
    pub(super) fn text_or_chat(&self, key: &str) -> Result<Option<Shape>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(_)) => Ok(Some(Shape::Text)),
            Some(Value::Array(_) | Value::Object(_)) => Ok(Some(Shape::Chat)),
            Some(other) => Err(format!("\"{key}\" must be a string or a list of messages, found {}", describe(other))),
        }
    }

    /// Removes and returns a required string.
    pub(super) fn text(&mut self, key: &'static str) -> Result<String, String> {
        match self.take(key) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(format!("\"{key}\" must be a string, found {}", describe(&other))),
            None => Err(format!("\"{key}\" is missing")),
        }
    }

    /// String value of a key, without taking it.
    pub(super) fn peek_text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }

    /// Removes and returns a required list of messages; a single message object counts as a list of one.
    pub(super) fn messages(&mut self, key: &'static str) -> Result<Vec<Message>, String> {
        match self.take(key) {
            Some(value) => messages(value, &format!("\"{key}\"")),
            None => Err(format!("\"{key}\" is missing")),
        }
    }

    /// The margin, 0 when absent.
    pub(super) fn margin(&mut self) -> Result<f64, String> {
        self.margin_given = self.has("margin");
        match self.take("margin") {
            None => Ok(0.0),
            Some(Value::Number(number)) => match number.as_f64() {
                // Training computes in f32, so the margin must be finite there.
                Some(margin) if (margin as f32).is_finite() => Ok(margin),
                _ => Err(format!("\"margin\" must be finite in single precision (below about 3.4e38), found {number}")),
            },
            Some(other) => Err(format!("\"margin\" must be a number, found {}", describe(&other))),
        }
    }

    /// Whether the row had a margin when `margin` was called.
    pub(super) fn has_margin(&self) -> bool {
        self.margin_given
    }

    /// Removes a key, as if the row had never had it.
    pub(super) fn remove(&mut self, key: &str) {
        self.object.shift_remove(key);
    }

    /// Adds a key, or replaces its value.
    pub(super) fn put(&mut self, key: &str, value: Value) {
        self.object.insert(key.to_owned(), value);
    }

    /// Scores of the chosen and the rejected response, if both are finite numbers. Training does not read them,
    /// so their keys stay unused.
    pub(super) fn scores(&self) -> Option<[f64; 2]> {
        let score = |key: &str| self.get(key).and_then(number);
        SCORES.iter().find_map(|[chosen, rejected]| Some([score(chosen)?, score(rejected)?]))
    }

    /// Marks the scores of the chosen and the rejected response as used.
    pub(super) fn use_scores(&mut self) {
        let given: Vec<&'static str> = SCORES.as_flattened().iter().copied().filter(|key| self.has(key)).collect();
        self.used.extend(given);
    }

    /// Describes the scores of the chosen and the rejected response, for messages.
    pub(super) fn scores_for_message(&self) -> String {
        let given = SCORES.as_flattened().iter().filter_map(|key| Some((key, self.get(key)?)));
        let shown: Vec<String> = given.map(|(key, value)| format!("\"{key}\" as {}", describe(value))).collect();
        if shown.is_empty() { "none (score_chosen and score_rejected)".into() } else { shown.join(" and ") }
    }

    /// Moves `tools` and `chat_template_kwargs` into the group.
    pub(super) fn template_settings(&mut self, group: &mut PreferenceGroup) -> Result<(), String> {
        // Tables without nested columns hold the tools as JSON text, which transformers and TRL accept too.
        let parsed = |text: &str| serde_json::from_str(text).ok().filter(Value::is_array);
        let tools = self.take("tools").map(|tools| tools.as_str().and_then(parsed).unwrap_or(tools));
        group.tools = match tools {
            None => None,
            Some(Value::Array(tools)) if tools.is_empty() => None,
            Some(tools @ Value::Array(_)) => Some(tools),
            Some(other) => {
                return Err(format!("\"tools\" must be a list, or a list as JSON text; found {}", describe(&other)));
            }
        };
        group.chat_template_kwargs = match self.take("chat_template_kwargs") {
            None => None,
            Some(Value::Object(kwargs)) => Some(kwargs),
            Some(other) => {
                return Err(format!("\"chat_template_kwargs\" must be an object, found {}", describe(&other)));
            }
        };
        Ok(())
    }
}

/// Whether tools, variables, arguments or messages of a group hold a number beyond 64-bit integers. A long
/// integer is parsed as such a number.
fn carries_long_integer(group: &PreferenceGroup) -> bool {
    fn holds(value: &Value) -> bool {
        match value {
            Value::Number(number) => number.is_f64() && number.as_f64().is_some_and(|x| x.abs() >= 9.2e18),
            Value::Array(list) => list.iter().any(holds),
            Value::Object(object) => object.values().any(holds),
            Value::Null | Value::Bool(_) | Value::String(_) => false,
        }
    }
    let prompts = group.prompts.iter().flat_map(|prompt| match prompt {
        Prompt::Text(_) => &[],
        Prompt::Messages(turns) => &turns[..],
    });
    let responses = group.responses.iter().filter_map(|response| match response {
        Response::Text(_) => None,
        Response::Message(message) => Some(message),
    });
    let messages = prompts.chain(responses).flat_map(|message| message.extra.values());
    let kwargs = group.chat_template_kwargs.iter().flat_map(|kwargs| kwargs.values());
    let arguments = group.instructions.iter().flat_map(|instruction| instruction.kwargs.values());
    group.tools.iter().chain(messages).chain(kwargs).chain(arguments).any(holds)
}

/// Returns the number that a value holds, also as text, because tables hold numbers as text.
pub(super) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok().filter(|number: &f64| number.is_finite()),
        _ => None,
    }
}

/// Describes a value for a message: its type, and the value itself if it is short.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Bool(_) | Value::Number(_) => format!("{} ({value})", type_name(value)),
        Value::String(text) => format!("the string \"{}\"", shorten(text)),
        _ => type_name(value).to_owned(),
    }
}

/// First 40 characters of a text, for messages.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text.to_owned(),
    }
}
