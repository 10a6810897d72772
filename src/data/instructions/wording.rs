//! Grammar shared by the phrasings: lists of words, nouns with a number, choice of a phrasing.

use super::Relation;

/// Joins words with "and" or "or": `a`, `a and b`, `a, b and c`.
pub(super) fn list(words: &[&str], conjunction: &str) -> String {
    match words {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [head @ .., last] => format!("{} {conjunction} {last}", head.join(", ")),
    }
}

/// Returns the singular or plural noun for `n`.
pub(super) fn noun<'a>(n: usize, one: &'a str, many: &'a str) -> &'a str {
    if n == 1 { one } else { many }
}

/// Returns the relation in words. Both relations have the same number of wordings, so `variant` does not reveal
/// the relation.
pub(super) fn relation(relation: Relation, variant: usize) -> &'static str {
    match (relation, variant % 2) {
        (Relation::AtLeast, 0) => "at least",
        (Relation::AtLeast, _) => "no fewer than",
        (Relation::LessThan, 0) => "less than",
        (Relation::LessThan, _) => "fewer than",
    }
}

/// Returns phrasing `variant` of a list, modulo its length.
pub(super) fn pick<const N: usize>(variant: usize, texts: [String; N]) -> Option<String> {
    let index = variant.checked_rem(N)?;
    texts.into_iter().nth(index)
}
