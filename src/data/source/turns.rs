//! `--apply-chat-template`: plain text as turns of a conversation. The prompt is the user's turn, or the
//! turns of a dialogue with `\n\nHuman:` and `\n\nAssistant:`; a response is the assistant's turn.
//!
//! Texts stay as they are, except that the turns of a dialogue lose the white space around them, which belongs
//! to the marks `Human:` and `Assistant:`. Pairs whose prompt is only the common prefix of `chosen` and
//! `rejected`, and rows of text without a prompt, are errors.

use super::super::group::{Message, PreferenceGroup, Prompt, Response};
use super::Format;
use super::context::{is_dialogue, user_turns};
use super::message::not_empty;

/// Converts the texts of a group to turns. Returns false if no prompt of the group is text.
pub(super) fn make_turns(format: Format, group: &mut PreferenceGroup) -> Result<bool, String> {
    let is_text = |prompt: &Prompt| matches!(prompt, Prompt::Text(_));
    if !group.prompts.iter().any(is_text) {
        return Ok(false);
    }
    let no_prompt = match format {
        Format::TextImplicit => Some("chosen and rejected only have a common prefix"),
        Format::PlainText => Some("\"text\" is one text"),
        _ => None,
    };
    if let Some(what) = no_prompt {
        return Err(format!(
            "--apply-chat-template needs a prompt, and the row has none ({what}); name its column with --column-map \
             prompt=COLUMN, or leave the flag out"
        ));
    }
    let mut dialogue = false;
    for prompt in &mut group.prompts {
        if let Prompt::Text(text) = prompt {
            dialogue |= is_dialogue(text);
            *prompt = Prompt::Messages(user_turns(text)?);
        }
    }
    for (i, response) in group.responses.iter_mut().enumerate() {
        if let Response::Text(text) = response {
            let text = if dialogue { text.trim() } else { text };
            let turn = Response::Message(Message::new("assistant", text));
            *response = not_empty(turn, &format!("response {i}"))?;
        }
    }
    Ok(true)
}
