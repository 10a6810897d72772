//! Conditions that end a generated response: EOS tokens, and stop texts.

use crate::data::tokenizer::Tokenizer;
use crate::model::config::ModelConfig;

/// Ids of the EOS tokens that end a response.
pub(super) fn end_ids(config: &ModelConfig, tokenizer: &Tokenizer) -> Vec<u32> {
    let further = tokenizer.end_ids().iter().copied().filter(|id| !config.eos.contains(id));
    config.eos.iter().copied().chain(further).collect()
}

/// Tokens of a response without the EOS token at its end.
pub(super) fn without_end<'a>(tokens: &'a [u32], ends: &[u32]) -> &'a [u32] {
    match tokens.split_last() {
        Some((last, rest)) if ends.contains(last) => rest,
        _ => tokens,
    }
}

/// Byte offset of the first stop text in a response.
pub(super) fn first_stop(text: &str, stops: &[String]) -> Option<usize> {
    stops.iter().filter_map(|stop| text.find(stop.as_str())).min()
}

/// Names of the EOS tokens and stop texts that end a response.
pub(super) fn ends_text(tokenizer: &Tokenizer, ends: &[u32], stops: &[String]) -> String {
    let token = |&id: &u32| tokenizer.token(id).unwrap_or_else(|| format!("id {id}"));
    let names: Vec<String> = ends.iter().map(token).chain(stops.iter().map(|stop| format!("{stop:?}"))).collect();
    if names.is_empty() { "none, so every response has the maximum number of tokens".into() } else { names.join(", ") }
}
