//! Limits of one row. Checks and training read the texts of a row once for each of its comparisons and
//! instructions, so the time and memory of a row grow with the product of their number and the size of the
//! texts. Rows that fit into a model's context are far below the limits.

use super::super::group::{Message, PreferenceGroup, Prompt};

/// Maximum number of prompts, responses, comparisons and instructions of a group row, together.
const MAX_PARTS: usize = 1 << 14;
/// Maximum of (comparisons + instructions) x bytes of text of a group row.
const MAX_PARTS_TIMES_BYTES: usize = 1 << 31;
/// Maximum of assistant turns x bytes of text of a conversation, which becomes one prompt per turn.
const MAX_TURNS_TIMES_BYTES: usize = 1 << 30;

/// Rejects a group row whose processing would take hours.
pub(super) fn check_group(group: &PreferenceGroup) -> Result<(), String> {
    let texts = group.prompts.len() + group.responses.len();
    let uses = group.comparisons.len() + group.instructions.len();
    let prompt_bytes = |prompt: &Prompt| match prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Messages(turns) => bytes_of(turns),
    };
    let bytes: usize =
        group.prompts.iter().map(prompt_bytes).chain(group.responses.iter().map(|r| r.text().len())).sum();
    if texts + uses <= MAX_PARTS && uses.saturating_mul(bytes) <= MAX_PARTS_TIMES_BYTES {
        return Ok(());
    }
    Err(format!(
        "the row has {texts} prompts and responses with {bytes} bytes of text, and {uses} comparisons and instructions; \
         at most {MAX_PARTS} parts, and {MAX_PARTS_TIMES_BYTES} as comparisons and instructions times bytes, are \
         possible. Split the row"
    ))
}

/// Rejects a conversation whose prompts would not fit into memory.
pub(super) fn check_turns(turns: &[Message], what: &str) -> Result<(), String> {
    let (answers, bytes) = (turns.iter().filter(|turn| turn.role == "assistant").count(), bytes_of(turns));
    if answers <= 1 || answers.saturating_mul(bytes) <= MAX_TURNS_TIMES_BYTES {
        return Ok(());
    }
    Err(format!(
        "{what} has {answers} assistant turns in {bytes} bytes, and each turn becomes an example with everything \
         before it; turns times bytes must be at most {MAX_TURNS_TIMES_BYTES}. Split the conversation"
    ))
}

fn bytes_of(turns: &[Message]) -> usize {
    turns.iter().map(|turn| turn.role.len() + turn.content.len()).sum()
}
