//! Trains a byte-level BPE tokenizer and writes it as a folder that transformers loads.
//!
//! The vocabulary holds the special tokens first, then all 256 bytes, then merges by decreasing
//! frequency. Every text can be encoded, so the vocabulary needs no unknown token. Equal texts in equal order
//! give equal files. Texts are split into words by Qwen2's rule, without a prefix space.

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, SplitDelimiterBehavior,
    TokenizerBuilder,
};

use super::super::template::{ChatTemplate, TEMPLATE_FILE};
use super::super::worker::Stage;
use super::super::worker::guard::guarded;
use super::{Engine, StoredFile, Tokenizer};
use crate::files::{json_text, write_new_files};
use crate::{Error, Result};

/// Special tokens of a new vocabulary, ids 0 to 3.
const SPECIAL_TOKENS: [&str; 4] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"];

/// EOS token of a turn and of a plain text.
const EOS: &str = "<|im_end|>";
const PAD: &str = "<|pad|>";

/// Chat template of a new tokenizer. The line break between two turns is rendered with the second turn, so a
/// response ends exactly with its EOS token.
const CHAT_TEMPLATE: &str = "\
{%- for turn in messages -%}
    {%- if not loop.first -%}{{ '\\n' }}{%- endif -%}
    {{ '<|im_start|>' ~ turn['role'] ~ '\\n' ~ turn['content'] ~ '<|im_end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '\\n<|im_start|>assistant\\n' }}{%- endif -%}
";

/// Pre-tokenizer pattern: contractions, words, single digits, punctuation, line ends. It is Qwen2's pattern
/// (transformers, `tokenization_qwen2.py`). For every folder of `model_type` qwen2, transformers 5 builds
/// that pattern and NFC normalisation, and keeps only vocabulary and merges of tokenizer.json. With a
/// different pattern here, transformers would tokenise text differently for a saved Qwen2 model.
const SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|",
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Maximum characters of a word of a training text. The regex library fails on runs of a few million spaces,
/// and the trainer's time grows with the square of a word's length.
const MAX_RUN: usize = 4096;

/// `model_max_length` of `tokenizer_config.json`; lengths are limited elsewhere.
const MODEL_MAX_LENGTH: u64 = 1 << 20;

/// Trains a byte-level BPE of at most `vocab_size` entries. The vocabulary is smaller if too few pairs of
/// tokens occur at least twice.
pub fn train_bpe<I>(texts: I, vocab_size: usize) -> Result<Tokenizer>
where
    I: Iterator<Item = String> + Send,
{
    let alphabet = ByteLevel::alphabet();
    let min_size = SPECIAL_TOKENS.len() + alphabet.len();
    if vocab_size < min_size {
        return Err(Error::Usage(format!(
            "a vocabulary of {vocab_size} is too small; use at least {min_size} for 256 bytes and {} special tokens",
            SPECIAL_TOKENS.len()
        )));
    }
    let fail = |e: tokenizers::Error| Error::Runtime(format!("training the tokenizer failed: {e}"));
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocab_size)
        .min_frequency(2)
        .initial_alphabet(alphabet.into_iter().collect())
        .special_tokens(SPECIAL_TOKENS.iter().map(|token| AddedToken::from(*token, true)).collect())
        .build();
    let byte_level = ByteLevel::new(false, true, false);
    let split = Split::new(SplitPattern::Regex(SPLIT.into()), SplitDelimiterBehavior::Isolated, false).map_err(fail)?;
    let words = Sequence::new(vec![split.into(), byte_level.into()]);
    let mut tokenizer =
        TokenizerBuilder::<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>::new()
            .with_model(BPE::default())
            .with_normalizer(Some(NFC.into()))
            .with_pre_tokenizer(Some(words.into()))
            .with_post_processor(None)
            .with_decoder(Some(byte_level.into()))
            .build()
            .map_err(fail)?;
    let pieces = texts.flat_map(|text| pieces(&text));
    guarded(Stage::Other, || tokenizer.train(&mut trainer, pieces).map(|_| ()))
        .map_err(|why| Error::Runtime(format!("training the tokenizer failed: {why}")))?
        .map_err(fail)?;
    let config = new_config();
    let config = config.as_object().cloned().unwrap_or_default();
    let mut tokenizer = Tokenizer::build(tokenizer.into(), None, &config, &serde_json::Map::new(), Vec::new())?;
    let template = ChatTemplate::compile(CHAT_TEMPLATE, tokenizer.tokens.clone());
    tokenizer.template = Some(template.map_err(|why| Error::Runtime(format!("the built-in chat template {why}")))?);
    Ok(tokenizer)
}

/// Cuts a text so that no piece has more than [`MAX_RUN`] consecutive characters of white space, or of other
/// characters.
fn pieces(text: &str) -> Vec<String> {
    let (mut out, mut start, mut run, mut space) = (Vec::new(), 0, 0, false);
    for (at, c) in text.char_indices() {
        if c.is_whitespace() != space {
            (space, run) = (!space, 0);
        }
        if run == MAX_RUN {
            out.push(text[start..at].to_owned());
            (start, run) = (at, 0);
        }
        run += 1;
    }
    out.push(text[start..].to_owned());
    out
}

/// `tokenizer_config.json` of a new tokenizer.
fn new_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MODEL_MAX_LENGTH,
        "clean_up_tokenization_spaces": false,
        "eos_token": EOS,
        "pad_token": PAD,
    })
}

