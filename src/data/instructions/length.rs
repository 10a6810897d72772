//! IFEval family `length_constraints`: number of words, of sentences, and of paragraphs separated by `***`;
//! first word of a paragraph, with paragraphs separated by blank lines.

use std::sync::LazyLock;

use regex::Regex;

use super::analysis::compile;
use super::quantity::{bound, draw_exact, draw_two_sided, meets};
use super::wording::{noun, pick, relation};
use super::{Analysis, Function, FunctionKind, Kwargs, Request, count_argument, kwargs, text_argument};
use crate::rng::Rng;

pub(super) static FUNCTIONS: [Function; 4] = [
    Function {
        id: "length_constraints:number_words",
        kind: FunctionKind::TwoSided,
        approximate: false,
        triggers: &["word", "words", "length", "characters", "short", "brief", "briefly", "concise"],
        draw: |request, rng| draw_two_sided(request, rng, WORDS, |r| r.word_count()),
        phrase: words_phrase,
        check: |kwargs, response| meets(kwargs, WORDS, response.word_count()),
    },
    Function {
        id: "length_constraints:number_sentences",
        kind: FunctionKind::TwoSided,
        approximate: true,
        triggers: &["sentence", "sentences"],
        draw: |request, rng| draw_two_sided(request, rng, SENTENCES, |r| r.sentence_count()),
        phrase: sentences_phrase,
        check: |kwargs, response| meets(kwargs, SENTENCES, response.sentence_count()),
    },
    Function {
        id: "length_constraints:number_paragraphs",
        kind: FunctionKind::Exact,
        approximate: false,
        triggers: &["paragraph", "paragraphs", "verse", "verses", "stanza", "stanzas"],
        draw: |request, rng| {
            let divided = |r: &Analysis| divided_paragraphs(r.text()).unwrap_or(0);
            Some(kwargs([("num_paragraphs", draw_exact(request, rng, divided)?.into())]))
        },
        phrase: paragraphs_phrase,
        check: |kwargs, response| {
            let wanted = count_argument(kwargs, "num_paragraphs")?;
            Some(divided_paragraphs(response.text()) == Some(wanted))
        },
    },
    Function {
        id: "length_constraints:nth_paragraph_first_word",
        kind: FunctionKind::Exact,
        approximate: false,
        triggers: &["paragraph", "paragraphs", "verse", "verses", "stanza", "stanzas", "begin with", "start with"],
        draw: draw_nth_paragraph,
        phrase: nth_paragraph_phrase,
        check: |kwargs, response| {
            let (count, nth) = (count_argument(kwargs, "num_paragraphs")?, count_argument(kwargs, "nth_paragraph")?);
            let word = text_argument(kwargs, "first_word")?.to_lowercase();
            // Paragraphs are numbered from 1.
            let nth = nth.checked_sub(1)?;
            let blocks = Blocks::of(response.text());
            Some(nth < blocks.filled && blocks.filled == count && blocks.first_word(nth).as_deref() == Some(&*word))
        },
    },
];

const WORDS: [&str; 2] = ["num_words", "relation"];
const SENTENCES: [&str; 2] = ["num_sentences", "relation"];

fn words_phrase(kwargs: &Kwargs, variant: usize) -> Option<String> {
    let (n, r) = bound(kwargs, WORDS)?;
    let (r, words) = (relation(r, variant / 4), noun(n, "word", "words"));
    pick(
        variant,
        [
            format!("Use {r} {n} {words}."),
            format!("Answer with {r} {n} {words}."),
            format!("Your answer should have {r} {n} {words}."),
            format!("Write {r} {n} {words}."),
        ],
    )
}

fn sentences_phrase(kwargs: &Kwargs, variant: usize) -> Option<String> {
    let (n, r) = bound(kwargs, SENTENCES)?;
    let (r, sentences) = (relation(r, variant / 3), noun(n, "sentence", "sentences"));
    pick(
        variant,
        [
            format!("Write {r} {n} {sentences}."),
            format!("Your answer should consist of {r} {n} {sentences}."),
            format!("Answer in {r} {n} {sentences}."),
        ],
    )
}

/// Number of paragraphs separated by `***`. `None` if a paragraph between two dividers is empty, because such a
/// text satisfies no required number.
fn divided_paragraphs(text: &str) -> Option<usize> {
    static DIVIDER: LazyLock<Regex> = LazyLock::new(|| compile(r"\s?\*\*\*\s?"));
    let parts: Vec<&str> = DIVIDER.split(text).collect();
    let empty = |part: &&str| part.trim().is_empty();
    if parts.len() > 2 && parts[1..parts.len() - 1].iter().any(empty) {
        return None;
    }
    Some(parts.iter().filter(|part| !empty(part)).count())
}

fn paragraphs_phrase(kwargs: &Kwargs, variant: usize) -> Option<String> {
    let n = count_argument(kwargs, "num_paragraphs")?;
    let (paragraphs, part) = (noun(n, "paragraph", "paragraphs"), noun(n, "part", "parts"));
    pick(
        variant,
        [
            format!("Write exactly {n} {paragraphs}, with the divider *** between paragraphs."),
            format!("Split the answer into {n} {part} with the divider ***."),
            format!("Your answer must have {n} {paragraphs}; separate paragraphs with ***."),
        ],
    )
}

/// Blocks of a text separated by blank lines. `blocks` includes empty blocks; `filled` does not
/// count them.
struct Blocks<'a> {
    blocks: Vec<&'a str>,
    filled: usize,
}

