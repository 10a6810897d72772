//! Token ids of prompts for generation.

use super::super::group::Prompt;
use super::super::source::{PromptRow, user_turns};
use super::super::tokenizer::Tokenizer;
use super::encode::render;
use super::lost::Lost;
use crate::Result;

/// Prompts as ids.
#[derive(Debug, Default)]
pub struct EncodedPrompts {
    /// One non-empty entry per row.
    pub ids: Vec<Vec<u32>>,
    /// Number of plain-text rows, which the response continues.
    pub plain: usize,
    lost: Lost,
}

impl EncodedPrompts {
    /// Warning about text that the chat template left out.
    pub fn warning(&self) -> Option<String> {
        let Lost { messages, missing, first } = &self.lost;
        let first = first.as_ref().filter(|_| *missing > 0)?;
        Some(format!(
            "the chat template leaves out {missing} of {messages} texts of the prompts, such as {first}: the model does \
             not see them"
        ))
    }
}

/// Encodes prompts for generation. Conversations are rendered by the chat template, with the generation
/// prompt; plain text is encoded as it is. With `as_turn`, plain text becomes the turns of a conversation
/// (`user_turns`).
///
/// # Errors
/// [`crate::Error::Data`] for a row that the template rejects, that has no tokens, or that starts with two
/// BOS tokens; [`crate::Error::Model`] if conversations need a chat template and there is none.
pub fn encode_prompts(rows: &[PromptRow], tokenizer: &Tokenizer, as_turn: bool) -> Result<EncodedPrompts> {
    let mut encoded = EncodedPrompts::default();
    for PromptRow { row, .. } in rows {
        let turn;
        let turns = match &row.group.prompts[0] {
            Prompt::Messages(turns) => Some(turns),
            Prompt::Text(text) if as_turn => {
                turn = user_turns(text).map_err(|why| row.error(why))?;
                Some(&turn)
            }
            Prompt::Text(_) => None,
        };
        let ids = match (turns, &row.group.prompts[0]) {
            (None, Prompt::Text(text)) => {
                encoded.plain += 1;
                tokenizer.encode_prefix(text)?
            }
            (turns, _) => {
                let turns = turns.map(Vec::as_slice).unwrap_or_default();
                let rendered = render(turns, true, &row.group, tokenizer)?.map_err(|why| row.error(why))?;
                turns.iter().for_each(|turn| encoded.lost.message(turn, &rendered));
                encoded.lost.tools(&row.group, &rendered);
                tokenizer.encode(&rendered, false)?
            }
        };
        if ids.is_empty() {
            return Err(row.error("the prompt has no token, so the response has no context; give it some text"));
        }
        if let (Some(bos), [first, second, ..]) = (tokenizer.bos_id(), &ids[..])
            && [first, second] == [&bos, &bos]
        {
            return Err(row.error(
                "the prompt starts with two BOS tokens, its own and the tokenizer's; remove the one in the text or \
                 template",
            ));
        }
        encoded.ids.push(ids);
    }
    Ok(encoded)
}

/// Decodes the generated tokens `tokens`, which follow `prompt`. After a plain-text prompt they are decoded
/// with some context, because some tokenizers drop the leading space of a text that is decoded without context.
pub fn response_text(tokenizer: &Tokenizer, plain: bool, prompt: &[u32], tokens: &[u32]) -> Result<String> {
    /// Number of context tokens, enough for a four-byte character with one token per byte, and a space.
    const CONTEXT: usize = 8;
    if plain {
        let context = &prompt[prompt.len().saturating_sub(CONTEXT)..];
        let before = tokenizer.decode(context)?;
        let whole = tokenizer.decode(&[context, tokens].concat())?;
        if let Some(text) = whole.strip_prefix(&before) {
            return Ok(text.to_owned());
        }
    }
    tokenizer.decode(tokens)
}
