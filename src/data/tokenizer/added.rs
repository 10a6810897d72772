//! Added tokens that `tokenizer_config.json` lists and `tokenizer.json` lacks. transformers adds them
//! when it loads a folder: the entries of `added_tokens_decoder`, and named special tokens that are in
//! the vocabulary as ordinary entries.
//!
//! An entry whose id differs from the id that the token would get is an error.

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer as Inner};

/// Adds the tokens that `inner` lacks as added tokens, and returns a note that lists them; `None` if it lacks
/// none. `named` holds the special tokens as pairs (name, token).
pub(super) fn complete(
    inner: &mut Inner,
    config: &Map<String, Value>,
    named: &[(String, String)],
) -> Result<Option<String>, String> {
    let mut added = Vec::new();
    for (id, token) in listed(config)? {
        let new = inner.token_to_id(&token.content).is_none();
        if !new && is_added(inner, &token.content) {
            continue;
        }
        let content = token.content.clone();
        add(inner, token)?;
        let got = inner.token_to_id(&content);
        if got != Some(id) {
            let got = got.map_or("none".to_owned(), |id| id.to_string());
            return Err(format!(
                "added_tokens_decoder lists \"{content}\" with id {id}, but the vocabulary of tokenizer.json gives it \
                 the id {got}; save the tokenizer again"
            ));
        }
        added.push((id, content));
    }
    for (_, content) in named {
        if let Some(id) = inner.token_to_id(content)
            && !is_added(inner, content)
        {
            add(inner, AddedToken::from(content.clone(), true))?;
            added.push((id, content.clone()));
        }
    }
    if added.is_empty() {
        return Ok(None);
    }
    let shown: Vec<String> = added.iter().take(4).map(|(id, content)| format!("\"{content}\" ({id})")).collect();
    let more =
        if added.len() > shown.len() { format!(" and {} more", added.len() - shown.len()) } else { String::new() };
    Ok(Some(format!(
        "added as special tokens, as in transformers, because only tokenizer_config.json lists them: {}{more}",
        shown.join(", ")
    )))
}

fn is_added(inner: &Inner, content: &str) -> bool {
    inner.get_added_vocabulary().get_vocab().contains_key(content)
}

fn add(inner: &mut Inner, token: AddedToken) -> Result<(), String> {
    let content = token.content.clone();
    let outcome = if token.special { inner.add_special_tokens(vec![token]) } else { inner.add_tokens(vec![token]) };
    outcome.map(|_| ()).map_err(|e| format!("cannot add the token \"{content}\": {e}"))
}

/// Entries of `added_tokens_decoder` by id, in ascending order.
fn listed(config: &Map<String, Value>) -> Result<Vec<(u32, AddedToken)>, String> {
    let Some(Value::Object(entries)) = config.get("added_tokens_decoder") else { return Ok(Vec::new()) };
    let mut tokens = Vec::new();
    for (id, entry) in entries {
        let (Ok(id), Some(content)) = (id.parse::<u32>(), entry.get("content").and_then(Value::as_str)) else {
            return Err(format!(
                "added_tokens_decoder: \"{id}\" must be a token id with an object that has \"content\""
            ));
        };
        let flag = |key: &str, default: bool| entry.get(key).and_then(Value::as_bool).unwrap_or(default);
        let special = flag("special", false);
        let token = AddedToken::from(content.to_owned(), special)
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .single_word(flag("single_word", false))
            .normalized(flag("normalized", !special));
        tokens.push((id, token));
    }
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens)
}