impl<'a> Blocks<'a> {
    fn of(text: &'a str) -> Self {
        let blocks: Vec<&str> = text.split("\n\n").collect();
        let filled = blocks.iter().filter(|b| !b.trim().is_empty()).count();
        Self { blocks, filled }
    }

    /// First word of block `index` in lower case, without leading quotes and cut at the first
    /// punctuation mark; `None` for an empty block.
    fn first_word(&self, index: usize) -> Option<String> {
        let word = self.blocks.get(index)?.split_whitespace().next()?;
        let word = word.trim_start_matches('\'').trim_start_matches('"');
        let end = word.find(['.', ',', '?', '!', '\'', '"']).unwrap_or(word.len());
        Some(word[..end].to_lowercase())
    }

    /// Draws a paragraph with a purely alphabetic first word. Returns the paragraph's number, counted from 1,
    /// and the word.
    fn opening(&self, rng: &mut Rng) -> Option<(usize, String)> {
        let plain = |w: &String| !w.is_empty() && w.chars().all(char::is_alphabetic);
        let openings: Vec<(usize, String)> =
            (0..self.filled).filter_map(|i| Some((i + 1, self.first_word(i).filter(plain)?))).collect();
        rng.choose(&openings).cloned()
    }
}

/// Draws the number of paragraphs and an opening word from a satisfying response. Without one, draws them from
/// a response without a flag, or from a violating response with a different number of paragraphs.
fn draw_nth_paragraph(request: &Request, rng: &mut Rng) -> Option<Kwargs> {
    let arguments = |count: usize, (nth, word): (usize, String)| {
        kwargs([("num_paragraphs", count.into()), ("nth_paragraph", nth.into()), ("first_word", word.into())])
    };
    let own = |response: &Analysis, rng: &mut Rng| {
        let blocks = Blocks::of(response.text());
        Some(arguments(blocks.filled, blocks.opening(rng)?))
    };
    if let Some(satisfied) = request.satisfied().next() {
        return own(satisfied, rng);
    }
    let function = &FUNCTIONS[3];
    for free in request.free() {
        if let Some(drawn) = own(free, rng)
            && request.violated().all(|r| function.check(&drawn, r) == Some(false))
        {
            return Some(drawn);
        }
    }
    let blocks = Blocks::of(request.violated().next()?.text());
    let (nth, word) = blocks.opening(rng).unwrap_or_else(|| (1, "the".to_owned()));
    let counts: Vec<usize> = (nth..=blocks.filled + 3).filter(|&n| n != blocks.filled).collect();
    Some(arguments(*rng.choose(&counts)?, (nth, word)))
}

fn nth_paragraph_phrase(kwargs: &Kwargs, variant: usize) -> Option<String> {
    let (n, nth) = (count_argument(kwargs, "num_paragraphs")?, count_argument(kwargs, "nth_paragraph")?);
    let word = text_argument(kwargs, "first_word")?;
    if n == 1 {
        return pick(
            variant,
            [
                format!("Write one paragraph without a blank line in it, and begin it with \"{word}\"."),
                format!("Use exactly 1 paragraph, free of blank lines; it starts with the word {word}."),
                format!("Give a single paragraph, no blank lines in it, that opens with the word {word}."),
            ],
        );
    }
    pick(
        variant,
        [
            format!("Write {n} paragraphs with a blank line between them, and begin paragraph {nth} with \"{word}\"."),
            format!(
                "Use exactly {n} paragraphs set apart by blank lines; paragraph {nth} starts with the word {word}."
            ),
            format!("Give {n} paragraphs, blank lines between them, where paragraph {nth} opens with the word {word}."),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divided_paragraphs_ignore_empty_ends_and_refuse_empty_middles() {
        assert_eq!(divided_paragraphs("a\n***\nb"), Some(2));
        assert_eq!(divided_paragraphs("*** a *** b ***"), Some(2));
        assert_eq!(divided_paragraphs("a *** *** b"), None);
        assert_eq!(divided_paragraphs(""), Some(0));
        assert_eq!(divided_paragraphs("a\r\n***\r\nb"), Some(2));
    }

    #[test]
    fn nth_paragraph_needs_both_the_number_and_the_word() {
        let check = |n: usize, nth: usize, word: &str, text: &str| {
            let args = [("num_paragraphs", n.into()), ("nth_paragraph", nth.into()), ("first_word", word.into())];
            FUNCTIONS[3].check(&kwargs(args), &Analysis::new(text))
        };
        let text = "One, two.\n\n\"Then three.\n\n";
        assert_eq!(check(2, 2, "Then", text), Some(true));
        assert_eq!(check(2, 1, "one", text), Some(true));
        assert_eq!(check(3, 2, "then", text), Some(false));
        assert_eq!(check(2, 2, "than", text), Some(false));
        assert_eq!(check(2, 3, "then", text), Some(false));
        assert_eq!(check(2, 0, "one", text), None);
    }

    #[test]
    fn texts_of_the_worked_example() {
        let words = |n: usize, r: &str| kwargs([("num_words", n.into()), ("relation", r.into())]);
        let phrases: Vec<_> = [words(25, "at least"), words(29, "less than")]
            .iter()
            .map(|args| FUNCTIONS[0].phrase(args, 0).unwrap())
            .collect();
        assert_eq!(phrases, ["Use at least 25 words.", "Use less than 29 words."]);
    }
}
