//! Measurements of one text for the checkers, computed on first use and cached, because many
//! instructions check the same response. Words are matches of `\w+`, as in the NLTK tokenizer of IFEval: runs
//! of letters, combining marks, digits and connectors such as the underscore. Sentences and words in capitals
//! follow this project's own rules and only approximate IFEval's, which uses NLTK.
//!
//! Time and memory are linear in the text: words are stored as ranges of the text, 8 bytes each.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;
use unicode_segmentation::UnicodeSegmentation;

use super::stop_words::is_stop_word;

// NLTK compiles its patterns with Python's `regex` module, whose `\w` follows Unicode, as in the regex crate:
// it includes combining marks and excludes fractions and superscript digits.
static WORD: LazyLock<Regex> = LazyLock::new(|| compile(r"\w+"));

// IFEval looks for forbidden words with Python's `re`, whose `\w` matches letters and numbers but no
// combining marks.
static WORD_CHAR: LazyLock<Regex> = LazyLock::new(|| compile(r"[\p{L}\p{N}_]"));

/// Compiles a constant pattern.
pub(super) fn compile(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is constant and valid")
}

/// One text with cached measurements.
pub struct Analysis<'a> {
    text: &'a str,
    lower: OnceCell<String>,
    word_count: OnceCell<usize>,
    /// Distinct words, sorted.
    distinct: OnceCell<Vec<Span>>,
    content_words: OnceCell<Vec<Span>>,
    sentences: OnceCell<usize>,
    capital_words: OnceCell<usize>,
    letters: OnceCell<BTreeMap<char, usize>>,
}

impl<'a> Analysis<'a> {
    /// Creates an analysis without computing any measurement.
    pub fn new(text: &'a str) -> Self {
        Self {
            text,
            lower: OnceCell::new(),
            word_count: OnceCell::new(),
            distinct: OnceCell::new(),
            content_words: OnceCell::new(),
            sentences: OnceCell::new(),
            capital_words: OnceCell::new(),
            letters: OnceCell::new(),
        }
    }

    /// Returns the text.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// Returns the text in lower case.
    pub(super) fn lower(&self) -> &str {
        self.lower.get_or_init(|| self.text.to_lowercase())
    }

    /// Number of words.
    pub fn word_count(&self) -> usize {
        *self.word_count.get_or_init(|| self.words().count())
    }

