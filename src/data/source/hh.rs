//! Human/Assistant dialogues: `chosen` and `rejected` as text, with turns that start with
//! `\n\nHuman:` and `\n\nAssistant:`. The prompt ends with the last `\n\nAssistant:`; both texts must be equal
//! up to there, unless a reward model compares whole dialogues. The text is read unedited, so the space after
//! the colon belongs to the response.

use super::super::group::{Prompt, Response};
use super::chat_pair::whole_conversations;
use super::fields::Row;
use super::message::not_empty;
use super::{Format, Parsed, text_pair};

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

/// True if `chosen` and `rejected` are dialogues.
pub(super) fn matches(row: &Row<'_>) -> bool {
    ["chosen", "rejected"].iter().all(|key| row.peek_text(key).is_some_and(|text| text.starts_with(HUMAN)))
}

pub(super) fn read(row: &mut Row<'_>) -> Result<Parsed, String> {
    let (chosen, rejected) = (row.text("chosen")?, row.text("rejected")?);
    let (a, b) = (prompt_end(&chosen, "chosen")?, prompt_end(&rejected, "rejected")?);
    if chosen[..a] != rejected[..b] {
        if !row.whole_conversations {
            return Err(
                "\"chosen\" and \"rejected\" differ before their last \"\\n\\nAssistant:\" turn; only a reward model \
                 compares whole conversations, and a policy needs one prompt (for other cases use a group row)"
                    .into(),
            );
        }
        let margin = row.margin()?;
        let prompts = [&chosen[..a], &rejected[..b]].map(|prompt| Prompt::Text(prompt.to_owned()));
        let response = |text: &str, what| not_empty(Response::Text(text.to_owned()), what);
        let responses = [response(&chosen[a..], "\"chosen\"")?, response(&rejected[b..], "\"rejected\"")?];
        let mut group = whole_conversations(row.id().to_owned(), prompts, responses, margin);
        row.template_settings(&mut group)?;
        return Ok(Parsed::new(Format::HumanAssistant, group));
    }
    let group = text_pair::pair(row, chosen[..a].to_owned(), chosen[a..].to_owned(), rejected[b..].to_owned())?;
    Ok(Parsed::new(Format::HumanAssistant, group))
}

/// Length in bytes up to and including the last `\n\nAssistant:`, which must come after the last
/// `\n\nHuman:`.
fn prompt_end(text: &str, key: &str) -> Result<usize, String> {
    let end = text.rfind(ASSISTANT).map(|at| at + ASSISTANT.len());
    match end {
        Some(end) if !text[end..].contains(HUMAN) => Ok(end),
        Some(_) => Err(format!("\"{key}\" ends with a Human turn; its last turn must be an Assistant turn")),
        None => Err(format!("\"{key}\" has no \"\\n\\nAssistant:\" turn")),
    }
}
