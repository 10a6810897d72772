//! Sentences as NLTK's Punkt splits English text (Kiss and Strunk 2006), with NLTK's English
//! parameters.
//!
//! ```text
//! for every '.', '?' or '!' before a closing mark or white space (a candidate):
//!     context = the word before it, itself, and the next word or mark
//!     a full stop ends a sentence unless its word is an abbreviation
//!     then corrected: collocations; abbreviations and dots before a typical first word;
//!         initials and numbers before a word that does not start sentences
//! closing quotes and brackets after a break move to the sentence before it
//! ```
//!
//! Candidates without white space between them share a context, and only the last one counts.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use super::tables::unpack;

/// Orthographic evidence on a word that occurs in lower case in the training text of Punkt.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Lower {
    /// Also seen in upper case within a sentence.
    Seen,
    /// Never seen in upper case within a sentence.
    StartsInUpper,
    /// Seen in lower case at the start of sentences, and never in upper case.
    NeverUpper,
}

struct Parameters {
    abbreviations: HashSet<String>,
    collocations: HashSet<(String, String)>,
    starters: HashSet<String>,
    lower: HashMap<String, Lower>,
}

static PARAMETERS: LazyLock<Parameters> = LazyLock::new(|| {
    let data = unpack(include_bytes!("tables/punkt.xz"));
    let text = String::from_utf8(data).expect("the committed table is text");
    let mut lines = text.split('\n');
    let mut list = || lines.next().unwrap_or_default().split('\t').map(str::to_owned).collect::<Vec<_>>();
    let (abbreviations, pairs, starters) = (list(), list(), list());
    let mut lower = HashMap::new();
    for kind in [Lower::Seen, Lower::StartsInUpper, Lower::NeverUpper] {
        lower.extend(list().into_iter().map(|word| (word, kind)));
    }
    Parameters {
        abbreviations: abbreviations.into_iter().collect(),
        collocations: pairs.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect(),
        starters: starters.into_iter().collect(),
        lower,
    }
});

/// Returns the sentences of a text, without white space around them.
pub(super) fn sentences(text: &str) -> Vec<&str> {
    let mut slices = Vec::new();
    let mut start = 0;
    for candidate in candidates(text) {
        if breaks(&text[candidate.context.clone()]) {
            slices.push(start..candidate.end);
            start = candidate.next.unwrap_or(candidate.end);
        }
    }
    slices.push(start..text.trim_end().len());
    realigned(text, &slices)
}

/// A punctuation mark that may end a sentence.
struct Candidate {
    /// Byte offset after the mark.
    end: usize,
    /// Byte range from the word before the mark to the mark or word after it.
    context: Range<usize>,
    /// Start of the next word, if white space follows the mark.
    next: Option<usize>,
}

fn is_closing(c: char) -> bool {
    matches!(
        c,
        ')' | '"'
            | ';'
            | '}'
            | ']'
            | '*'
            | ':'
            | '@'
            | '\''
            | '('
            | '{'
            | '['
            | '‘'
            | '’'
            | '“'
            | '”'
            | '«'
            | '»'
            | '?'
            | '!'
    )
}

/// Python's `string.whitespace`.
fn is_ascii_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0B | 0x0C)
}

fn candidates(text: &str) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    // Byte range of the word before the previous mark.
    let mut word = 0..0;
    for (at, _) in text.match_indices(['.', '?', '!']) {
        let end = at + 1;
        let after = &text[end..];
        let (context_end, next) = match after.chars().next() {
            Some(c) if is_closing(c) => (end + c.len_utf8(), None),
            Some(c) if c.is_whitespace() => {
                let next = after.trim_start();
                if next.is_empty() {
                    continue;
                }
                let start = text.len() - next.len();
                let length = next.find(char::is_whitespace).unwrap_or(next.len());
                (start + length, Some(start))
            }
            _ => continue,
        };
        let between = &text.as_bytes()[word.end..at];
        let start = match between.iter().rposition(|&byte| is_ascii_space(byte)) {
            // As in NLTK, white space at the first byte of the text is overlooked. (Later, position 0 is the
            // previous mark.)
            Some(space) if space > 0 => word.end + space + 1,
            _ => word.start,
        };
        // Without white space in between, the earlier candidate is part of this context and is dropped.
        if start < word.end {
            found.pop();
        }
        word = start..at;
        found.push(Candidate { end, context: start..context_end, next });
    }
    found
}