    /// Returns the words in lower case, in order.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        WORD.find_iter(self.lower()).map(|found| found.as_str())
    }

    /// Returns the distinct content words in order of first occurrence. A content word consists of at least
    /// four letters or marks and is not a stop word. A text without such words yields words of at least two
    /// letters or marks, so that languages with short words have content words too.
    pub(super) fn content_words(&self) -> impl Iterator<Item = &str> {
        let spans = self.content_words.get_or_init(|| {
            let at_least = |length: usize| {
                let letters = |c: char| c.is_alphabetic() || !(c.is_numeric() || c == '_');
                let fits = |w: &str| w.chars().nth(length - 1).is_some() && w.chars().all(letters) && !is_stop_word(w);
                let mut spans = self.distinct_words(fits);
                spans.sort_unstable_by_key(|span| span.start);
                spans
            };
            let long = at_least(4);
            if long.is_empty() { at_least(2) } else { long }
        });
        spans.iter().map(|span| self.word(*span))
    }

    /// True if `word`, given in lower case, is one of the words.
    pub(super) fn has_word(&self, word: &str) -> bool {
        let distinct = self.distinct.get_or_init(|| self.distinct_words(|_| true));
        distinct.binary_search_by(|span| self.word(*span).cmp(word)).is_ok()
    }

    fn word(&self, span: Span) -> &str {
        &self.lower()[span.range()]
    }

    /// Returns the first occurrences of the distinct words that pass `fits`, sorted by word.
    fn distinct_words(&self, fits: impl Fn(&str) -> bool) -> Vec<Span> {
        let reduce = |spans: &mut Vec<Span>| {
            spans.sort_unstable_by(|a, b| self.word(*a).cmp(self.word(*b)).then(a.start.cmp(&b.start)));
            spans.dedup_by(|a, b| self.word(*a) == self.word(*b));
        };
        let words = WORD.find_iter(self.lower()).filter(|found| fits(found.as_str()));
        let (mut spans, mut limit): (Vec<Span>, usize) = (Vec::new(), 1 << 12);
        for span in words.filter_map(|found| Span::new(found.range())) {
            spans.push(span);
            // Repeated words are removed during the scan, so that memory grows only with the number of distinct words.
            if spans.len() >= limit {
                reduce(&mut spans);
                limit = limit.max(2 * spans.len());
            }
        }
        reduce(&mut spans);
        spans
    }

    /// True if `keyword` occurs anywhere, ignoring case (IFEval's `keywords:existence`).
    pub(super) fn contains(&self, keyword: &str) -> bool {
        self.lower().contains(&keyword.to_lowercase())
    }

    /// Number of non-overlapping occurrences of `keyword`, ignoring case (`keywords:frequency`).
    pub(super) fn occurrences(&self, keyword: &str) -> usize {
        if keyword.is_empty() { 0 } else { self.lower().matches(&keyword.to_lowercase()).count() }
    }

    /// True if `phrase` occurs between word boundaries, ignoring case (`keywords:forbidden_words`).
    /// At a boundary exactly one of the two neighbours is a word character, as in the regular
    /// expression `\b`.
    pub(super) fn contains_whole(&self, phrase: &str) -> bool {
        contains_whole(self.lower(), &phrase.to_lowercase())
    }

    /// Number of sentences. A sentence contains a letter or digit. It ends with `.`, `!`, `?` or an
    /// equivalent in another script, a blank line, or the end of the text. Abbreviations, initials
    /// and list numbers do not end a sentence.
    pub fn sentence_count(&self) -> usize {
        *self.sentences.get_or_init(|| count_sentences(self.text))
    }

    /// Number of words in capitals. A hyphenated word counts once; `I` and `A` count.
    pub fn capital_word_count(&self) -> usize {
        *self.capital_words.get_or_init(|| {
            let inside = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '&');
            let pieces = self.text.split(|c: char| !inside(c));
            pieces.filter(|piece| is_upper(piece)).count()
        })
    }

    /// Returns the number of occurrences of each character in the lower-case text.
    pub(super) fn letters(&self) -> &BTreeMap<char, usize> {
        self.letters.get_or_init(|| {
            let mut letters = BTreeMap::new();
            for c in self.lower().chars() {
                *letters.entry(c).or_insert(0) += 1;
            }
            letters
        })
    }

    /// Number of occurrences of `letter`, given in lower case.
    pub(super) fn letter_count(&self, letter: char) -> usize {
        self.letters().get(&letter).copied().unwrap_or(0)
    }
}

/// Byte range of a word in the lower-case text.
#[derive(Clone, Copy)]
struct Span {
    start: u32,
    len: u32,
}

impl Span {
    /// Returns `None` for a start or a length beyond 4 GiB, which no row reaches.
    fn new(range: Range<usize>) -> Option<Self> {
        Some(Self { start: u32::try_from(range.start).ok()?, len: u32::try_from(range.len()).ok()? })
    }

    fn range(self) -> Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}

/// True if the text has a cased letter and no lower-case one (Python's `isupper`).
pub(super) fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)
}

/// True if the text has a cased letter and no upper-case one (Python's `islower`).
pub(super) fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)
}

fn is_word_char(c: char) -> bool {
    match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '_' => true,
        c if c.is_ascii() => false,
        c => WORD_CHAR.is_match(c.encode_utf8(&mut [0; 4])),
    }
}

/// Whether `phrase` occurs between word boundaries. Occurrences may overlap, so the text is scanned once with
/// the prefix function of the phrase (Knuth, Morris and Pratt).
fn contains_whole(lower: &str, phrase: &str) -> bool {
    let (Some(first), Some(last)) = (phrase.chars().next(), phrase.chars().next_back()) else { return false };
    if phrase.len() > lower.len() {
        return false;
    }
    let pattern = phrase.as_bytes();
    // For each byte of the phrase, the length of the longest proper prefix that also ends at this byte.
    let mut borders = vec![0; pattern.len()];
    let mut matched = 0;
    for at in 1..pattern.len() {
        while matched > 0 && pattern[at] != pattern[matched] {
            matched = borders[matched - 1];
        }
        matched += usize::from(pattern[at] == pattern[matched]);
        borders[at] = matched;
    }
    matched = 0;
    for (at, byte) in lower.bytes().enumerate() {
        while matched > 0 && (matched == pattern.len() || byte != pattern[matched]) {
            matched = borders[matched - 1];
        }
        matched += usize::from(byte == pattern[matched]);
        if matched == pattern.len() {
            // A match of valid UTF-8 starts and ends at character boundaries.
            let (from, to) = (at + 1 - pattern.len(), at + 1);
            let before = lower[..from].chars().next_back().is_some_and(is_word_char);
            let after = lower[to..].chars().next().is_some_and(is_word_char);
            if before != is_word_char(first) && after != is_word_char(last) {
                return true;
            }
        }
    }
    false
}

