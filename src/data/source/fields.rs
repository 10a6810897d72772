//! Typed access to the keys of one row. A key with the value `null` counts as absent, because table
//! tools write every column of every row. Each message names the key, the value found, and the
//! expectation; the caller adds file and line.

use std::path::Path;

use serde_json::{Map, Value};

use super::super::group::{Message, PreferenceGroup, Response};
use super::non_finite::NonFinite;
use super::options::ReadOptions;
use super::{Shape, type_name};

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
    /// Keys that held NaN or an infinity, which are `null` in the object.
    pub(super) non_finite: Vec<NonFinite>,
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
            non_finite: Vec::new(),
        }
    }

    /// Sets the id of the row: `id` as a string or a number with its spelling, else `<file stem>-<line>`.
    pub(super) fn set_id(&mut self) -> Result<(), String> {
        self.id = match self.get("id") {
            None => {
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

    /// Applies the options: the column map, except in group rows, which keep their keys.
    pub(super) fn apply(&mut self, options: &ReadOptions) -> Result<(), String> {
        self.whole_conversations = options.whole_conversations;
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
            self.object.insert(key.clone(), value);
            self.non_finite.iter_mut().filter(|(name, _)| name == column).for_each(|found| found.0.clone_from(key));
        }
        if options.column_map.pairs().iter().any(|(key, _)| key == "id") {
            self.set_id()?;
        }
        Ok(())
    }

    /// Refuses NaN and infinities under keys that were used.
    pub(super) fn check_finite(&self) -> Result<(), String> {
        match self.non_finite.iter().find(|(key, _)| self.used.contains(&key.as_str())) {
            None => Ok(()),
            Some((key, what)) => {
                Err(format!("\"{}\" holds {what}, which is not JSON; write a number or null", shorten(key)))
            }
        }
    }

    /// Adds to a reader's message that a key which it names held NaN or an infinity.
    pub(super) fn explain(&self, why: String) -> String {
        match self.non_finite.iter().find(|(key, _)| why.contains(&format!("\"{key}\""))) {
            None => why,
            Some((key, what)) => format!("{why}; \"{}\" holds {what}, which is not JSON", shorten(key)),
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

    /// A required string.
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

    /// A required list of messages; a single message object counts as a list of one.
    pub(super) fn messages(&mut self, key: &'static str) -> Result<Vec<Message>, String> {
        match self.take(key) {
            Some(value) => messages(value, &format!("\"{key}\"")),
            None => Err(format!("\"{key}\" is missing")),
        }
    }

    /// The margin, 0 when absent.
    pub(super) fn margin(&mut self) -> Result<f64, String> {
        match self.take("margin") {
            None => Ok(0.0),
            Some(Value::Number(number)) => match number.as_f64() {
                // Training computes in f32.
                Some(margin) if (margin as f32).is_finite() => Ok(margin),
                _ => Err(format!("\"margin\" must be finite in single precision (below about 3.4e38), found {number}")),
            },
            Some(other) => Err(format!("\"margin\" must be a number, found {}", describe(&other))),
        }
    }

    /// Scores of the chosen and the rejected response, if both are finite numbers. They are not
    /// trained on, so they stay unused.
    pub(super) fn scores(&self) -> Option<[f64; 2]> {
        let number = |key: &str| match self.get(key)? {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok().filter(|score: &f64| score.is_finite()),
            _ => None,
        };
        SCORES.iter().find_map(|[chosen, rejected]| Some([number(chosen)?, number(rejected)?]))
    }

    /// Moves `tools` and `chat_template_kwargs` into the group.
    pub(super) fn template_settings(&mut self, group: &mut PreferenceGroup) -> Result<(), String> {
        // Tables without nested columns hold the tools as JSON text, as transformers and TRL accept.
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

/// Reads messages; `what` names them in errors.
pub(super) fn messages(value: Value, what: &str) -> Result<Vec<Message>, String> {
    let list = match value {
        Value::Array(list) => list,
        Value::Object(_) => vec![value],
        other => return Err(format!("{what} must be a list of messages, found {}", describe(&other))),
    };
    if list.is_empty() {
        return Err(format!("{what} has no messages"));
    }
    list.into_iter().enumerate().map(|(i, value)| message(value, &format!("{what}[{i}]"))).collect()
}

/// Reads one message: `role` and `content`, both strings. Other keys with a value are refused: a
/// template may print them, and the trained text would lack them.
pub(super) fn message(value: Value, what: &str) -> Result<Message, String> {
    let Value::Object(object) = value else {
        return Err(format!("{what} must be an object with role and content, found {}", describe(&value)));
    };
    let (mut role, mut content) = (None, None);
    for (key, value) in object {
        match (key.as_str(), value) {
            ("role", Value::String(text)) => role = Some(text),
            ("content", Value::String(text)) => content = Some(text),
            ("role" | "content", other) if !other.is_null() => {
                return Err(format!("{what}: \"{key}\" must be a string, found {}", describe(&other)));
            }
            (_, Value::Null) => {}
            _ => {
                return Err(format!(
                    "{what}: key \"{}\" is not supported; a message has only role and content",
                    shorten(&key)
                ));
            }
        }
    }
    let role = role.filter(|role| !role.is_empty()).ok_or_else(|| format!("{what}: \"role\" is missing or empty"))?;
    let content = content.ok_or_else(|| format!("{what}: \"content\" is missing"))?;
    Ok(Message { role, content })
}

/// Refuses an empty response, because it has no token to score.
pub(super) fn not_empty(response: Response, what: &str) -> Result<Response, String> {
    if response.text().is_empty() {
        return Err(format!("{what} is empty; a response needs at least one token to score"));
    }
    Ok(response)
}

/// Splits the last message, the response, off a conversation. It must be the assistant's.
pub(super) fn split_response(mut turns: Vec<Message>, what: &str) -> Result<(Vec<Message>, Response), String> {
    let last = turns.pop().ok_or_else(|| format!("{what} has no messages"))?;
    if last.role != "assistant" {
        return Err(format!(
            "{what} ends with the role \"{}\"; its last message must be the assistant's response",
            shorten(&last.role)
        ));
    }
    Ok((turns, not_empty(Response::Message(last), what)?))
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
