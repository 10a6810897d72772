//! IFEval family `keywords`: existence, frequency, forbidden words, letter frequency. Keywords are plain text
//! and ignore case. Existence and frequency match inside words; forbidden words match whole words, as in
//! IFEval.

use super::lexical::{forbidden_words, required_words, words_not_in_prompt};
use super::quantity::{bound, draw_threshold, flagged_counts, meets};
use super::wording::{list, noun, pick, relation};
use super::{Analysis, Function, FunctionKind, Kwargs, Request, kwargs, text_argument, words_argument};
use crate::rng::Rng;

pub(super) static FUNCTIONS: [Function; 4] = [
    Function {
        id: "keywords:existence",
        kind: FunctionKind::Lexical,
        approximate: false,
        triggers: &["keyword", "keywords", "the word", "the words", "following words"],
        draw: |request, rng| Some(kwargs([("keywords", required_words(request, rng)?.into())])),
        phrase: existence_phrase,
        check: |kwargs, response| Some(searchable(kwargs, "keywords", response)?.iter().all(|w| response.contains(w))),
    },
    Function {
        id: "keywords:frequency",
        kind: FunctionKind::TwoSided,
        approximate: false,
        triggers: &["keyword", "keywords", "the word", "the words", "times the word"],
        draw: draw_frequency,
        phrase: frequency_phrase,
        check: |kwargs, response| {
            meets(kwargs, FREQUENCY, response.occurrences(text_argument(kwargs, "keyword")?.trim()))
        },
    },
    Function {
        id: "keywords:forbidden_words",
        kind: FunctionKind::Lexical,
        approximate: false,
        triggers: &["keyword", "keywords", "the word", "the words", "forbidden", "without using"],
        draw: |request, rng| Some(kwargs([("forbidden_words", forbidden_words(request, rng)?.into())])),
        phrase: forbidden_phrase,
        check: |kwargs, response| {
            Some(!searchable(kwargs, "forbidden_words", response)?.iter().any(|w| response.contains_whole(w)))
        },
    },
    Function {
        id: "keywords:letter_frequency",
        kind: FunctionKind::TwoSided,
        approximate: false,
        triggers: &["letter", "letters", "vowel", "vowels", "alphabet", "spell", "spelled"],
        draw: draw_letter,
        phrase: letter_phrase,
        check: |kwargs, response| meets(kwargs, LETTER, response.letter_count(letter_argument(kwargs)?)),
    },
];

const FREQUENCY: [&str; 2] = ["frequency", "relation"];
const LETTER: [&str; 2] = ["let_frequency", "let_relation"];

/// Maximum number of keywords tried. The search prefers a keyword that occurs twice, because "at least 2
/// times" reads better than "less than 1 time"; otherwise it uses the first feasible one.
const KEYWORDS_TRIED: usize = 40;

/// Returns the words of an argument; `None` if their number times the length of the response is above the
/// limit, because the search would last minutes.
fn searchable<'a>(kwargs: &'a Kwargs, key: &str, response: &Analysis) -> Option<Vec<&'a str>> {
    const MAX_BYTES_SEARCHED: usize = 1 << 31;
    let words = words_argument(kwargs, key)?;
    let bytes = words.len().checked_mul(response.text().len())?;
    (bytes <= MAX_BYTES_SEARCHED).then_some(words)
}

fn existence_phrase(kwargs: &Kwargs, variant: usize) -> Option<String> {
    let words = words_argument(kwargs, "keywords")?;
    let (all, keyword) = (list(&words, "and"), noun(words.len(), "keyword", "keywords"));
    let word = noun(words.len(), "word", "words");
    let (verb, each) = (noun(words.len(), "appears", "appear"), noun(words.len(), "this word", "each of these words"));
    pick(
        variant,
        [
            format!("Include the {keyword} {all}."),
            format!("Work the {word} {all} into the answer."),
            format!("Make sure that the {word} {all} {verb} in your answer."),
            format!("Use {each} somewhere: {}.", words.join(", ")),
        ],
    )
}

fn forbidden_phrase(kwargs: &Kwargs, variant: usize) -> Option<String> {
    let words = words_argument(kwargs, "forbidden_words")?;
    let (all, any, word) = (list(&words, "and"), list(&words, "or"), noun(words.len(), "word", "words"));
    pick(
        variant,
        [
            format!("Do not use the {word} {any}."),
            format!("Avoid the {word} {all}."),
            format!("Leave out the {word} {all}."),
            format!("Your answer must not contain the {word} {any}."),
        ],
    )
}