/// Lower-case abbreviations; their full stop does not end a sentence.
const ABBREVIATIONS: [&str; 31] = [
    "mr", "mrs", "ms", "dr", "prof", "sr", "jr", "st", "vs", "etc", "e.g", "i.e", "cf", "al", "approx", "no", "vol",
    "fig", "inc", "ltd", "co", "corp", "dept", "est", "gen", "gov", "rep", "sen", "rev", "hon", "ca",
];

/// Characters found so far in a line. A line may start with white space, then emphasis and heading marks, then
/// digits; after any other character it counts as text.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum LineStart {
    Space,
    Marks,
    Digits,
    Text,
}

impl LineStart {
    fn after(self, c: char) -> Self {
        match c {
            '\n' => Self::Space,
            c if self == Self::Space && c.is_whitespace() => Self::Space,
            '*' | '_' | '#' | ' ' if self <= Self::Marks => Self::Marks,
            c if self <= Self::Digits && c.is_ascii_digit() => Self::Digits,
            _ => Self::Text,
        }
    }
}

fn count_sentences(text: &str) -> usize {
    let (mut count, mut open, mut line) = (0, false, LineStart::Space);
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let before = line;
        line = line.after(c);
        match c {
            '。' | '！' | '？' | '｡' | '।' | '॥' | '؟' | '۔' => {
                count += usize::from(std::mem::take(&mut open))
            }
            '.' | '!' | '?' | '…' => {
                // A run of terminators and closing marks belongs to the sentence before it.
                let mut stops_only = c == '.';
                while let Some(&(_, next)) = chars.peek() {
                    match next {
                        '.' => stops_only = false,
                        '!' | '?' | '…' | '"' | '\'' | ')' | ']' | '”' | '’' | '»' | '*' | '_' => {
                            stops_only &= !matches!(next, '!' | '?' | '…');
                        }
                        _ => break,
                    }
                    chars.next();
                }
                let ends = chars.peek().is_none_or(|&(_, next)| next.is_whitespace());
                if ends && open && !(stops_only && is_inner_stop(&text[..at], before)) {
                    count += 1;
                    open = false;
                }
            }
            '\n' => {
                // A blank line ends a heading or a list item; it may contain spaces or carriage
                // returns.
                let mut lines = 1;
                while let Some(&(_, next)) = chars.peek() {
                    if !next.is_whitespace() {
                        break;
                    }
                    lines += usize::from(next == '\n');
                    chars.next();
                }
                if lines > 1 {
                    count += usize::from(std::mem::take(&mut open));
                }
            }
            c => open |= c.is_alphanumeric(),
        }
    }
    count + usize::from(open)
}