/// A word of a context.
struct Token {
    text: String,
    /// The text in lower case, or `##number##` for a number.
    kind: String,
    ends_sentence: bool,
    is_abbreviation: bool,
    is_ellipsis: bool,
}

impl Token {
    fn new(text: &str, parameters: &Parameters) -> Self {
        static NUMBER: LazyLock<Regex> = LazyLock::new(|| pattern(r"^-?[.,]?\d[\d,.-]*\.?$"));
        let lower = text.to_lowercase();
        let kind = if NUMBER.is_match(&lower) { "##number##".to_owned() } else { lower };
        let mut token =
            Self { text: text.to_owned(), kind, ends_sentence: false, is_abbreviation: false, is_ellipsis: false };
        if matches!(text, "." | "?" | "!") {
            token.ends_sentence = true;
        } else if text.len() > 1 && text.bytes().all(|byte| byte == b'.') {
            token.is_ellipsis = true;
        } else if let Some(word) = text.strip_suffix('.').filter(|word| !word.ends_with('.')) {
            let word = word.to_lowercase();
            let last = word.rsplit('-').next().unwrap_or(&word);
            token.is_abbreviation = [&word, last].iter().any(|word| parameters.abbreviations.contains(*word));
            token.ends_sentence = !token.is_abbreviation;
        }
        token
    }

    fn kind_without_stop(&self) -> &str {
        self.kind.strip_suffix('.').filter(|kind| !kind.is_empty()).unwrap_or(&self.kind)
    }

    /// The kind without a full stop that ends the sentence.
    fn word(&self) -> &str {
        if self.ends_sentence { self.kind_without_stop() } else { &self.kind }
    }

    fn is_initial(&self) -> bool {
        static INITIAL: LazyLock<Regex> = LazyLock::new(|| pattern(r"^[\w&&\D]\.$"));
        INITIAL.is_match(&self.text)
    }

    fn starts_upper(&self) -> bool {
        self.text.starts_with(char::is_uppercase)
    }

    /// Whether spelling says that this word starts a sentence; `None` if undecided.
    fn starts_sentence(&self, parameters: &Parameters) -> Option<bool> {
        if matches!(&*self.text, ";" | ":" | "," | "." | "!" | "?") {
            return Some(false);
        }
        let lower = parameters.lower.get(self.word()).copied();
        if self.starts_upper() && lower >= Some(Lower::StartsInUpper) {
            return Some(true);
        }
        (self.text.starts_with(char::is_lowercase) && lower != Some(Lower::NeverUpper)).then_some(false)
    }

    /// Corrects the decisions of [`Token::new`] with the help of the next word.
    fn correct(&mut self, next: &Token, parameters: &Parameters) {
        if !self.text.ends_with('.') {
            return;
        }
        let initial = self.is_initial();
        if parameters.collocations.contains(&(self.kind_without_stop().to_owned(), next.word().to_owned())) {
            (self.ends_sentence, self.is_abbreviation) = (false, true);
            return;
        }
        if (self.is_abbreviation || self.is_ellipsis)
            && !initial
            && (next.starts_sentence(parameters) == Some(true)
                || (next.starts_upper() && parameters.starters.contains(next.word())))
        {
            self.ends_sentence = true;
            return;
        }
        if initial || self.kind_without_stop() == "##number##" {
            let starts = next.starts_sentence(parameters);
            let name = initial && next.starts_upper() && !parameters.lower.contains_key(next.word());
            if starts == Some(false) || (starts.is_none() && name) {
                (self.ends_sentence, self.is_abbreviation) = (false, true);
            }
        }
    }
}

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is constant and valid")
}

/// Whether a sentence ends in a context before its last word.
fn breaks(context: &str) -> bool {
    let parameters = &*PARAMETERS;
    let words = context.split('\n').flat_map(words);
    let mut tokens = words.map(|word| Token::new(word, parameters));
    let Some(mut token) = tokens.next() else { return false };
    for next in tokens {
        token.correct(&next, parameters);
        if token.ends_sentence {
            return true;
        }
        token = next;
    }
    false
}

