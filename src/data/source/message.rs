//! Messages of conversations, in the two formats of published data sets: `role` and `content`, or `from` and
//! `value` (ShareGPT). Content is text, or a list of parts of text, which are joined.
//!
//! A message may also hold what chat templates read: tool calls, and the reasoning before an answer. Other
//! keys with a value are errors, because a template may print them, and the rendered text would lack them.
//! Parts that are not text are errors too.

use serde_json::{Map, Value, json};

use super::super::group::{Message, Response};
use super::fields::{describe, shorten};

/// Further keys of a message that chat templates read.
const EXTRA: [&str; 5] = ["tool_calls", "tool_call_id", "reasoning_content", "reasoning", "thinking"];

/// Roles of the format with `from` and `value`.
const ROLES: [(&str, &[&str]); 4] = [
    ("user", &["human", "user", "prompter"]),
    ("assistant", &["gpt", "assistant", "chatgpt", "bot", "bing", "bard", "model", "function_call"]),
    ("system", &["system"]),
    ("tool", &["tool", "observation", "function_response"]),
];

/// Reads messages; `what` names them in errors. A single message counts as a list of one.
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

/// Reads one message.
pub(super) fn message(value: Value, what: &str) -> Result<Message, String> {
    let Value::Object(mut object) = value else {
        return Err(format!("{what} must be an object with role and content, found {}", describe(&value)));
    };
    let given = |object: &Map<String, Value>, key: &str| object.get(key).is_some_and(|value| !value.is_null());
    if given(&object, "from") && given(&object, "value") && !given(&object, "role") && !given(&object, "content") {
        spell_with_role(&mut object, what)?;
    }
    let of_tool = object.get("role").is_some_and(|role| role == "tool" || role == "function");
    let (mut role, mut content, mut extra) = (None, None, Map::new());
    for (key, value) in object {
        match (key.as_str(), value) {
            (_, Value::Null) => {}
            ("role", Value::String(text)) => role = Some(text),
            ("content", Value::String(text)) => content = Some(text),
            ("content", Value::Array(parts)) => content = Some(joined(parts, what)?),
            ("role" | "content", other) => {
                return Err(format!("{what}: \"{key}\" must be a string, found {}", describe(&other)));
            }
            // Tables write every key of every message, so an empty value counts as absent.
            (_, Value::Array(list)) if list.is_empty() => {}
            (_, Value::Object(object)) if object.is_empty() => {}
            (_, Value::String(text)) if text.is_empty() => {}
            ("tool_calls", other) if !other.is_array() => {
                return Err(format!("{what}: \"tool_calls\" must be a list, found {}", describe(&other)));
            }
            (known, value) if EXTRA.contains(&known) => drop(extra.insert(key, value)),
            // The message with a tool's result also has the tool's name.
            ("name", value) if of_tool => drop(extra.insert(key, value)),
            _ => {
                return Err(format!(
                    "{what}: key \"{}\" is not supported; a message has role, content, tool_calls and reasoning_content",
                    shorten(&key)
                ));
            }
        }
    }
    let role = role.filter(|role| !role.is_empty()).ok_or_else(|| format!("{what}: \"role\" is missing or empty"))?;
    // A turn that only calls tools has no text.
    let without = extra.contains_key("tool_calls").then(String::new);
    let content = content.or(without).ok_or_else(|| format!("{what}: \"content\" is missing"))?;
    Ok(Message { role, content, extra })
}

/// Replaces `from` and `value` by `role` and `content`, and the text of a `function_call` by `tool_calls`.
fn spell_with_role(object: &mut Map<String, Value>, what: &str) -> Result<(), String> {
    let (from, value) = (object.shift_remove("from"), object.shift_remove("value"));
    let from = from.unwrap_or_default();
    let known = from.as_str().and_then(|from| ROLES.iter().find(|(_, names)| names.contains(&from)));
    let Some((role, _)) = known else {
        return Err(format!(
            "{what}: \"from\" is {}, which is not a known role; write human, gpt, system, observation or function_call",
            describe(&from)
        ));
    };
    object.shift_insert(0, "role".into(), json!(role));
    if from == "function_call" {
        let text = value.as_ref().and_then(Value::as_str).unwrap_or_default();
        let calls = match serde_json::from_str(text) {
            Ok(Value::Array(calls)) => calls,
            Ok(call @ Value::Object(_)) => vec![call],
            _ => return Err(format!("{what}: a function_call must be JSON with name and arguments")),
        };
        let calls = calls.into_iter().map(|call| json!({"type": "function", "function": call}));
        object.insert("tool_calls".into(), calls.collect());
    } else {
        object.insert("content".into(), value.unwrap_or_default());
    }
    Ok(())
}

/// Returns the text of a content that is a list of parts.
fn joined(parts: Vec<Value>, what: &str) -> Result<String, String> {
    let mut text = String::new();
    for part in parts {
        match part {
            Value::String(part) => text += &part,
            Value::Object(part) => {
                let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
                let others =
                    part.iter().filter(|(key, value)| !value.is_null() && !["type", "text"].contains(&&***key));
                match (kind, part.get("text").and_then(Value::as_str), others.count()) {
                    ("text", Some(part), 0) => text += part,
                    _ => {
                        return Err(format!(
                            "{what}: a part of the content has the type \"{}\"; only text can be trained on",
                            shorten(kind)
                        ));
                    }
                }
            }
            other => return Err(format!("{what}: a part of the content is {}, not text", describe(&other))),
        }
    }
    Ok(text)
}

/// True if two messages differ at most by white space at the ends of their texts.
pub(super) fn alike(a: &Message, b: &Message) -> bool {
    a.role == b.role && a.content.trim() == b.content.trim() && a.extra == b.extra
}

/// True if the conversation `turns` contains the messages of `part` consecutively. If `turns` begin with an
/// assistant message, they continue earlier turns, so `part` must be at their start.
pub(super) fn holds(turns: &[Message], part: &[Message]) -> bool {
    let continues = turns.first().is_some_and(|turn| turn.role == "assistant");
    let same = |window: &[Message]| window.iter().zip(part).all(|(a, b)| alike(a, b));
    if continues {
        return turns.len() >= part.len() && same(&turns[..part.len()]);
    }
    turns.windows(part.len().max(1)).any(same)
}

/// Rejects an empty response, because it has no token to score.
pub(super) fn not_empty(response: Response, what: &str) -> Result<Response, String> {
    if response.is_empty() {
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
