//! Detects the format of a preference row from its keys, and reads it.

use serde_json::Value;

use super::fields::Row;
use super::{Format, Parsed};
use super::{candidates, chat_pair, context, group_row, hh, overlooked, text_pair, two_columns};

/// Form of a value: plain text or messages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Text,
    Chat,
}

/// Reads a preference row of any format.
pub(super) fn preference_row(row: &mut Row<'_>) -> Result<Parsed, String> {
    if group_row::matches(row) {
        return Ok(Parsed::new(Format::Group, group_row::read(row)?));
    }
    unfold_openai(row)?;
    overlooked::check_media(row)?;
    match (row.has("chosen"), row.has("rejected")) {
        (true, true) => pair_row(row),
        (false, false) => several(row),
        (chosen, _) => {
            let missing = if chosen { "rejected" } else { "chosen" };
            Err(format!(
                "\"{missing}\" is missing; a preference row needs chosen and rejected; rename columns with --column-map"
            ))
        }
    }
}

/// Reads a row with `chosen` and `rejected`.
fn pair_row(row: &mut Row<'_>) -> Result<Parsed, String> {
    if candidates::are_lists(row) {
        return candidates::read_lists(row);
    }
    let text = |key: &str| row.text_or_chat(key);
    let conversation = context::is_conversation(row);
    match (text("prompt")?, text("chosen")?, text("rejected")?) {
        (None, Some(Shape::Text), Some(Shape::Text)) if hh::matches(row) => hh::read(row),
        (_, Some(Shape::Text), Some(Shape::Text)) if conversation => chat_pair::read(row, Format::Question),
        (None, Some(Shape::Text), Some(Shape::Text)) => text_pair::read_implicit(row),
        (Some(Shape::Text), Some(Shape::Text), Some(Shape::Text)) => text_pair::read_explicit(row),
        (None, Some(Shape::Chat), Some(Shape::Chat)) if conversation => chat_pair::read(row, Format::Question),
        (None, Some(Shape::Chat), Some(Shape::Chat)) => chat_pair::read(row, Format::ChatImplicit),
        (Some(Shape::Text), Some(Shape::Chat), Some(Shape::Chat)) => chat_pair::read(row, Format::UltraFeedback),
        (Some(Shape::Chat), Some(a), Some(b)) if a == b => chat_pair::read(row, Format::ChatExplicit),
        _ => Err("\"chosen\" and \"rejected\" must both be strings or both be lists of messages".into()),
    }
}

/// Reads a row whose responses are not under `chosen` and `rejected`.
fn several(row: &mut Row<'_>) -> Result<Parsed, String> {
    if let Some(shape) = two_columns::shape(row)? {
        return two_columns::read(row, shape);
    }
    if let Some(why) = two_columns::unpaired(row) {
        return Err(why);
    }
    match candidates::list_column(row) {
        Some(column) => candidates::read_list(row, column),
        None => Err(not_a_preference_row(row)),
    }
}

/// Renames the parts of a row in OpenAI's preference format: `input` holds messages and tools, and
/// `preferred_output` and `non_preferred_output` are the chosen and the rejected response. An `input` with
/// other parts stays, and is rejected later if it holds text of the conversation.
fn unfold_openai(row: &mut Row<'_>) -> Result<(), String> {
    const SIDES: [(&str, &str); 2] = [("preferred_output", "chosen"), ("non_preferred_output", "rejected")];
    if !SIDES.iter().all(|(from, _)| row.has(from)) {
        return Ok(());
    }
    let refuse_both = |row: &Row<'_>, from: &str, to: &str| match row.has(to) {
        true => Err(format!("\"{from}\" and \"{to}\" are both given; leave out one of them with --drop-columns")),
        false => Ok(()),
    };
    let input = row.get("input").and_then(Value::as_object).filter(|input| input.contains_key("messages")).cloned();
    if let Some(mut input) = input {
        for (from, to) in [("messages", "prompt"), ("tools", "tools")] {
            if let Some(value) = input.shift_remove(from) {
                refuse_both(row, "input", to)?;
                row.put(to, value);
            }
        }
        input.retain(|key, value| !value.is_null() && key != "parallel_tool_calls");
        if input.is_empty() {
            row.take("input");
        } else {
            row.put("input", Value::Object(input));
        }
    }
    for (from, to) in SIDES {
        refuse_both(row, from, to)?;
        if let Some(value) = row.take(from) {
            row.put(to, value);
        }
    }
    Ok(())
}

/// Message for a row without chosen and rejected; the advice depends on the keys of the row.
fn not_a_preference_row(row: &Row<'_>) -> String {
    let any = |keys: &[&str]| keys.iter().any(|key| row.has(key));
    let advice = if any(&["prompt_ids", "chosen_ids", "rejected_ids", "chosen_input_ids", "rejected_input_ids"]) {
        "rows of token ids are not supported; provide the text"
    } else if any(&["completion", "messages", "text", "conversations", "output"]) {
        "this looks like a row for `mapl sft`: it has no comparison"
    } else {
        "a preference row needs chosen and rejected; rename columns with --column-map"
    };
    let keys = row.keys_for_message();
    format!("\"chosen\" and \"rejected\" are missing (the row has {keys}); {advice}")
}
