//! Pad token of a reward model. transformers reads a reward at the rightmost token whose id is not
//! `pad_token_id`, so the reward of a text that ends with the pad token is read at an earlier token.
//!
//! ```text
//! ends = last token of every sequence
//! take the tokenizer's pad token, or the model's, unless it is in ends
//! else the first special token that is neither an EOS nor the BOS token, is not in the data and not
//!      in the chat template: with "pad" in its name, then "reserved" or "unused", then unk, then others
//! else the pad token is unchanged, and the reward of a text that ends with it is read before it
//! ```

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::super::tokenized::TokenizedGroup;
use super::{StoredFile, Tokenizer};
use crate::Result;
use crate::files::json_text;

/// Pad token that was chosen for a reward model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PadChoice {
    pub id: u32,
    /// True if some sequence ends with the token, so that rewards are read before it.
    pub ends_texts: bool,
}

impl PadChoice {
    /// Entry of a run's fingerprint as (name, value); `None` if every reward is read at the last token.
    pub fn fingerprint(self) -> Option<(String, String)> {
        self.ends_texts.then(|| ("pad token, before which rewards are read".to_owned(), self.id.to_string()))
    }

    /// Entry of `run.json`.
    pub fn to_json(self, tokenizer: &Tokenizer) -> Value {
        let place = if self.ends_texts { "last token that is not the pad token" } else { "last token" };
        json!({ "pad_token_id": self.id, "pad_token": tokenizer.token(self.id), "read_at": place })
    }
}

/// Last tokens of the groups' sequences.
pub fn last_tokens<'a>(groups: impl IntoIterator<Item = &'a TokenizedGroup>) -> HashSet<u32> {
    groups.into_iter().flat_map(|group| &group.sequences).filter_map(|s| s.response_ids.last().copied()).collect()
}

/// Says where rewards are read if texts end with the pad token `pad`.
pub fn read_place(pad: u32, tokenizer: &Tokenizer) -> String {
    let token = tokenizer.token(pad).unwrap_or_default();
    format!(
        "rewards are read at the last token that is not the pad token \"{token}\" ({pad}), as in transformers; some \
         texts of these rows end with the pad token"
    )
}

/// Chooses the pad token of a new reward model. `own` is the pad token of the model that training starts
/// from, whose vocabulary has `vocab` ids. Returns `None` if neither the model nor the tokenizer has a pad
/// token and no other token fits.
pub fn choose(
    own: Option<u32>,
    vocab: usize,
    tokenizer: &Tokenizer,
    ends: &HashSet<u32>,
    groups: &[&[TokenizedGroup]],
) -> Option<PadChoice> {
    let given: Vec<u32> = tokenizer.pad_id().into_iter().chain(own).filter(|&id| (id as usize) < vocab).collect();
    let fits = |id: &u32| !ends.contains(id);
    if let Some(&id) = given.iter().find(|id| fits(id)) {
        return Some(PadChoice { id, ends_texts: false });
    }
    let other = other_special(vocab, tokenizer, ends, groups).map(|id| PadChoice { id, ends_texts: false });
    other.or_else(|| given.first().map(|&id| PadChoice { id, ends_texts: true }))
}

fn other_special(
    vocab: usize,
    tokenizer: &Tokenizer,
    ends: &HashSet<u32>,
    groups: &[&[TokenizedGroup]],
) -> Option<u32> {
    let named = |name: &str| tokenizer.tokens.iter().find(|(known, _)| known == name).map(|(_, token)| token.as_str());
    let rank = |content: &str| {
        let lower = content.to_lowercase();
        match () {
            () if lower.contains("pad") => 0,
            () if ["reserved", "unused"].iter().any(|word| lower.contains(word)) => 1,
            () if Some(content) == named("unk_token") => 2,
            () => 3,
        }
    };
    let sources = tokenizer.template().map_or(&[][..], |template| template.sources());
    let mut candidates: Vec<(i32, u32)> = tokenizer
        .special
        .iter()
        .filter(|(id, _)| (*id as usize) < vocab && !ends.contains(id))
        .filter(|(id, _)| !tokenizer.end_ids().contains(id) && tokenizer.bos_id() != Some(*id))
        .filter(|(_, content)| !sources.iter().any(|(_, source)| source.contains(content)))
        .map(|(id, content)| (rank(content), *id))
        .collect();
    if candidates.is_empty() {
        return None;
    }
    let used: HashSet<u32> = groups
        .iter()
        .flat_map(|groups| groups.iter())
        .flat_map(|group| group.prompt_ids.iter().chain(group.sequences.iter().map(|s| &s.response_ids)))
        .flatten()
        .copied()
        .collect();
    candidates.retain(|(_, id)| !used.contains(id));
    candidates.into_iter().min().map(|(_, id)| id)
}

impl Tokenizer {
    /// Returns the id of the special token with this text, or of the only token that the text encodes to.
    /// `None` if the text encodes to several tokens.
    pub fn id_of(&self, token: &str) -> Result<Option<u32>> {
        if let Some((id, _)) = self.special.iter().find(|(_, known)| known == token) {
            return Ok(Some(*id));
        }
        match self.encode(token, false)?[..] {
            [id] => Ok(Some(id)),
            _ => Ok(None),
        }
    }

    /// Makes the token with this id the pad token; copies of the folder then name it. Returns the
    /// token, or `None` if the vocabulary does not have the id.
    pub fn set_pad(&mut self, id: u32) -> Option<String> {
        let token = self.token(id)?;
        if self.pad != Some(id) {
            self.pad = Some(id);
            self.new_pad = Some(token.clone());
        }
        Some(token)
    }

    /// Content of a tokenizer file in a copy of the folder, with the token of [`Tokenizer::set_pad`].
    pub(super) fn content_to_copy(&self, file: &StoredFile) -> Vec<u8> {
        let name = file.path.file_name().unwrap_or_default();
        let Some(pad) = &self.new_pad else { return file.bytes.clone() };
        let always = name == "tokenizer_config.json";
        if !always && name != "special_tokens_map.json" {
            return file.bytes.clone();
        }
        match serde_json::from_slice::<Map<String, Value>>(&file.bytes) {
            Ok(mut object) if always || object.contains_key("pad_token") => {
                object.insert("pad_token".into(), json!(pad));
                json_text(&Value::Object(object)).into_bytes()
            }
            _ => file.bytes.clone(),
        }
    }
}