/// Words of a line, split from punctuation other than full stops.
fn words(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(c) = line[at..].chars().next() {
        let rest = &line[at..];
        let length = if let Some(run) = run_of_marks(rest) {
            run
        } else if c.is_whitespace() {
            at += c.len_utf8();
            continue;
        } else if matches!(
            c,
            '(' | '"' | '`' | '{' | '[' | ':' | ';' | '&' | '#' | '*' | '@' | ')' | '}' | ']' | '-' | ','
        ) {
            c.len_utf8()
        } else {
            let inner = rest.char_indices().skip(1).map(|(place, _)| place);
            inner.into_iter().find(|&place| ends_word(&rest[place..])).unwrap_or(rest.len())
        };
        found.push(&rest[..length]);
        at += length;
    }
    found
}

/// Length of a run of hyphens or full stops, or of full stops with white space between them.
fn run_of_marks(text: &str) -> Option<usize> {
    for mark in ['-', '.'] {
        let length = text.len() - text.trim_start_matches(mark).len();
        if length > 1 {
            return Some(length);
        }
    }
    let (mut length, mut stops) = (0, 0);
    let mut rest = text;
    while let Some(after) = rest.strip_prefix('.') {
        (length, stops) = (text.len() - after.len(), stops + 1);
        let mut chars = after.chars();
        if !chars.next().is_some_and(char::is_whitespace) {
            break;
        }
        rest = chars.as_str();
    }
    (stops >= 3).then_some(length)
}

fn ends_word(rest: &str) -> bool {
    let ends = |c: char, rest: &str| c.is_whitespace() || is_closing(c) || run_of_marks(rest).is_some();
    let mut chars = rest.chars();
    match chars.next() {
        None => true,
        Some(',') => chars.as_str().chars().next().is_none_or(|c| ends(c, chars.as_str())),
        Some(c) => ends(c, rest),
    }
}

/// Moves closing marks at the start of a sentence to the sentence before it.
fn realigned<'a>(text: &'a str, slices: &[Range<usize>]) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut moved = 0;
    for (i, slice) in slices.iter().enumerate() {
        let start = slice.start + moved;
        let next = slices.get(i + 1);
        match next.and_then(|next| closing_length(text.get(next.clone()).unwrap_or_default())) {
            Some((marks, with_space)) => {
                let next = slices[i + 1].start;
                found.push(&text[start..next + marks]);
                moved = with_space;
            }
            None => {
                moved = 0;
                if start < slice.end {
                    found.push(&text[start..slice.end]);
                }
            }
        }
    }
    found
}

/// Bytes of the closing marks that a sentence starts with, without and with the white space after
/// them; `None` if text follows them directly.
fn closing_length(sentence: &str) -> Option<(usize, usize)> {
    let closing = ['"', '\'', ')', ']', '}', '‘', '’', '“', '”', '«', '»'];
    let rest = sentence.trim_start_matches(closing);
    let marks = sentence.len() - rest.len();
    let ends = rest.is_empty() || rest.starts_with("--") || rest.starts_with(char::is_whitespace);
    (marks > 0 && ends).then(|| (marks, sentence.len() - rest.trim_start().len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_those_of_punkt() {
        for (text, expected) in [
            ("", vec![]),
            ("  \n ", vec![]),
            ("One. Two.", vec!["One.", "Two."]),
            (
                "Mr. Smith paid 3.50 at 5 p.m. on Monday. He left.",
                vec!["Mr. Smith paid 3.50 at 5 p.m. on Monday.", "He left."],
            ),
            ("(One.) Two", vec!["(One.)", "Two"]),
            (
                "He said \"No!\" and left... Then J. Bach came.",
                vec!["He said \"No!\"", "and left... Then J. Bach came."],
            ),
            ("Very bad acting!!! I promise.", vec!["Very bad acting!!!", "I promise."]),
            ("A list:\n1. One\n2. Two", vec!["A list:\n1.", "One\n2.", "Two"]),
            (". . . .", vec![".", ".", ".", "."]),
            ("?!?!?!", vec!["?", "!?!?", "!"]),
            (" a. b", vec![" a. b"]),
        ] {
            assert_eq!(sentences(text), expected, "{text}");
        }
    }

    /// The time is linear in the text; with quadratic time, this test would run for hours.
    #[test]
    fn long_texts_are_split() {
        assert_eq!(sentences(&"aa bb. ".repeat(1 << 18)).len(), 1 << 18);
        assert_eq!(sentences(&"?!".repeat(1 << 20)).len(), 3);
        assert_eq!(sentences(&"w".repeat(1 << 22)).len(), 1);
        assert_eq!(sentences(&". ".repeat(1 << 18)).len(), 1 << 18);
    }
}
