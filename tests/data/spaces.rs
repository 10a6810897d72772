//! Plain-text responses of tokenizers that put a space in front of every text: the ids of prompt and
//! response decode to the text of the row.

use mapl::data::show::{ShowOptions, render};
use mapl::data::tokenize::tokenize_rows;
use mapl::data::tokenized::TokenizedGroup;
use mapl::data::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::tokens::{TOKENIZER, changed, options, pair};

/// The character that SentencePiece uses for a space.
const MARK: &str = "\u{2581}";

/// A tokenizer of characters, with merges of "in" and of a space with "A". `prefix` adds the space
/// in front.
fn sentencepiece(prefix: &[(&str, Value)]) -> (tempfile::TempDir, Tokenizer) {
    let letters = ('a'..='z').chain(['A', 'N', '.']).map(String::from);
    let pieces = ["<unk>", "<s>", "</s>", MARK, "in", "\u{2581}A"].map(String::from).into_iter().chain(letters);
    let vocab: serde_json::Map<String, Value> = pieces.enumerate().map(|(id, piece)| (piece, json!(id))).collect();
    let added = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let mut tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": null, "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": MARK}, "content": " "}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": false, "vocab": vocab,
                  "merges": [["i", "n"], [MARK, "A"]]}
    });
    for (key, value) in prefix {
        tokenizer[*key] = value.clone();
    }
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, value: &Value| std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    write("tokenizer.json", &tokenizer);
    write("tokenizer_config.json", &json!({"bos_token": "<s>", "eos_token": "</s>"}));
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    (folder, tokenizer)
}

fn replace() -> Value {
    json!({"type": "Replace", "pattern": {"String": " "}, "content": MARK})
}

fn tokenizers() -> Vec<(tempfile::TempDir, Tokenizer)> {
    let prepend = json!({"type": "Prepend", "prepend": MARK});
    let normalizer = json!({"type": "Sequence", "normalizers": [prepend, replace()]});
    let metaspace =
        |scheme: &str| json!({"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": true});
    let older = json!({"type": "Metaspace", "replacement": MARK, "add_prefix_space": true});
    [
        ("normalizer", normalizer),
        ("pre_tokenizer", metaspace("always")),
        ("pre_tokenizer", metaspace("first")),
        ("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": [older]})),
    ]
    .map(|part| sentencepiece(&[part]))
    .into()
}

fn one(tokenizer: &Tokenizer, [prompt, chosen, rejected]: [&str; 3]) -> (TokenizedGroup, usize) {
    let settings = mapl::data::tokenize::TokenizeOptions { max_boundary_mismatch: 1.0, ..options() };
    let (mut groups, report) = tokenize_rows(vec![pair(prompt, chosen, rejected)], tokenizer, &settings).unwrap();
    (groups.remove(0), report.boundary_mismatches)
}

/// Text of a sequence's ids, without BOS and EOS tokens.
fn decoded(tokenizer: &Tokenizer, group: &TokenizedGroup, sequence: usize) -> String {
    let ids = [&group.prompt_ids[0][..], &group.sequences[sequence].response_ids].concat();
    let words: Vec<u32> =
        ids.into_iter().filter(|id| Some(*id) != tokenizer.bos_id() && !tokenizer.end_ids().contains(id)).collect();
    tokenizer.decode(&words).unwrap()
}

#[test]
fn a_response_gets_no_space_that_the_row_does_not_have() {
    for (_folder, tokenizer) in tokenizers() {
        // The boundary lies within a word, after a space of the prompt, and before a space of the response.
        for (texts, merged) in [
            (["extraordi", "nary", "na"], 2),
            (["Name a bird. ", "A wren.", "A bus."], 2),
            (["Name a bird.", " A wren.", " A bus."], 0),
        ] {
            let (group, mismatches) = one(&tokenizer, texts);
            assert_eq!(mismatches, merged, "{texts:?}");
            // The boundary stays at the end of the prompt.
            assert_eq!(group.prompt_ids[0], tokenizer.encode(texts[0], true).unwrap());
            for (i, answer) in texts[1..].iter().enumerate() {
                assert_eq!(decoded(&tokenizer, &group, i), format!("{}{answer}", texts[0]), "{texts:?}");
            }
        }
        // Without a merge the ids are those of the whole text.
        let (group, _) = one(&tokenizer, ["Name a bird.", " A wren.", " A bus."]);
        let whole = [&group.prompt_ids[0][..], &group.sequences[0].response_ids].concat();
        assert_eq!(whole, [tokenizer.encode("Name a bird. A wren.", true).unwrap(), vec![2]].concat());
        assert_eq!(tokenizer.encode_continuation("nary").unwrap().len(), 4);
        assert_eq!(tokenizer.encode("nary", false).unwrap().len(), 5);
    }
}

#[test]
fn byte_level_tokenizers_with_a_prefix_space_add_none_to_a_response() {
    let splitter = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
    let (_folder, tokenizer) = changed(&[("tokenizer.json", "pre_tokenizer", splitter)]);
    let tokenizer = tokenizer.unwrap();
    let (group, merged) = one(&tokenizer, ["Name the bir", "ds sing", " wren"]);
    assert_eq!((merged, decoded(&tokenizer, &group, 0)), (1, " Name the birds sing".to_owned()));
    // A tokenizer that adds no space encodes a response like any other text.
    let same =
        |text: &str| assert_eq!(TOKENIZER.encode_continuation(text).unwrap(), TOKENIZER.encode(text, false).unwrap());
    same("ds sing");
    same(" wren");
}

#[test]
fn data_show_prints_spaces_as_they_are_and_says_where_the_text_differs() {
    let shown =
        |tokenizer: &Tokenizer, texts| render(&one(tokenizer, texts).0, tokenizer, ShowOptions::default()).unwrap();
    for (_folder, tokenizer) in tokenizers() {
        let text = shown(&tokenizer, ["Name a bird.", " A wren.", "in."]);
        // The decoder drops the space at the start of a text, not the one at the start of a response.
        assert!(text.contains("Name a bird.[[ A wren.</s>]]") && text.contains("Name a bird.[[in.</s>]]"), "{text}");
        assert!(!text.contains("decode to a different text"), "{text}");
        let text = shown(&tokenizer, ["Name a bird.", " A wren!", " A bus."]);
        let line = "  the ids decode to a different text from the row's, starting at character 20: \"Name a bird. A \
                    wren<unk>\" instead of \"Name a bird. A wren!\"\n";
        assert_eq!(text.matches("decode to a different text").count(), 1, "{text}");
        assert!(text.contains(line), "{text}");
    }
    assert!(!shown(&TOKENIZER, ["Name the bir", "ds sing", " wren<|im_end|>"]).contains("a different text"));
    let (_folder, lower) = changed(&[("tokenizer.json", "normalizer", json!({"type": "Lowercase"}))]);
    let text = shown(&lower.unwrap(), ["the birds", " Wren", " owls"]);
    assert!(text.contains("starting at character 11: \"the birds wren\" instead of \"the birds Wren\""), "{text}");
}
