//! Turns before the responses of a row: the system text, earlier turns and the question, under any known column name.
//!
//! A text under `prompt` is continued by the response as plain text, as in TRL. Under every other name, a
//! question is a user turn of a conversation. So is a `prompt` next to a system text or a history, which
//! plain text cannot represent. The first column of [`QUESTIONS`] with content is the question. The others
//! stay unused, and `overlooked` rejects them if they hold further text.

use serde_json::Value;

use super::super::group::Message;
use super::fields::{Row, describe, shorten};
use super::message::{alike, holds, messages};

/// Columns of the system text, by precedence.
const SYSTEMS: [&str; 3] = ["system", "system_prompt", "system_message"];

/// Columns of the question or of the turns before the response, by precedence.
const QUESTIONS: [&str; 14] = [
    "prompt",
    "conversations",
    "conversation",
    "messages",
    "instruction",
    "question",
    "query",
    "input",
    "problem",
    "user_prompt",
    "user_message",
    "context",
    "history",
    "post",
];

/// The question of a row.
pub(super) enum Question {
    /// The row has no question column; its responses are conversations that contain the question.
    Within,
    Text(String),
    Turns(Vec<Message>),
}

/// Turns before the responses of a row.
pub(super) struct Context {
    system: Option<String>,
    history: Vec<Message>,
    question: Question,
    /// Column of the question.
    column: &'static str,
}

/// True if the turns before the responses are more than a `prompt`: a system text, a history, or a question
/// under a different name. A column of system texts counts even if it is empty in this row, so that all rows
/// are read alike.
pub(super) fn is_conversation(row: &Row<'_>) -> bool {
    let system = row.keys().any(|key| SYSTEMS.contains(&key));
    system || history_column(row) || (!row.has("prompt") && question_column(row).is_some())
}

/// True if `history` holds earlier turns.
fn history_column(row: &Row<'_>) -> bool {
    row.get("history").and_then(Value::as_array).is_some_and(|turns| !turns.is_empty())
}

