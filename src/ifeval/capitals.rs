//! Number of words in capitals as IFEval counts it: tokens of NLTK's `word_tokenize` that Python's
//! `isupper` accepts. A sentence is rewritten by a list of rules that put spaces around
//! punctuation, quotation marks and clitics (Penn Treebank conventions), and then split at spaces.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

use super::sentences::sentences;

/// Number of tokens in capitals.
pub(super) fn capital_words(text: &str) -> usize {
    sentences(text)
        .into_iter()
        .map(|sentence| tokenized(sentence).split_whitespace().filter(|t| is_upper(t)).count())
        .sum()
}

/// Tokens of NLTK's `word_tokenize`.
pub(super) fn tokens(text: &str) -> Vec<String> {
    let rewritten = sentences(text).into_iter().map(tokenized);
    rewritten.flat_map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Python's `isupper`: a letter in upper case, and none in lower or title case.
pub(super) fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(|c| c.is_lowercase() || is_title(c))
}

/// Python's `islower`.
pub(super) fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(|c| c.is_uppercase() || is_title(c))
}

/// Letters such as the digraph Dž that are neither in upper nor in lower case.
fn is_title(c: char) -> bool {
    static TITLE: LazyLock<Regex> = LazyLock::new(|| pattern(r"^\p{Lt}$"));
    !c.is_ascii() && TITLE.is_match(c.encode_utf8(&mut [0; 4]))
}

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is constant and valid")
}

/// Rules that are applied before `open_quotations`, in order.
const OPENING: [(&str, &str); 4] =
    [(r"[«“‘„]|`+", " $0 "), (r#"^""#, "``"), ("``", " $0 "), (r#"([ (\[{<])("|'{2})"#, "$1 `` ")];

/// Rules that are applied after `open_quotations`, in order.
const PUNCTUATION: [(&str, &str); 12] = [
    (r#"([^.])(\.)([\])}>"'»”’ ]*)\s*$"#, "$1 $2 $3 "),
    (r"([:,])(\D)", " $1 $2"),
    (r"([:,])(\n?)$", " $1 $2"),
    (r"\.{2,}", " $0 "),
    (r"[;@#$%&]", " $0 "),
    (r"[\u{2012}-\u{2015}]", " $0 "),
    (r#"([^.])(\.)([\])}>"']*)\s*$"#, "$1 $2$3 "),
    (r"[?!]", " $0 "),
    (r"([^'])' ", "$1 ' "),
    (r"\*", " $0 "),
    (r"[\]\[(){}<>]", " $0 "),
    ("--", " $0 "),
];

/// Last rules, in order. A space is put at both ends of the sentence before they are applied.
const CLOSING: [(&str, &str); 16] = [
    ("[»”’]", " $0 "),
    ("''", " '' "),
    ("\"", " '' "),
    (r"\s+", " "),
    (r"([^' ])('[sS]|'[mM]|'[dD]|') ", "$1 $2 "),
    (r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", "$1 $2 "),
    (r"(?i)\b(can)(not)\b", " $1 $2 "),
    (r"(?i)\b(d)('ye)\b", " $1 $2 "),
    (r"(?i)\b(gim)(me)\b", " $1 $2 "),
    (r"(?i)\b(gon)(na)\b", " $1 $2 "),
    (r"(?i)\b(got)(ta)\b", " $1 $2 "),
    (r"(?i)\b(lem)(me)\b", " $1 $2 "),
    (r"(?i)\b(more)('n)\b", " $1 $2 "),
    (r"(?i)\b(wan)(na)(\s)", " $1 $2 $3"),
    (r"(?i) ('t)(is)\b", " $1 $2 "),
    (r"(?i) ('t)(was)\b", " $1 $2 "),
];

fn tokenized(sentence: &str) -> String {
    static RULES: LazyLock<[Vec<(Regex, &str)>; 3]> = LazyLock::new(|| {
        let compiled = |rules: &[(&str, &'static str)]| rules.iter().map(|(from, to)| (pattern(from), *to)).collect();
        [compiled(&OPENING), compiled(&PUNCTUATION), compiled(&CLOSING)]
    });
    let apply = |text: String, rules: &[(Regex, &str)]| {
        rules.iter().fold(text, |text, (from, to)| match from.replace_all(&text, *to) {
            Cow::Borrowed(_) => text,
            Cow::Owned(changed) => changed,
        })
    };
    let [opening, punctuation, closing] = &*RULES;
    let text = open_quotations(&apply(sentence.to_owned(), opening));
    let text = apply(text, punctuation);
    apply(format!(" {text} "), closing)
}

/// Puts a space after an apostrophe that starts a word and does not start a clitic.
fn open_quotations(text: &str) -> String {
    static WORD: LazyLock<Regex> = LazyLock::new(|| pattern(r"^\w"));
    static CLITIC: LazyLock<Regex> = LazyLock::new(|| pattern(r"^(?i:re|ve|ll|m|t|s|d|n)\b"));
    let mut out = String::with_capacity(text.len());
    let mut before = None;
    for (at, c) in text.char_indices() {
        out.push(c);
        if c == '\'' {
            let rest = &text[at + 1..];
            let in_word = before.is_some_and(|c: char| WORD.is_match(c.encode_utf8(&mut [0; 4])));
            if !in_word && WORD.is_match(rest) && !CLITIC.is_match(rest) {
                out.push(' ');
            }
        }
        before = Some(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_those_of_nltk() {
        for (text, expected) in [
            ("I CAN'T say \"NO\" (e.g. in the U.S.A.).", "I|CA|N'T|say|``|NO|''|(|e.g|.|in|the|U.S.A.|)|."),
            ("WE'LL cannot 'SHOUT' at 5:30, e.g.", "WE|'LL|can|not|'|SHOUT|'|at|5:30|,|e.g|."),
            ("**BOLD** A--B it's 'tis", "*|*|BOLD|*|*|A|--|B|it|'s|'|tis"),
        ] {
            assert_eq!(tokens(text).join("|"), expected);
        }
    }

    #[test]
    fn capitals_are_counted_in_tokens() {
        assert_eq!(capital_words("I AM HERE. So are YOU! COVID-19 and x_Y"), 5);
        assert_eq!(capital_words("CANNOT GONNA WE'LL"), 6);
        assert_eq!(capital_words("ǅ Ab 12 ÄÖ"), 1);
        assert_eq!(capital_words(""), 0);
    }

    #[test]
    fn the_case_of_a_text_is_that_of_python() {
        assert!(is_upper("A 1!") && !is_upper("1!") && !is_upper("Aǅ") && !is_upper("AB\u{2170}"));
        assert!(is_lower("a 1!") && !is_lower("1!") && !is_lower("aǅ"));
    }
}