impl Tokenizer {
    /// Writes a trained tokenizer to a folder that transformers can load, and makes it the folder of `self`.
    /// A failure leaves no file. A loaded tokenizer is copied byte for byte with [`Tokenizer::copy_to`]
    /// instead.
    pub fn save_new(&mut self, dir: &Path) -> Result<()> {
        if let Some(own) = &self.dir {
            return Err(Error::Runtime(format!(
                "the tokenizer was loaded from {}; copy its files instead of writing new ones",
                own.display()
            )));
        }
        let Engine::Here(inner) = &self.engine else {
            return Err(Error::Runtime(
                "only a tokenizer that was trained in this process is saved as a new one".into(),
            ));
        };
        let json = inner.to_string(false).map_err(|e| Error::Runtime(format!("cannot write the tokenizer: {e}")))?;
        let map = json!({ "eos_token": EOS, "pad_token": PAD });
        // tokenizer.json is last, because a folder without it is not a tokenizer.
        let texts = [
            (TEMPLATE_FILE, CHAT_TEMPLATE.to_owned()),
            ("special_tokens_map.json", json_text(&map)),
            ("tokenizer_config.json", json_text(&new_config())),
            ("tokenizer.json", json),
        ];
        write_new_files(dir, &texts.each_ref().map(|(name, text)| (*name, text.as_bytes())))?;
        let stored = |(name, text): (&str, String)| StoredFile { path: dir.join(name), bytes: text.into_bytes() };
        self.files = texts.into_iter().rev().map(stored).collect();
        self.dir = Some(dir.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::group::Message;
    use super::*;

    fn texts() -> impl Iterator<Item = String> + Send {
        (0..400).map(|i| format!("the {} birds of row {i} sing, and the {} cats listen", i % 7, i % 5))
    }

    #[test]
    fn equal_texts_give_equal_files_and_any_text_round_trips() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for dir in &dirs {
            train_bpe(texts(), 280).unwrap().save_new(dir.path()).unwrap();
        }
        let loaded = Tokenizer::load(dirs[0].path()).unwrap();
        for file in loaded.files() {
            let name = file.path.file_name().unwrap();
            assert_eq!(file.bytes, std::fs::read(dirs[1].path().join(name)).unwrap());
        }
        assert_eq!(loaded.files().len(), 4);
        assert_eq!(loaded.vocab_size(), 280);
        for text in ["the birds", " spaces  and\nlines\t", "größer 漢字 🙂", "\u{0}\u{7f}"] {
            assert_eq!(loaded.decode(&loaded.encode(text, true).unwrap()).unwrap(), text);
        }
        // Qwen2's rule: every digit is a separate word, and decomposed letters are composed first.
        assert_eq!(loaded.encode("2024", true).unwrap().len(), 4);
        assert_eq!(loaded.encode("e\u{301}", true).unwrap(), loaded.encode("\u{e9}", true).unwrap());
        assert_eq!(loaded.end_ids(), [2]);
        assert_eq!((loaded.bos_id(), loaded.pad_id()), (None, Some(3)));
    }

    #[test]
    fn endless_words_are_cut_and_ordinary_texts_are_not() {
        let ordinary = "two words, größer 漢字  ".repeat(9000);
        assert_eq!(pieces(&ordinary), std::slice::from_ref(&ordinary));
        for long in [" ".repeat(3 * MAX_RUN + 1), "é".repeat(3 * MAX_RUN + 1)] {
            assert_eq!(pieces(&long).len(), 4);
            assert_eq!(pieces(&long).concat(), long);
        }
    }

    #[test]
    fn a_failed_save_leaves_neither_a_file_nor_a_temporary() {
        let folder = tempfile::tempdir().unwrap();
        // A folder already has the name of the last file, so the last rename fails after three files have been
        // renamed.
        let dir = folder.path().join("tok");
        std::fs::create_dir_all(dir.join("tokenizer.json/held")).unwrap();
        assert_eq!(train_bpe(texts(), 280).unwrap().save_new(&dir).unwrap_err().exit_code(), 1);
        assert_eq!(crate::files::entries(&dir).unwrap(), [dir.join("tokenizer.json")]);
    }

    #[test]
    fn racing_saves_leave_one_complete_tokenizer() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for size in [280, 290, 300] {
                let dir = folder.path();
                scope.spawn(move || train_bpe(texts(), size).unwrap().save_new(dir).unwrap());
            }
        });
        assert!([280, 290, 300].contains(&Tokenizer::load(folder.path()).unwrap().vocab_size()));
        assert_eq!(crate::files::entries(folder.path()).unwrap().len(), 4);
    }

    #[test]
    fn the_chat_template_ends_a_response_with_its_end_token() {
        let tokenizer = train_bpe(texts(), 300).unwrap();
        let turn = |role: &str, content: &str| Message::new(role, content);
        let turns = [turn("user", "hi"), turn("assistant", "yes")];
        let render = |turns: &[Message], open| tokenizer.template().unwrap().render(turns, open, None, None).unwrap();
        assert_eq!(render(&turns[..1], true), "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
        assert_eq!(render(&turns, false), render(&turns[..1], true) + "yes<|im_end|>");
    }

    #[test]
    fn a_vocabulary_without_room_for_the_bytes_is_refused() {
        assert_eq!(train_bpe(texts(), 259).unwrap_err().exit_code(), 2);
        assert!(train_bpe(texts(), 260).is_ok());
    }
}
