//! UltraFeedback-binarised rows: `prompt` as a string, and whole conversations in `chosen` and
//! `rejected`. The conversations already contain the prompt as a user turn, so it is not added
//! again. If a side has only the assistant's message, the prompt is inserted as its user turn.

use super::super::group::Message;
use super::fields::{Row, shorten};
use super::{Format, Parsed, chat_pair};

pub(super) fn read(row: &mut Row<'_>) -> Result<Parsed, String> {
    let prompt = row.text("prompt")?;
    let chosen = with_prompt(&prompt, row.messages("chosen")?, "chosen")?;
    let rejected = with_prompt(&prompt, row.messages("rejected")?, "rejected")?;
    Ok(Parsed::new(Format::UltraFeedback, chat_pair::pair(row, chosen, rejected)?))
}

/// Returns the conversation of a side, with the prompt inserted if it has no user turn.
fn with_prompt(prompt: &str, side: Vec<Message>, key: &str) -> Result<Vec<Message>, String> {
    let mut users = side.iter().filter(|turn| turn.role == "user").peekable();
    if users.peek().is_none() {
        let first_answer = side.iter().position(|turn| turn.role == "assistant").unwrap_or(side.len());
        let mut turns = side;
        turns.insert(first_answer, Message { role: "user".into(), content: prompt.to_owned() });
        return Ok(turns);
    }
    if users.any(|turn| turn.content == prompt) {
        return Ok(side);
    }
    Err(format!(
        "\"{key}\" has user turns, but none equals the prompt \"{}\"; drop \"prompt\" or make them agree",
        shorten(prompt)
    ))
}
