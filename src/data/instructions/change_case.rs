//! IFEval family `change_case`: words in capitals; the whole response in capitals or in lower case.

use super::analysis::{is_lower, is_upper};
use super::language::reads_as_english;
use super::quantity::{bound, draw_two_sided, meets};
use super::wording::{noun, pick, relation};
use super::{Function, FunctionKind, Kwargs, no_arguments};

pub(super) static FUNCTIONS: [Function; 3] = [
    Function {
        id: "change_case:capital_word_frequency",
        kind: FunctionKind::TwoSided,
        approximate: true,
        triggers: &["capital", "capitals", "capitalized", "uppercase", "caps", "lowercase"],
        draw: |request, rng| draw_two_sided(request, rng, CAPITALS, |r| r.capital_word_count()),
        phrase: capitals_phrase,
        check: |kwargs, response| meets(kwargs, CAPITALS, response.capital_word_count()),
    },
    Function {
        id: "change_case:english_capital",
        kind: FunctionKind::Fixed,
        approximate: true,
        triggers: &["capital", "capitals", "uppercase", "caps", "lowercase"],
        draw: no_arguments,
        phrase: |_, variant| {
            pick(
                variant,
                [
                    "Write in English and only in capital letters.".to_owned(),
                    "Your whole answer should be English text in capitals.".to_owned(),
                ],
            )
        },
        check: |_, response| Some(is_upper(response.text()) && reads_as_english(response)),
    },
    Function {
        id: "change_case:english_lowercase",
        kind: FunctionKind::Fixed,
        approximate: true,
        triggers: &["capital", "capitals", "uppercase", "caps", "lowercase"],
        draw: no_arguments,
        phrase: |_, variant| {
            pick(
                variant,
                [
                    "Write in English and only in lower-case letters.".to_owned(),
                    "Use no capital letter anywhere, and answer in English.".to_owned(),
                ],
            )
        },
        check: |_, response| Some(is_lower(response.text()) && reads_as_english(response)),
    },
];

const CAPITALS: [&str; 2] = ["capital_frequency", "capital_relation"];

fn capitals_phrase(kwargs: &Kwargs, variant: usize) -> Option<String> {
    let (n, r) = bound(kwargs, CAPITALS)?;
    let (r, words) = (relation(r, variant / 3), noun(n, "word", "words"));
    pick(
        variant,
        [
            format!("Use {r} {n} {words} in all capital letters."),
            format!("Write {r} {n} {words} entirely in capitals."),
            format!("Your answer should contain {r} {n} fully capitalised {words}."),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::super::Analysis;
    use super::*;

    #[test]
    fn whole_case_needs_letters_of_that_case_in_english() {
        let check = |function: usize, text| FUNCTIONS[function].check(&Kwargs::new(), &Analysis::new(text));
        assert_eq!(check(1, "THIS IS THE END OF IT."), Some(true));
        assert_eq!(check(1, "THIS IS the END."), Some(false));
        assert_eq!(check(1, "123"), Some(false));
        assert_eq!(check(2, "this is the end of it."), Some(true));
        assert_eq!(check(2, "das ist das ende und der anfang von allem."), Some(false));
        assert_eq!(check(2, "это конец"), Some(false));
    }
}
