//! Group rows: `prompts`, `responses`, `comparisons` and, optionally, `instructions`, `tools`,
//! `chat_template_kwargs`. Unknown keys are errors, because a misspelt key would silently change the training
//! data.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::group::{PreferenceGroup, Prompt, Response};
use super::fields::{Row, describe, shorten};
use super::message::{message, messages, not_empty};
use super::row_limits::check_group;

const KEYS: [&str; 7] = ["id", "prompts", "responses", "comparisons", "instructions", "tools", "chat_template_kwargs"];

/// True if the row has any of the plural keys of a group row.
pub(super) fn matches(row: &Row<'_>) -> bool {
    // A list of responses with one prompt, or with numbers, is a different format.
    let listed = || {
        ["prompt", "question", "instruction", "scores", "ranks", "ratings", "rewards"].iter().any(|key| row.has(key))
    };
    ["prompts", "comparisons"].iter().any(|key| row.has(key)) || (row.has("responses") && !listed())
}

pub(super) fn read(row: &mut Row<'_>) -> Result<PreferenceGroup, String> {
    if let Some(key) = row.keys().find(|key| !KEYS.contains(key)) {
        return Err(format!("unknown key \"{}\"; a group row has {}", shorten(key), KEYS.join(", ")));
    }
    let prompts = list(row, "prompts")?.ok_or("\"prompts\" is missing; a group row lists its prompts")?;
    let responses = list(row, "responses")?.ok_or("\"responses\" is missing; a group row lists its responses")?;
    let comparisons =
        list(row, "comparisons")?.ok_or("\"comparisons\" is missing; a group row lists its comparisons")?;
    let instructions = list(row, "instructions")?.unwrap_or_default();
    let each = |list: Vec<Value>| list.into_iter().enumerate();
    let mut group = PreferenceGroup {
        id: row.id().to_owned(),
        prompts: each(prompts).map(|(i, value)| prompt(value, i)).collect::<Result<_, _>>()?,
        responses: each(responses).map(|(i, value)| response(value, i)).collect::<Result<_, _>>()?,
        comparisons: each(comparisons).map(|(i, v)| deserialize(v, "comparisons", i)).collect::<Result<_, _>>()?,
        instructions: each(instructions).map(|(i, v)| deserialize(v, "instructions", i)).collect::<Result<_, _>>()?,
        tools: None,
        chat_template_kwargs: None,
    };
    row.template_settings(&mut group)?;
    group.validate()?;
    check_group(&group)?;
    Ok(group)
}

fn list(row: &mut Row<'_>, key: &'static str) -> Result<Option<Vec<Value>>, String> {
    match row.take(key) {
        None => Ok(None),
        Some(Value::Array(list)) => Ok(Some(list)),
        Some(other) => Err(format!("\"{key}\" must be a list, found {}", describe(&other))),
    }
}

fn prompt(value: Value, i: usize) -> Result<Prompt, String> {
    match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(_) => Ok(Prompt::Messages(messages(value, &format!("prompts[{i}]"))?)),
        other => Err(format!("prompts[{i}] must be a string or a list of messages, found {}", describe(&other))),
    }
}

fn response(value: Value, i: usize) -> Result<Response, String> {
    let what = format!("responses[{i}]");
    let response = match value {
        Value::String(text) => Response::Text(text),
        Value::Object(_) => {
            let message = message(value, &what)?;
            if message.role != "assistant" {
                return Err(format!(
                    "{what} has the role \"{}\"; a response must have the role \"assistant\"",
                    message.role
                ));
            }
            Response::Message(message)
        }
        other => return Err(format!("{what} must be a string or a message, found {}", describe(&other))),
    };
    not_empty(response, &what)
}

fn deserialize<T: DeserializeOwned>(value: Value, key: &str, i: usize) -> Result<T, String> {
    serde_json::from_value(value).map_err(|e| format!("{key}[{i}]: {e}"))
}