/// True if a full stop after `before` belongs to an abbreviation, an initial or a list number.
fn is_inner_stop(before: &str, line: LineStart) -> bool {
    if line != LineStart::Text {
        return true;
    }
    let token = before.rsplit(char::is_whitespace).next().unwrap_or("");
    let token = token.trim_start_matches(['(', '[', '"', '\'', '“', '‘', '*', '_']);
    let mut graphemes = token.graphemes(true);
    let one = graphemes.next().is_some() && graphemes.next().is_none();
    let initial = one && token.chars().all(char::is_uppercase) && token != "I";
    // The longest abbreviation has 6 letters, far below 24 bytes.
    initial || (token.len() <= 24 && ABBREVIATIONS.contains(&token.to_lowercase().as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentences(text: &str) -> usize {
        Analysis::new(text).sentence_count()
    }

    #[test]
    fn sentences_end_at_terminators_and_blank_lines() {
        assert_eq!(sentences(""), 0);
        assert_eq!(sentences(" \r\n\r\n "), 0);
        assert_eq!(sentences("word"), 1);
        assert_eq!(sentences("ba lo ti. mu re so. ka"), 3);
        assert_eq!(sentences("ba lo ti. mu re so."), 2);
        assert_eq!(sentences("Wait... really?! \"Yes.\" He left."), 4);
        assert_eq!(sentences("Mr. Smith paid 3.50 at 5 p.m. e.g. in A. Town."), 2);
        assert_eq!(sentences("1. One\n2. Two"), 1);
        assert_eq!(sentences("One.\n \t** 2. Two"), 2);
        assert_eq!(sentences("One.\n2 3. Two"), 3);
        assert_eq!(sentences("# Title\r\n\r\nText here. And more"), 3);
        assert_eq!(sentences("今天天气很好。我们去公园吧！好吗？"), 3);
        assert_eq!(sentences("यह पहला है। यह दूसरा है।"), 2);
    }

    /// Counting sentences needs time linear in the length of a line. With quadratic time, this test would run
    /// for hours.
    #[test]
    fn long_lines_are_counted() {
        assert_eq!(sentences(&"a b. ".repeat(1 << 20)), 1 << 20);
        assert_eq!(sentences(&("*".repeat(1 << 20) + &" x.y ((. ".repeat(1 << 18))), 1 << 18);
        assert_eq!(sentences(&"((((".repeat(1 << 20)), 0);
        assert_eq!(sentences(&("w".repeat(1 << 22) + ". ")), 1);
    }

    #[test]
    fn words_follow_ifeval() {
        let words = |text: &str| Analysis::new(text).words().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words("Don't stop_me: 3.5 times!"), ["don", "t", "stop_me", "3", "5", "times"]);
        assert_eq!(Analysis::new("").word_count(), 0);
        assert_eq!(words("Größe, éclair — ок"), ["größe", "éclair", "ок"]);
    }

    /// The expected word counts are those of NLTK 3.10.4, `RegexpTokenizer(r"\w+")`.
    #[test]
    fn combining_marks_belong_to_words() {
        for (text, count) in [
            ("नमस्ते दुनिया", 2),
            ("यह एक छोटा वाक्य है।", 5),
            ("வணக்கம் உலகம்", 2),
            ("தமிழ் மொழி (Tamil language)", 4),
            ("السَّلَامُ عَلَيْكُمْ", 2),
            ("cafe\u{301} x", 2),
            ("สวัสดีชาวโลก", 1),
            ("a\u{200d}b ①②", 1),
            ("ﬁ x² ½ Ⅷ", 3),
            ("٣٤ a‿b", 2),
            ("e\u{20e3} 🇩🇪", 1),
        ] {
            assert_eq!(Analysis::new(text).word_count(), count, "{text}");
        }
        let hindi = Analysis::new("नमस्ते दुनिया");
        assert!(hindi.has_word("दुनिया") && !hindi.has_word("द"));
        assert_eq!(hindi.content_words().collect::<Vec<_>>(), ["नमस्ते", "दुनिया"]);
    }

    #[test]
    fn content_words_fall_back_to_short_words() {
        let words = |text: &str| Analysis::new(text).content_words().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words("This rises bread and that Bread rises 1234"), ["rises", "bread"]);
        assert_eq!(words("ba lo ba x"), ["ba", "lo"]);
        assert!(words("the and of").is_empty());
    }

    #[test]
    fn whole_words_need_boundaries() {
        let text = Analysis::new("The category of C++ (cat).");
        assert!(text.contains_whole("CAT") && !text.contains_whole("categ"));
        assert!(!Analysis::new("concat category").contains_whole("cat"));
        // As in `\bC\+\+\b`: a word character would have to follow the plus.
        assert!(!text.contains_whole("c++"));
        assert!(!text.contains_whole(""));
        // Occurrences overlap, and only the second one lies between word boundaries.
        assert!(Analysis::new("xa a a a").contains_whole("a a a"));
        assert!(!Analysis::new("xaba").contains_whole("aba"));
    }

    /// The scan does not restart after each occurrence; otherwise this test would run for hours.
    #[test]
    fn repetitive_phrases_are_found_in_linear_time() {
        let text = "a".repeat(1 << 22);
        assert!(!Analysis::new(&text).contains_whole(&text[..1 << 21]));
        assert!(Analysis::new(&text).contains_whole(&text));
    }

    #[test]
    fn words_in_capitals() {
        let count = |text| Analysis::new(text).capital_word_count();
        assert_eq!(count("I saw NASA's X-15 (USA), not Nasa"), 4);
        assert_eq!(count("U.S. and STATE-OF-THE-ART"), 2);
        assert_eq!(count("123 - ! lower"), 0);
    }

    #[test]
    fn keywords_are_literal() {
        let text = Analysis::new("a.b (a+b) [A.B] a.b");
        assert_eq!(text.occurrences("a.b"), 3);
        assert!(text.contains("(A+") && !text.contains("a*b"));
        assert_eq!(text.occurrences(""), 0);
    }
}
