//! Words and sentences as IFBench splits them. Punctuation is that of ASCII, as in Python's
//! `string.punctuation`.

use std::sync::LazyLock;

use regex::Regex;

pub(super) fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is constant and valid")
}

/// The text without punctuation.
pub(super) fn bare(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_punctuation()).collect()
}

pub(super) fn is_edge(c: char) -> bool {
    c.is_ascii_punctuation() || c == ' '
}

/// A word without punctuation and spaces at its ends.
pub(super) fn trimmed(word: &str) -> &str {
    word.trim_matches(is_edge)
}

pub(super) fn first(word: &str) -> Option<char> {
    word.chars().next()
}

/// Sentences by a list of rules: full stops of titles, initials, numbers and addresses are masked, then every
/// `.`, `?` and `!` ends a sentence. A quotation mark that follows such a mark is moved before it.
pub(super) fn sentences(text: &str) -> Vec<String> {
    // (pattern, replacement); `\u{1}` is a masked full stop and `\u{2}` the end of a sentence.
    const STARTERS: &str = r"(Mr|Mrs|Ms|Dr|Prof|Capt|Cpt|Lt|He\s|She\s|It\s|They\s|Their\s|Our\s|We\s|But\s|However\s|That\s|This\s|Wherever)";
    static MASKS: LazyLock<[Vec<(Regex, &str)>; 2]> = LazyLock::new(|| {
        let before = [
            (r"(Mr|St|Mrs|Ms|Dr)[.]".to_owned(), "$1\u{1}"),
            (r"[.](com|net|org|io|gov|edu|me)".to_owned(), "\u{1}$1"),
            (r"([0-9])[.]([0-9])".to_owned(), "$1\u{1}$2"),
        ];
        let after = [
            (r"Ph\.D\.".to_owned(), "Ph\u{1}D\u{1}"),
            (r"\s([A-Za-z])[.] ".to_owned(), " $1\u{1} "),
            (format!(r"([A-Z][.][A-Z][.](?:[A-Z][.])?) {STARTERS}"), "$1\u{2} $2"),
            (r"([A-Za-z])[.]([A-Za-z])[.]([A-Za-z])[.]".to_owned(), "$1\u{1}$2\u{1}$3\u{1}"),
            (r"([A-Za-z])[.]([A-Za-z])[.]".to_owned(), "$1\u{1}$2\u{1}"),
            (format!(r" (Inc|Ltd|Jr|Sr|Co)[.] {STARTERS}"), " $1\u{2} $2"),
            (r" (Inc|Ltd|Jr|Sr|Co)[.]".to_owned(), " $1\u{1}"),
            (r" ([A-Za-z])[.]".to_owned(), " $1\u{1}"),
        ];
        let compile = |(from, to): (String, &'static str)| (pattern(&from), to);
        [before.into_iter().map(compile).collect(), after.into_iter().map(compile).collect()]
    });
    static DOTS: LazyLock<Regex> = LazyLock::new(|| pattern(r"\.{2,}"));
    let [before, after] = &*MASKS;
    let apply = |text: String, rules: &[(Regex, &str)]| {
        rules.iter().fold(text, |text, (from, to)| from.replace_all(&text, *to).into_owned())
    };
    let text = apply(format!(" {text}  ").replace('\n', " "), before);
    let text = DOTS.replace_all(&text, |found: &regex::Captures| "\u{1}".repeat(found[0].len()) + "\u{2}");
    let text = apply(text.into_owned(), after);
    let text = text.replace(".”", "”.").replace(".\"", "\".").replace("!\"", "\"!").replace("?\"", "\"?");
    let text = ['.', '?', '!'].iter().fold(text, |text, end| text.replace(*end, &format!("{end}\u{2}")));
    let text = text.replace('\u{1}', ".");
    let mut found: Vec<String> = text.split('\u{2}').map(|sentence| sentence.trim().to_owned()).collect();
    if found.last().is_some_and(String::is_empty) {
        found.pop();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_those_of_ifbench() {
        assert_eq!(sentences(""), [""; 0]);
        assert_eq!(sentences("One. Two? Three!"), ["One.", "Two?", "Three!"]);
        assert_eq!(
            sentences("Mr. A. Moss paid 3.50 at x.com... Then (e.g.) he left"),
            ["Mr. A. Moss paid 3.50 at x.com...", "Then (e.g.) he left"]
        );
        assert_eq!(sentences("He said \"No.\" Why? !"), ["He said \"No\".", "Why?", "!"]);
    }
}
