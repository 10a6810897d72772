//! Grammar shared by the phrasings: lists of words, numbers with their noun, choice of a phrasing.

use super::Relation;

/// `a`, `a and b`, `a, b and c`.
pub fn and_list(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [head @ .., last] => format!("{} and {last}", head.join(", ")),
    }
}

/// `a`, `a or b`, `a, b or c`.
pub fn or_list(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [head @ .., last] => format!("{} or {last}", head.join(", ")),
    }
}

/// The noun in the number that `n` asks for.
pub fn noun<'a>(n: usize, one: &'a str, many: &'a str) -> &'a str {
    if n == 1 { one } else { many }
}

/// The relation in words. Both relations have as many wordings, so that the wording does not tell them apart.
pub fn relation(relation: Relation, variant: usize) -> &'static str {
    match (relation, variant % 2) {
        (Relation::AtLeast, 0) => "at least",
        (Relation::AtLeast, _) => "no fewer than",
        (Relation::LessThan, 0) => "less than",
        (Relation::LessThan, _) => "fewer than",
    }
}

/// Phrasing `variant` of a list, counted round.
pub fn pick<const N: usize>(variant: usize, texts: [String; N]) -> Option<String> {
    let index = variant.checked_rem(N)?;
    texts.into_iter().nth(index)
}
