//! A tokenizer for text that continues other text.
//!
//! Some tokenizers put a space in front of every text (SentencePiece calls it the dummy prefix), so that the
//! first word gets the same token as a word after a space. A response that is encoded by itself would get a
//! space that its row does not have. This module copies the tokenizer without that space: no `Prepend`
//! normaliser, `Metaspace` with the scheme `never`, `ByteLevel` without `add_prefix_space`, and no removal of
//! white space at the start.

use serde_json::{Value, json};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, Tokenizer as Inner};

/// Returns a copy of the tokenizer that adds nothing in front of a text; `None` if `inner` adds nothing.
pub(super) fn continuing(inner: &Inner) -> Result<Option<Inner>, String> {
    let fail = |e: &dyn std::fmt::Display| format!("cannot prepare the encoding of responses: {e}");
    let value = |part: serde_json::Result<Value>| part.map_err(|e| fail(&e));
    let mut normalizer = value(serde_json::to_value(inner.get_normalizer()))?;
    let mut splitter = value(serde_json::to_value(inner.get_pre_tokenizer()))?;
    let changed = [drop_prefix(&mut normalizer), drop_prefix(&mut splitter)];
    if changed == [false; 2] {
        return Ok(None);
    }
    let mut inner = inner.clone();
    if changed[0] {
        let normalizer: Option<NormalizerWrapper> = serde_json::from_value(normalizer).map_err(|e| fail(&e))?;
        inner.with_normalizer(normalizer).map_err(|e| fail(&e))?;
    }
    if changed[1] {
        let splitter: Option<PreTokenizerWrapper> = serde_json::from_value(splitter).map_err(|e| fail(&e))?;
        inner.with_pre_tokenizer(splitter);
    }
    Ok(Some(inner))
}

/// Removes the prefix that a normaliser or pre-tokeniser puts in front of a text. Returns true if `part`
/// changed.
fn drop_prefix(part: &mut Value) -> bool {
    let (key, without) = match part["type"].as_str() {
        Some("Prepend") => {
            *part = Value::Null;
            return true;
        }
        Some("Sequence") => {
            let parts = ["normalizers", "pretokenizers"].into_iter().find(|key| part[*key].is_array());
            let Some(Value::Array(parts)) = parts.map(|key| &mut part[key]) else { return false };
            let mut changed = false;
            parts.retain_mut(|part| {
                changed |= drop_prefix(part);
                !part.is_null()
            });
            return changed;
        }
        Some("Metaspace") => ("prepend_scheme", json!("never")),
        Some("ByteLevel") => ("add_prefix_space", json!(false)),
        Some("Strip") => ("strip_left", json!(false)),
        _ => return false,
    };
    let changed = part[key] != without;
    part[key] = without;
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_of_a_leading_space_is_dropped_and_nothing_else() {
        let metaspace = |scheme: &str| json!({"type": "Metaspace", "prepend_scheme": scheme, "split": true});
        let bytes = |space: bool| json!({"type": "ByteLevel", "add_prefix_space": space, "use_regex": true});
        let list = |parts: Vec<Value>| json!({"type": "Sequence", "normalizers": parts});
        let strip = |left: bool| json!({"type": "Strip", "strip_left": left, "strip_right": true});
        let kept = json!({"type": "NFC"});
        let prepend = || json!({"type": "Prepend", "prepend": "\u{2581}"});
        for (mut part, expected) in [
            (prepend(), Value::Null),
            (metaspace("always"), metaspace("never")),
            (metaspace("first"), metaspace("never")),
            (bytes(true), bytes(false)),
            (
                list(vec![kept.clone(), prepend(), list(vec![strip(true)])]),
                list(vec![kept.clone(), list(vec![strip(false)])]),
            ),
            (
                json!({"type": "Sequence", "pretokenizers": [bytes(true)]}),
                json!({"type": "Sequence", "pretokenizers": [bytes(false)]}),
            ),
        ] {
            assert!(drop_prefix(&mut part), "{part}");
            assert_eq!(part, expected);
            assert!(!drop_prefix(&mut part));
        }
        for part in [Value::Null, kept, metaspace("never"), bytes(false), strip(false)] {
            let mut same = part.clone();
            assert!(!drop_prefix(&mut same) && same == part, "{part}");
        }
    }
}
