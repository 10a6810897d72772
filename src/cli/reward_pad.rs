//! Pad token of a reward run: chosen at the start, written into the model folder, and the same in
//! config.json and in the tokenizer's files.

use super::train::TrainSetup;
use crate::data::pack::reward_position;
use crate::data::tokenized::TokenizedGroup;
use crate::data::tokenizer::Tokenizer;
use crate::data::tokenizer::pad::{PadChoice, choose, last_tokens, read_place};
use crate::loss::objective::Method;
use crate::model::config::{Head, ModelConfig};
use crate::terminal::complain;
use crate::{Error, Result};

impl TrainSetup<'_> {
    /// Pad token of a reward run, which the tokenizer then has too. A start model that is a reward
    /// model keeps its own, because its head was trained where that token lets it be read. Prints what
    /// changes.
    pub(super) fn reward_pad(
        &self,
        config: &ModelConfig,
        tokenizer: &mut Tokenizer,
        groups: [&[TokenizedGroup]; 2],
    ) -> Result<Option<PadChoice>> {
        if self.method != Method::Reward {
            return Ok(None);
        }
        let ends = last_tokens(groups.into_iter().flatten());
        let choice = match (config.head, config.pad) {
            (Head::Reward, Some(id)) => Some(PadChoice { id, ends_texts: ends.contains(&id) }),
            _ => choose(config.pad, config.vocab, tokenizer, &ends, &groups),
        };
        let Some(choice) = choice else { return Ok(None) };
        let before = tokenizer.pad_id();
        let token = tokenizer.set_pad(choice.id);
        match &token {
            Some(token) if before != Some(choice.id) || config.pad.is_some_and(|id| id != choice.id) => {
                tokenizer.add_note(format!(
                    "the pad token of the reward model and its tokenizer is \"{token}\" ({}){}",
                    choice.id,
                    if config.pad.is_some_and(|id| id != choice.id && ends.contains(&id)) {
                        ": the start model's pad token ends texts, and transformers would read rewards before it"
                    } else {
                        ""
                    }
                ));
            }
            Some(_) => {}
            None => tokenizer.add_note(format!(
                "pad_token_id {} of the model is not a token of the tokenizer; transformers reads padded batches of \
                 this model at the wrong token, so score one text at a time",
                choice.id
            )),
        }
        if choice.ends_texts {
            complain(&format!(
                "warning: {}; other programs may read the last token. To train at the last token, start from a model \
                 with a pad token of its own",
                read_place(choice.id, tokenizer)
            ));
            refuse_padding(groups.into_iter().flatten(), choice.id)?;
        }
        Ok(Some(choice))
    }
}

/// Refuses a response that consists of pad tokens: its reward would be read in the prompt.
fn refuse_padding<'a>(groups: impl IntoIterator<Item = &'a TokenizedGroup>, pad: u32) -> Result<()> {
    for group in groups {
        for sequence in &group.sequences {
            let prompt = &group.prompt_ids[sequence.prompt];
            if reward_position(prompt, &sequence.response_ids, Some(pad)) < prompt.len() {
                return Err(Error::Usage(format!(
                    "row {}: response {} has only the pad token ({pad}), so its reward would be read in the prompt; \
                     remove the row, or start from a model with another pad token",
                    group.group.id, sequence.response
                )));
            }
        }
    }
    Ok(())
}
