//! Pad token of a reward run. It is named by `--pad-token` or chosen at the start, and is the same in the
//! config.json and the tokenizer files of the written model.

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
    /// Returns the pad token of a reward run and sets it in the tokenizer. A start model that is a reward
    /// model keeps its pad token, which decides the position at which its head was trained. Changes are
    /// recorded in the tokenizer's notes.
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
        let of = |id: u32| PadChoice { id, ends_texts: ends.contains(&id) };
        let choice = match (self.args.pad_token.as_deref(), config.head, config.pad) {
            (Some(token), Head::LanguageModel, _) => Some(of(self.named_pad(token, config, tokenizer)?)),
            (Some(token), Head::Reward, own) => {
                let id = self.named_pad(token, config, tokenizer)?;
                if own.map_or(ends.contains(&id), |own| own != id) {
                    return Err(Error::Usage(format!(
                        "--pad-token {token}: the start model is a reward model, so its rewards stay at the token \
                         position at which its head was trained; leave the flag out"
                    )));
                }
                Some(of(id))
            }
            (None, Head::Reward, Some(id)) => Some(of(id)),
            // A reward model without a pad token was trained at the last token, so its new pad token must not
            // be the last token of a sequence.
            (None, Head::Reward, None) => {
                choose(None, config.vocab, tokenizer, &ends, &groups).filter(|choice| !choice.ends_texts)
            }
            (None, Head::LanguageModel, own) => choose(own, config.vocab, tokenizer, &ends, &groups),
        };
        let choice = match (choice, tokenizer.eos_id().filter(|&id| (id as usize) < config.vocab)) {
            (None, Some(end)) if config.head == Head::LanguageModel => {
                tokenizer.add_note(format!(
                    "neither the model nor the tokenizer has a pad token, so the reward model uses the EOS token \
                     ({end}); --pad-token sets a different one"
                ));
                Some(of(end))
            }
            (choice, _) => choice,
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
                        ": the start model's pad token is the last token of some sequences, and transformers would \
                         read rewards before it"
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
            let advice = match config.head {
                Head::LanguageModel => "pass --pad-token with a token that is not the last token of any sequence",
                Head::Reward => "start from a model with a different pad token",
            };
            complain(&format!(
                "warning: {}; other programs may read the last token. To train at the last token, {advice}",
                read_place(choice.id, tokenizer)
            ));
            refuse_padding(groups.into_iter().flatten(), choice.id)?;
        }
        Ok(Some(choice))
    }
}

impl TrainSetup<'_> {
    /// Id of the token that `--pad-token` names.
    fn named_pad(&self, token: &str, config: &ModelConfig, tokenizer: &Tokenizer) -> Result<u32> {
        let refuse = |why: String| Err(Error::Usage(format!("--pad-token {token}: {why}")));
        match tokenizer.id_of(token)? {
            None => refuse(format!("{} has no such token; name one of its tokens", self.args.model.display())),
            Some(id) if id as usize >= config.vocab => {
                refuse(format!("its id {id} is not in the model's vocabulary of {}", config.vocab))
            }
            Some(id) => Ok(id),
        }
    }
}

/// Rejects responses that consist of pad tokens only, because their rewards would be read in the prompt.
fn refuse_padding<'a>(groups: impl IntoIterator<Item = &'a TokenizedGroup>, pad: u32) -> Result<()> {
    for group in groups {
        for sequence in &group.sequences {
            let prompt = &group.prompt_ids[sequence.prompt];
            if reward_position(prompt, &sequence.response_ids, Some(pad)) < prompt.len() {
                return Err(Error::Usage(format!(
                    "row {}: response {} has only the pad token ({pad}), so its reward would be read in the prompt; \
                     remove the row, or start from a model with a different pad token",
                    group.group.id, sequence.response
                )));
            }
        }
    }
    Ok(())
}
