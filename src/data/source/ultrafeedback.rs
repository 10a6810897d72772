//! UltraFeedback-binarised rows: `prompt` as a string, and whole conversations in `chosen` and `rejected`. The prompt
//! already stands in the conversations as a user turn and is not put in front again. Sides that hold the assistant's
//! message alone get the prompt as their user turn.

use super::super::group::Message;
use super::fields::{Row, shorten};
use super::{Format, Parsed, chat_pair};

pub fn read(row: &mut Row<'_>) -> Result<Parsed, String> {
    let prompt = row.text("prompt")?;
    let chosen = whole(&prompt, row.messages("chosen")?, "chosen")?;
    let rejected = whole(&prompt, row.messages("rejected")?, "rejected")?;
    Ok(Parsed::new(Format::UltraFeedback, chat_pair::pair(row, chosen, rejected)?))
}

fn whole(prompt: &str, side: Vec<Message>, key: &str) -> Result<Vec<Message>, String> {
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
        "\"{key}\" has user turns, but none is the prompt \"{}\"; drop \"prompt\" or make them agree",
        shorten(prompt)
    ))
}
