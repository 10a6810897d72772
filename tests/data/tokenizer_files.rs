//! Files of a tokenizer. A save writes the bytes that were loaded, even if the folder has changed meanwhile.
//! Further tests cover tokens that only one of the files lists.

use std::path::Path;

use mapl::data::tokenizer::Tokenizer;

use serde_json::json;

use crate::tokens::{TOKENIZER, changed};

#[test]
fn tokenizer_files_are_copied_byte_for_byte() {
    let from = tempfile::tempdir().unwrap();
    TOKENIZER.copy_to(from.path()).unwrap();
    std::fs::create_dir(from.path().join("additional_chat_templates")).unwrap();
    std::fs::write(from.path().join("additional_chat_templates/rag.jinja"), "x\r\n").unwrap();
    std::fs::write(from.path().join("merges.txt"), "#odd \u{feff}\n").unwrap();
    std::fs::write(from.path().join("model.safetensors"), "not the tokenizer's").unwrap();
    let tokenizer = Tokenizer::load(from.path()).unwrap();
    let to = tempfile::tempdir().unwrap();
    let target = to.path().join("deep/er");
    tokenizer.copy_to(&target).unwrap();
    assert_eq!(tokenizer.files().len(), 6);
    let equal = |target: &Path| {
        for file in tokenizer.files() {
            let name = file.path.strip_prefix(from.path()).unwrap();
            assert_eq!(file.bytes, std::fs::read(target.join(name)).unwrap());
        }
    };
    equal(&target);
    equal(from.path());
    assert!(!target.join("model.safetensors").exists());
    tokenizer.copy_to(from.path()).unwrap();
    // A save writes what was loaded, even if the folder has changed or is gone.
    std::fs::write(from.path().join("chat_template.jinja"), "changed").unwrap();
    std::fs::write(from.path().join("vocab.json"), "{}").unwrap();
    tokenizer.copy_to(&to.path().join("after a change")).unwrap();
    equal(&to.path().join("after a change"));
    assert!(!to.path().join("after a change/vocab.json").exists());
    std::fs::remove_dir_all(from.path()).unwrap();
    tokenizer.copy_to(&to.path().join("after its removal")).unwrap();
    equal(&to.path().join("after its removal"));
}

/// transformers adds the tokens of `added_tokens_decoder` that tokenizer.json lacks.
#[test]
fn tokens_that_only_the_configuration_lists_are_added() {
    let next = TOKENIZER.vocab_size();
    let entry = |id: usize| json!({id.to_string(): {"content": "<|fill|>", "special": true}});
    let pad = ("tokenizer_config.json", "pad_token", json!("<|fill|>"));
    let (_folder, tokenizer) = changed(&[pad.clone(), ("tokenizer_config.json", "added_tokens_decoder", entry(next))]);
    let tokenizer = tokenizer.unwrap();
    assert_eq!((tokenizer.pad_id(), tokenizer.vocab_size()), (Some(next as u32), next + 1));
    assert_eq!(tokenizer.encode("<|fill|>", false).unwrap(), [next as u32]);
    assert!(tokenizer.notes()[0].contains("<|fill|>"), "{:?}", tokenizer.notes());
    let other = changed(&[pad.clone(), ("tokenizer_config.json", "added_tokens_decoder", entry(next + 3))]).1;
    let why = other.unwrap_err().to_string();
    assert!(why.contains(&format!("id {}", next + 3)) && why.contains(&format!("the id {next}")), "{why}");
    let why = changed(&[pad]).1.unwrap_err().to_string();
    assert!(why.contains("pad_token \"<|fill|>\"") && why.contains("added_tokens"), "{why}");
    // A named special token that is an ordinary entry of the vocabulary becomes a special one.
    let (_folder, tokenizer) = changed(&[("tokenizer_config.json", "unk_token", json!("a"))]);
    assert!(tokenizer.unwrap().notes()[0].contains("\"a\""));
}

#[test]
fn end_ids_that_the_tokenizer_lacks_are_left_out() {
    let (_folder, tokenizer) = changed(&[("config.json", "eos_token_id", json!([2, 128_009]))]);
    let tokenizer = tokenizer.unwrap();
    assert!(!tokenizer.end_ids().contains(&128_009) && tokenizer.end_ids().contains(&2));
    assert!(tokenizer.notes()[0].contains("128009"), "{:?}", tokenizer.notes());
}

#[test]
fn a_new_pad_token_is_written_into_copies() {
    let (_folder, tokenizer) = changed(&[("tokenizer_config.json", "note", json!({"b": 1, "a": 2}))]);
    let mut tokenizer = tokenizer.unwrap();
    assert_eq!(tokenizer.pad_id(), Some(3));
    let to = tempfile::tempdir().unwrap();
    assert_eq!(tokenizer.set_pad(0).as_deref(), Some("<|endoftext|>"));
    assert_eq!(tokenizer.set_pad(1 << 20), None);
    tokenizer.copy_to(to.path()).unwrap();
    let copy = Tokenizer::load(to.path()).unwrap();
    assert_eq!((copy.pad_id(), copy.end_ids()), (Some(0), tokenizer.end_ids()));
    let text = std::fs::read_to_string(to.path().join("tokenizer_config.json")).unwrap();
    assert!(text.find("\"b\"").unwrap() < text.find("\"a\"").unwrap(), "keys keep their order");
    for (old, new) in tokenizer.files().iter().zip(copy.files()) {
        let edited = ["tokenizer_config.json", "special_tokens_map.json"].iter().any(|name| old.path.ends_with(name));
        assert_eq!(old.bytes != new.bytes, edited, "{}", old.path.display());
    }
}