/// Column of the question.
fn question_column(row: &Row<'_>) -> Option<&'static str> {
    let sides = ["chosen", "rejected"].map(|key| row.get(key).cloned().and_then(|side| messages(side, key).ok()));
    QUESTIONS.into_iter().find(|key| match (*key, row.get(key)) {
        (_, None) => false,
        ("prompt", _) => true,
        (_, Some(Value::String(text))) => !text.trim().is_empty(),
        // Lists under these names hold earlier turns, or no conversation at all.
        ("history" | "instruction" | "question" | "query" | "input" | "problem" | "post", Some(_)) => false,
        // A list that repeats `chosen` or `rejected` contains the response too, so it is not the question.
        (_, Some(list @ Value::Array(entries))) => match messages(list.clone(), key) {
            Ok(turns) => {
                let copied = |side: &Option<Vec<Message>>| side.as_ref().is_some_and(|side| holds(side, &turns));
                !(turns.last().is_some_and(|last| last.role == "assistant") && sides.iter().any(copied))
            }
            // A list that does not hold messages is an error later, except that `context` may hold documents.
            Err(_) => *key != "context" && !entries.is_empty(),
        },
        _ => false,
    })
}

impl Context {
    /// Removes from the row the columns that hold the turns before its responses, and returns these turns.
    pub(super) fn take(row: &mut Row<'_>) -> Result<Self, String> {
        let system = match SYSTEMS.into_iter().find(|key| row.has(key)) {
            None => None,
            Some(key) => Some(row.text(key)?).filter(|text| !text.trim().is_empty()),
        };
        let column = question_column(row);
        let history = match row.get("history") {
            Some(Value::Array(_)) if column != Some("history") => earlier_turns(row)?,
            _ => Vec::new(),
        };
        let question = match column {
            None => Question::Within,
            Some(column) if row.peek_text(column).is_some() => {
                let mut text = row.text(column)?;
                // In Alpaca's format, the input follows the instruction.
                if column == "instruction" && row.peek_text("input").is_some() {
                    let input = row.text("input")?;
                    if !input.trim().is_empty() {
                        text = format!("{text}\n{input}");
                    }
                }
                match dialogue(&text) {
                    Some(turns) => Question::Turns(turns),
                    None => Question::Text(text),
                }
            }
            Some(column) => Question::Turns(row.messages(column)?),
        };
        let column = column.unwrap_or("prompt");
        if let Question::Turns(turns) = &question
            && column != "prompt"
            && turns.last().is_some_and(|last| last.role == "assistant")
        {
            return Err(format!(
                "\"{column}\" ends with an assistant turn, which is in neither side; it must end with the turn that the \
                 responses answer"
            ));
        }
        Ok(Self { system, history, question, column })
    }

    /// True if the row has no question.
    pub(super) fn has_no_question(&self) -> bool {
        matches!(self.question, Question::Within)
    }

    /// Text of the question, if it is one text.
    pub(super) fn question_text(&self) -> Option<&str> {
        match &self.question {
            Question::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the whole conversation that ends with `side`, the messages of one response. If `side` already
    /// contains the context, apart from white space at the ends of texts, the context is not added again.
    pub(super) fn before(&self, side: Vec<Message>, key: &str) -> Result<Vec<Message>, String> {
        let mut turns = match &self.question {
            Question::Within => side,
            Question::Text(question) => with_question(question, self.column, side, key)?,
            Question::Turns(turns) if holds(&side, turns) => side,
            Question::Turns(turns) => turns.iter().cloned().chain(side).collect(),
        };
        if !self.history.is_empty() && !holds(&turns, &self.history) {
            let at = usize::from(turns.first().is_some_and(|turn| turn.role == "system"));
            turns.splice(at..at, self.history.iter().cloned());
        }
        if let Some(system) = &self.system {
            let system = Message::new("system", system.as_str());
            match turns.first().filter(|turn| turn.role == "system") {
                None => turns.insert(0, system),
                Some(first) if alike(first, &system) => {}
                Some(first) => {
                    return Err(format!(
                        "the system text \"{}\" is not the system turn of the conversation, \"{}\"; make them agree, or \
                         leave out the column with --drop-columns",
                        shorten(&system.content),
                        shorten(&first.content)
                    ));
                }
            }
        }
        Ok(turns)
    }
}

/// Returns the conversation `side`, with the question inserted if it has no user turn.
fn with_question(question: &str, column: &str, side: Vec<Message>, key: &str) -> Result<Vec<Message>, String> {
    let mut users = side.iter().filter(|turn| turn.role == "user").peekable();
    if users.peek().is_none() {
        let first_answer = side.iter().position(|turn| turn.role == "assistant").unwrap_or(side.len());
        let mut turns = side;
        turns.insert(first_answer, Message::new("user", question));
        return Ok(turns);
    }
    if users.any(|turn| turn.content.trim() == question.trim()) {
        return Ok(side);
    }
    let column = if column == "prompt" { "the prompt".to_owned() } else { format!("\"{column}\"") };
    Err(format!(
        "\"{key}\" has user turns, but none equals {column} \"{}\"; drop {} with --drop-columns, or make it equal to a user turn",
        shorten(question),
        if column == "the prompt" { "\"prompt\"" } else { &column }
    ))
}

/// Returns the turns of `history`, which holds pairs of question and answer, or messages.
fn earlier_turns(row: &mut Row<'_>) -> Result<Vec<Message>, String> {
    let Some(Value::Array(list)) = row.take("history") else { return Ok(Vec::new()) };
    if list.is_empty() {
        return Ok(Vec::new());
    }
    if list.iter().all(Value::is_object) {
        return messages(Value::Array(list), "\"history\"");
    }
    let mut turns = Vec::new();
    for (i, entry) in list.iter().enumerate() {
        let texts: Vec<&str> = entry.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let ([question, answer], Some(2)) = (&texts[..], entry.as_array().map(Vec::len)) else {
            return Err(format!(
                "\"history\"[{i}] must be a pair of question and answer, or a message, found {}",
                describe(entry)
            ));
        };
        turns.extend([Message::new("user", *question), Message::new("assistant", *answer)]);
    }
    Ok(turns)
}

/// Returns the turns of a prompt in plain text: the turns of a dialogue, or one user turn.
///
/// # Errors
/// For a dialogue with `\n\nHuman:` whose last turn is neither the user's nor an empty assistant turn.
pub(in super::super) fn user_turns(text: &str) -> Result<Vec<Message>, String> {
    match dialogue(text) {
        Some(turns) => Ok(turns),
        None if is_dialogue(text) => Err(
            "the dialogue does not end with a Human turn, or an empty Assistant turn, so there is nothing to answer"
                .into(),
        ),
        None => Ok(vec![Message::new("user", text)]),
    }
}

/// Whether a text starts as a dialogue with `\n\nHuman:`.
pub(super) fn is_dialogue(text: &str) -> bool {
    text.starts_with(MARKS[0][0])
}

/// Starts of the turns of user and assistant, as HH and HelpSteer 2 write them.
const MARKS: [[&str; 2]; 2] = [["\n\nHuman:", "\n\nAssistant:"], ["<extra_id_1>User", "<extra_id_1>Assistant"]];

/// Returns the turns of a question that is written as a dialogue, with `\n\nHuman:` and `\n\nAssistant:` or
/// with the marks of HelpSteer 2. `None` for other texts, and for a dialogue whose last turn is neither the
/// user's nor an empty assistant turn.
fn dialogue(text: &str) -> Option<Vec<Message>> {
    let [user, assistant] = MARKS.into_iter().find(|[user, assistant]| match *user {
        "\n\nHuman:" => text.starts_with(user),
        _ => text.contains(assistant),
    })?;
    let mut turns = Vec::new();
    let mut rest = text.strip_prefix(user).unwrap_or(text);
    let mut role = "user";
    loop {
        let next = [(user, "user"), (assistant, "assistant")];
        let found = next.into_iter().filter_map(|(mark, role)| Some((rest.find(mark)?, mark, role))).min();
        let (content, following) = match found {
            Some((at, mark, role)) => (&rest[..at], Some((&rest[at + mark.len()..], role))),
            None => (rest, None),
        };
        if !content.trim().is_empty() {
            turns.push(Message::new(role, content.trim()));
        }
        let Some((after, next)) = following else { break };
        (rest, role) = (after, next);
    }
    (turns.last()?.role == "user").then_some(turns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_in_dialogue_form_become_turns() {
        let turns = |text: &str| dialogue(text).map(|turns| turns.into_iter().map(|t| (t.role, t.content)).collect());
        let turn = |role: &str, text: &str| (role.to_owned(), text.to_owned());
        assert_eq!(turns("\n\nHuman: Why?\n\nAssistant: "), Some(vec![turn("user", "Why?")]));
        let three = vec![turn("user", "a"), turn("assistant", "b"), turn("user", "c")];
        assert_eq!(turns("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"), Some(three.clone()));
        assert_eq!(turns("a\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc"), Some(three));
        for text in ["Why?", "a \n\nHuman: b", "\n\nHuman: a\n\nAssistant: b"] {
            assert_eq!(turns(text), None::<Vec<_>>, "{text}");
        }
    }
}