fn draw_frequency(request: &Request, rng: &mut Rng) -> Option<Kwargs> {
    let mut words: Vec<&str> = request.targets.iter().flat_map(|t| words_not_in_prompt(t.response, request)).collect();
    words.sort_unstable();
    words.dedup();
    rng.shuffle(&mut words);
    let mut fallback = None;
    for keyword in words.into_iter().take(KEYWORDS_TRIED) {
        let counts = flagged_counts(request, |r| r.occurrences(keyword));
        let Some((relation, threshold)) = draw_threshold(&counts, request.partner, rng) else { continue };
        let drawn = kwargs([
            ("keyword", keyword.into()),
            (FREQUENCY[0], threshold.into()),
            (FREQUENCY[1], relation.name().into()),
        ]);
        if counts.iter().any(|&(count, _)| count >= 2) {
            return Some(drawn);
        }
        fallback.get_or_insert(drawn);
    }
    fallback
}

fn frequency_phrase(kwargs: &Kwargs, variant: usize) -> Option<String> {
    let (n, r) = bound(kwargs, FREQUENCY)?;
    let (keyword, r, times) = (text_argument(kwargs, "keyword")?, relation(r, variant / 3), noun(n, "time", "times"));
    pick(
        variant,
        [
            format!("Use the word {keyword} {r} {n} {times}."),
            format!("Mention {keyword} {r} {n} {times}."),
            format!("The word {keyword} should appear {r} {n} {times}."),
        ],
    )
}

/// Draws a letter. Letters with two cases are preferred; a script without case yields any letter.
fn draw_letter(request: &Request, rng: &mut Rng) -> Option<Kwargs> {
    let letters = |fits: fn(char) -> bool| {
        let responses = request.targets.iter().map(|t| t.response);
        let mut letters: Vec<char> = responses.flat_map(|r| r.letters().keys().copied()).filter(|c| fits(*c)).collect();
        letters.sort_unstable();
        letters.dedup();
        letters
    };
    let mut candidates = letters(char::is_lowercase);
    if candidates.is_empty() {
        candidates = letters(char::is_alphabetic);
    }
    if candidates.is_empty() {
        candidates = ('a'..='z').collect();
    }
    rng.shuffle(&mut candidates);
    candidates.into_iter().find_map(|letter| {
        let counts = flagged_counts(request, |r| r.letter_count(letter));
        let (relation, threshold) = draw_threshold(&counts, request.partner, rng)?;
        Some(kwargs([
            ("letter", letter.to_string().into()),
            (LETTER[0], threshold.into()),
            (LETTER[1], relation.name().into()),
        ]))
    })
}

fn letter_argument(kwargs: &Kwargs) -> Option<char> {
    let lower = text_argument(kwargs, "letter")?.trim().to_lowercase();
    let mut chars = lower.chars();
    let letter = chars.next()?;
    chars.next().is_none().then_some(letter)
}

fn letter_phrase(kwargs: &Kwargs, variant: usize) -> Option<String> {
    let (n, r) = bound(kwargs, LETTER)?;
    let (letter, r, times) = (letter_argument(kwargs)?, relation(r, variant / 3), noun(n, "time", "times"));
    pick(
        variant,
        [
            format!("Use the letter {letter} {r} {n} {times}."),
            format!("The letter {letter} should occur {r} {n} {times}."),
            format!("Let the letter {letter} appear {r} {n} {times}."),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(function: usize, kwargs: &Kwargs, text: &str) -> Option<bool> {
        FUNCTIONS[function].check(kwargs, &Analysis::new(text))
    }

    #[test]
    fn existence_matches_inside_words_and_forbidden_words_do_not() {
        let required = kwargs([("keywords", vec!["rise", "A.B"].into())]);
        assert_eq!(check(0, &required, "Sunrise at a.b"), Some(true));
        assert_eq!(check(0, &required, "Sunrise at axb"), Some(false));
        let forbidden = kwargs([("forbidden_words", vec!["rise"].into())]);
        assert_eq!(check(2, &forbidden, "Sunrise"), Some(true));
        assert_eq!(check(2, &forbidden, "RISE!"), Some(false));
    }

    #[test]
    fn malformed_arguments_cannot_be_checked() {
        for function in 0..FUNCTIONS.len() {
            assert_eq!(check(function, &Kwargs::new(), "text"), None);
        }
        let odd = kwargs([("letter", "ab".into()), ("let_frequency", 1.into()), ("let_relation", "at least".into())]);
        assert_eq!(check(3, &odd, "text"), None);
        let unknown = kwargs([("keyword", "a".into()), ("frequency", 1.into()), ("relation", "at most".into())]);
        assert_eq!(check(1, &unknown, "text"), None);
    }

    #[test]
    fn phrasings_hold_the_arguments() {
        let two = kwargs([("keywords", vec!["dough", "mornings"].into())]);
        assert_eq!(FUNCTIONS[0].phrase(&two, 0).unwrap(), "Include the keywords dough and mornings.");
        let one = kwargs([("forbidden_words", vec!["dough"].into())]);
        assert_eq!(FUNCTIONS[2].phrase(&one, 0).unwrap(), "Do not use the word dough.");
        let once = kwargs([("keyword", "oven".into()), ("frequency", 1.into()), ("relation", "at least".into())]);
        assert_eq!(FUNCTIONS[1].phrase(&once, 0).unwrap(), "Use the word oven at least 1 time.");
    }
}
