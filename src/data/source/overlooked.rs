//! Text that a reader takes for something else, or for nothing:
//!
//! - columns that no reader uses although their names say that they hold a part of the conversation,
//!   such as `system` or `history`; a column with the same value as a column that is read, such as
//!   `messages` in some published sets, is not one
//! - text columns that hold a list of messages, written as JSON or printed by Python; they are read
//!   as plain text
//!
//! Both are counted per file, for a warning. Nothing is refused.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::super::group::{PreferenceGroup, Prompt};
use super::fields::Row;
use super::{FileCounts, FileReport};

/// Names of columns that hold a part of a conversation in published sets.
const CONVERSATION: [&str; 22] = [
    "context",
    "conversation",
    "conversations",
    "dialog",
    "dialogue",
    "documents",
    "history",
    "image",
    "images",
    "input",
    "instruction",
    "messages",
    "problem",
    "query",
    "question",
    "system",
    "system_message",
    "system_prompt",
    "tools",
    "turns",
    "user",
    "user_prompt",
];

/// Columns that are read as text, if they hold text.
const TEXTS: [&str; 7] = ["prompt", "chosen", "rejected", "completion", "text", "prompts", "responses"];

/// Rows in which something occurs, and the line of the first of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Occurrences {
    pub rows: usize,
    /// From 1.
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
    /// Problems of the file, those of equal rows together.
    pub(crate) fn overlooked(&self) -> Vec<Overlooked> {
        let unused = by_rows(&self.unused_conversation).into_iter().map(|(columns, found)| Overlooked {
            check: "unused-columns",
            found,
            what: format!("text that may belong to the conversation is not used (in {columns})"),
            why: "the model does not read it, and may be asked for what it cannot know",
            advice: "name the column with --column-map (for example prompt=COLUMN), or add its text to the messages of \
                     \"prompt\"",
        });
        let as_text = by_rows(&self.messages_as_text).into_iter().map(|(columns, found)| Overlooked {
            check: "messages-as-text",
            found,
            what: format!("a list of messages is stored as text and read as plain text (in {columns})"),
            why: "the model is trained on brackets, quotes and keys, and no chat template is applied",
            advice: "store the list itself: in Python, json.loads(text) reads JSON and ast.literal_eval(text) a printed \
                     list",
        });
        unused.chain(as_text).collect()
    }

    /// Warnings about text that is not trained on as it stands.
    pub fn warnings(&self) -> Vec<String> {
        let line = |Overlooked { found, what, why, advice, .. }: Overlooked| {
            let (file, of) = (self.file.display(), self.rows());
            format!("{file}:{}: in {} of {of} rows {what}; {why}; {advice}", found.first_line, found.rows)
        };
        self.overlooked().into_iter().map(line).collect()
    }
}

/// Columns with their occurrences; columns that occur in as many rows from the same line on are
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

/// Columns of a row that a reader may overlook.
pub(super) struct Columns {
    conversation: Vec<String>,
    stored_messages: Vec<String>,
}

impl Columns {
    /// Looks at a row before it is read.
    pub(super) fn of(row: &Row<'_>) -> Self {
        let known = |name: &str| CONVERSATION.iter().any(|known| known.eq_ignore_ascii_case(name));
        let copied = |name: &str, value: &Value| {
            row.columns().any(|(other, same)| other != name && TEXTS.contains(&other) && same == value)
        };
        let conversation =
            row.columns().filter(|(name, value)| known(name) && !is_empty(value) && !copied(name, value));
        let stored = row.columns().filter(|(name, value)| TEXTS.contains(name) && holds_messages(value));
        Self {
            conversation: conversation.map(|(name, _)| name.to_owned()).collect(),
            stored_messages: stored.map(|(name, _)| name.to_owned()).collect(),
        }
    }

    /// Counts the columns after the row was read as `group`.
    pub(super) fn count(self, row: &Row<'_>, group: &PreferenceGroup, line: usize, counts: &mut FileCounts) {
        let unused = row.unused();
        // Only chat templates read tools.
        let plain = group.prompts.iter().all(|prompt| matches!(prompt, Prompt::Text(_)));
        for name in self.conversation {
            if unused.contains(&name) || (name == "tools" && plain) {
                add(&mut counts.unused_conversation, name, line);
            }
        }
        for name in self.stored_messages {
            add(&mut counts.messages_as_text, name, line);
        }
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

/// True if a value is, or lists, a text that spells a list of messages.
fn holds_messages(value: &Value) -> bool {
    match value {
        Value::String(text) => spells_messages(text),
        Value::Array(list) => list.iter().any(|entry| entry.as_str().is_some_and(spells_messages)),
        _ => false,
    }
}

/// True for the text of a list of messages, or of one message, in JSON or as Python prints it.
fn spells_messages(text: &str) -> bool {
    let text = text.trim();
    let list = text.starts_with('[') && text.ends_with(']');
    if !(list || (text.starts_with('{') && text.ends_with('}'))) {
        return false;
    }
    let pairs = [["role", "content"], ["from", "value"]];
    if let Ok(value) = serde_json::from_str::<Value>(text) {
        let messages = value.as_array().map_or(std::slice::from_ref(&value), Vec::as_slice);
        let is_message = |message: &Value| pairs.iter().any(|keys| keys.iter().all(|key| message[*key].is_string()));
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
            r#"{"role": "user", "content": ["x"]}"#,
            "[a note that says 'role': 'user' and 'content': 'x']",
            "{x} is 'role': 1 {y}",
        ] {
            assert!(!spells_messages(text), "{text}");
        }
    }
}
